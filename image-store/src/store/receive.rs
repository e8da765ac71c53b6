//! Blobs that come over a network, piece by piece, on their way to [`Incoming`].
//!
//! Each is collected in `<root>/downloads/<hex>-<bytes>`. What was written stays there when its process dies, and the
//! next one goes on from it. Locks of the file (flock(2), they die with their holder):
//!
//! | lock | means |
//! |---|---|
//! | exclusive | a process writes to it: the others that want this blob wait |
//! | shared | the file is whole and verified, and is waiting for the rest of an image |
//! | none | left behind: the next that wants the blob takes it, a later pull or prune sweeps it |
//!
//! Nobody waits for a blob that is whole, and whoever writes one waits for no other with it: so two pulls cannot wait for
//! each other for ever.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{Blob, Incoming, Store, StoreError, files};
use crate::{
    archive::{self, ArchiveError, Source},
    compression::MAGIC_BYTES,
    digest::Digest,
    image::Image,
    manifest::{Descriptor, Platform},
    reference::{ImageName, RepositoryDigest},
};

/// How long a part of a blob is kept that nobody asked for again.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Bytes that are read from a file at a time.
const READ_BYTES: usize = 256 << 10;

/// An image that is being received. Nothing of it is visible before [`ImageReceiver::commit`]; dropped, what was received
/// stays for the next that wants it. Several threads may use it.
#[derive(Debug)]
pub struct ImageReceiver {
    store: Store,
    incoming: Incoming,
    received: Mutex<BTreeMap<Digest, Received>>,
}

/// A blob that is whole and verified.
#[derive(Debug)]
struct Received {
    blob: Blob,
    /// The file in `downloads` that is not needed any more once the blob is published, with its shared lock.
    download: Option<(PathBuf, File)>,
}

/// What there is of a blob that is wanted.
#[derive(Debug)]
pub enum Wanted {
    /// The store has it: nothing is to be downloaded.
    Stored,
    /// Another process has received it meanwhile, or died just after it had.
    Whole,
    /// It, or the rest of it, is to be downloaded by the caller. Others that want it wait.
    Missing(Box<Reception>),
}

/// The right and duty to write a blob.
#[derive(Debug)]
pub struct Reception {
    digest: Digest,
    size: u64,
    path: PathBuf,
    /// Locked exclusively.
    file: File,
    hasher: Sha256,
    head: [u8; MAGIC_BYTES],
    written: u64,
}

impl Store {
    /// Begins to take in an image. Parts of blobs that have been of no use for a week are removed.
    ///
    /// # Errors
    /// When a directory cannot be made or read.
    pub fn receive_image(&self) -> Result<ImageReceiver, StoreError> {
        let directory = self.downloads();
        fs::create_dir_all(&directory).map_err(StoreError::io("make", &directory))?;
        self.sweep_downloads(KEEP);
        Ok(ImageReceiver {
            store: self.clone(),
            incoming: self.incoming()?,
            received: Mutex::default(),
        })
    }

    /// Removes parts of blobs that nobody writes to, and that are older than `keep`. Gives the bytes of the disk that are
    /// free by that. What cannot be removed will be another time.
    pub(super) fn sweep_downloads(&self, keep: Duration) -> u64 {
        let paths = files::entries(&self.downloads()).unwrap_or_default();
        paths.iter().filter_map(|path| remove_if_older(path, keep)).sum()
    }

    /// Where parts of blobs are.
    pub(super) fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }
}

