//! From the layers of an image to one EROFS file. Runs in a guest, over data that nobody has looked at before.
//!
//! ```text
//! blobs ─ BlobReader ─ Decoder ─ HashingReader ─ tar::Reader ─┬─ layer: paths, whiteouts ──► tree (in memory)
//!         direct I/O             diff id                      └─ data of files ──► BlockWriter ──► output
//!                                                  at the end:  tree ─ erofs ────────►┘
//! ```
//! Data goes to its final place as it comes; the tree of names and attributes stays in memory, some 150 bytes an inode,
//! and is written when the last layer has been applied. Memory is bounded by the constants in [`tree`] and [`erofs`]
//! and by the spec's `max_inodes`.
//!
//! # Layers
//! Layers are applied as Docker's overlay2 shows them (image-spec, `layer.md`): an entry replaces what has its
//! path, except that a directory over a directory keeps its content; `.wh.NAME` hides `NAME` of the layers below,
//! `.wh..wh..opq` everything of them in its directory, wherever in the layer it stands. A symbolic link of a lower
//! layer where an entry needs a directory is replaced by one; one of the same layer is followed, inside of the image. No
//! path ever means anything outside of it.

mod aligned;
mod blobs;
mod blocks;
pub mod erofs;
mod error;
mod layer;
mod stream;
pub mod tree;

use std::fs::File;

use brig_protocol::agent::{LAYERS_MAX, UnpackSpec};

pub use self::error::{LayerError, UnpackError};
use self::{
    aligned::AlignedBuffer, blobs::BlobReader, erofs::ImageWriter, stream::HashingReader, tree::Tree,
};
use crate::{compression::Decoder, digest::Digest, tar};

/// What every read and write of a disk is a multiple of, and the block size of the EROFS image.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of one read or write. Larger ones gain nothing more, and each page of a buffer costs the guest a fault.
const TRANSFER_BYTES: usize = 256 << 10;

/// Bytes that are decompressed at a time.
const STREAM_BYTES: usize = 64 << 10;

/// Most bytes of headers and padding that an inode needs in a tar stream, on average.
const TAR_BYTES_PER_INODE: u64 = 4096;

/// An image that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of the image from the start of the output, a multiple of [`BLOCK_BYTES`].
    pub bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
}

/// Unpacks the layers of `spec` from `blobs` into an EROFS image on `output`, which must read as zeros so far. Both
/// are block devices, possibly opened with `O_DIRECT`, or files. `progress` gets the compressed bytes read so far.
///
/// # Errors
/// See [`UnpackError`]; what is on the output then is of no use.
pub fn unpack(
    spec: &UnpackSpec,
    blobs: File,
    output: File,
    progress: &mut dyn FnMut(u64),
) -> Result<Unpacked, UnpackError> {
    if spec.layers.len() > LAYERS_MAX {
        return Err(UnpackError::TooLarge("layers"));
    }
    let mut buffers = Buffers {
        transfer: AlignedBuffer::new(TRANSFER_BYTES),
        stream: vec![0; STREAM_BYTES],
    };
    let mut tree = Tree::new(spec.max_inodes);
    let mut writer = ImageWriter::new(&output, spec.max_bytes);
    let mut done = 0;
    for index in 0..spec.layers.len() {
        let mut report = |read| progress(done + read);
        apply(
            spec,
            index,
            &blobs,
            &mut buffers,
            &mut tree,
            &mut writer,
            &mut report,
        )?;
        done += spec.layers[index].length;
    }
    erofs::finish(&tree, writer, uuid(spec))
}

/// Memory that all layers use in turn.
struct Buffers {
    transfer: AlignedBuffer,
    stream: Vec<u8>,
}

/// Applies one layer.
fn apply(
    spec: &UnpackSpec,
    index: usize,
    blobs: &File,
    buffers: &mut Buffers,
    tree: &mut Tree,
    writer: &mut ImageWriter<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), UnpackError> {
    let layer = &spec.layers[index];
    let expected = Digest(layer.diff_id);
    let blob = BlobReader::new(blobs, layer.offset, layer.length, &mut buffers.transfer, progress);
    // Output is bounded by itself; this bounds what leads to none, such as zeros behind the archive's end.
    let limit = spec
        .max_bytes
        .saturating_mul(2)
        .saturating_add(spec.max_inodes.saturating_mul(TAR_BYTES_PER_INODE));
    let decoder = Decoder::new(layer.compression, blob);
    let mut stream = HashingReader::new(decoder, &mut buffers.stream, limit);

    let mut reader = tar::Reader::new(&mut stream);
    let applied = layer::apply(&mut reader, index as u16, tree, writer);
    if let Err(error) = applied {
        return Err(error.in_layer(index, expected));
    }
    let found = stream
        .finish()
        .map_err(|e| UnpackError::from(tar::TarError::from(e)).in_layer(index, expected))?;
    if found != expected {
        return Err(UnpackError::from(LayerError::DiffId { found }).in_layer(index, expected));
    }
    Ok(())
}

/// A volume id that follows from what is in the image.
fn uuid(spec: &UnpackSpec) -> [u8; 16] {
    use sha2::{Digest as _, Sha256};
    let mut hasher = Sha256::new();
    for layer in &spec.layers {
        hasher.update(layer.diff_id);
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hasher.finalize()[..16]);
    // RFC 9562: version 8, variant 1.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
