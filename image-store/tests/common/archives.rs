//! Archives of images, and a store to load them into.

#![allow(clippy::missing_panics_doc, reason = "a test may fail")]

use std::{fs, path::Path};

use brig_image_store::{Loaded, Store, StoreError, archive::ArchiveError, digest::Digest};

use super::{Tar, gzip};

/// A store in a directory that goes with it.
pub struct Home {
    pub directory: tempfile::TempDir,
    pub store: Store,
}

pub fn home() -> Home {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    Home { directory, store }
}

impl Home {
    pub fn load(&self, archive: &[u8]) -> Result<Vec<Loaded>, StoreError> {
        self.store.load(&mut &archive[..], &mut |_| {})
    }

    /// Everything in the store, but locks.
    pub fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        list(self.directory.path(), "", &mut files);
        files.retain(|file| !file.ends_with("lock"));
        files.sort();
        files
    }
}

fn list(root: &Path, below: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let name = Path::new(below)
            .join(entry.file_name())
            .to_str()
            .unwrap()
            .to_string();
        if entry.file_type().unwrap().is_dir() {
            list(root, &name, files);
        } else {
            files.push(name);
        }
    }
}

pub fn layer(content: &str) -> Vec<u8> {
    Tar::new().file("file", content.as_bytes()).finish()
}

pub fn config(layers: &[Vec<u8>], architecture: &str) -> String {
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|tar| format!("\"{}\"", Digest::of(tar)))
        .collect();
    format!(
        r#"{{"architecture":"{architecture}","os":"linux","created":"2024-01-02T03:04:05Z",
        "config":{{"Cmd":["/run"],"Env":["A=b"],"ExposedPorts":{{"80/tcp":{{}}}},"StopSignal":"SIGQUIT"}},
        "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    )
}

/// What `docker save` of older kinds writes: layers in directories, the manifest last.
pub fn docker_archive(names: &[&str], layers: &[Vec<u8>]) -> Tar {
    let config = config(layers, "amd64");
    let config_path = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut tar = Tar::new().directory("layer0/");
    let mut paths = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let path = format!("layer{n}/layer.tar");
        tar = match layers[..n].iter().position(|other| other == layer) {
            Some(same) => tar.symlink(&path, &format!("../layer{same}/layer.tar")),
            None => tar.file(&path, layer),
        };
        paths.push(format!("\"{path}\""));
    }
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let manifest = format!(
        r#"[{{"Config":"{config_path}","RepoTags":[{}],"Layers":[{}]}}]"#,
        names.join(","),
        paths.join(",")
    );
    tar.file(&config_path, config.as_bytes())
        .file("manifest.json", manifest.as_bytes())
}

/// An OCI layout as a list of files.
pub struct Layout {
    pub files: Vec<(String, Vec<u8>)>,
    manifests: Vec<String>,
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const GZIP_LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Layout {
    pub fn new() -> Self {
        Self {
            files: vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())],
            manifests: Vec::new(),
        }
    }

    fn blob(&mut self, content: &[u8]) -> String {
        let digest = Digest::of(content);
        self.files
            .push((format!("blobs/sha256/{}", digest.hex()), content.to_vec()));
        format!(r#""digest":"{digest}","size":{}"#, content.len())
    }

    pub fn image(
        mut self,
        name: Option<&str>,
        layers: &[Vec<u8>],
        architecture: &str,
        layer_type: &str,
    ) -> Self {
        let config = config(layers, architecture);
        let config = self.blob(config.as_bytes());
        let blobs: Vec<_> = layers
            .iter()
            .map(|tar| format!(r#"{{"mediaType":"{layer_type}",{}}}"#, self.blob(&gzip(tar))))
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":[{}]}}"#,
            blobs.join(",")
        );
        let manifest = self.blob(manifest.as_bytes());
        let annotations = name.map_or(String::new(), |name| {
            format!(r#","annotations":{{"io.containerd.image.name":"{name}"}}"#)
        });
        self.manifests.push(format!(
            r#"{{"mediaType":"{MANIFEST_TYPE}",{manifest}{annotations}}}"#
        ));
        self
    }

    /// Puts the manifests so far into an index of their own.
    pub fn nested(mut self, name: &str) -> Self {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            self.manifests.join(",")
        );
        let index = self.blob(index.as_bytes());
        self.manifests = vec![format!(
            r#"{{"mediaType":"application/vnd.oci.image.index.v1+json",{index},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}"#
        )];
        self
    }

    fn index(&self) -> Vec<u8> {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            self.manifests.join(",")
        )
        .into_bytes()
    }

    pub fn archive(&self) -> Vec<u8> {
        let mut tar = Tar::new();
        for (path, content) in &self.files {
            tar = tar.file(path, content);
        }
        tar.file("index.json", &self.index()).finish()
    }

    pub fn write_to(&self, directory: &Path) {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        for (path, content) in &self.files {
            fs::write(directory.join(path), content).unwrap();
        }
        fs::write(directory.join("index.json"), self.index()).unwrap();
    }
}

pub fn archive_error(result: Result<Vec<Loaded>, StoreError>) -> ArchiveError {
    match result.unwrap_err() {
        StoreError::Archive(error) => error,
        other => panic!("{other:?}"),
    }
}
