//! What brig-vmm does before it is told anything. No KVM is needed.

// The helpers of these tests count as tests.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use brig_jail::spawn::{Process, Program, spawn};
use brig_protocol::{channel, vmm::Command as Order};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const BRIG_VMM: &str = env!("CARGO_BIN_EXE_brig-vmm");

/// Starts brig-vmm as the supervisor does.
fn start(stdin: BorrowedFd<'_>) -> Process {
    let stderr = io::stderr().as_fd().try_clone_to_owned().unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    spawn(&Program {
        file: File::open(BRIG_VMM).unwrap().as_fd(),
        arguments: &[c"brig-vmm".to_owned()],
        streams: [stdin, null.as_fd(), stderr.as_fd()],
    })
    .unwrap()
}

/// Waits until a brig-vmm serves its channel, which it does inside of its walls: it takes a command, and closes the files that
/// come with it as they are of no use.
fn wait_until_served(channel: &OwnedFd) {
    let (mut ours, theirs) = io::pipe().unwrap();
    channel::send(channel, &Order::MapAhead, &[theirs.as_fd(), theirs.as_fd()]).unwrap();
    drop(theirs);
    assert!(is_readable(&ours), "brig-vmm serves nobody");
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

/// Waits for a descriptor, for a minute at most.
fn is_readable(fd: impl AsFd) -> bool {
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

/// A brig-vmm that is inside its walls.
struct Walled {
    process: Process,
    // Its end would be the process's.
    _channel: OwnedFd,
}

impl Walled {
    fn new() -> Self {
        let (ours, theirs) = channel::pair().unwrap();
        let process = start(theirs.as_fd());
        drop(theirs);
        wait_until_served(&ours);
        Self {
            process,
            _channel: ours,
        }
    }

    fn proc(&self, name: &str) -> std::path::PathBuf {
        Path::new("/proc")
            .join(self.process.pid.as_raw_nonzero().to_string())
            .join(name)
    }

    fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Walled {
    fn drop(&mut self) {
        self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn it_is_in_namespaces_of_its_own() {
    let vmm = Walled::new();
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |path: &Path| fs::read_link(path.join("ns").join(name)).unwrap();
        assert_ne!(of(&vmm.proc("")), of(Path::new("/proc/self")), "{name}");
    }
    assert!(vmm.status("NSpid:").ends_with(" 1"));
}

/// CVE-2026-1386, races with symbolic links while a jail is built: there is no directory of the host in which anything of it is made.
/// Its root is a filesystem without a name, and its program was opened before.
#[test]
fn its_root_is_empty_and_nothing_else_is_mounted() {
    let vmm = Walled::new();
    let mounts = fs::read_to_string(vmm.proc("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let fields: Vec<_> = mounts.split_whitespace().collect();
    assert_eq!((fields[3], fields[4]), ("/", "/"), "{mounts}");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(fields[5].split(',').any(|found| found == option), "{mounts}");
    }
    assert!(mounts.contains(" tmpfs "), "{mounts}");
}

#[test]
fn it_has_no_capabilities_and_no_way_to_get_any() {
    let vmm = Walled::new();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(vmm.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(vmm.status("NoNewPrivs:"), "1");
}

#[test]
fn it_is_nobody_elses_user_when_root_starts_it() {
    let (first, second) = (Walled::new(), Walled::new());
    let uid = |vmm: &Walled| vmm.status("Uid:");
    if rustix::process::geteuid().is_root() {
        assert_ne!(uid(&first), uid(&second));
        assert!(!uid(&first).split(' ').any(|uid| uid == "0"));
        assert_eq!(first.status("Groups:"), "");
    } else {
        let own = rustix::process::geteuid().as_raw().to_string();
        assert!(uid(&first).split(' ').all(|uid| uid == own));
    }
}

#[test]
fn its_limits_are_low() {
    let vmm = Walled::new();
    let limits = fs::read_to_string(vmm.proc("limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let mut words = line.split_whitespace();
        (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
    };
    let both = |value: &str| (value.to_owned(), value.to_owned());
    assert_eq!(limit("Max core file size"), both("0"));
    assert_eq!(limit("Max locked memory"), both("0"));
    assert_eq!(limit("Max processes"), both("40"));
    assert!(limit("Max open files").1.parse::<u32>().unwrap() <= 2048);
}

#[test]
fn it_ends_when_its_channel_does() {
    let (ours, theirs) = channel::pair().unwrap();
    let process = start(theirs.as_fd());
    drop(theirs);
    drop(ours);
    assert!(process.wait().unwrap().success());
}

/// Starts a program that starts a brig-vmm and is killed itself: this one, which then runs the test below.
#[test]
fn it_ends_with_the_process_that_started_it() {
    let (ours, theirs) = channel::pair().unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plays_a_supervisor", "--nocapture"])
        .env("BRIG_TEST_PARENT", "1")
        .stdin(theirs)
        .stdout(writer)
        .spawn()
        .unwrap();
    // The channel stays open here, so that its end is not what the VMM heeds.
    let mut said = String::new();
    let pid = loop {
        let mut byte = [0];
        assert_eq!(reader.read(&mut byte).unwrap(), 1, "{said}");
        said.push(byte[0].into());
        let line = said
            .lines()
            .find_map(|line| line.split_once("vmm is ").map(|(_, pid)| pid));
        if let (Some(pid), true) = (line, said.ends_with('\n')) {
            break pid.trim().parse::<i32>().unwrap();
        }
    };
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let vmm = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    wait_until_served(&ours);
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(is_readable(&vmm));
    drop(ours);
}

#[test]
fn plays_a_supervisor() {
    if std::env::var_os("BRIG_TEST_PARENT").is_none() {
        return;
    }
    let channel = io::stdin().as_fd().try_clone_to_owned().unwrap();
    let process = start(channel.as_fd());
    drop(channel);
    println!("vmm is {}", process.pid.as_raw_nonzero());
    loop {
        std::thread::park();
    }
}

#[test]
fn outside_of_namespaces_it_does_not_run() {
    let (_ours, theirs) = channel::pair().unwrap();
    let output = Command::new(BRIG_VMM).stdin(theirs).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("started by brig") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn a_standard_input_that_is_no_channel_is_told_in_one_line() {
    let (reader, _writer) = io::pipe().unwrap();
    for stdin in [Stdio::null(), OwnedFd::from(reader).into()] {
        let output = Command::new(BRIG_VMM).stdin(stdin).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("started by brig") && said.lines().count() == 1,
            "{said}"
        );
    }
}
