//! The `manifest.json` of `docker save` (moby, `image/spec/spec.md`).

use serde::Deserialize;

use super::{ArchiveError, CONFIG_BYTES_MAX, LAYERS_MAX, Source, assemble, parse, require, require_document};
use crate::{
    digest::Digest,
    image::{ImageId, null_is_empty},
    manifest::Platform,
    reference::ImageName,
    store::{Found, StoreError},
};

/// The document's path in an archive.
pub const MANIFEST: &str = "manifest.json";

/// One image of the document.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<String>,
}

/// The images that a `manifest.json` lists.
pub fn images(source: &mut dyn Source, manifest: &[u8]) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::new();
    for item in items(manifest)? {
        found.push(image(source, &item)?);
    }
    if found.is_empty() {
        return Err(ArchiveError::NotAnImage.into());
    }
    Ok(found)
}

/// The names that a `manifest.json` gives the image whose configuration has this digest.
pub fn names(manifest: &[u8], id: &ImageId) -> Result<Vec<ImageName>, ArchiveError> {
    let mut names = Vec::new();
    for item in items(manifest)? {
        if digest_in_path(&item.config) == Some(id.0) {
            names.extend(item_names(&item)?);
        }
    }
    Ok(names)
}

fn items(manifest: &[u8]) -> Result<Vec<Item>, ArchiveError> {
    parse("manifest.json", manifest)
}

fn image(source: &mut dyn Source, item: &Item) -> Result<Found, StoreError> {
    let expected = digest_in_path(&item.config);
    let (json, config) = require_document(source, &item.config, expected, CONFIG_BYTES_MAX)?;
    if item.layers.len() > LAYERS_MAX {
        return Err(ArchiveError::TooManyLayers(item.layers.len()).into());
    }
    let mut layers = Vec::new();
    for path in &item.layers {
        // Only an OCI path promises a digest: older archives name layers after other things.
        let expected = path.starts_with("blobs/").then(|| digest_in_path(path)).flatten();
        layers.push(require(source, path, expected)?);
    }
    let mut found = assemble(&json, config, None, layers, &Platform::host())?;
    found.names = item_names(item)?;
    Ok(found)
}

fn item_names(item: &Item) -> Result<Vec<ImageName>, ArchiveError> {
    item.repo_tags.iter().map(|name| Ok(name.parse()?)).collect()
}

/// The digest that a configuration's path promises: `<hex>.json` or `blobs/sha256/<hex>`.
fn digest_in_path(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next()?;
    Digest::from_hex(name.strip_suffix(".json").unwrap_or(name))
}
