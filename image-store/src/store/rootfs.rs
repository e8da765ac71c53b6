//! Unpacked images: one EROFS file for each list of layers, made once.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};

use brig_protocol::agent::{LayerSpec, UnpackSpec};
use sha2::{Digest as _, Sha256};

use super::{Store, StoreError, files, files::Workspace};
use crate::{digest::Digest, image::Image, limits::MaxImageSize};

/// Most inodes of an unpacked image. So many need up to 100 MB of the agent's memory, the names not counted; large images
/// of real programs have some 300,000.
pub const UNPACKED_INODES_MAX: u64 = 1 << 19;

/// What blobs start at a multiple of on their disk, and what an image's length is a multiple of.
const BLOCK_BYTES: u64 = 4096;

/// Part of the key of an unpacked image: a new number makes all of them anew when the writer changes what it writes.
const WRITER_VERSION: u32 = 1;

/// What [`Store::begin_unpack`] finds.
#[derive(Debug)]
pub enum Unpack {
    /// The image is unpacked: its EROFS file, read-only.
    Done(File),
    /// The caller is to unpack it.
    Job(Box<UnpackJob>),
}

/// The right to unpack an image, and what is needed for it. Other processes that want the same image wait until it is
/// committed or dropped; a dropped job leaves nothing behind.
#[derive(Debug)]
pub struct UnpackJob {
    store: Store,
    image: Image,
    spec: UnpackSpec,
    output: File,
    temporary: PathBuf,
    target: PathBuf,
    // Dropped in this order: the temporary file goes before another process can take the lock.
    workspace: Workspace,
    lock: File,
}

impl Store {
    /// The EROFS file of an image, read-only, when it has been made.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn unpacked(&self, image: &Image) -> Result<Option<File>, StoreError> {
        files::open_if_present(&self.erofs_path(image))
    }

    /// Takes the right to unpack an image, to at most `max_size`. Blocks while another process unpacks the same one; the
    /// right goes with the process that has it.
    ///
    /// # Errors
    /// When a file cannot be made or locked.
    pub fn begin_unpack(&self, image: &Image, max_size: MaxImageSize) -> Result<Unpack, StoreError> {
        if let Some(file) = self.unpacked(image)? {
            return Ok(Unpack::Done(file));
        }
        let target = self.erofs_path(image);
        let lock = files::lock(&target.with_extension("lock"))?;
        if let Some(file) = self.unpacked(image)? {
            return Ok(Unpack::Done(file));
        }
        let workspace = self.workspace()?;
        let spec = UnpackSpec {
            layers: layer_specs(image),
            target: 1,
            max_bytes: self
                .bytes_available()?
                .min(max_size.bytes() / BLOCK_BYTES * BLOCK_BYTES),
            max_inodes: UNPACKED_INODES_MAX,
        };
        let temporary = workspace.path().join("erofs");
        let output = make_sparse(&temporary, spec.max_bytes)?;
        Ok(Unpack::Job(Box::new(UnpackJob {
            store: self.clone(),
            image: image.clone(),
            spec,
            output,
            temporary,
            target,
            workspace,
            lock,
        })))
    }

    pub(super) fn erofs_path(&self, image: &Image) -> PathBuf {
        self.erofs().join(format!("{}.erofs", Self::layers_key(image)))
    }

    /// What an unpacked image is called by: its layers.
    pub(super) fn layers_key(image: &Image) -> String {
        let mut hasher = Sha256::new();
        hasher.update(format!("brig erofs {WRITER_VERSION}\n"));
        for layer in &image.layers {
            hasher.update(layer.diff_id.0);
        }
        Digest::finish(hasher).hex()
    }

    /// Bytes that can still be written in the store, in whole blocks.
    pub(super) fn bytes_available(&self) -> Result<u64, StoreError> {
        let found = rustix::fs::statvfs(&self.root)
            .map_err(|e| StoreError::io("read the free space of", &self.root)(e.into()))?;
        let bytes = found.f_bavail.saturating_mul(found.f_frsize) / BLOCK_BYTES * BLOCK_BYTES;
        if bytes == 0 {
            return Err(StoreError::NoSpace {
                directory: self.root.clone(),
            });
        }
        Ok(bytes)
    }
}

impl UnpackJob {
    /// The layers' blobs and their lengths, lowest first, opened read-only: the disk that [`UnpackJob::spec`] speaks
    /// of consists of them.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] when one is gone or was cut short.
    pub fn blobs(&self) -> Result<Vec<(File, u64)>, StoreError> {
        let open = |layer: &crate::Layer| Ok((self.store.blob(&layer.digest, layer.size)?, layer.size));
        self.image.layers.iter().map(open).collect()
    }

    /// The file that the EROFS image is to be written to: sparse, as long as the spec's `max_bytes`.
    pub fn output(&self) -> &File {
        &self.output
    }

    /// What the agent is to be told.
    pub fn spec(&self) -> &UnpackSpec {
        &self.spec
    }

    /// Makes the first `bytes` bytes of the output the image's EROFS file and opens it read-only. Call it once
    /// nothing writes to the output any more.
    ///
    /// # Errors
    /// [`StoreError::ImpossibleLength`] when no image can have that length; the file's errors. Nothing is left then.
    pub fn commit(self, bytes: u64) -> Result<File, StoreError> {
        if bytes == 0 || bytes > self.spec.max_bytes || !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(StoreError::ImpossibleLength(bytes));
        }
        self.output
            .set_len(bytes)
            .and_then(|()| self.output.sync_all())
            .map_err(StoreError::io("write", &self.temporary))?;
        let file = File::open(&self.temporary).map_err(StoreError::io("open", &self.temporary))?;
        let rename = || {
            fs::rename(&self.temporary, &self.target).map_err(StoreError::io("make", &self.target))?;
            files::sync_directory(&self.store.erofs())
        };
        // Nobody would need the file of an image that has been removed meanwhile; it goes with this process's descriptor.
        self.store.keeping(&self.image.id, rename)?;
        drop(self.workspace);
        drop(self.lock);
        Ok(file)
    }
}

/// Where each layer is on a disk that consists of all of them, each from a multiple of [`BLOCK_BYTES`].
pub(super) fn layer_specs(image: &Image) -> Vec<LayerSpec> {
    let mut offset = 0;
    let mut place = |layer: &crate::Layer| {
        let spec = LayerSpec {
            offset,
            length: layer.size,
            compression: layer.compression,
            diff_id: layer.diff_id.0,
        };
        offset += layer.size.next_multiple_of(BLOCK_BYTES);
        spec
    };
    image.layers.iter().map(&mut place).collect()
}

fn make_sparse(path: &Path, bytes: u64) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(StoreError::io("make", path))?;
    file.set_len(bytes).map_err(StoreError::io("make", path))?;
    Ok(file)
}
