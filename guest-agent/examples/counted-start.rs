//! PID 1 of a guest in which the kernel's instructions of a start are counted (kernel-config/count): the agent, and a
//! supervisor that it forks first, over Unix sockets in place of vsock. The image is on the first disk and the writable layer
//! on the second.
//!
//! Arguments: `start` or `cold-start` counts up to the exec, `run` or `cold-run` up to the exit being said, `wake` the waking;
//! `enter-start` and `enter-run` the same of a second process beside the first, `enter-again-run` of a third.

use std::{
    io::Read,
    os::unix::net::{UnixListener, UnixStream},
    process::ExitCode,
};

use brig_agent::{
    agent::{self, Setup},
    machine,
    prepared::Prepared,
    process::Places,
    streams::Arrivals,
    wake,
};
use brig_protocol::{
    agent::{FROM_AGENT_BYTES, FromAgent, TO_AGENT_BYTES, ToAgent, WakeSpec},
    frame,
    spec::{
        CapabilitySet, CgroupSpec, Extras, FileImages, FileSpec, ProcessSpec, Rlimit, RootSpec, SandboxSpec,
        Seccomp,
    },
    stream::{HEADER_BYTES, StreamHeader},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The plugin counts from the execution of this function …
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mark_start() {
    std::hint::black_box(1);
}

/// … to that of this one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mark_stop() {
    std::hint::black_box(2);
}

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("counted-start: {error}");
    }
    machine::reset()
}

fn run() -> Result<()> {
    machine::prepare()?;
    let (control, supervisors) = UnixStream::pair()?;
    control.set_nonblocking(true)?;
    let listener = UnixListener::bind("/streams")?;
    listener.set_nonblocking(true)?;
    // SAFETY: this process has one thread, so that the child may go on with everything that it has copied.
    if unsafe { libc::fork() } == 0 {
        drop(control);
        if let Err(error) = supervise(supervisors) {
            eprintln!("counted-start: {error}");
        }
        machine::reset();
    }
    drop(supervisors);
    agent::serve(Setup {
        control: control.into(),
        arrivals: Arrivals::Listener(listener.into()),
        places: Places::under("/"),
        prepared: Prepared::default(),
        filter: None,
        entered_us: 0,
        default_limit: None,
        machine: Box::new(wake::Kernel::default()),
        abandon: machine::reset,
    })?;
    Ok(())
}

fn supervise(mut control: UnixStream) -> Result<()> {
    let what = std::env::args().next_back().unwrap_or_default();
    let receive = |control: &mut UnixStream| frame::read::<FromAgent>(control, FROM_AGENT_BYTES);
    receive(&mut control)?;
    if !what.starts_with("cold") {
        send(&mut control, &ToAgent::Prepare(Box::new(spec("template"))))?;
        match receive(&mut control)? {
            FromAgent::Prepared => {}
            answer => return Err(format!("{answer:?}").into()),
        }
    }
    let wake = ToAgent::Wake(WakeSpec {
        tsc: wake::time_stamp_counter(),
        realtime_ns: 1_800_000_000_000_000_000,
        tsc_khz: 1_000_000,
        seed: [7; 32],
        identity: None,
    });
    if what == "wake" {
        mark_start();
    }
    send(&mut control, &wake)?;
    receive(&mut control)?;
    if what == "wake" {
        mark_stop();
    }
    let mut streams = Vec::new();
    for header in [
        StreamHeader::Stdout { process: 0 },
        StreamHeader::Stderr { process: 0 },
    ] {
        let mut stream = UnixStream::connect("/streams")?;
        let bytes: [u8; HEADER_BYTES] = header.encode();
        std::io::Write::write_all(&mut stream, &bytes)?;
        streams.push(stream);
    }
    if what.starts_with("enter") {
        let mut first = spec("cell");
        first.process.args = ["sleep", "1000"].map(String::from).to_vec();
        send(&mut control, &ToAgent::Start(Box::new(first)))?;
        receive(&mut control)?;
        if what.starts_with("enter-again") {
            enter(&mut control, 1, false, false)?;
        }
        return enter(&mut control, 2, true, what.ends_with("start"));
    }
    // Whatever is in motion still comes to rest.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let start = ToAgent::Start(Box::new(spec("cell")));
    mark_start();
    send(&mut control, &start)?;
    match receive(&mut control)? {
        FromAgent::Started { .. } => {}
        answer => return Err(format!("{answer:?}").into()),
    }
    if what.ends_with("start") {
        mark_stop();
    }
    match receive(&mut control)? {
        FromAgent::Exited { .. } => {}
        answer => return Err(format!("{answer:?}").into()),
    }
    mark_stop();
    let mut said = String::new();
    for mut stream in streams {
        stream.read_to_string(&mut said)?;
    }
    if !said.is_empty() {
        eprintln!("counted-start: {said}");
    }
    Ok(())
}

/// Runs a process beside the first, counted or not, up to its exec or its end.
fn enter(control: &mut UnixStream, process: u32, count: bool, to_exec: bool) -> Result<()> {
    let mut streams = Vec::new();
    for header in [StreamHeader::Stdout { process }, StreamHeader::Stderr { process }] {
        let mut stream = UnixStream::connect("/streams")?;
        std::io::Write::write_all(&mut stream, &header.encode())?;
        streams.push(stream);
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    let spec = Box::new(spec("cell").process);
    if count {
        mark_start();
    }
    send(control, &ToAgent::Exec { process, spec })?;
    let stages = if to_exec { 1 } else { 2 };
    for _ in 0..stages {
        match frame::read::<FromAgent>(control, FROM_AGENT_BYTES)? {
            FromAgent::Started { .. } | FromAgent::Exited { .. } => {}
            answer => return Err(format!("{answer:?}").into()),
        }
    }
    if count {
        mark_stop();
    }
    Ok(())
}

fn send(control: &mut UnixStream, message: &ToAgent) -> Result<()> {
    Ok(frame::write(control, message, TO_AGENT_BYTES)?)
}

/// What the engine makes of `brig run busybox true`.
fn spec(hostname: &str) -> SandboxSpec {
    let file = |path: &str, content: &str| FileSpec {
        path: path.into(),
        content: content.into(),
        mode: 0o644,
        images: FileImages::All,
    };
    SandboxSpec {
        id: "0".repeat(64),
        hostname: hostname.into(),
        root: RootSpec::Disks {
            image: 0,
            writable: 1,
        },
        mounts: SandboxSpec::default_mounts(64 << 20),
        files: vec![
            file("/etc/hosts", "127.0.0.1 localhost\n"),
            file("/etc/hostname", "cell\n"),
            file("/etc/resolv.conf", ""),
        ],
        directories: vec![],
        masked_paths: SandboxSpec::default_masked_paths(),
        readonly_paths: SandboxSpec::default_readonly_paths(),
        cgroup: CgroupSpec::default(),
        extras: Extras::default(),
        process: ProcessSpec {
            args: vec!["true".into()],
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            cwd: "/".into(),
            user: String::new(),
            groups: vec![],
            capabilities: CapabilitySet::DOCKER_DEFAULT,
            no_new_privileges: false,
            seccomp: Seccomp::Default,
            init: false,
            rlimits: vec![Rlimit {
                resource: libc::RLIMIT_NOFILE as u8,
                soft: 1024,
                hard: 524_288,
            }],
            stdin: false,
            tty: None,
        },
    }
}
