//! A driver of two disks, one read-only, that does what it likes with registers, queues and memory. The read-only disk stays as it
//! was, and neither file changes its length.
#![no_main]

mod common;

use std::{
    fs::File,
    io::{Read, Seek, Write},
};

use brig_vmm::devices::virtio::block::{Block, Disk};
use common::{Guest, Input};
use libfuzzer_sys::fuzz_target;

const DISK_BYTES: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    let file = || {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[7; DISK_BYTES]).expect("space");
        file
    };
    let copy = |file: &File| file.try_clone().expect("a descriptor");
    let (fixed, changing) = (file(), file());
    // Its second part begins after a gap.
    let parts = vec![(copy(&fixed), DISK_BYTES as u64 - 100), (copy(&fixed), 512)];
    let read_only = Disk::read_only(parts).expect("a short disk");
    let writable = Disk::writable(copy(&changing), DISK_BYTES as u64);
    let mut guests = [
        Guest::new(|_| Block::new(read_only)),
        Guest::new(|_| Block::new(writable)),
    ];
    let mut input = Input(bytes);
    while !input.is_empty() {
        let which = input.u8() & 1;
        guests[usize::from(which)].step(&mut input);
    }
    for guest in &guests {
        guest.serve();
    }
    assert!(
        content(fixed).iter().all(|&byte| byte == 7),
        "a read-only disk was written to"
    );
    assert_eq!(content(changing).len(), DISK_BYTES);
});

fn content(mut file: File) -> Vec<u8> {
    let mut content = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut content).expect("a file");
    content
}
