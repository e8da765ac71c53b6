//! A supervisor's side of an agent: Unix sockets in place of vsock, a directory in place of disks. Needs root and
//! Debian's busybox-static.

// clippy does not take a module beside the tests for a test.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::{
            fs::symlink,
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use brig_protocol::{
    agent::{ExitStatus, FROM_AGENT_BYTES, FromAgent, TO_AGENT_BYTES, ToAgent, VERSION},
    frame,
    spec::{CapabilitySet, CgroupSpec, Extras, ProcessSpec, RootSpec, SandboxSpec, Seccomp},
    stream::StreamHeader,
};
use rustix::mount::{MountPropagationFlags, mount_change};
use tempfile::TempDir;

/// How long a test waits before it says that nothing comes.
const PATIENCE: Duration = Duration::from_secs(30);

pub const STDIN: StreamHeader = StreamHeader::Stdin { process: 0 };
pub const STDOUT: StreamHeader = StreamHeader::Stdout { process: 0 };
pub const STDERR: StreamHeader = StreamHeader::Stderr { process: 0 };

/// An agent and the supervisor's ends of its sockets.
pub struct Agent {
    pub child: Child,
    pub control: UnixStream,
    pub directory: TempDir,
}

impl Agent {
    /// Starts one and takes its hello.
    pub fn new() -> Self {
        Self::start_in(false)
    }

    /// The same in a mount namespace of its own, as it mounts what a guest has.
    pub fn with_own_mounts() -> Self {
        Self::start_in(true)
    }

