//! The `index.json` of an OCI image layout, and the indexes and manifests that it leads to.

use super::{
    ArchiveError, CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX, Source, assemble, blob_path, docker, parse, require,
    require_document,
};
use crate::{
    manifest::{Descriptor, Index, Manifest, Platform},
    reference::ImageName,
    store::{Blob, Found, StoreError},
};

/// The document's path in a layout.
pub const INDEX: &str = "index.json";

/// Most documents that are read to find the images of a layout.
const DOCUMENTS_MAX: usize = 256;

/// The full name, as containerd and Docker write it.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// A tag in the specification, a full name with some programs.
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// The images of a layout: for each entry of its index the one for this platform. `docker_manifest` is the
/// `manifest.json` beside it, which knows names as well.
pub fn images(
    source: &mut dyn Source,
    index: &[u8],
    docker_manifest: Option<&[u8]>,
) -> Result<Vec<Found>, StoreError> {
    let index: Index = parse("index.json", index)?;
    let mut walk = Walk::new(source, Platform::host());
    let mut found: Vec<Found> = Vec::new();
    for descriptor in &index.manifests {
        let Some(mut image) = walk.image(descriptor, true)? else {
            continue;
        };
        image.names.extend(name(descriptor)?);
        match found.iter_mut().find(|other| other.image.id == image.image.id) {
            Some(other) => other.names.append(&mut image.names),
            None => found.push(image),
        }
    }
    if found.is_empty() {
        return Err(match walk.other_platform {
            Some(platform) => ArchiveError::Platform(platform),
            None => ArchiveError::NotAnImage,
        }
        .into());
    }
    if let Some(manifest) = docker_manifest {
        for image in &mut found {
            image.names.extend(docker::names(manifest, &image.image.id)?);
        }
    }
    Ok(found)
}

/// The image of the manifest that `descriptor` leads to, which has to be for `platform`.
pub fn image(
    source: &mut dyn Source,
    descriptor: &Descriptor,
    platform: Platform,
) -> Result<Found, StoreError> {
    Walk::new(source, platform).manifest(descriptor)
}

/// The name that an entry of the index gives its image.
fn name(descriptor: &Descriptor) -> Result<Option<ImageName>, ArchiveError> {
    if let Some(name) = descriptor.annotations.get(NAME_ANNOTATION) {
        return Ok(Some(name.parse()?));
    }
    // A bare tag says nothing about the repository, and so is no name.
    let full = |name: &&String| name.contains([':', '/']);
    match descriptor.annotations.get(REF_ANNOTATION).filter(full) {
        Some(name) => Ok(Some(name.parse()?)),
        None => Ok(None),
    }
}

/// The way from an index to an image.
struct Walk<'a> {
    source: &'a mut dyn Source,
    /// What images are looked for.
    platform: Platform,
    documents: usize,
    /// A platform that was passed over.
    other_platform: Option<String>,
}

impl<'a> Walk<'a> {
    fn new(source: &'a mut dyn Source, platform: Platform) -> Self {
        Self {
            source,
            platform,
            documents: 0,
            other_platform: None,
        }
    }

    /// The image that a descriptor leads to, if it is one for this platform. An index may stand in an index, no deeper.
    fn image(&mut self, descriptor: &Descriptor, nested: bool) -> Result<Option<Found>, StoreError> {
        if descriptor.is_attestation() || !self.fits(descriptor) {
            return Ok(None);
        }
        if descriptor.is_index() {
            if !nested {
                return Err(ArchiveError::TooManyIndexes.into());
            }
            let (json, _) = self.document(descriptor, MANIFEST_BYTES_MAX)?;
            let index: Index = parse("an index", &json)?;
            for inner in &index.manifests {
                if let Some(found) = self.image(inner, false)? {
                    return Ok(Some(found));
                }
            }
            return Ok(None);
        }
        if !descriptor.is_manifest() {
            // Signatures and other artifacts may stand beside an image.
            return Ok(None);
        }
        match self.manifest(descriptor) {
            Err(StoreError::Archive(ArchiveError::Platform(platform))) => {
                self.other_platform = Some(platform);
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn manifest(&mut self, descriptor: &Descriptor) -> Result<Found, StoreError> {
        let (json, manifest) = self.document(descriptor, MANIFEST_BYTES_MAX)?;
        let document: Manifest = parse("the image's manifest", &json)?;
        document.check()?;
        let (config_json, config) = self.document(&document.config, CONFIG_BYTES_MAX)?;
        let mut layers = Vec::new();
        for layer in &document.layers {
            let blob = require(self.source, &blob_path(&layer.digest), Some(layer.digest))?;
            check_size(layer, blob.size)?;
            layers.push(blob);
        }
        Ok(assemble(
            &config_json,
            config,
            Some(manifest),
            layers,
            &self.platform,
        )?)
    }

    fn document(&mut self, descriptor: &Descriptor, limit: u64) -> Result<(Vec<u8>, Blob), StoreError> {
        self.documents += 1;
        if self.documents > DOCUMENTS_MAX {
            return Err(ArchiveError::TooManyIndexes.into());
        }
        let path = blob_path(&descriptor.digest);
        let (json, blob) = require_document(self.source, &path, Some(descriptor.digest), limit)?;
        check_size(descriptor, blob.size)?;
        Ok((json, blob))
    }

    /// Whether a descriptor says nothing of a platform, or says this one.
    fn fits(&mut self, descriptor: &Descriptor) -> bool {
        let Some(platform) = &descriptor.platform else {
            return true;
        };
        if platform.fits(&self.platform) {
            return true;
        }
        self.other_platform = Some(super::shown(&platform.to_string()));
        false
    }
}

fn check_size(descriptor: &Descriptor, found: u64) -> Result<(), ArchiveError> {
    if descriptor.size == found {
        return Ok(());
    }
    Err(ArchiveError::Size {
        digest: descriptor.digest,
        expected: descriptor.size,
        found,
    })
}
