//! Boots a real kernel in the real brig-vmm. `BRIG_TEST_KERNEL` names the vmlinux; without it, or without a usable
//! /dev/kvm, the tests say so and are skipped.

// The helpers of these tests count as tests.
#![allow(clippy::unwrap_used)]

mod driver;
mod rig;

use std::{
    fs::File,
    io::{BufReader, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
};

use brig_protocol::vmm::{Command, DiskConfig, Event, KvmKind, ListenerConfig, SegmentConfig, StopReason};
use rig::{rig, spawn, wait_for};

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
    assert_threads_are_filtered(&vmm);
    vmm.close_channel();
    assert!(vmm.child.wait().unwrap().success());
}

/// Every thread is under the filter that all begin under, which consists of two, and one of its own.
fn assert_threads_are_filtered(vmm: &driver::Vmm) {
    let tasks = format!("/proc/{}/task", vmm.child.pid.as_raw_nonzero());
    let mut names = Vec::new();
    for task in std::fs::read_dir(tasks).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        assert_eq!(
            (field("Seccomp:"), field("Seccomp_filters:")),
            ("2".into(), "3".into()),
            "{status}"
        );
        assert_eq!(field("NoNewPrivs:"), "1");
        names.push(field("Name:"));
    }
    // KVM may have a thread of its own in the process, too.
    for name in ["brig-vmm", "disks", "streams", "vcpu0"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
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
