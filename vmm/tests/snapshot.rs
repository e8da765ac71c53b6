//! Saves a real guest and goes on with it in other processes. Skipped as the tests in boot.rs.

// The helpers of these tests count as tests.
#![allow(clippy::unwrap_used)]

mod driver;
mod rig;

use std::{
    fs::File,
    io::{BufReader, Read, Write},
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::{fs::FileExt, net::UnixStream},
    },
};

use brig_protocol::vmm::{
    Command, DiskConfig, Event, KvmKind, ListenerConfig, SLOT_BYTES, SavedStream, SegmentConfig, StopReason,
};
use driver::{Restored, Saved, Vmm};
use rig::{Rig, rig, spawn, wait_for};

const DISK: u64 = 1 << 20;

/// A guest that waits for a connection, saved, and the process that it was saved in.
struct Waiting {
    vmm: Vmm,
    saved: Saved,
    kind: KvmKind,
    console: BufReader<std::io::PipeReader>,
    input: File,
    output: File,
}

fn files() -> Saved {
    Saved {
        memory: tempfile::tempfile().unwrap(),
        state: tempfile::tempfile().unwrap(),
    }
}

fn disk(byte: u8) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK).unwrap();
    file.write_all_at(&[byte; 4096], 0).unwrap();
    file
}

fn waiting(rig: &Rig, vcpus: u8) -> Waiting {
    let vmm = spawn();
    let (mut guest, console, kind) = rig.guest(&vmm);
    guest.config.vcpus = vcpus;
    let (input, output) = (disk(b'r'), disk(0));
    for (file, length, writable) in [(&input, 4096, false), (&output, DISK, true)] {
        let file = guest.add(file.try_clone().unwrap());
        guest.config.disks.push(DiskConfig {
            segments: vec![SegmentConfig { file, length }],
            writable,
            shown_bytes: Some(SLOT_BYTES),
        });
    }
    let (mut control, theirs) = UnixStream::pair().unwrap();
    let socket = guest.add(theirs);
    guest.config.listeners.push(ListenerConfig { port: 1024, socket });
    vmm.boot(guest).unwrap();
    let mut said = String::new();
    control.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello from the guest");
    let saved = files();
    let event = vmm.save(&saved).unwrap();
    assert!(
        matches!(event, Event::Saved { memory_bytes } if memory_bytes > 1 << 20),
        "{event:?}"
    );
    Waiting {
        vmm,
        saved,
        kind,
        console: BufReader::new(console),
        input,
        output,
    }
}

/// Lets the guest echo what it is sent, and end.
fn echo(vmm: &Vmm, console: &mut BufReader<std::io::PipeReader>, text: &str) {
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let command = Command::Connect {
        port: 1025,
        header: *b"header!!",
    };
    vmm.send(&command, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    wait_for(console, "init: copied");
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).unwrap();
    assert_eq!(echoed, format!("header!!{text}"));
    assert_eq!(vmm.event().unwrap(), Event::Stopped(StopReason::Reset));
}

fn restore(rig: &Rig, waiting: &Waiting) -> (Vmm, BufReader<std::io::PipeReader>, Event) {
    let vmm = spawn();
    let (mut guest, console) = Restored::new(&rig.kvm, waiting.kind, &waiting.saved).unwrap();
    guest.disk(&waiting.input, 4096, false).unwrap();
    guest.disk(&waiting.output, DISK, true).unwrap();
    let event = vmm.restore(guest).unwrap();
    (vmm, BufReader::new(console), event)
}

fn goes_on_with(vcpus: u8) {
    let Some(rig) = rig() else { return };
    let mut waiting = waiting(&rig, vcpus);
    for round in 0..3 {
        let (vmm, mut console, event) = restore(&rig, &waiting);
        let Event::Restored {
            workarounds,
            realtime_ns,
            tsc_khz,
            ..
        } = event
        else {
            panic!("{event:?}");
        };
        assert_eq!(workarounds, waiting.kind == KvmKind::Emulated);
        assert!(realtime_ns > 0 && tsc_khz > 0);
        echo(&vmm, &mut console, &format!("round {round}"));
    }
    // The one that was saved goes on as well.
    // And can stand still before, as often as one likes.
    waiting.vmm.send(&Command::Resume, &[]).unwrap();
    for _ in 0..2 {
        for _ in 0..2 {
            waiting.vmm.send(&Command::Pause, &[]).unwrap();
            assert_eq!(waiting.vmm.event().unwrap(), Event::Paused);
        }
        waiting.vmm.send(&Command::Resume, &[]).unwrap();
    }
    echo(&waiting.vmm, &mut waiting.console, "the first");
}

