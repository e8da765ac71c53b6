//! Whether everything in the store is as it should be.

use std::{collections::BTreeSet, fmt, fs::File, io::Read, path::Path};

use sha2::{Digest as _, Sha256};

use super::{Store, StoreError, files};
use crate::{digest::Digest, image::ImageId, reference::ImageName};

/// Bytes that are hashed at a time.
const READ_BYTES: usize = 1 << 20;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A record cannot be read.
    Record {
        /// The image.
        image: ImageId,
        /// Why not.
        reason: String,
    },
    /// A blob that an image needs is not there.
    Missing {
        /// The image.
        image: ImageId,
        /// The blob.
        blob: Digest,
    },
    /// A blob has other bytes than its digest says.
    Damaged {
        /// The blob.
        blob: Digest,
    },
    /// A file that no image needs; `image prune` removes it.
    Orphan {
        /// Its name below the store.
        file: String,
    },
    /// A name of an image that is not there.
    Name {
        /// The name.
        name: ImageName,
    },
}

impl Problem {
    /// Whether an image cannot be used because of it; what is left over hurts nothing.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Orphan { .. } | Self::Name { .. })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record { image, reason } => {
                write!(f, "the record of image {} is damaged: {reason}", image.short())
            }
            Self::Missing { image, blob } => write!(f, "blob {blob} of image {} is missing", image.short()),
            Self::Damaged { blob } => write!(f, "blob {blob} is damaged"),
            Self::Orphan { file } => write!(f, "{file} is not needed by any image"),
            Self::Name { name } => write!(f, "{name} is the name of no image"),
        }
    }
}

impl Store {
    /// Compares every record with its blobs and every blob with its digest. Nothing else changes the store meanwhile.
    ///
    /// # Errors
    /// When files cannot be read.
    pub fn check(&self) -> Result<Vec<Problem>, StoreError> {
        let _lock = self.lock()?;
        let mut problems = Vec::new();
        let mut needed = BTreeSet::new();
        let mut unpacked = BTreeSet::new();
        let names = self.names()?;
        let ids = self.ids()?;
        for id in &ids {
            match self.record(id, &names) {
                Ok(Some(image)) => {
                    for blob in image.blobs() {
                        if !self.blob_path(&blob).exists() {
                            problems.push(Problem::Missing { image: *id, blob });
                        }
                        needed.insert(blob);
                    }
                    unpacked.insert(self.erofs_path(&image));
                }
                Ok(None) => {}
                Err(e) => problems.push(Problem::Record {
                    image: *id,
                    reason: std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string),
                }),
            }
        }
        let orphan = |path: &Path| Problem::Orphan {
            file: path
                .strip_prefix(&self.root)
                .unwrap_or(path)
                .display()
                .to_string(),
        };
        for path in files::entries(&self.blobs())? {
            let digest = path.file_name().and_then(|name| Digest::from_hex(name.to_str()?));
            match digest.filter(|digest| needed.contains(digest)) {
                Some(blob) if hash(&path)? != blob => problems.push(Problem::Damaged { blob }),
                Some(_) => {}
                None => problems.push(orphan(&path)),
            }
        }
        for path in files::entries(&self.erofs())? {
            let is_lock = path.extension().is_some_and(|extension| extension == "lock");
            if !is_lock && !unpacked.contains(&path) {
                problems.push(orphan(&path));
            }
        }
        let gone = names.into_iter().filter(|(_, id)| !ids.contains(id));
        problems.extend(gone.map(|(name, _)| Problem::Name { name }));
        Ok(problems)
    }
}

fn hash(path: &Path) -> Result<Digest, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer).map_err(StoreError::io("read", path))? {
            0 => return Ok(Digest::finish(hasher)),
            count => hasher.update(&buffer[..count]),
        }
    }
}
