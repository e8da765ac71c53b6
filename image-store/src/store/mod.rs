//! Images on disk. Everything is in files, so that any number of processes can use one store at the same time.
//!
//! ```text
//! <root>/blobs/sha256/<hex>    layers, configurations and manifests, as their digests say
//! <root>/images/<hex>.json     a record for each image, by the digest of its configuration
//! <root>/names.json            which image each name means
//! <root>/erofs/<key>.erofs     unpacked images, by what is in them
//! <root>/erofs/<key>.lock      held while one is made
//! <root>/directories/<key>.<map>/   the same for sandboxes on the host's kernel, by whose the files are there
//! <root>/downloads/            blobs that are being received, or were in part
//! <root>/tmp/                  what is not whole yet
//! <root>/lock                  held while records and names change
//! ```
//! A file appears under its final name by a rename, after it is whole and on the disk. Readers take no locks: what they have
//! opened stays theirs when it is removed.
//!
//! | module | does |
//! |---|---|
//! | [`incoming`] | the way in, for everything |
//! | [`receive`] | blobs that come over a network, piece by piece |
//! | [`load`], [`import`], [`save`] | archives of images, of files, and back |
//! | [`document`] | what an image's configuration says |
//! | [`remove`] | names, images, and what nothing refers to any more |
//! | [`rootfs`], [`directories`] | unpacked images |
//! | [`check`] | whether everything is as it should be |

mod check;
mod directories;
mod document;
mod error;
pub(crate) mod files;
mod import;
mod incoming;
mod load;
mod receive;
mod remove;
mod rootfs;
mod save;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use self::files::Workspace;
pub use self::{
    check::Problem,
    directories::{DirectoryJob, UnpackDirectory},
    document::HistoryEntry,
    error::StoreError,
    import::ImportOptions,
    incoming::{Blob, BlobWriter, Found, Incoming},
    load::{LoadProgress, Loaded},
    receive::{ImageReceiver, Reception, Wanted},
    remove::{Prune, Removed, Usage, User},
    rootfs::{UNPACKED_INODES_MAX, Unpack, UnpackJob},
};
use crate::{
    digest::{DIGEST_BYTES, Digest},
    image::{Image, ImageId},
    journal::{Journal, Kind},
    limits::MaxImageSize,
    reference::{ImageName, Reference, Repository, RepositoryDigest},
};

/// Which image each name means.
type Names = BTreeMap<ImageName, ImageId>;

/// A directory of images. Cheap to clone: it holds nothing but paths and a limit.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    /// Of what comes in.
    max_image_size: MaxImageSize,
    /// Where it is told what happens to images.
    journal: Option<Journal>,
}