impl ImageReceiver {
    /// Takes the right to write a blob, or finds that it is there and takes that one. Blocks while another process
    /// downloads the same one, so call it where that does no harm; `waiting` is called before it waits.
    ///
    /// # Errors
    /// When a file cannot be made, read or locked.
    pub fn receive(
        &self,
        digest: Digest,
        size: u64,
        waiting: &mut dyn FnMut(),
    ) -> Result<Wanted, StoreError> {
        // Part of the name is the length: whoever is told another one of the same blob shall not stand in its way.
        let path = self.store.downloads().join(format!("{}-{size}", digest.hex()));
        loop {
            if let Some(blob) = self.incoming.stored(&digest)?
                && blob.size == size
            {
                self.note(Received { blob, download: None });
                return Ok(Wanted::Stored);
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(StoreError::io("open", &path))?;
            let exclusive = try_exclusive(&file, &path)?;
            if !exclusive {
                waiting();
                lock(&file, FlockOperation::LockShared, &path)?;
            }
            if !files::is_at(&file, &path) {
                // It has gone into the store, or was swept.
                continue;
            }
            let length = file.metadata().map_err(StoreError::io("read", &path))?.len();
            if !exclusive && length != size {
                // Whoever had it has given up.
                continue;
            }
            let mut reception = Reception::resume(digest, size, path.clone(), file)?;
            if length == size && reception.is_right() {
                self.finish(reception)?;
                return Ok(Wanted::Whole);
            }
            if !exclusive {
                continue;
            }
            if length >= size {
                reception.restart()?;
            }
            return Ok(Wanted::Missing(Box::new(reception)));
        }
    }

    /// Refuses at once an image whose layers have more bytes than are allowed, or than the whole disk has. Less may be there
    /// already, or fit by the time it comes: that is found out then.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::NoSpace`].
    pub fn check_bytes(&self, bytes: u64) -> Result<(), StoreError> {
        self.store
            .max_image_size
            .check("the layers of the image have", bytes)?;
        let root = &self.store.root;
        let found = rustix::fs::statvfs(root)
            .map_err(|e| StoreError::io("read the free space of", root)(e.into()))?;
        if bytes > found.f_blocks.saturating_mul(found.f_frsize) {
            return Err(StoreError::NoSpace {
                directory: root.clone(),
            });
        }
        Ok(())
    }

    /// Verifies a blob, writes it to its disk, and takes it for the image.
    ///
    /// # Errors
    /// [`ArchiveError::Size`] when bytes are missing, which stay for the next time; [`ArchiveError::Digest`] when they
    /// are not what the digest promises: they are removed. The file's errors.
    pub fn finish(&self, reception: Reception) -> Result<(), StoreError> {
        let Reception { digest, size, .. } = reception;
        if reception.written != size {
            return Err(ArchiveError::Size {
                digest,
                expected: size,
                found: reception.written,
            }
            .into());
        }
        let (path, file) = (reception.path, reception.file);
        let found = Digest::finish(reception.hasher);
        if found != digest {
            // Whoever waits for it makes another file.
            let _ = fs::remove_file(&path);
            return Err(ArchiveError::Digest {
                expected: digest,
                found,
            }
            .into());
        }
        file.sync_all().map_err(StoreError::io("write", &path))?;
        lock(&file, FlockOperation::LockShared, &path)?;
        let blob = match self.incoming.adopt(digest, size, reception.head, &path) {
            Some(blob) => blob,
            // Another process has published it just now.
            None => self
                .incoming
                .stored(&digest)?
                .ok_or(StoreError::MissingBlob(digest))?,
        };
        let download = Some((path, file));
        self.note(Received { blob, download });
        Ok(())
    }

    /// Removes what was received in part, here or by pulls before, and is not being written: on a full disk it would stand in the
    /// way of everything else.
    pub fn free_space(&self) {
        self.store.sweep_downloads(Duration::ZERO);
    }

    /// Takes a document of the image: a manifest or a configuration.
    ///
    /// # Errors
    /// The file's.
    pub fn add_document(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let blob = self.incoming.blob(bytes)?;
        self.note(Received { blob, download: None });
        Ok(())
    }

    /// Makes an image of what was received: the one whose manifest `descriptor` names, which has to be for `platform`.
    /// From then on it has `names` beside those that it has, and registries are known to call it `digests`.
    ///
    /// # Errors
    /// [`StoreError::Archive`] when a document or a blob is missing, malformed, or not for `platform`; the files'.
    pub fn commit(
        &self,
        descriptor: &Descriptor,
        platform: &Platform,
        names: Vec<ImageName>,
        digests: Vec<RepositoryDigest>,
    ) -> Result<Image, StoreError> {
        let mut found = archive::oci::image(&mut &*self, descriptor, platform.clone())?;
        found.names = names;
        found.image.digests = digests;
        let images = self.incoming.publish(std::slice::from_ref(&found))?;
        for received in std::mem::take(&mut *self.received()).into_values() {
            if let Some((path, lock)) = received.download
                && files::is_at(&lock, &path)
            {
                // What is left there is swept another time.
                let _ = fs::remove_file(path);
            }
        }
        Ok(images.into_iter().next().unwrap_or(found.image))
    }

    fn note(&self, received: Received) {
        self.received().insert(received.blob.digest, received);
    }

    fn received(&self) -> MutexGuard<'_, BTreeMap<Digest, Received>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, path: &str) -> Option<Blob> {
        let digest = Digest::from_hex(path.rsplit('/').next()?)?;
        self.received().get(&digest).map(|received| received.blob.clone())
    }
}

