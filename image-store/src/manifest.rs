//! The documents that lead from a name to an image's blobs: indexes, manifests and descriptors (image-spec,
//! `image-index.md`, `manifest.md`, `descriptor.md`; Docker's own media types for the same documents are taken as well).
//!
//! What is read here was written by strangers. The caller bounds a document's length by [`MANIFEST_BYTES_MAX`] and
//! [`CONFIG_BYTES_MAX`] before it parses one.
//!
//! [`MANIFEST_BYTES_MAX`]: crate::archive::MANIFEST_BYTES_MAX
//! [`CONFIG_BYTES_MAX`]: crate::archive::CONFIG_BYTES_MAX

use std::{collections::BTreeMap, fmt, str::FromStr};

use brig_protocol::agent::LAYERS_MAX;
use serde::Deserialize;

use crate::{archive::ArchiveError, digest::Digest, image::null_is_empty};

/// Media types of an index: the images of several platforms.
pub const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Media types of the manifest of one image.
pub const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Media types of the layers that an image of brig's can have.
pub const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// What a descriptor of build provenance has; that is no image.
const ATTESTATION_ANNOTATION: &str = "vnd.docker.reference.type";

/// Most characters of a media type that a message repeats.
const SHOWN_CHARACTERS: usize = 100;

/// The images of several platforms.
#[derive(Clone, Debug, Deserialize)]
pub struct Index {
    /// A manifest, or another index, each.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
}

/// What one image consists of.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// # Errors
    /// More layers than brig takes, or one of a kind that it does not read.
    pub fn check(&self) -> Result<(), ArchiveError> {
        if self.layers.len() > LAYERS_MAX {
            return Err(ArchiveError::TooManyLayers(self.layers.len()));
        }
        for layer in &self.layers {
            if !LAYER_TYPES.contains(&layer.media_type.as_str()) {
                let shown = layer.media_type.chars().take(SHOWN_CHARACTERS).collect();
                return Err(ArchiveError::MediaType(shown));
            }
        }
        Ok(())
    }
}

/// Names a blob or a document by its digest.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// How many bytes it has.
    pub size: u64,
    /// What the image is for, in an index.
    pub platform: Option<Platform>,
    /// Further properties.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether it leads to build provenance, which stands in an index like an image.
    pub fn is_attestation(&self) -> bool {
        self.annotations.contains_key(ATTESTATION_ANNOTATION)
    }

    /// Whether it leads to an index.
    pub fn is_index(&self) -> bool {
        INDEX_TYPES.contains(&self.media_type.as_str())
    }

    /// Whether it leads to an image's manifest.
    pub fn is_manifest(&self) -> bool {
        MANIFEST_TYPES.contains(&self.media_type.as_str())
    }
}

/// What machines an image is for. Written as Docker writes it: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// Operating system, as Go names it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub os: String,
    /// CPU architecture, as Go names it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub architecture: String,
    /// Variant of the architecture; empty when it has none, or any will do.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub variant: String,
}

/// The text is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no platform: write it as in linux/amd64 or linux/arm/v7")]
pub struct PlatformError(String);

impl Platform {
    /// The platform whose images brig runs.
    pub fn host() -> Self {
        let (os, architecture) = crate::archive::PLATFORM;
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: String::new(),
        }
    }

    /// Whether an image of this platform is one of those that `wanted` means. A variant that either does not name is
    /// the usual one of its architecture.
    pub fn fits(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && self.usual_variant() == wanted.usual_variant()
    }

    /// The variant; where none is named, the one that is meant then (containerd, `platforms/database.go`).
    fn usual_variant(&self) -> &str {
        match (self.architecture.as_str(), self.variant.as_str()) {
            ("arm64", "") => "v8",
            ("arm", "") => "v7",
            ("amd64", "v1") => "",
            (_, variant) => variant,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |text: &str| -> String {
            let characters = text.chars().filter(|c| !c.is_control());
            characters.take(SHOWN_CHARACTERS).collect()
        };
        write!(f, "{}/{}", plain(&self.os), plain(&self.architecture))?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{}", plain(variant)),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError(text.chars().take(SHOWN_CHARACTERS).collect());
        let mut parts = text.split('/');
        let os = parts.next().unwrap_or_default();
        let architecture = match parts.next().ok_or_else(wrong)? {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let variant = parts.next();
        let word = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        if parts.next().is_some() || ![os, architecture].into_iter().chain(variant).all(word) {
            return Err(wrong());
        }
        Ok(Self {
            os: os.to_ascii_lowercase(),
            architecture: architecture.to_ascii_lowercase(),
            variant: variant.unwrap_or_default().to_ascii_lowercase(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_and_shown_as_docker_does() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/ARM64/v8", "linux/arm64/v8"),
            ("linux/arm/v7", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "a/b/c/d",
            "linux/a b",
            "linux/amd64/",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_variant_that_is_not_named_is_the_usual_one() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        assert!(platform("linux/arm64/v8").fits(&platform("linux/arm64")));
        assert!(platform("linux/arm").fits(&platform("linux/arm/v7")));
        assert!(!platform("linux/arm/v6").fits(&platform("linux/arm")));
        assert!(!platform("linux/amd64/v3").fits(&Platform::host()));
        assert!(!platform("windows/amd64").fits(&Platform::host()));
    }

    #[test]
    fn a_foreign_layer_is_refused() {
        let digest = Digest::of(b"");
        let json = format!(
            r#"{{"config":{{"digest":"{digest}","size":0}},"layers":[{{"digest":"{digest}","size":0,
            "mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","urls":["http://x/"]}}]}}"#
        );
        let manifest: Manifest = serde_json::from_str(&json).unwrap();
        assert!(matches!(manifest.check(), Err(ArchiveError::MediaType(_))));
    }
}
