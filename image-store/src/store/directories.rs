//! Images unpacked to directories, for sandboxes on the host's kernel: one for each list of layers and each map of ids, as the
//! files' owners are ids of the host.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use brig_protocol::agent::UnpackSpec;

use super::{
    Store, StoreError,
    files::{self, Workspace},
    rootfs::{UNPACKED_INODES_MAX, layer_specs},
};
use crate::{image::Image, limits::MaxImageSize};

/// The directory of an image's files in the one that it is unpacked to.
const ROOT_NAME: &str = "root";

/// What [`Store::begin_unpack_directory`] finds.
#[derive(Debug)]
pub enum UnpackDirectory {
    /// The image is unpacked here.
    Done(PathBuf),
    /// The caller is to unpack it.
    Job(Box<DirectoryJob>),
}

/// The right to unpack an image into a directory, as [`super::UnpackJob`] is for a file.
#[derive(Debug)]
pub struct DirectoryJob {
    store: Store,
    image: Image,
    spec: UnpackSpec,
    target: PathBuf,
    directory: PathBuf,
    workspace: Workspace,
    lock: File,
}

impl Store {
    /// The directory that an image is unpacked to for this map of ids, when it is.
    pub fn unpacked_directory(&self, image: &Image, map: &str) -> Option<PathBuf> {
        let path = self.directory_path(image, map);
        path.is_dir().then_some(path)
    }

    /// Takes the right to unpack an image for a map of ids, to at most `max_size`. Blocks while another process does.
    ///
    /// # Errors
    /// When a file cannot be made or locked.
    pub fn begin_unpack_directory(
        &self,
        image: &Image,
        map: &str,
        max_size: MaxImageSize,
    ) -> Result<UnpackDirectory, StoreError> {
        if let Some(path) = self.unpacked_directory(image, map) {
            return Ok(UnpackDirectory::Done(path));
        }
        let (parent, target) = (self.directories(), self.directory_path(image, map));
        fs::create_dir_all(&parent).map_err(StoreError::io("make", &parent))?;
        let lock = files::lock(&lock_path(&target))?;
        if let Some(path) = self.unpacked_directory(image, map) {
            return Ok(UnpackDirectory::Done(path));
        }
        let workspace = self.workspace()?;
        let directory = workspace.path().join("image");
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(StoreError::io("make", &directory))?;
        let spec = UnpackSpec {
            layers: layer_specs(image),
            target: 0,
            max_bytes: self.bytes_available()?.min(max_size.bytes()),
            max_inodes: UNPACKED_INODES_MAX,
        };
        Ok(UnpackDirectory::Job(Box::new(DirectoryJob {
            store: self.clone(),
            image: image.clone(),
            spec,
            target,
            directory,
            workspace,
            lock,
        })))
    }

    pub(super) fn directories(&self) -> PathBuf {
        self.root.join("directories")
    }

    fn directory_path(&self, image: &Image, map: &str) -> PathBuf {
        self.directories()
            .join(format!("{}.{map}", Self::layers_key(image)))
    }

    /// Whether a path in [`Store::directories`] is of this image.
    pub(super) fn is_directory_of(path: &Path, image: &Image) -> bool {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        name.split('.').next() == Some(&Self::layers_key(image))
    }
}

impl DirectoryJob {
    /// The layers' blobs, lowest first, opened read-only.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] when one is gone or was cut short.
    pub fn blobs(&self) -> Result<Vec<File>, StoreError> {
        let open = |layer: &crate::Layer| self.store.blob(&layer.digest, layer.size);
        self.image.layers.iter().map(open).collect()
    }

    /// The empty directory that the image is to be unpacked to.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is to be unpacked.
    pub fn spec(&self) -> &UnpackSpec {
        &self.spec
    }

    /// Makes what was written the image's directory. Call it once nothing writes there any more.
    ///
    /// # Errors
    /// The files' errors.
    pub fn commit(self) -> Result<PathBuf, StoreError> {
        let root = self.directory.join(ROOT_NAME);
        let parent = self.store.directories();
        File::open(&parent)
            .and_then(|directory| Ok(rustix::fs::syncfs(&directory)?))
            .map_err(StoreError::io("sync", &parent))?;
        let rename = || {
            fs::rename(&root, &self.target).map_err(StoreError::io("make", &self.target))?;
            files::sync_directory(&parent)
        };
        self.store.keeping(&self.image.id, rename)?;
        drop(self.workspace);
        drop(self.lock);
        Ok(self.target)
    }
}

/// Held while a directory is made.
fn lock_path(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Whether a path is one of [`lock_path`].
pub(super) fn is_lock(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "lock")
}

/// Bytes that a tree takes of the disk. What cannot be looked at, or goes meanwhile, does not count.
pub(super) fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut left = vec![path.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => left.push(entry.path()),
                Ok(found) => bytes += found.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}

/// The entries of [`Store::directories`]; none when there is no such directory.
pub(super) fn entries(store: &Store) -> Result<Vec<PathBuf>, StoreError> {
    match files::entries(&store.directories()) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found,
    }
}
