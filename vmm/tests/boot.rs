//! Boots a real kernel in the real brig-vmm. `BRIG_TEST_KERNEL` names the vmlinux; without it, or without a usable
//! /dev/kvm, the tests say so and are skipped.

// The helpers of these tests count as tests.
#![allow(clippy::unwrap_used)]

mod driver;

use std::{
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    process::Command as Process,
};

use brig_protocol::vmm::{Command, DiskConfig, Event, KvmKind, ListenerConfig, SegmentConfig, StopReason};
use driver::{Guest, Vmm, open_kvm};

/// What a test needs, when it can run at all.
struct Rig {
    kvm: File,
    kernel: File,
    initrd: File,
    _directory: tempfile::TempDir,
}

/// The guest's init; built by the system's C compiler without a C library, so that it is a few hundred bytes.
const INIT: &str = include_str!("init.c");

fn rig() -> Option<Rig> {
    let skip = |why: &str| {
        println!("skipped: {why}");
        None
    };
    let Some(kernel) = env::var_os("BRIG_TEST_KERNEL") else {
        return skip("BRIG_TEST_KERNEL is not set");
    };
    let kvm = match open_kvm() {
        Ok(kvm) => kvm,
        Err(e) => return skip(&format!("/dev/kvm: {e}")),
    };
    let directory = tempfile::tempdir().unwrap();
    let Ok(initrd) = build_initrd(directory.path()) else {
        return skip("no C compiler (cc) to build the guest's init");
    };
    Some(Rig {
        kvm,
        kernel: File::open(kernel).expect("the kernel of BRIG_TEST_KERNEL"),
        initrd,
        _directory: directory,
    })
}

/// A cpio archive with /init and /dev/console.
fn build_initrd(directory: &Path) -> io::Result<File> {
    let (source, binary) = (directory.join("init.c"), directory.join("init"));
    fs::write(&source, INIT)?;
    let status = Process::new("cc")
        .args([
            "-static",
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
            "-Os",
            "-o",
        ])
        .args([&binary, &source])
        .status()?;
    assert!(status.success(), "the guest's init does not compile");
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o040_755, (0, 0), &[]);
    entry(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
    entry(&mut archive, "init", 0o100_755, (0, 0), &fs::read(&binary)?);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    let path = directory.join("initrd.cpio");
    fs::write(&path, archive)?;
    File::open(path)
}

/// One entry of a "newc" archive (cpio(5)).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let inode = archive.len() as u32 + 1;
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        content.len() as u32,
        0,
        0,
        device.0,
        device.1,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn spawn() -> Vmm {
    Vmm::spawn(Path::new(env!("CARGO_BIN_EXE_brig-vmm"))).unwrap()
}

impl Rig {
    fn guest(&self, vmm: &Vmm) -> (Guest, io::PipeReader, KvmKind) {
        let kind = vmm.probe(&self.kvm).unwrap();
        let (guest, console) = Guest::new(
            &self.kvm,
            kind,
            self.kernel.try_clone().unwrap(),
            self.initrd.try_clone().unwrap(),
        )
        .unwrap();
        (guest, console, kind)
    }
}

/// Waits for a line of the guest's init.
fn wait_for(console: &mut impl BufRead, text: &str) {
    let mut log = String::new();
    loop {
        let start = log.len();
        let bytes = console.read_line(&mut log).unwrap();
        assert!(bytes > 0, "the guest ended without saying {text:?}:\n{log}");
        if log[start..].contains(text) {
            return;
        }
    }
}

fn boots_with(vcpus: u8) {
    let Some(rig) = rig() else { return };
    let vmm = spawn();
    let (mut guest, console, kind) = rig.guest(&vmm);
    guest.config.vcpus = vcpus;
    let booted = vmm.boot(guest).unwrap();
    let Event::Booted {
        main_ns,
        entry_ns,
        workarounds,
    } = booted
    else {
        panic!("{booted:?}");
    };
    assert!(entry_ns > main_ns);
    assert_eq!(workarounds, kind == KvmKind::Emulated);
    let mut console = BufReader::new(console);
    wait_for(&mut console, &format!("init: {vcpus} processors"));
    assert_eq!(vmm.event().unwrap(), Event::Stopped(StopReason::Reset));
}

#[test]
fn a_kernel_boots_on_one_processor() {
    boots_with(1);
}

#[test]
fn a_kernel_boots_on_two_processors() {
    boots_with(2);
}

#[test]
fn disks_and_streams_work_in_a_guest() {
    let Some(rig) = rig() else { return };
    let vmm = spawn();
    let (mut guest, console, _) = rig.guest(&vmm);
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(&[b'r'; 4096]).unwrap();
    let output = tempfile::tempfile().unwrap();
    output.set_len(1 << 20).unwrap();
    for (file, length, writable) in [(&input, 4096, false), (&output, 1 << 20, true)] {
        let file = guest.add(file.try_clone().unwrap());
        guest.config.disks.push(DiskConfig {
            segments: vec![SegmentConfig { file, length }],
            writable,
            shown_bytes: None,
        });
    }
    let (mut control, theirs) = UnixStream::pair().unwrap();
    let socket = guest.add(theirs);
    guest.config.listeners.push(ListenerConfig { port: 1024, socket });
    vmm.boot(guest).unwrap();
    let mut said = String::new();
    control.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello from the guest");
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    vmm.send(
        &Command::Connect {
            port: 1025,
            header: *b"header!!",
        },
        &[theirs.as_fd()],
    )
    .unwrap();
    drop(theirs);
    stream.write_all(b"echo me").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut console = BufReader::new(console);
    wait_for(&mut console, "init: copied");
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).unwrap();
    assert_eq!(echoed, "header!!echo me");
    assert_eq!(vmm.event().unwrap(), Event::Stopped(StopReason::Reset));
    let mut copied = vec![0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&output, &mut copied, 0).unwrap();
    assert!(copied.iter().all(|&byte| byte == b'r'));
}

#[test]
fn brig_vmm_ends_with_its_supervisor() {
    let Some(rig) = rig() else { return };
    let mut vmm = spawn();
    let (guest, _console, _) = rig.guest(&vmm);
    vmm.boot(guest).unwrap();
    vmm.close_channel();
    assert!(vmm.child.wait().unwrap().success());
}

#[test]
fn a_configuration_that_makes_no_sense_fails_in_one_line() {
    let Some(rig) = rig() else { return };
    let vmm = spawn();
    let (mut guest, _console, _) = rig.guest(&vmm);
    guest.config.vcpus = 0;
    let Event::Failed { message } = vmm.boot(guest).unwrap() else {
        panic!("it booted");
    };
    assert_eq!(message, "Bad configuration: A guest has 1 to 32 vCPUs, not 0");
}

#[test]
fn something_else_than_kvm_is_refused() {
    let vmm = spawn();
    let null = File::open("/dev/null").unwrap();
    vmm.send(&Command::Probe, &[null.as_fd()]).unwrap();
    let Event::Failed { message } = vmm.event().unwrap() else {
        panic!("it was probed");
    };
    assert!(message.starts_with("Cannot probe KVM: "), "{message}");
}

#[test]
fn commands_out_of_order_are_refused() {
    let vmm = spawn();
    let connect = Command::Connect {
        port: 1,
        header: [0; 8],
    };
    vmm.send(&connect, &[]).unwrap();
    assert!(matches!(vmm.event().unwrap(), Event::Failed { .. }));
}
