//! What can go wrong in the store.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{archive::ArchiveError, limits::MaxImageSize, reference::ReferenceError};

/// Why an operation of the store failed. Each message is one line that says what to do where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the store could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `open`, `write` …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The store's filesystem is full.
    #[error("no space left in {}: free some there and try again", directory.display())]
    NoSpace {
        /// The directory that was written to.
        directory: PathBuf,
    },
    /// More bytes than the user wants an image to have.
    #[error("{what} more than {limit}: --max-image-size allows more")]
    TooLarge {
        /// What has, with the verb.
        what: &'static str,
        /// The limit.
        limit: MaxImageSize,
    },
    /// The archive is no image, is damaged, or holds an image that brig cannot run.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The name is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Nothing has this name or id.
    #[error("no such image: {0}")]
    NoSuchImage(String),
    /// Somebody needs the image.
    #[error("conflict: {0}")]
    InUse(String),
    /// An id means all names of an image, which only force removes.
    #[error(
        "conflict: unable to delete {image} (must be forced) - image is referenced by several names: {names}"
    )]
    SeveralNames {
        /// Short id.
        image: String,
        /// Its names.
        names: String,
    },
    /// A blob of the store has other bytes than it must have.
    #[error("blob {0} of the image store is damaged: remove its image (brig rmi) and get it again")]
    DamagedBlob(crate::digest::Digest),
    /// A blob of the store had another length than the same one that came now; it has been taken away.
    #[error("blob {0} of the image store was damaged and has been removed: do the same again")]
    RemovedBlob(crate::digest::Digest),
    /// Bytes cannot be handed to whoever wants the archive.
    #[error("cannot write the archive")]
    Output(#[source] io::Error),
    /// The bytes to import are none of a tar archive.
    #[error("not a tar archive: import takes the files of a filesystem as `tar` or `brig export` packs them")]
    NotAnArchive(crate::tar::TarError),
    /// Several images have an id that starts so.
    #[error("the id prefix \"{0}\" fits several images: write more of it")]
    AmbiguousPrefix(String),
    /// A record is damaged.
    #[error("{} is damaged: remove it and load the image again", path.display())]
    Record {
        /// The record's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A blob of a known image is gone or has another length.
    #[error("blob {0} is missing from the image store: load the image again")]
    MissingBlob(crate::digest::Digest),
    /// The agent says that it wrote an image of an impossible length.
    #[error("an unpacked image of {0} bytes was announced, which cannot be")]
    ImpossibleLength(u64),
}

impl StoreError {
    /// A closure for `map_err` around a file operation; a full filesystem gets its own variant.
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| {
            if matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) {
                let directory = path.parent().unwrap_or(path).to_path_buf();
                return Self::NoSpace { directory };
            }
            Self::Io {
                action,
                path: path.to_path_buf(),
                source,
            }
        }
    }
}