impl Source for &ImageReceiver {
    fn document(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match self.find(path) {
            Some(blob) if blob.size > limit => {
                let path = path.to_owned();
                Err(ArchiveError::TooLong { path, limit }.into())
            }
            Some(blob) => files::read_if_present(&blob.file),
            None => Ok(None),
        }
    }

    fn blob(&mut self, path: &str, _expected: Option<Digest>) -> Result<Option<Blob>, StoreError> {
        Ok(self.find(path))
    }
}

impl Reception {
    /// Goes on from what the file has, which is read for that, as far as the blob goes.
    fn resume(digest: Digest, size: u64, path: PathBuf, file: File) -> Result<Self, StoreError> {
        let mut reception = Self {
            digest,
            size,
            path,
            file,
            hasher: Sha256::new(),
            head: [0; MAGIC_BYTES],
            written: 0,
        };
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let most = buffer.len().min((size - reception.written) as usize);
            let error = |e| StoreError::io("read", &reception.path)(e);
            match (&reception.file).read(&mut buffer[..most]) {
                Ok(0) => return Ok(reception),
                Ok(count) => reception.note(&buffer[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(error(e)),
            }
        }
    }

    /// Bytes that are there: where to go on.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes the next bytes of the blob.
    ///
    /// # Errors
    /// [`ArchiveError::Size`] when these are more bytes than the blob has; the file's errors.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let found = self.written + bytes.len() as u64;
        if found > self.size {
            return Err(ArchiveError::Size {
                digest: self.digest,
                expected: self.size,
                found,
            }
            .into());
        }
        (&self.file)
            .write_all(bytes)
            .map_err(StoreError::io("write", &self.path))?;
        self.note(bytes);
        Ok(())
    }

    fn note(&mut self, bytes: &[u8]) {
        let known = self.head.len().min(self.written as usize);
        let missing = &mut self.head[known..];
        let count = missing.len().min(bytes.len());
        missing[..count].copy_from_slice(&bytes[..count]);
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
    }

    /// Forgets what is there: the next byte written is the blob's first.
    ///
    /// # Errors
    /// The file's.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(StoreError::io("write", &self.path))?;
        self.hasher = Sha256::new();
        self.head = [0; MAGIC_BYTES];
        self.written = 0;
        Ok(())
    }

    /// Whether the bytes so far are the ones that the digest promises.
    fn is_right(&self) -> bool {
        Digest::finish(self.hasher.clone()) == self.digest
    }
}

/// Removes a part of a blob that nobody asked for so long, and gives the bytes of the disk that it took.
fn remove_if_older(path: &Path, keep: Duration) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    let age = SystemTime::now().duration_since(metadata.modified().ok()?);
    if age.is_ok_and(|age| age < keep) {
        return None;
    }
    let file = File::open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    fs::remove_file(path).ok()?;
    Some(metadata.blocks() * 512)
}

fn try_exclusive(file: &File, path: &Path) -> Result<bool, StoreError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(e) => Err(StoreError::io("lock", path)(e.into())),
    }
}

fn lock(file: &File, operation: FlockOperation, path: &Path) -> Result<(), StoreError> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(StoreError::io("lock", path)(e.into())),
        }
    }
}
