//! What can go wrong while layers are unpacked.

use std::io;

use brig_protocol::agent::UnpackFailure;

use crate::{digest::Digest, tar::TarError};

/// Why layers could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A layer is damaged, malformed or lies about itself.
    #[error("layer {number} ({diff_id}) cannot be unpacked")]
    Layer {
        /// Its number, the lowest being 1.
        number: usize,
        /// What the configuration calls it.
        diff_id: Digest,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// What is wrong with a layer, on its way to [`UnpackError::Layer`].
    #[error(transparent)]
    Unplaced(#[from] LayerError),
    /// The image does not fit on its disk.
    #[error("the unpacked image needs more than the {0} bytes that there is room for")]
    NoSpace(u64),
    /// The image has more inodes than is allowed.
    #[error("the image has more than {0} files")]
    TooManyFiles(u64),
    /// The image has more of something than is allowed.
    #[error("the image has too many {0}")]
    TooLarge(&'static str),
    /// A file belongs to somebody who has no id here.
    #[error(
        "a file of the image belongs to user or group {id}, and there are ids for 0 to {} here: give your user more \
         subordinate ids (/etc/subuid, /etc/subgid)", count - 1
    )]
    NoSuchOwner {
        /// The owner.
        id: u32,
        /// How many there are.
        count: u32,
    },
    /// There is no memory.
    #[error("cannot get memory")]
    Memory(#[source] io::Error),
    /// The disk of blobs failed.
    #[error("cannot read the layers")]
    Read(#[source] io::Error),
    /// The output failed.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
}

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is no tar stream, or a damaged one.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The uncompressed stream has another digest.
    #[error("its content has the digest {found}")]
    DiffId {
        /// The digest that it has.
        found: Digest,
    },
    /// A path leads out of the image or has a part that no file can have.
    #[error("bad path \"{0}\"")]
    Path(String),
    /// A parent of an entry is something else than a directory.
    #[error("\"{0}\" lies below something that is no directory")]
    NotADirectory(String),
    /// Symbolic links lead in a circle.
    #[error("too many symbolic links on the way to \"{0}\"")]
    Loop(String),
    /// A hard link to something that is not there, or to a directory.
    #[error("hard link \"{path}\" to \"{target}\", which is no file of the image")]
    HardLink {
        /// The link.
        path: String,
        /// What it should be a link to.
        target: String,
    },
    /// Extended attributes that no file can have.
    #[error("extended attributes of \"{0}\" are too large")]
    Xattrs(String),
    /// A device number that does not exist.
    #[error("bad device number of \"{0}\"")]
    Device(String),
    /// The root of the image is no directory.
    #[error("the root of the image is no directory")]
    Root,
}

impl UnpackError {
    /// The kind of failure, as the agent reports it.
    pub fn failure(&self) -> UnpackFailure {
        match self {
            Self::Layer { .. } | Self::Unplaced(_) => UnpackFailure::BadLayer,
            Self::NoSpace(_) => UnpackFailure::NoSpace,
            Self::TooManyFiles(_) | Self::TooLarge(_) => UnpackFailure::TooLarge,
            Self::NoSuchOwner { .. } | Self::Memory(_) | Self::Read(_) | Self::Write(_) => {
                UnpackFailure::Other
            }
        }
    }

    /// Says in which layer it happened.
    pub(super) fn in_layer(self, index: usize, diff_id: Digest) -> Self {
        match self {
            Self::Unplaced(source) => Self::Layer {
                number: index + 1,
                diff_id,
                source,
            },
            other => other,
        }
    }
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> Self {
        match error {
            // The system's own errors are of the disk; those of a decoder have no number.
            TarError::Io(e) if e.raw_os_error().is_some() => Self::Read(e),
            TarError::Io(e) if e.kind() == io::ErrorKind::FileTooLarge => {
                Self::TooLarge("bytes in its layers")
            }
            other => Self::Unplaced(other.into()),
        }
    }
}

/// What of a path is repeated in a message: its start, with what is not printable escaped.
pub(super) fn shown(path: &[u8]) -> String {
    const SHOWN_BYTES: usize = 200;
    path[..path.len().min(SHOWN_BYTES)].escape_ascii().to_string()
}
