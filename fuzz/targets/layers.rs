//! Layers that nobody has looked at, unpacked to an EROFS image: no panic, bounded memory, and an image that holds together.
//!
//! The first byte says how many layers there are (bit 6: two, and two bytes follow that say how long the first one is) and how
//! each is compressed (bits 0 and 1, 2 and 3: gzip, zstd, not at all); the rest is the layers.

#![no_main]

#[path = "../../image-store/tests/common/structure.rs"]
mod structure;

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::FileExt,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use brig_image_store::{compression::Decoder, digest::Digest, unpack::unpack};
use brig_protocol::agent::{Compression, LayerSpec, UnpackSpec};
use libfuzzer_sys::fuzz_target;

const MAX_BYTES: u64 = 8 << 20;
const MAX_INODES: u64 = 2000;

/// One image of so many is given to fsck.erofs, which is a process each time.
const CHECKED_EACH: usize = 5000;

static WRITTEN: AtomicUsize = AtomicUsize::new(0);

fuzz_target!(|input: &[u8]| {
    let Some((&how, rest)) = input.split_first() else {
        return;
    };
    let parts = match rest {
        [low, high, rest @ ..] if how & 0x40 != 0 => {
            let at = usize::from(u16::from_le_bytes([*low, *high])) % (rest.len() + 1);
            let (below, above) = rest.split_at(at);
            vec![(below, how), (above, how >> 2)]
        }
        _ => vec![(rest, how)],
    };
    let mut blobs = tempfile::tempfile().unwrap();
    let mut layers = Vec::new();
    let mut offset = 0;
    for (layer, bits) in parts {
        let compression = match bits & 3 {
            0 => Compression::Gzip,
            1 => Compression::Zstd,
            _ => Compression::None,
        };
        let mut blob = layer.to_vec();
        if compression == Compression::None {
            seal(&mut blob);
        }
        let length = blob.len() as u64;
        layers.push(LayerSpec {
            offset,
            length,
            compression,
            diff_id: diff_id(compression, &blob),
        });
        blob.resize(blob.len().next_multiple_of(4096), 0);
        offset += blob.len() as u64;
        blobs.write_all(&blob).unwrap();
    }
    let spec = UnpackSpec {
        layers,
        target: 1,
        max_bytes: MAX_BYTES,
        max_inodes: MAX_INODES,
    };
    let output = tempfile::tempfile().unwrap();
    output.set_len(MAX_BYTES).unwrap();
    let Ok(unpacked) = unpack(&spec, blobs, output.try_clone().unwrap(), &mut |_| {}) else {
        return;
    };
    assert!(unpacked.inodes <= MAX_INODES && unpacked.bytes <= MAX_BYTES);
    let mut image = vec![0; unpacked.bytes as usize];
    output.read_exact_at(&mut image, 0).unwrap();
    assert_eq!(structure::check(&image), Ok(unpacked.inodes));
    if WRITTEN.fetch_add(1, Ordering::Relaxed).is_multiple_of(CHECKED_EACH) {
        fsck(&output, unpacked.bytes);
    }
});

/// Makes the checksums of what looks like headers right: a fuzzer does not find them.
fn seal(blob: &mut [u8]) {
    for block in blob.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// The digest of what a layer decompresses to, as its image would give it.
fn diff_id(compression: Compression, blob: &[u8]) -> [u8; 32] {
    let mut content = Vec::new();
    let _ = Decoder::new(compression, blob)
        .take(4 * MAX_BYTES)
        .read_to_end(&mut content);
    Digest::of(&content).0
}

fn fsck(output: &File, bytes: u64) {
    use std::os::fd::AsRawFd;
    output.set_len(bytes).unwrap();
    let image = format!("/proc/{}/fd/{}", std::process::id(), output.as_raw_fd());
    if let Ok(output) = Command::new("fsck.erofs").arg(image).output() {
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}
