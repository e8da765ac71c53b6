//! The OCI manifest of an image that came without one (image-spec, `manifest.md`).

use brig_protocol::agent::Compression;
use serde_json::{Value, json};

use crate::{digest::Digest, image::Image};

/// Media type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// The manifest of `image`, whose configuration has `config_size` bytes. The same image gives the same bytes.
pub fn of(image: &Image, config_size: u64) -> Vec<u8> {
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| descriptor(layer_type(layer.compression), &layer.digest, layer.size))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &image.id.0, config_size),
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

/// What points to a blob (image-spec, `descriptor.md`).
pub fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}
