//! Image archives, good and damaged, made for a test.

use std::{
    fs::File,
    io::{self, Cursor, Read, Write},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{http::hex, machine};

/// What a gzip file starts with (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// An image of one layer, or of several of which this is the lowest.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name without a tag.
    pub name: String,
    /// The object `config` of its configuration.
    pub config: Value,
    /// A tar, compressed with gzip or not.
    pub layer: Vec<u8>,
    /// SHA-256 of the tar.
    diff_id: String,
    /// Tars of the layers above it.
    above: Vec<Vec<u8>>,
}

impl Image {
    /// The files of the image busybox under another name and configuration.
    ///
    /// # Panics
    /// When the archive of busybox is not as its recipe makes it.
    pub fn of_busybox(name: &str, config: Value) -> Self {
        Self::of_layer(
            name,
            config,
            busybox_layer().expect("the archive of busybox has one gzip layer"),
        )
    }

    /// An image of files: path, mode and content each.
    ///
    /// # Panics
    /// When a path is no path for a tar.
    pub fn of_files(name: &str, config: Value, files: &[(&str, u32, &[u8])]) -> Self {
        let mut layer = tar::Builder::new(Vec::new());
        for (path, mode, content) in files {
            append(&mut layer, path, *mode, content);
        }
        Self::of_layer(name, config, layer.into_inner().expect("a tar in memory"))
    }

    /// An image of a tar.
    pub fn of_layer(name: &str, config: Value, layer: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            config,
            diff_id: sha256(&layer),
            layer,
            above: Vec::new(),
        }
    }

    /// An image of a compressed tar; `diff_id` is the SHA-256 of the tar, in hexadecimal.
    pub fn of_gzip(name: &str, config: Value, layer: Vec<u8>, diff_id: String) -> Self {
        Self {
            name: name.into(),
            config,
            layer,
            diff_id,
            above: Vec::new(),
        }
    }

    /// The same with one more layer on top, a tar that stays as it is.
    #[must_use]
    pub fn with_layer(mut self, tar: Vec<u8>) -> Self {
        self.above.push(tar);
        self
    }

    /// The entries of the layer, which is not compressed, without the zeros that end a tar: others can follow them.
    /// How many zeros there are is up to who wrote it.
    ///
    /// # Panics
    /// When the layer is no tar.
    pub fn entries(&self) -> &[u8] {
        let mut tar = tar::Archive::new(Cursor::new(&self.layer));
        let ends = tar.entries_with_seek().expect("a tar").map(|entry| {
            let entry = entry.expect("a tar");
            entry.raw_file_position() + entry.size().next_multiple_of(512)
        });
        &self.layer[..ends.max().unwrap_or(0) as usize]
    }

    /// The same with one more file; the layer is not compressed.
    ///
    /// # Panics
    /// When the layer is no tar.
    #[must_use]
    pub fn with_file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut layer = tar::Builder::new(self.entries().to_vec());
        append(&mut layer, path, mode, content);
        Self::of_layer(
            &self.name,
            self.config,
            layer.into_inner().expect("a tar in memory"),
        )
    }

    /// The same with its layer compressed.
    ///
    /// # Panics
    /// Never: the layer is in memory.
    #[must_use]
    pub fn gzip(mut self) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&self.layer).expect("bytes in memory");
        self.layer = encoder.finish().expect("bytes in memory");
        self
    }

    /// A tar of an OCI image layout (image-spec, image-layout.md).
    pub fn to_oci(&self) -> Vec<u8> {
        self.to_oci_with_layer(&self.layer)
    }

    /// The same with other bytes in the place of the layer: its name, size and digest are those of the right one.
    pub fn to_oci_with_layer(&self, layer: &[u8]) -> Vec<u8> {
        let configuration = self.configuration();
        let kind = if self.layer.starts_with(&GZIP_MAGIC) {
            ".tar+gzip"
        } else {
            ".tar"
        };
        let mut layers = vec![descriptor(
            &format!("application/vnd.oci.image.layer.v1{kind}"),
            &self.layer,
        )];
        let of_tar = |tar: &Vec<u8>| descriptor("application/vnd.oci.image.layer.v1.tar", tar);
        layers.extend(self.above.iter().map(of_tar));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &configuration),
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] =
            json!({ "org.opencontainers.image.ref.name": format!("{}:latest", self.name) });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();

        let mut archive = tar::Builder::new(Vec::new());
        append(
            &mut archive,
            "oci-layout",
            0o644,
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        );
        append(&mut archive, "index.json", 0o644, index.as_bytes());
        append(&mut archive, &blob_path(&manifest), 0o644, &manifest);
        append(&mut archive, &blob_path(&configuration), 0o644, &configuration);
        append(&mut archive, &blob_path(&self.layer), 0o644, layer);
        for tar in &self.above {
            append(&mut archive, &blob_path(tar), 0o644, tar);
        }
        archive.into_inner().expect("a tar in memory")
    }

    /// A tar as `docker save` made it before it made OCI layouts, of the lowest layer only.
    pub fn to_docker(&self) -> Vec<u8> {
        let configuration = self.configuration();
        let digest = sha256(&configuration);
        let manifest = json!([{
            "Config": format!("{digest}.json"),
            "RepoTags": [format!("{}:latest", self.name)],
            "Layers": ["layer/layer.tar"],
        }])
        .to_string();
        let mut archive = tar::Builder::new(Vec::new());
        append(&mut archive, &format!("{digest}.json"), 0o644, &configuration);
        append(&mut archive, "layer/layer.tar", 0o644, &self.layer);
        append(&mut archive, "manifest.json", 0o644, manifest.as_bytes());
        archive.into_inner().expect("a tar in memory")
    }

    fn configuration(&self) -> Vec<u8> {
        let above = self.above.iter().map(|tar| sha256(tar));
        let diff_ids: Vec<_> = std::iter::once(self.diff_id.clone())
            .chain(above)
            .map(|digest| format!("sha256:{digest}"))
            .collect();
        json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes()
    }
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": format!("sha256:{}", sha256(blob)),
        "size": blob.len(),
    })
}

fn blob_path(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(blob))
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive
        .append_data(&mut header, path, content)
        .expect("a path that fits a tar");
}

/// The layer of the archive of busybox, as it is in there, without its gzip.
fn busybox_layer() -> io::Result<Vec<u8>> {
    let mut archive = tar::Archive::new(File::open(machine::image_archive("busybox"))?);
    for entry in archive.entries()? {
        let mut blob = Vec::new();
        entry?.read_to_end(&mut blob)?;
        if blob.starts_with(&GZIP_MAGIC) {
            let mut layer = Vec::new();
            GzDecoder::new(&blob[..]).read_to_end(&mut layer)?;
            return Ok(layer);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
