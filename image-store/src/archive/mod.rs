//! Takes archives of images apart: what `docker save`, `podman save`, `skopeo copy … oci-archive:` and BuildKit write.
//!
//! An archive names its documents either in `index.json` (an OCI image layout, image-spec `image-layout.md`) or in
//! `manifest.json` (`docker save`); newer Dockers write both. [`images`] follows them from there and checks every
//! size, count and digest on the way. Where the files come from is behind [`Source`].

mod docker;
mod error;
mod layout;
mod oci;
mod spool;

use brig_protocol::agent::LAYERS_MAX;
use serde::de::DeserializeOwned;

pub use self::error::ArchiveError;
pub(crate) use self::{
    layout::Layout,
    spool::{Keeper, Spool},
};
use crate::{
    compression::{self, MAGIC_BYTES},
    digest::Digest,
    image::{ConfigDocument, Image, ImageId, Layer},
    reference::ImageName,
    store::StoreError,
};

/// Most bytes of an image's configuration.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// Most bytes of a manifest or an index.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// The platform whose images brig runs, as Go names it.
pub const PLATFORM: (&str, &str) = ("linux", "amd64");

/// The files of an archive, by their paths in it.
pub(crate) trait Source {
    /// The content of a small file, or `None` when there is none of that name.
    fn document(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError>;

    /// A file of any size, or `None` when there is none of that name. `expected` is the digest that it must have.
    fn blob(&mut self, path: &str, expected: Option<Digest>) -> Result<Option<Blob>, StoreError>;
}

/// A file of an archive that has been read once, to its end.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Its first bytes.
    pub head: [u8; MAGIC_BYTES],
    /// Where it lies; `None` when the store has it already.
    pub file: Option<std::path::PathBuf>,
}

/// An image of an archive, not in the store yet.
pub(crate) struct Found {
    pub image: Image,
    /// The names that the archive gives it.
    pub names: Vec<ImageName>,
    /// What the store has to keep for it: layers, configuration and manifest.
    pub blobs: Vec<Blob>,
}

/// The images of an archive, each once.
pub(crate) fn images(source: &mut dyn Source) -> Result<Vec<Found>, StoreError> {
    let docker = source.document(docker::MANIFEST, MANIFEST_BYTES_MAX)?;
    let mut found = match source.document(oci::INDEX, MANIFEST_BYTES_MAX)? {
        Some(index) => oci::images(source, &index, docker.as_deref())?,
        None => match docker {
            Some(manifest) => docker::images(source, &manifest)?,
            None => return Err(ArchiveError::NotAnImage.into()),
        },
    };
    for image in &mut found {
        image.names.sort_unstable();
        image.names.dedup();
    }
    Ok(found)
}

/// Puts an image together from its configuration and its layers, lowest first.
fn assemble(
    config_json: &[u8],
    config: Blob,
    manifest: Option<Blob>,
    layers: Vec<Blob>,
) -> Result<Found, ArchiveError> {
    let mut document: ConfigDocument = parse("the image's configuration", config_json)?;
    check_platform(&document.os, &document.architecture)?;
    let diff_ids = &document.rootfs.diff_ids;
    if layers.len() > LAYERS_MAX {
        return Err(ArchiveError::TooManyLayers(layers.len()));
    }
    if diff_ids.len() != layers.len() {
        return Err(ArchiveError::LayerCount {
            manifest: layers.len(),
            config: diff_ids.len(),
        });
    }
    let layer = |(blob, &diff_id): (&Blob, &Digest)| Layer {
        digest: blob.digest,
        size: blob.size,
        compression: compression::detect(&blob.head),
        diff_id,
    };
    let image = Image {
        id: ImageId(config.digest),
        names: Vec::new(),
        manifest: manifest.as_ref().map(|blob| blob.digest),
        layers: layers.iter().zip(diff_ids).map(layer).collect(),
        created: document.created.take(),
        size: layers.iter().map(|blob| blob.size).sum(),
        config: document.run_config()?,
        architecture: document.architecture,
        os: document.os,
    };
    let mut blobs = layers;
    blobs.push(config);
    blobs.extend(manifest);
    Ok(Found {
        image,
        names: Vec::new(),
        blobs,
    })
}

fn check_platform(os: &str, architecture: &str) -> Result<(), ArchiveError> {
    if (os, architecture) == PLATFORM {
        return Ok(());
    }
    Err(ArchiveError::Platform(format!("{os}/{architecture}")))
}

fn parse<T: DeserializeOwned>(what: &'static str, json: &[u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(json).map_err(|source| ArchiveError::Json { what, source })
}

/// The path of a blob in an OCI layout.
fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A blob that must be there.
fn require(source: &mut dyn Source, path: &str, expected: Option<Digest>) -> Result<Blob, StoreError> {
    let missing = || ArchiveError::Missing(path.to_string());
    Ok(source.blob(path, expected)?.ok_or_else(missing)?)
}

/// The content of a document that must be there, and the document as a blob.
fn require_document(
    source: &mut dyn Source,
    path: &str,
    expected: Option<Digest>,
    limit: u64,
) -> Result<(Vec<u8>, Blob), StoreError> {
    let blob = require(source, path, expected)?;
    let missing = || ArchiveError::Missing(path.to_string());
    let json = source.document(path, limit)?.ok_or_else(missing)?;
    if Digest::of(&json) != blob.digest {
        return Err(ArchiveError::Digest {
            expected: blob.digest,
            found: Digest::of(&json),
        }
        .into());
    }
    Ok((json, blob))
}
