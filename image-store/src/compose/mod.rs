//! New images on the host: a layer, and a configuration that a base image and the user's changes make.
//!
//! | module | does |
//! |---|---|
//! | here | configuration, history and manifest of a new image |
//! | [`changes`] | Dockerfile instructions, as `-c` of `commit` and `import` takes them |
//! | [`manifest`] | the OCI manifest of an image |
//!
//! A layer is never looked into here: it is a blob with the digest of its uncompressed stream.

pub mod changes;
pub mod manifest;

use serde_json::{Map, Value, json};

pub use self::changes::{Change, ChangeError};
use crate::{
    archive::{PLATFORM, assemble},
    digest::Digest,
    image::Image,
    manifest::Platform,
    reference::ImageName,
    store::{Blob, Found, Incoming, StoreError},
};

/// A layer that is put on top.
#[derive(Clone, Debug)]
pub struct NewLayer {
    /// The blob.
    pub blob: Blob,
    /// The digest of its tar stream, uncompressed.
    pub diff_id: Digest,
}

/// What a new image is made of.
#[derive(Debug, Default)]
pub struct Composition<'a> {
    /// The image below, and its configuration.
    pub base: Option<(&'a Image, Value)>,
    /// Members that take the place of those in the configuration's `config`, such as `Cmd` and `Env`.
    pub run: Map<String, Value>,
    /// Then these are applied, in order.
    pub changes: &'a [Change],
    /// Who made it; may be empty.
    pub author: &'a str,
    /// What `history` says beside it; may be empty.
    pub message: &'a str,
    /// What `history` says made the layer.
    pub created_by: &'a str,
    /// Now, RFC 3339.
    pub created: String,
    /// The names that it gets.
    pub names: Vec<ImageName>,
}

impl Composition<'_> {
    /// The image of this and `layer`, ready to be published.
    ///
    /// # Errors
    /// Those of [`Incoming::blob`]; [`StoreError::MissingBlob`] when one of the base's is gone; too many layers.
    pub fn assemble(self, incoming: &Incoming, layer: NewLayer) -> Result<Found, StoreError> {
        let mut layers: Vec<Blob> = Vec::new();
        if let Some((base, _)) = &self.base {
            for layer in &base.layers {
                let stored = incoming.stored(&layer.digest)?;
                layers.push(stored.ok_or(StoreError::MissingBlob(layer.digest))?);
            }
        }
        let config = self.config(layer.diff_id);
        layers.push(layer.blob);
        let json = serde_json::to_vec(&config).unwrap_or_default();
        let config = incoming.blob(&json)?;
        let found = assemble(&json, config.clone(), None, layers, &Platform::host())?;
        let manifest = incoming.blob(&manifest::of(&found.image, config.size))?;
        let mut image = found.image;
        image.manifest = Some(manifest.digest);
        let mut blobs = found.blobs;
        blobs.push(manifest);
        Ok(Found {
            image,
            names: self.names,
            blobs,
        })
    }

    fn config(&self, diff_id: Digest) -> Value {
        let mut document = match &self.base {
            Some((_, document)) => document.clone(),
            None => json!({"os": PLATFORM.0, "architecture": PLATFORM.1, "config": {}}),
        };
        let mut run = match document.get_mut("config").map(Value::take) {
            Some(Value::Object(run)) => run,
            _ => Map::new(),
        };
        run.extend(self.run.clone());
        changes::apply(self.changes, &mut run);
        let mut history = json!({"created": self.created, "created_by": self.created_by});
        for (key, text) in [("author", self.author), ("comment", self.message)] {
            if !text.is_empty() {
                history[key] = text.into();
            }
        }
        // What Docker's older builders wrote about the container that an image was made of says nothing any more.
        if let Some(members) = document.as_object_mut() {
            for key in ["container", "container_config", "id", "parent", "comment"] {
                members.remove(key);
            }
            let rootfs = members.entry("rootfs").or_insert_with(|| json!({}));
            if !rootfs.is_object() {
                *rootfs = json!({});
            }
            rootfs["type"] = "layers".into();
            push(&mut rootfs["diff_ids"], diff_id.to_string().into());
            push(members.entry("history").or_insert(Value::Null), history);
            members.insert("created".into(), self.created.clone().into());
            if !self.author.is_empty() {
                members.insert("author".into(), self.author.into());
            }
            members.insert("config".into(), run.into());
        }
        document
    }
}

/// Adds to what is an array, or becomes one.
fn push(value: &mut Value, item: Value) {
    match value {
        Value::Array(items) => items.push(item),
        other => *other = Value::Array(vec![item]),
    }
}
