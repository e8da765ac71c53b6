//! From the layers of an image to one EROFS file, or to a directory. Runs in a guest, or where it can do no harm on the host,
//! over data that nobody has looked at before.
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
mod costs;
pub mod directory;
pub mod erofs;
mod error;
mod layer;
mod sink;
mod stream;
pub mod tree;

use std::{fs::File, os::fd::OwnedFd};

use brig_protocol::agent::{LAYERS_MAX, LayerSpec, UnpackCosts, UnpackSpec};

use self::{
    aligned::{HUGE_PAGE_BYTES, HugeBuffer},
    blobs::BlobReader,
    costs::Stopwatch,
    directory::{DirectoryWriter, Owners},
    erofs::ImageWriter,
    stream::HashingReader,
    tree::Tree,
};
pub use self::{
    error::{LayerError, UnpackError},
    sink::Sink,
};
use crate::{compression::Decoder, digest::Digest, tar};

/// What every read and write of a disk is a multiple of, and the block size of the EROFS image.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of one write. It and the two below are one huge page.
const WRITE_BYTES: usize = 1 << 20;

/// Bytes that are decompressed at a time: they shall still be in the CPU's cache when they are hashed and copied.
const STREAM_BYTES: usize = 128 << 10;

/// Bytes of one read.
const READ_BYTES: usize = HUGE_PAGE_BYTES - WRITE_BYTES - STREAM_BYTES;

/// Most bytes of headers and padding that an inode needs in a tar stream, on average.
const TAR_BYTES_PER_INODE: u64 = 4096;

/// An image that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of the image from the start of the output, a multiple of [`BLOCK_BYTES`].
    pub bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Where the time went.
    pub costs: UnpackCosts,
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
    let mut memory = HugeBuffer::new(HUGE_PAGE_BYTES).map_err(UnpackError::Memory)?;
    let (buffer, rest) = memory.bytes_mut().split_at_mut(WRITE_BYTES);
    let watch = Stopwatch::start();
    let sink = ImageWriter::new(&output, buffer, spec.max_bytes, &watch);
    run(
        spec,
        &Blobs::Disk(blobs),
        sink,
        Buffers::of(rest, &watch),
        progress,
    )
}

/// As [`unpack`], to whatever takes an image; `spec.max_bytes` bounds what the layers may decompress to, the sink its own
/// output.
///
/// # Errors
/// See [`UnpackError`].
pub fn unpack_to<S: Sink>(
    spec: &UnpackSpec,
    blobs: File,
    sink: S,
    progress: &mut dyn FnMut(u64),
) -> Result<Unpacked, UnpackError> {
    let mut memory = HugeBuffer::new(HUGE_PAGE_BYTES - WRITE_BYTES).map_err(UnpackError::Memory)?;
    let watch = Stopwatch::start();
    run(
        spec,
        &Blobs::Disk(blobs),
        sink,
        Buffers::of(memory.bytes_mut(), &watch),
        progress,
    )
}

/// Unpacks the layers of `spec`, each a file of its own, into the empty directory `target`: see [`directory`].
///
/// # Errors
/// See [`UnpackError`]; what is in the directory then is of no use.
pub fn unpack_to_directory(
    spec: &UnpackSpec,
    blobs: Vec<File>,
    target: OwnedFd,
    owners: Owners,
    progress: &mut dyn FnMut(u64),
) -> Result<Unpacked, UnpackError> {
    if blobs.len() != spec.layers.len() {
        return Err(UnpackError::TooLarge("layers"));
    }
    let mut memory = HugeBuffer::new(HUGE_PAGE_BYTES - WRITE_BYTES).map_err(UnpackError::Memory)?;
    let watch = Stopwatch::start();
    let sink = DirectoryWriter::new(target, owners, spec.max_bytes, &watch)?;
    let buffers = Buffers::of(memory.bytes_mut(), &watch);
    run(spec, &Blobs::Files(blobs), sink, buffers, progress)
}

/// Where the layers are.
enum Blobs {
    /// On one disk, at their offsets.
    Disk(File),
    /// Each in a file.
    Files(Vec<File>),
}

impl Blobs {
    /// The file of a layer and where in it the layer starts.
    fn of<'a>(&'a self, index: usize, layer: &LayerSpec) -> Option<(&'a File, u64)> {
        match self {
            Self::Disk(disk) => Some((disk, layer.offset)),
            Self::Files(files) => files.get(index).map(|file| (file, 0)),
        }
    }
}

/// What all layers use in turn.
struct Buffers<'a> {
    read: &'a mut [u8],
    stream: &'a mut [u8],
    watch: &'a Stopwatch,
}

impl<'a> Buffers<'a> {
    fn of(memory: &'a mut [u8], watch: &'a Stopwatch) -> Self {
        let (read, stream) = memory.split_at_mut(READ_BYTES);
        Self { read, stream, watch }
    }
}

fn run<S: Sink>(
    spec: &UnpackSpec,
    blobs: &Blobs,
    mut sink: S,
    mut buffers: Buffers<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Unpacked, UnpackError> {
    if spec.layers.len() > LAYERS_MAX {
        return Err(UnpackError::TooLarge("layers"));
    }
    let mut tree = Tree::new(spec.max_inodes);
    let mut done = 0;
    for index in 0..spec.layers.len() {
        let mut report = |read| progress(done + read);
        apply(
            spec,
            index,
            blobs,
            &mut buffers,
            &mut tree,
            &mut sink,
            &mut report,
        )?;
        done += spec.layers[index].length;
    }
    let bytes = sink.finish(&tree, uuid(spec))?;
    Ok(Unpacked {
        bytes,
        inodes: tree.len() as u64,
        costs: buffers.watch.costs(),
    })
}

/// Applies one layer.
fn apply<S: Sink>(
    spec: &UnpackSpec,
    index: usize,
    blobs: &Blobs,
    buffers: &mut Buffers<'_>,
    tree: &mut Tree<S::Data>,
    sink: &mut S,
    progress: &mut dyn FnMut(u64),
) -> Result<(), UnpackError> {
    let layer = &spec.layers[index];
    let expected = Digest(layer.diff_id);
    let watch = buffers.watch;
    let (file, offset) = blobs.of(index, layer).ok_or(UnpackError::TooLarge("layers"))?;
    let blob = BlobReader::new(file, offset, layer.length, buffers.read, watch, progress);
    // Output is bounded by itself; this bounds what leads to none, such as zeros behind the archive's end.
    let limit = spec
        .max_bytes
        .saturating_mul(2)
        .saturating_add(spec.max_inodes.saturating_mul(TAR_BYTES_PER_INODE));
    let decoder = Decoder::new(layer.compression, blob);
    let mut stream = HashingReader::new(decoder, buffers.stream, watch, limit);

    let mut reader = tar::Reader::new(&mut stream);
    let applied = layer::apply(&mut reader, index as u16, tree, sink);
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