    fn start_in(own_mounts: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for place in ["dev", "files", "rootfs/bin", "rootfs/etc"] {
            fs::create_dir_all(directory.path().join(place)).unwrap();
        }
        symlink("/dev/null", directory.path().join("dev/null")).unwrap();
        let busybox = directory.path().join("rootfs/bin/busybox");
        // Not by this process: a child forked meanwhile would hold it open for writing, and it could not be executed.
        let copied = Command::new("cp")
            .arg("/bin/busybox")
            .arg(busybox)
            .status()
            .unwrap();
        assert!(
            copied.success(),
            "these tests need root and busybox: apt-get install busybox-static"
        );
        symlink("busybox", directory.path().join("rootfs/bin/sh")).unwrap();

        let (control, agents_control) = UnixStream::pair().unwrap();
        agents_control.set_nonblocking(true).unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let listener = UnixListener::bind(directory.path().join("streams")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let child = spawn(
            directory.path(),
            agents_control.into(),
            listener.into(),
            own_mounts,
        );
        let mut agent = Self {
            child,
            control,
            directory,
        };
        let FromAgent::Hello {
            version,
            init_us,
            ready_us,
            ..
        } = agent.receive()
        else {
            panic!("no hello")
        };
        assert_eq!(version, VERSION);
        assert!(init_us <= ready_us);
        agent
    }

    pub fn send(&mut self, message: &ToAgent) {
        frame::write(&mut self.control, message, TO_AGENT_BYTES).unwrap();
    }

    pub fn receive(&mut self) -> FromAgent {
        frame::read(&mut self.control, FROM_AGENT_BYTES).unwrap()
    }

    /// A connection that has sent `header`, whatever it is.
    pub fn raw_stream(&self, header: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("streams")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(header).unwrap();
        stream
    }

    pub fn stream(&self, header: StreamHeader) -> UnixStream {
        self.raw_stream(&header.encode())
    }

    /// What runs `script`.
    pub fn spec(&self, script: &str) -> SandboxSpec {
        let mounts = SandboxSpec::default_mounts(1 << 20);
        SandboxSpec {
            id: "0".repeat(64),
            hostname: "cell".into(),
            root: RootSpec::Directory {
                path: self.directory.path().join("rootfs").to_str().unwrap().into(),
            },
            // A host may have no cgroup2 hierarchy to show.
            mounts: mounts
                .into_iter()
                .filter(|mount| mount.kind != "cgroup2")
                .collect(),
            files: vec![],
            directories: vec![],
            masked_paths: SandboxSpec::default_masked_paths(),
            readonly_paths: SandboxSpec::default_readonly_paths(),
            cgroup: CgroupSpec::default(),
            extras: Extras::default(),
            process: ProcessSpec {
                args: ["sh", "-c", script].map(String::from).to_vec(),
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                user: String::new(),
                groups: vec![],
                capabilities: CapabilitySet::DOCKER_DEFAULT,
                no_new_privileges: false,
                seccomp: Seccomp::Default,
                init: false,
                rlimits: vec![],
                stdin: true,
                tty: None,
            },
        }
    }

    /// Starts a script, which must succeed.
    pub fn start(&mut self, script: &str) {
        self.start_spec(self.spec(script));
    }

    /// Starts what `spec` says, which must succeed.
    pub fn start_spec(&mut self, spec: SandboxSpec) {
        self.send(&ToAgent::Start(Box::new(spec)));
        let answer = self.receive();
        assert!(
            matches!(
                answer,
                FromAgent::Started {
                    process: 0,
                    pid: 1,
                    ..
                }
            ),
            "{answer:?}"
        );
    }

    /// Starts a further process, and gives what the agent says of that.
    pub fn exec(&mut self, process: u32, spec: ProcessSpec) -> FromAgent {
        let spec = Box::new(spec);
        self.send(&ToAgent::Exec { process, spec });
        self.receive()
    }

    /// What runs `script`, without standard input.
    pub fn process(&self, script: &str) -> ProcessSpec {
        ProcessSpec {
            stdin: false,
            ..self.spec(script).process
        }
    }

    /// Runs a script as a further process, to its end; gives both outputs and its end.
    pub fn exec_to_end(&mut self, process: u32, spec: ProcessSpec) -> (String, String, ExitStatus) {
        let stdout = self.stream(StreamHeader::Stdout { process });
        let stderr = self.stream(StreamHeader::Stderr { process });
        let answer = self.exec(process, spec);
        assert!(
            matches!(answer, FromAgent::Started { process: started, .. } if started == process),
            "{answer:?}"
        );
        let (stdout, stderr) = (text(&stdout), text(&stderr));
        match self.receive() {
            FromAgent::Exited { process: of, status } if of == process => (stdout, stderr, status),
            other => panic!("{other:?}"),
        }
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> usize {
        let descriptors = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(descriptors).unwrap().count()
    }

    /// Has the agent prepare for specs like `spec`; returns the pid of the process that waits.
    pub fn prepare(&mut self, spec: SandboxSpec) -> u32 {
        self.send(&ToAgent::Prepare(Box::new(spec)));
        assert_eq!(self.receive(), FromAgent::Prepared);
        let [zygote] = self.children()[..] else {
            panic!("{:?}", self.children())
        };
        zygote
    }

    /// The pids of the agent's children.
    pub fn children(&self) -> Vec<u32> {
        let pid = self.child.id();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .unwrap()
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    /// Starts busybox's web server on `address`; `content` is at `/file`.
    pub fn serve_http(&mut self, address: &str, content: &[u8]) {
        fs::write(self.directory.path().join("rootfs/file"), content).unwrap();
        let stdout = self.stream(STDOUT);
        // It goes to the background once it listens.
        self.start(&format!(
            "busybox httpd -p {address} -h /; echo ready; exec busybox sleep 1000"
        ));
        assert_eq!(line(&stdout), "ready\n");
        // Closed, it would be the end of the first process that writes.
        std::mem::forget(stdout);
    }

    /// Its exit code, when it ends by itself.
    pub fn wait_for_end(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its sandbox ends with it only when it is PID 1: a test's is told to.
        let _ = frame::write(&mut self.control, &ToAgent::Shutdown, TO_AGENT_BYTES);
        let _ = self.child.wait();
    }
}

/// Runs the example `agent-on-descriptors` with the sockets as descriptors 3 and 4.
fn spawn(directory: &Path, control: OwnedFd, listener: OwnedFd, own_mounts: bool) -> Child {
    let tests = std::env::current_exe().unwrap();
    let program = tests
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/agent-on-descriptors");
    let mut command = Command::new(program);
    command.arg(directory);
    // SAFETY: between fork and exec only system calls are made, and 3 and 4 are made to be the copies that the example owns;
    // what they were in the parent is the parent's still.
    unsafe {
        command.pre_exec(move || {
            if own_mounts {
                rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)?;
                let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change("/", flags)?;
            }
            // Out of the way of each other first.
            let high = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 10);
            let (control, listener) = (high(&control)?, high(&listener)?);
            let (mut third, mut fourth) = (OwnedFd::from_raw_fd(3), OwnedFd::from_raw_fd(4));
            rustix::io::dup2(control.as_fd(), &mut third)?;
            rustix::io::dup2(listener.as_fd(), &mut fourth)?;
            std::mem::forget((third, fourth));
            Ok(())
        });
    }
    command
        .spawn()
        .expect("cargo builds the example agent-on-descriptors with the tests")
}

/// Everything up to the end.
pub fn bytes(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Everything up to the end, as text.
pub fn text(stream: &UnixStream) -> String {
    String::from_utf8(bytes(stream)).unwrap()
}

/// Everything up to the end of the line.
pub fn line(mut stream: &UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Whether the peer has closed or reset the connection.
pub fn is_closed(mut stream: &UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}
