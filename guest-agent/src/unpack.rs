//! Unpacking an image's layers in the guest: nothing that the image's author wrote is parsed on the host.

use std::time::{Duration, Instant};

use brig_image_store::unpack::unpack;
use brig_protocol::agent::{FromAgent, UnpackFailure, UnpackSpec};

use crate::{disks, error::one_line, heap, process::Places};

/// The disk of the compressed layers, see [`UnpackSpec`].
const BLOBS: u8 = 0;

/// From so many compressed bytes on an image has files enough for a heap of huge pages: getting one takes as long as
/// 130 faults of small pages.
const LARGE_IMAGE_BYTES: u64 = 4 << 20;

/// Least time between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Unpacks, and returns what the supervisor is to be told. `report` is called with the compressed bytes read so far, a few
/// times a second.
pub fn run(spec: &UnpackSpec, places: &Places, report: &mut dyn FnMut(u64)) -> FromAgent {
    let disks = disks::open_direct(places, BLOBS, false)
        .and_then(|blobs| Ok((blobs, disks::open_direct(places, spec.target, true)?)));
    let (blobs, image) = match disks {
        Ok(disks) => disks,
        Err(error) => {
            return FromAgent::UnpackFailed {
                kind: UnpackFailure::Other,
                message: one_line(&error),
            };
        }
    };
    let bytes = spec
        .layers
        .iter()
        .fold(0u64, |sum, layer| sum.saturating_add(layer.length));
    let _ = heap::allow_huge_pages();
    if bytes >= LARGE_IMAGE_BYTES {
        heap::use_huge_pages();
    }
    let mut last = Instant::now();
    let mut progress = |bytes| {
        if last.elapsed() >= REPORT_EVERY {
            last = Instant::now();
            report(bytes);
        }
    };
    match unpack(spec, blobs, image, &mut progress) {
        Ok(unpacked) => FromAgent::Unpacked {
            bytes: unpacked.bytes,
            inodes: unpacked.inodes,
            costs: unpacked.costs,
        },
        Err(error) => FromAgent::UnpackFailed {
            kind: error.failure(),
            message: one_line(&error),
        },
    }
}
