//! Boots a guest in a brig-vmm without a supervisor, for work on the kernel, the agent and brig-vmm itself.
//!
//! ```text
//! cargo build -p brig-vmm && cargo run -p brig-vmm --example boot -- KERNEL INITRD [OPTION…]
//!   -c N            vCPUs (1)
//!   -m MIB          memory in MiB (128)
//!   -a WORDS        added to the kernel's command line
//!   -d FILE         a read-only disk; several files joined by commas are its segments
//!   -w FILE         a writable disk
//!   -l PORT         joins the guest's connection to this vsock port of the host with standard input and output
//!   -s PORT=HEX     connects to this vsock port of the guest, sends the bytes, then joins it with standard input and
//!                   output; with -l only once the guest has said something there, which is then thrown away
//! ```
//! brig-vmm is taken from `$BRIG_VMM`, else from beside the directory of this program. The kernel's log goes to standard
//! error, as do the times, in milliseconds since the start of this program.

#[path = "../tests/driver/mod.rs"]
mod driver;

use std::{
    env,
    error::Error,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    thread,
    time::Instant,
};

use brig_protocol::{
    stream::HEADER_BYTES,
    vmm::{Command, DiskConfig, Event, ListenerConfig, SegmentConfig},
};
use driver::{Guest, Vmm, open_kvm};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let start = Instant::now();
    let ms = move |instant: Instant| instant.duration_since(start).as_secs_f64() * 1e3;
    let mut arguments = env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or(format!("missing {what}"));
    let (kernel, initrd) = (File::open(next("KERNEL")?)?, File::open(next("INITRD")?)?);

    let kvm = open_kvm()?;
    let vmm = Vmm::spawn(&binary()?)?;
    let kind = vmm.probe(&kvm)?;
    eprintln!("[{:8.1}] probed: {kind:?}", ms(Instant::now()));
    let (mut guest, console) = Guest::new(&kvm, kind, kernel, initrd)?;
    let (mut listener, mut connect) = (None, None);
    while let Ok(option) = next("option") {
        match option.as_str() {
            "-c" => guest.config.vcpus = next("N")?.parse()?,
            "-m" => guest.config.memory_mib = next("MIB")?.parse()?,
            "-a" => guest.config.extra_command_line = next("WORDS")?,
            "-d" => add_disk(&mut guest, &next("FILE")?, false)?,
            "-w" => add_disk(&mut guest, &next("FILE")?, true)?,
            "-l" => {
                let port = next("PORT")?.parse()?;
                let (ours, theirs) = UnixStream::pair()?;
                let socket = guest.add(theirs);
                guest.config.listeners.push(ListenerConfig { port, socket });
                listener = Some(ours);
            }
            "-s" => connect = Some(parse_connect(&next("PORT=HEX")?)?),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let sent = Instant::now();
    let booted = vmm.boot(guest)?;
    eprintln!(
        "[{:8.1}] {booted:?} (command sent at {:.1})",
        ms(Instant::now()),
        ms(sent)
    );
    let log = thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(io::Result::ok) {
            eprintln!(
                "[{:8.1}] {}",
                ms(Instant::now()),
                String::from_utf8_lossy(&line).trim_end()
            );
        }
    });
    if let Some((port, header)) = connect {
        if let Some(listener) = &mut listener {
            let bytes = listener.read(&mut [0; 4096])?;
            eprintln!("[{:8.1}] the guest said {bytes} bytes", ms(Instant::now()));
        }
        let (ours, theirs) = UnixStream::pair()?;
        vmm.send(&Command::Connect { port, header }, &[theirs.as_fd()])?;
        join_standard_streams(ours)?;
    } else if let Some(listener) = listener.take() {
        join_standard_streams(listener)?;
    }
    loop {
        match vmm.event() {
            Ok(event @ (Event::Stopped(_) | Event::Failed { .. })) => {
                drop(vmm);
                let _ = log.join();
                eprintln!("[{:8.1}] {event:?}", ms(Instant::now()));
                return Ok(());
            }
            Ok(event) => eprintln!("[{:8.1}] {event:?}", ms(Instant::now())),
            Err(e) => return Err(e.into()),
        }
    }
}

fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("BRIG_VMM") {
        return Ok(path.into());
    }
    let executable = env::current_exe()?;
    let directory = executable
        .ancestors()
        .nth(2)
        .ok_or("no directory above this program")?;
    Ok(directory.join("brig-vmm"))
}

fn add_disk(guest: &mut Guest, files: &str, writable: bool) -> Result<()> {
    let mut segments = Vec::new();
    for path in files.split(',') {
        let file = OpenOptions::new().read(true).write(writable).open(path)?;
        let length = file.metadata()?.len();
        segments.push(SegmentConfig {
            file: guest.add(file),
            length,
        });
    }
    guest.config.disks.push(DiskConfig {
        segments,
        writable,
        shown_bytes: None,
    });
    Ok(())
}

fn parse_connect(text: &str) -> Result<(u32, [u8; HEADER_BYTES])> {
    let (port, hex) = text.split_once('=').ok_or("expected PORT=HEX")?;
    let mut header = [0; HEADER_BYTES];
    for (byte, digits) in header.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits)?, 16)?;
    }
    Ok((port.parse()?, header))
}

/// Moves bytes between `socket` and the standard streams, each way until its end.
fn join_standard_streams(socket: UnixStream) -> Result<()> {
    let (mut reader, mut writer) = (socket.try_clone()?, socket);
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut writer);
        let _ = writer.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let mut output = io::stdout();
        let _ = io::copy(&mut reader, &mut output);
        let _ = output.flush();
    });
    Ok(())
}
