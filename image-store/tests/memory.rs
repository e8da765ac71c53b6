//! How much memory an unpack takes at most. One test, in a process of its own: what it measures is the process's peak.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs::File,
    io::{BufWriter, Write},
};

use brig_image_store::{
    store::UNPACKED_INODES_MAX,
    unpack::{UnpackError, unpack},
};
use brig_protocol::agent::{Compression, LayerSpec, UnpackFailure, UnpackSpec};
use common::Tar;

/// What the smallest guest that unpacks has for it: 256 MiB, less its kernel and a margin.
const PEAK_BYTES_MAX: u64 = 200 << 20;

#[test]
fn a_directory_of_ten_million_files_is_refused_in_the_memory_of_the_smallest_guest() {
    let mut blob = tempfile::tempfile().unwrap();
    let mut writer = BufWriter::new(&mut blob);
    // As many entries as would be read if all ten million were there: it ends with the first that is too much.
    let mut entry = Tar::new()
        .file("node_modules/package-00000000.js", b"")
        .unfinished();
    let number = 21..29;
    let sum = entry.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    let sum = sum - entry[148..156].iter().map(|&byte| u64::from(byte)).sum::<u64>() + 8 * u64::from(b' ');
    for n in 0..UNPACKED_INODES_MAX + 1000 {
        let digits = format!("{n:08}");
        let more: u64 = digits.bytes().map(|digit| u64::from(digit - b'0')).sum();
        entry[number.clone()].copy_from_slice(digits.as_bytes());
        entry[148..156].copy_from_slice(format!("{:07o}\0", sum + more).as_bytes());
        writer.write_all(&entry).unwrap();
    }
    writer.flush().unwrap();
    drop(writer);
    let length = blob.metadata().unwrap().len();
    blob.set_len(length.next_multiple_of(4096)).unwrap();
    let spec = UnpackSpec {
        layers: vec![LayerSpec {
            offset: 0,
            length,
            compression: Compression::None,
            diff_id: [0; 32],
        }],
        target: 1,
        max_bytes: 16 << 30,
        max_inodes: UNPACKED_INODES_MAX,
    };
    let before = peak_bytes();
    let error = unpack(&spec, blob, tempfile::tempfile().unwrap(), &mut |_| {}).unwrap_err();
    assert!(
        matches!(error, UnpackError::TooManyFiles(UNPACKED_INODES_MAX)),
        "{error:?}"
    );
    assert_eq!(error.failure(), UnpackFailure::TooLarge);
    assert_eq!(error.to_string(), "the image has more than 524288 files");
    let peak = peak_bytes();
    assert!(peak < PEAK_BYTES_MAX, "{peak} bytes at the peak, {before} before");
}

/// The peak of this process's resident memory (proc(5), `VmHWM`).
fn peak_bytes() -> u64 {
    let status = std::io::read_to_string(File::open("/proc/self/status").unwrap()).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}