impl Store {
    /// The store in the directory `root`, which is made when it is missing. What processes that died left
    /// unfinished is removed.
    ///
    /// # Errors
    /// When a directory cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self::at(root);
        for directory in [store.blobs(), store.images(), store.erofs(), store.tmp()] {
            fs::create_dir_all(&directory).map_err(StoreError::io("make", &directory))?;
        }
        if !files::entries(&store.tmp())?.is_empty()
            && let Some(_lock) = files::try_lock(&store.lock_path())?
        {
            files::sweep(&store.tmp())?;
        }
        Ok(store)
    }

    /// The store in the directory `root`, for one who only reads what is there.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            max_image_size: MaxImageSize::DEFAULT,
            journal: None,
        }
    }

    /// The same store, which tells `journal` what it does with images.
    #[must_use]
    pub fn telling(&self, journal: Journal) -> Self {
        Self {
            journal: Some(journal),
            ..self.clone()
        }
    }

    /// Tells that something has happened to an image, in Docker's words. `id` is the image's, or the name that was used at a
    /// registry; the image's labels are among what is told.
    pub fn note(&self, action: &str, image: Option<&Image>, id: &str, name: &str) {
        if let Some(journal) = &self.journal {
            let labels = image.into_iter().flat_map(|image| &image.config.labels);
            let labels = labels.map(|(name, value)| (name.as_str(), value.as_str()));
            journal.note(Kind::Image, action, id, labels.chain([("name", name)]));
        }
    }

    /// The same store, which takes no image in that is larger than `max`.
    #[must_use]
    pub fn limited(&self, max: MaxImageSize) -> Self {
        Self {
            max_image_size: max,
            ..self.clone()
        }
    }

    /// The image that `text` means: a name (`nginx`, `nginx:1.25`, `docker.io/library/nginx`,
    /// `nginx@sha256:…`), an id, or the start of an id that no other image's has. A name wins over an id.
    ///
    /// # Errors
    /// [`StoreError::Reference`] when it can be neither, [`StoreError::AmbiguousPrefix`], or a damaged record.
    pub fn resolve(&self, text: &str) -> Result<Option<Image>, StoreError> {
        let reference = text.parse::<Reference>();
        if let Ok(reference) = &reference {
            if let Some(digest) = reference.digest {
                return self.by_repository_digest(&reference.repository, digest);
            }
            if let Some(id) = self.names()?.get(&reference.name())
                && let Some(image) = self.image(id)?
            {
                return Ok(Some(image));
            }
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if is_id_prefix(prefix) {
            return self.by_prefix(prefix);
        }
        reference?;
        Ok(None)
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// A damaged record.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let mut images = self.list_with(&self.names()?)?;
        images.sort_by_cached_key(|image| (Reverse(image.created.clone()), image.names.clone(), image.id));
        Ok(images)
    }

    fn list_with(&self, names: &Names) -> Result<Vec<Image>, StoreError> {
        let mut images = Vec::new();
        for id in self.ids()? {
            images.extend(self.record(&id, names)?);
        }
        Ok(images)
    }

    /// The image with this id.
    ///
    /// # Errors
    /// A damaged record.
    pub fn image(&self, id: &ImageId) -> Result<Option<Image>, StoreError> {
        self.record(id, &self.names()?)
    }

    fn record(&self, id: &ImageId, names: &Names) -> Result<Option<Image>, StoreError> {
        let path = self.record_path(id);
        let Some(json) = files::read_if_present(&path)? else {
            return Ok(None);
        };
        let mut image: Image =
            serde_json::from_slice(&json).map_err(|source| StoreError::Record { path, source })?;
        image.names = names
            .iter()
            .filter(|(_, named)| *named == id)
            .map(|(name, _)| name.clone())
            .collect();
        Ok(Some(image))
    }

    /// A digest of a manifest or of a configuration is enough; one of an index has to be of this repository.
    fn by_repository_digest(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Option<Image>, StoreError> {
        let called = |image: &Image| {
            let mut digests = image.digests.iter();
            digests.any(|known| known.digest == digest && known.repository == *repository)
        };
        match self.by_digest(digest)? {
            Some(image) => Ok(Some(image)),
            None => Ok(self.list()?.into_iter().find(called)),
        }
    }

    fn by_digest(&self, digest: Digest) -> Result<Option<Image>, StoreError> {
        let mut images = self.list()?.into_iter();
        Ok(images.find(|image| image.manifest == Some(digest) || image.id.0 == digest))
    }

    fn by_prefix(&self, prefix: &str) -> Result<Option<Image>, StoreError> {
        let mut fitting = self.ids()?.into_iter().filter(|id| id.hex().starts_with(prefix));
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(StoreError::AmbiguousPrefix(prefix.to_string())),
            (Some(id), None) => self.image(&id),
            (None, _) if prefix.len() == 2 * DIGEST_BYTES => match Digest::from_hex(prefix) {
                Some(digest) => self.by_digest(digest),
                None => Ok(None),
            },
            (None, _) => Ok(None),
        }
    }

    /// The ids of all records.
    fn ids(&self) -> Result<Vec<ImageId>, StoreError> {
        let id = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            Digest::from_hex(name.strip_suffix(".json")?).map(ImageId)
        };
        Ok(files::entries(&self.images())?
            .into_iter()
            .filter_map(id)
            .collect())
    }

    fn names(&self) -> Result<Names, StoreError> {
        let path = self.names_path();
        match files::read_if_present(&path)? {
            Some(json) => serde_json::from_slice(&json).map_err(|source| StoreError::Record { path, source }),
            None => Ok(Names::new()),
        }
    }

    /// A small blob's content; `None` when the store has not got it, or it has more than `limit` bytes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= limit => files::read_if_present(&path),
            _ => Ok(None),
        }
    }

    /// Takes note that a registry has an image under this digest.
    ///
    /// # Errors
    /// When the record cannot be read or written. One that is gone meanwhile is none.
    pub fn add_digest(&self, id: &ImageId, digest: RepositoryDigest) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        match self.image(id)? {
            Some(mut image) if !image.digests.contains(&digest) => {
                image.digests.push(digest);
                image.digests.sort_unstable();
                files::replace(&self.record_path(id), &to_json(&image))
            }
            _ => Ok(()),
        }
    }

    /// Whether all blobs of an image are there.
    pub fn is_whole(&self, image: &Image) -> bool {
        let mut layers = image.layers.iter();
        layers.all(|layer| self.blob(&layer.digest, layer.size).is_ok())
            && image.blobs().iter().all(|digest| self.blob_path(digest).exists())
    }

    /// Opens a blob that a record names, read-only.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] when it is gone, or has another length than the record says.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        let file = files::open_if_present(&path)?.ok_or(StoreError::MissingBlob(*digest))?;
        let found = file.metadata().map_err(StoreError::io("read", &path))?.len();
        if found != size {
            return Err(StoreError::MissingBlob(*digest));
        }
        Ok(file)
    }

    fn write_names(&self, names: &Names) -> Result<(), StoreError> {
        files::replace(&self.names_path(), &to_json(names))
    }

    /// Held while records and names change, and while what nothing refers to is removed.
    fn lock(&self) -> Result<File, StoreError> {
        files::lock(&self.lock_path())
    }

    fn workspace(&self) -> Result<Workspace, StoreError> {
        let _lock = self.lock()?;
        Workspace::new(&self.tmp())
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn erofs(&self) -> PathBuf {
        self.root.join("erofs")
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    fn names_path(&self) -> PathBuf {
        self.root.join("names.json")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn record_path(&self, id: &ImageId) -> PathBuf {
        self.images().join(format!("{}.json", id.hex()))
    }
}

/// Whether an id can start so.
fn is_id_prefix(text: &str) -> bool {
    (1..=2 * DIGEST_BYTES).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// JSON of a type of ours, which always has one.
fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("records have string keys only, and no type in them can fail")
}
