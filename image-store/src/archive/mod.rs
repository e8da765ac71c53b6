//! Takes archives of images apart: what `docker save`, `podman save`, `skopeo copy … oci-archive:` and BuildKit write.
//!
//! An archive names its documents either in `index.json` (an OCI image layout, image-spec `image-layout.md`) or in
//! `manifest.json` (`docker save`); newer Dockers write both. [`images`] follows them from there and checks every
//! size, count and digest on the way. Where the files come from is behind [`Source`].

mod docker;
mod error;
mod layout;
pub(crate) mod oci;
mod spool;

use brig_protocol::agent::LAYERS_MAX;
use serde::de::DeserializeOwned;

pub use self::error::ArchiveError;
pub(crate) use self::{
    layout::Layout,
    spool::{Keeper, Spooled},
};
use crate::{
    compression,
    digest::Digest,
    image::{ConfigDocument, Image, ImageId, Layer},
    manifest::Platform,
    store::{Blob, Found, StoreError},
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
pub(crate) fn assemble(
    config_json: &[u8],
    config: Blob,
    manifest: Option<Blob>,
    layers: Vec<Blob>,
    platform: &Platform,
) -> Result<Found, ArchiveError> {
    let mut document = read_config(config_json, layers.len(), platform)?;
    let diff_ids = &document.rootfs.diff_ids;
    let layer = |(blob, &diff_id): (&Blob, &Digest)| Layer {
        digest: blob.digest,
        size: blob.size,
        compression: compression::detect(&blob.head),
        diff_id,
    };
    let image = Image {
        id: ImageId(config.digest),
        names: Vec::new(),
        digests: Vec::new(),
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

/// Checks the configuration of an image of so many `layers`, which has to be for `platform`.
///
/// # Errors
/// When it is malformed, for another platform, or says another number of layers.
pub fn check_config(json: &[u8], layers: usize, platform: &Platform) -> Result<(), ArchiveError> {
    read_config(json, layers, platform)?.run_config()?;
    Ok(())
}

fn read_config(json: &[u8], layers: usize, platform: &Platform) -> Result<ConfigDocument, ArchiveError> {
    let document: ConfigDocument = parse("the image's configuration", json)?;
    check_platform(&document, platform)?;
    if layers > LAYERS_MAX {
        return Err(ArchiveError::TooManyLayers(layers));
    }
    match document.rootfs.diff_ids.len() {
        config if config == layers => Ok(document),
        config => Err(ArchiveError::LayerCount {
            manifest: layers,
            config,
        }),
    }
}

/// A configuration seldom names a variant, and never where that decides: an index's descriptor does.
fn check_platform(document: &ConfigDocument, wanted: &Platform) -> Result<(), ArchiveError> {
    if (&document.os, &document.architecture) == (&wanted.os, &wanted.architecture) {
        return Ok(());
    }
    let found = Platform {
        os: document.os.clone(),
        architecture: document.architecture.clone(),
        variant: String::new(),
    };
    Err(ArchiveError::Platform(shown(&found.to_string())))
}

/// What of an archive's own words is repeated in a message.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
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
    let missing = || ArchiveError::Missing(shown(path));
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
    let missing = || ArchiveError::Missing(shown(path));
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
