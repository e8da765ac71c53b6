//! The way into the store, the same for all that comes from outside: archives, registries, imports, commits.
//!
//! Blobs are collected in a directory that nobody else looks into and that goes with its process. A blob that the store
//! has already is *pinned* there: a hard link keeps its bytes, whatever is removed meanwhile. [`Incoming::publish`] then
//! makes all of it visible under the store's lock, so that a removal sees either none of it or all.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use sha2::{Digest as _, Sha256};

use super::{Names, Store, StoreError, files, files::Workspace};
use crate::{
    archive::ArchiveError,
    compression::MAGIC_BYTES,
    digest::Digest,
    image::{Image, ImageId},
    reference::ImageName,
};

/// A blob that has been received whole and whose digest is known.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Its first bytes; zeros where it is shorter.
    pub head: [u8; MAGIC_BYTES],
    /// Where it lies until it is published.
    pub(crate) file: PathBuf,
    /// Whether it is the store's own file.
    pinned: bool,
}

/// An image that is to be published.
#[derive(Clone, Debug)]
pub struct Found {
    /// The image.
    pub image: Image,
    /// The names that it is to get, beside those that it has.
    pub names: Vec<ImageName>,
    /// What the store has to keep for it: layers, configuration and manifest.
    pub blobs: Vec<Blob>,
}

/// Blobs on their way into the store. What is not published goes when it is dropped, or is swept when its process died.
#[derive(Debug)]
pub struct Incoming {
    store: Store,
    workspace: Workspace,
    kept: AtomicUsize,
}

impl Incoming {
    /// With a new, empty directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn new(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            store: store.clone(),
            workspace: store.workspace()?,
            kept: AtomicUsize::new(0),
        })
    }

    /// The directory, for files that become blobs later.
    pub fn directory(&self) -> &Path {
        self.workspace.path()
    }

    /// Begins a blob. `expected` is the digest that it must have; bytes that the store has already are checked, but not
    /// written again.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn begin_blob(&self, expected: Option<Digest>) -> Result<BlobWriter, StoreError> {
        let path = self.new_path();
        let pinned = expected.is_some_and(|digest| self.pin(&digest, &path));
        let output = if pinned {
            None
        } else {
            Some(File::create_new(&path).map_err(StoreError::io("make", &path))?)
        };
        Ok(BlobWriter {
            stored: expected
                .map(|digest| self.store.blob_path(&digest))
                .unwrap_or_default(),
            expected,
            hasher: Sha256::new(),
            size: 0,
            head: [0; MAGIC_BYTES],
            path,
            output,
        })
    }

    /// A blob that is all there.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn blob(&self, content: &[u8]) -> Result<Blob, StoreError> {
        let mut writer = self.begin_blob(Some(Digest::of(content)))?;
        writer.write(content)?;
        writer.finish()
    }

    /// The blob with this digest, if the store has it. It is kept for this publication, whatever is removed meanwhile.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn stored(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let path = self.new_path();
        if !self.pin(digest, &path) {
            return Ok(None);
        }
        let mut head = Vec::new();
        let read = |head: &mut Vec<u8>| {
            let file = File::open(&path)?;
            let size = file.metadata()?.len();
            file.take(MAGIC_BYTES as u64).read_to_end(head)?;
            Ok(size)
        };
        let size = read(&mut head).map_err(StoreError::io("read", &path))?;
        head.resize(MAGIC_BYTES, 0);
        let mut blob = Blob {
            digest: *digest,
            size,
            head: [0; MAGIC_BYTES],
            file: path,
            pinned: true,
        };
        blob.head.copy_from_slice(&head);
        Ok(Some(blob))
    }

    /// Takes a whole blob, which is on the disk and verified, from elsewhere in the store. False when it has gone.
    pub(super) fn adopt(
        &self,
        digest: Digest,
        size: u64,
        head: [u8; MAGIC_BYTES],
        from: &Path,
    ) -> Option<Blob> {
        let file = self.new_path();
        let taken = fs::hard_link(from, &file).is_ok()
            || fs::copy(from, &file)
                .is_ok_and(|_| File::open(&file).is_ok_and(|copy| copy.sync_all().is_ok()));
        taken.then_some(Blob {
            digest,
            size,
            head,
            file,
            pinned: true,
        })
    }

    fn new_path(&self) -> PathBuf {
        let number = self.kept.fetch_add(1, Ordering::Relaxed);
        self.workspace.path().join(number.to_string())
    }

    /// Makes `path` a name of the store's blob, or a copy of it where the filesystem has no hard links. False when there is
    /// none.
    fn pin(&self, digest: &Digest, path: &Path) -> bool {
        let stored = self.store.blob_path(digest);
        match fs::hard_link(&stored, path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(_) => fs::copy(&stored, path).is_ok(),
        }
    }

    /// Makes the images visible: their blobs, their records, then their names. Gives the images as they are then.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and those of files. Nothing that was visible before is lost then.
    pub fn publish(&self, found: &[Found]) -> Result<Vec<Image>, StoreError> {
        // What takes long is done before others have to wait.
        for blob in found.iter().flat_map(|image| &image.blobs) {
            if !blob.pinned {
                File::open(&blob.file)
                    .and_then(|file| file.sync_all())
                    .map_err(StoreError::io("write", &blob.file))?;
            }
        }
        let store = &self.store;
        let _lock = store.lock()?;
        for blob in found.iter().flat_map(|image| &image.blobs) {
            let target = store.blob_path(&blob.digest);
            // One that is there already has the same bytes; in a list of layers it may stand twice.
            if !target.exists() {
                fs::rename(&blob.file, &target).map_err(StoreError::io("make", &target))?;
            }
        }
        files::sync_directory(&store.blobs())?;
        for Found { image, .. } in found {
            let mut image = image.clone();
            // A damaged record is mended by this one.
            if let Ok(Some(known)) = store.record(&image.id, &Names::new()) {
                image.add_digests(known.digests);
            }
            files::replace(&store.record_path(&image.id), &super::to_json(&image))?;
        }
        let new: Vec<(ImageName, ImageId)> = found
            .iter()
            .flat_map(|found| found.names.iter().map(|name| (name.clone(), found.image.id)))
            .collect();
        let mut names = store.names()?;
        if !new.is_empty() {
            names.extend(new);
            store.write_names(&names)?;
        }
        let image = |found: &Found| {
            Ok(store
                .record(&found.image.id, &names)?
                .unwrap_or_else(|| found.image.clone()))
        };
        found.iter().map(image).collect()
    }
}