#[test]
fn a_guest_with_one_processor_goes_on_where_it_was_saved() {
    goes_on_with(1);
}

#[test]
fn a_guest_with_two_processors_goes_on_where_it_was_saved() {
    goes_on_with(2);
}

#[test]
fn a_guest_that_could_not_be_saved_goes_on() {
    let Some(rig) = rig() else { return };
    let mut waiting = waiting(&rig, 1);
    let full = || File::options().read(true).write(true).open("/dev/full").unwrap();
    let nowhere = Saved {
        memory: full(),
        state: full(),
    };
    let event = waiting.vmm.save(&nowhere).unwrap();
    let Event::SaveFailed { message } = event else {
        panic!("{event:?}");
    };
    assert!(
        message.starts_with("Cannot save the guest's memory: "),
        "{message}"
    );
    waiting.vmm.send(&Command::Resume, &[]).unwrap();
    echo(&waiting.vmm, &mut waiting.console, "still here");
}

#[test]
fn files_that_are_no_saved_guest_are_refused_with_the_reason() {
    let Some(rig) = rig() else { return };
    let mut waiting = waiting(&rig, 1);
    let mut state = Vec::new();
    let length = waiting.saved.state.metadata().unwrap().len();
    state.resize(length as usize, 0);
    waiting.saved.state.read_exact_at(&mut state, 0).unwrap();
    let middle = state.len() / 2;
    let mut flipped = state.clone();
    flipped[middle] ^= 0x10;
    let mut older = state.clone();
    older[8] = 0;
    let longer = [&state[..], b"more"].concat();
    for (bytes, reason) in [
        (&state[..middle], "bytes, not"),
        (&state[..4], "no saved guest"),
        (&flipped[..], "checksum"),
        (&older[..], "format"),
        (&longer[..], "bytes, not"),
    ] {
        waiting.saved.state = tempfile::tempfile().unwrap();
        waiting.saved.state.write_all_at(bytes, 0).unwrap();
        let (_vmm, _console, event) = restore(&rig, &waiting);
        let Event::Failed { message } = event else {
            panic!("{reason}: {event:?}");
        };
        assert!(
            message.starts_with("Cannot restore: ") && message.contains(reason),
            "{message}"
        );
    }
    waiting.saved.state = tempfile::tempfile().unwrap();
    waiting.saved.state.write_all_at(&state, 0).unwrap();
    waiting.saved.memory.set_len(64 << 20).unwrap();
    let (_vmm, _console, event) = restore(&rig, &waiting);
    assert!(matches!(event, Event::Failed { message } if message.contains("saved memory has")));
    drop(waiting.vmm);
}

#[test]
fn a_saved_connection_goes_on_with_a_new_host_end() {
    let Some(rig) = rig() else { return };
    let waiting = waiting(&rig, 1);
    let (vmm, _console, event) = restore(&rig, &waiting);
    assert!(matches!(event, Event::Restored { .. }), "{event:?}");
    // A connection in the middle: the guest has echoed the header, and waits for more.
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let header = *b"go on...";
    vmm.send(&Command::Connect { port: 1025, header }, &[theirs.as_fd()])
        .unwrap();
    drop(theirs);
    let mut echoed = [0; 8];
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, header);
    let saved = files();
    let event = vmm.save(&saved).unwrap();
    assert!(matches!(event, Event::Saved { .. }), "{event:?}");

    let again = spawn();
    let (mut guest, console) = Restored::new(&rig.kvm, waiting.kind, &saved).unwrap();
    guest.disk(&waiting.input, 4096, false).unwrap();
    guest.disk(&waiting.output, DISK, true).unwrap();
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    guest.rejoin(SavedStream::ToGuest { header }, theirs);
    let event = again.restore(guest).unwrap();
    assert!(matches!(event, Event::Restored { .. }), "{event:?}");
    stream.write_all(b"and on").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "and on");
    wait_for(&mut BufReader::new(console), "init: copied");

    // Nobody takes the connection up: the guest sees it end, and ends itself.
    let third = spawn();
    let (mut guest, console) = Restored::new(&rig.kvm, waiting.kind, &saved).unwrap();
    guest.disk(&waiting.input, 4096, false).unwrap();
    guest.disk(&waiting.output, DISK, true).unwrap();
    let event = third.restore(guest).unwrap();
    assert!(matches!(event, Event::Restored { .. }), "{event:?}");
    wait_for(&mut BufReader::new(console), "init: copied");
}
