//! Images to an archive that is both an OCI image layout (image-spec, `image-layout.md`) and what `docker load` takes
//! (moby, `image/spec/spec.md`), as newer Dockers write it. The same images give the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::{Blob, Incoming, LoadProgress, Store, StoreError};
use crate::{
    compose::manifest::{self, MANIFEST_TYPE, descriptor},
    digest::Digest,
    image::{Image, ImageId},
    reference::{ImageName, Reference},
};

/// An image that is to be saved.
struct Saved {
    image: Image,
    /// The names that it is saved under.
    names: BTreeSet<ImageName>,
    manifest: Digest,
    manifest_size: u64,
    manifest_type: String,
}

impl Store {
    /// Writes the images that `texts` mean to `output`: with the name that is written, with all names of a repository that is
    /// written without a tag, without a name when an id is.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], [`StoreError::MissingBlob`], [`StoreError::DamagedBlob`], [`StoreError::Output`].
    pub fn save(
        &self,
        texts: &[String],
        output: &mut dyn Write,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), StoreError> {
        let mut wanted: BTreeMap<ImageId, (Image, BTreeSet<ImageName>)> = BTreeMap::new();
        let mut order = Vec::new();
        for text in texts {
            for (image, names) in self.meant(text)? {
                if !wanted.contains_key(&image.id) {
                    order.push(image.id);
                }
                wanted
                    .entry(image.id)
                    .or_insert_with(|| (image, BTreeSet::new()))
                    .1
                    .extend(names);
            }
        }
        // What is pinned there stays for as long as this takes.
        let pins = self.incoming()?;
        let mut blobs: BTreeMap<Digest, Blob> = BTreeMap::new();
        let mut saved = Vec::new();
        for id in &order {
            if let Some((image, names)) = wanted.remove(id) {
                saved.push(self.pin_image(&pins, image, names, &mut blobs)?);
            }
        }
        let total = blobs.values().map(|blob| blob.size).sum();
        let mut done = 0;
        let mut archive = Builder::new(output);
        for (path, content) in [
            ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
            ("index.json", index(&saved)),
            ("manifest.json", docker_manifest(&saved)),
        ] {
            let content = content.to_string();
            append(&mut archive, path, content.len() as u64, content.as_bytes())?;
        }
        for directory in ["blobs/", "blobs/sha256/"] {
            let mut header = header(0, 0o755);
            header.set_entry_type(EntryType::Directory);
            archive
                .append_data(&mut header, directory, io::empty())
                .map_err(StoreError::Output)?;
        }
        for blob in blobs.values() {
            let mut count = |bytes| {
                done += bytes;
                let total = Some(total);
                progress(LoadProgress { bytes: done, total });
            };
            append_blob(&mut archive, blob, &mut count)?;
        }
        archive
            .into_inner()
            .and_then(Write::flush)
            .map_err(StoreError::Output)?;
        for Saved { image, names, .. } in &saved {
            let id = image.id.to_string();
            let name = names.first().map_or_else(|| id.clone(), ToString::to_string);
            self.note("save", Some(image), &id, &name);
        }
        Ok(())
    }

    /// The images of a text, each with the names that it is to be saved under.
    fn meant(&self, text: &str) -> Result<Vec<(Image, Vec<ImageName>)>, StoreError> {
        if let Ok(reference) = text.parse::<Reference>()
            && reference.tag.is_none()
            && reference.digest.is_none()
        {
            let in_repository = |name: &&ImageName| name.repository == reference.repository;
            let mut found = Vec::new();
            for image in self.list()? {
                let names: Vec<_> = image.names.iter().filter(in_repository).cloned().collect();
                if !names.is_empty() {
                    found.push((image, names));
                }
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let image = self
            .resolve(text)?
            .ok_or_else(|| StoreError::NoSuchImage(text.to_owned()))?;
        let name = text.parse::<Reference>().ok().map(|reference| reference.name());
        let names = name
            .filter(|name| image.names.contains(name))
            .into_iter()
            .collect();
        Ok(vec![(image, names)])
    }

    fn pin_image(
        &self,
        pins: &Incoming,
        image: Image,
        names: BTreeSet<ImageName>,
        blobs: &mut BTreeMap<Digest, Blob>,
    ) -> Result<Saved, StoreError> {
        let mut sizes = BTreeMap::new();
        for digest in image.blobs() {
            if let std::collections::btree_map::Entry::Vacant(place) = blobs.entry(digest) {
                place.insert(pins.stored(&digest)?.ok_or(StoreError::MissingBlob(digest))?);
            }
            sizes.insert(digest, blobs[&digest].size);
        }
        let (manifest, manifest_type) = if let Some(digest) = image.manifest {
            (digest, self.media_type(&digest)?)
        } else {
            let blob = pins.blob(&manifest::of(&image, sizes[&image.id.0]))?;
            let digest = blob.digest;
            sizes.insert(digest, blob.size);
            blobs.insert(digest, blob);
            (digest, MANIFEST_TYPE.to_owned())
        };
        Ok(Saved {
            manifest_size: sizes[&manifest],
            image,
            names,
            manifest,
            manifest_type,
        })
    }

    /// What a manifest says it is; one that says nothing is the specification's.
    fn media_type(&self, manifest: &Digest) -> Result<String, StoreError> {
        let document: Value = serde_json::from_slice(&self.read_document(manifest)?).unwrap_or_default();
        let said = document.get("mediaType").and_then(Value::as_str);
        Ok(said.unwrap_or(MANIFEST_TYPE).to_owned())
    }
}

/// `index.json`: an entry for each name, or one without.
fn index(saved: &[Saved]) -> Value {
    let mut manifests = Vec::new();
    for image in saved {
        let entry = descriptor(&image.manifest_type, &image.manifest, image.manifest_size);
        for name in &image.names {
            let mut named = entry.clone();
            named["annotations"] = json!({
                "io.containerd.image.name": name.canonical(),
                "org.opencontainers.image.ref.name": name.tag,
            });
            manifests.push(named);
        }
        if image.names.is_empty() {
            manifests.push(entry);
        }
    }
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    })
}

fn docker_manifest(saved: &[Saved]) -> Value {
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let item = |image: &Saved| {
        let layers: Vec<_> = image
            .image
            .layers
            .iter()
            .map(|layer| path(&layer.digest))
            .collect();
        let names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
        json!({
            "Config": path(&image.image.id.0),
            "RepoTags": if names.is_empty() { Value::Null } else { names.into() },
            "Layers": layers,
        })
    };
    saved.iter().map(item).collect()
}

fn header(size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append(
    archive: &mut Builder<&mut dyn Write>,
    path: &str,
    size: u64,
    content: impl Read,
) -> Result<(), StoreError> {
    archive
        .append_data(&mut header(size, 0o644), path, content)
        .map_err(StoreError::Output)
}

fn append_blob(
    archive: &mut Builder<&mut dyn Write>,
    blob: &Blob,
    progress: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    let file = File::open(&blob.file).map_err(StoreError::io("open", &blob.file))?;
    let mut source = Checked {
        source: file.take(blob.size),
        hasher: Sha256::new(),
        progress,
    };
    let path = format!("blobs/sha256/{}", blob.digest.hex());
    append(archive, &path, blob.size, &mut source)?;
    if Digest::finish(source.hasher) != blob.digest {
        return Err(StoreError::DamagedBlob(blob.digest));
    }
    Ok(())
}

/// Hashes what is read.
struct Checked<'a> {
    source: io::Take<File>,
    hasher: Sha256,
    progress: &'a mut dyn FnMut(u64),
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        (self.progress)(count as u64);
        Ok(count)
    }
}