/// A blob that is being received.
#[derive(Debug)]
pub struct BlobWriter {
    expected: Option<Digest>,
    hasher: Sha256,
    size: u64,
    head: [u8; MAGIC_BYTES],
    path: PathBuf,
    /// The store's own file of that digest; empty when none is expected.
    stored: PathBuf,
    /// `None` when the store has these bytes.
    output: Option<File>,
}

impl BlobWriter {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and those of the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let have = usize::try_from(self.size).map_or(MAGIC_BYTES, |size| size.min(MAGIC_BYTES));
        let missing = &mut self.head[have..];
        let count = missing.len().min(bytes.len());
        missing[..count].copy_from_slice(&bytes[..count]);
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        match &mut self.output {
            Some(file) => file.write_all(bytes).map_err(StoreError::io("write", &self.path)),
            None => Ok(()),
        }
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The blob is whole.
    ///
    /// # Errors
    /// [`ArchiveError::Digest`] when it is not what was expected.
    pub fn finish(self) -> Result<Blob, StoreError> {
        let digest = Digest::finish(self.hasher);
        if let Some(expected) = self.expected.filter(|&expected| expected != digest) {
            let found = digest;
            return Err(ArchiveError::Digest { expected, found }.into());
        }
        if self.output.is_none()
            && let Ok(pinned) = fs::metadata(&self.path)
            && pinned.len() != self.size
        {
            // So that the next attempt brings it anew.
            let _ = fs::remove_file(&self.stored);
            return Err(StoreError::RemovedBlob(digest));
        }
        Ok(Blob {
            digest,
            size: self.size,
            head: self.head,
            file: self.path,
            pinned: self.output.is_none(),
        })
    }
}

impl Store {
    /// The way into the store for images from elsewhere.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn incoming(&self) -> Result<Incoming, StoreError> {
        Incoming::new(self)
    }
}
