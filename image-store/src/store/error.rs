//! What can go wrong in the store.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{archive::ArchiveError, reference::ReferenceError};

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
    /// The archive is no image, is damaged, or holds an image that brig cannot run.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The name is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
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
