//! What can be wrong with an archive.

use brig_protocol::agent::LAYERS_MAX;

use super::PLATFORM;
use crate::{digest::Digest, image::ExposedPortError, tar::TarError};

/// Why an archive cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The tar archive is truncated or damaged.
    #[error("cannot read the archive, copy or save it again")]
    Tar(#[from] TarError),
    /// It is not an archive of an image.
    #[error(
        "not an image: expected what `docker save` or `skopeo copy … oci-archive:FILE` writes, or an OCI layout directory"
    )]
    NotAnImage,
    /// A blob's bytes are not those that its digest promises.
    #[error("blob {expected} is damaged, its bytes have the digest {found}: copy or save the archive again")]
    Digest {
        /// The digest that it must have.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// A blob's length is not what the manifest says.
    #[error("blob {digest} has {found} bytes instead of {expected}: copy or save the archive again")]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes that the manifest says.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A file that a document names is not there.
    #[error("the archive is incomplete, {0} is missing: save it again")]
    Missing(String),
    /// A document is not the JSON that it should be.
    #[error("malformed image: cannot read {what}")]
    Json {
        /// Which document.
        what: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A document is longer than brig reads.
    #[error("malformed image: {path} has more than {limit} bytes")]
    TooLong {
        /// Which document.
        path: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// More files than any image has.
    #[error("malformed image: the archive has more than {0} files")]
    TooManyEntries(usize),
    /// More layers than can be handed to a guest.
    #[error("the image has {0} layers, brig takes {LAYERS_MAX}: squash it")]
    TooManyLayers(usize),
    /// Configuration and manifest disagree.
    #[error("malformed image: {manifest} layers in its manifest, {config} in its configuration")]
    LayerCount {
        /// In the manifest.
        manifest: usize,
        /// In the configuration.
        config: usize,
    },
    /// Indexes inside of indexes, or more of them than any image has.
    #[error("malformed image: its indexes are nested too deeply or too many")]
    TooManyIndexes,
    /// A layer that is not in the archive, encrypted, or of an unknown kind.
    #[error(
        "unsupported layer of type \"{0}\": brig takes plain, gzip and zstd layers that are in the archive"
    )]
    MediaType(String),
    /// The image is for other machines.
    #[error("the image is for {0}, brig runs {os}/{architecture}: get it with `--platform {os}/{architecture}`",
        os = PLATFORM.0, architecture = PLATFORM.1)]
    Platform(String),
    /// A port in the configuration is none.
    #[error("malformed image: bad port in its configuration")]
    Port(#[from] ExposedPortError),
    /// A name in the archive is none.
    #[error("malformed image: bad name in the archive")]
    Name(#[from] crate::reference::ReferenceError),
}
