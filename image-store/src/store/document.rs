//! What an image's configuration says beyond what brig runs: the documents as they are in the store.

use std::io::Read;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Store, StoreError};
use crate::{
    archive::{ArchiveError, CONFIG_BYTES_MAX},
    digest::Digest,
    image::{Image, null_is_empty},
};

/// A line of an image's history (image-spec, `config.md`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When, RFC 3339.
    #[serde(default)]
    pub created: Option<String>,
    /// What made it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub created_by: String,
    /// What was said beside it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub comment: String,
    /// Whether it has no layer.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub empty_layer: bool,
    /// Bytes of its layer as it is stored.
    #[serde(skip)]
    pub size: u64,
}

impl Store {
    /// An image's configuration, whole.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`]; when it is damaged.
    pub fn config_document(&self, image: &Image) -> Result<Value, StoreError> {
        let json = self.read_document(&image.id.0)?;
        serde_json::from_slice(&json).map_err(|source| {
            let what = "the image's configuration";
            ArchiveError::Json { what, source }.into()
        })
    }

    /// An image's history, the newest first, with the sizes of its layers. Layers that the history says nothing of come as
    /// entries of their own.
    ///
    /// # Errors
    /// Those of [`Store::config_document`].
    pub fn history(&self, image: &Image) -> Result<Vec<HistoryEntry>, StoreError> {
        let document = self.config_document(image)?;
        let entries = document.get("history").cloned().unwrap_or_default();
        let told: Vec<HistoryEntry> = serde_json::from_value(entries).unwrap_or_default();
        let layers_told = told.iter().filter(|entry| !entry.empty_layer).count();
        // Who makes an image of another one tells of its own layers: those that nobody tells of are the lowest.
        let mut history: Vec<HistoryEntry> = (layers_told..image.layers.len())
            .map(|_| HistoryEntry {
                created: image.created.clone(),
                ..HistoryEntry::default()
            })
            .chain(told)
            .collect();
        let mut layers = image.layers.iter();
        for entry in history.iter_mut().filter(|entry| !entry.empty_layer) {
            entry.size = layers.next().map_or(0, |layer| layer.size);
        }
        history.reverse();
        Ok(history)
    }

    /// A small blob.
    pub(super) fn read_document(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let file = super::files::open_if_present(&path)?.ok_or(StoreError::MissingBlob(*digest))?;
        let mut content = Vec::new();
        file.take(CONFIG_BYTES_MAX)
            .read_to_end(&mut content)
            .map_err(StoreError::io("read", &path))?;
        if Digest::of(&content) != *digest {
            return Err(StoreError::DamagedBlob(*digest));
        }
        Ok(content)
    }
}
