//! What is saved can be loaded again, here and by others; what is imported is an image.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{collections::BTreeMap, fs, io::Read, path::Path, process::Command};

use brig_image_store::{
    Image, StoreError, archive::ArchiveError, compose::Change, digest::Digest, store::ImportOptions,
};
use common::{
    Tar,
    archives::{GZIP_LAYER_TYPE, Home, Layout, docker_archive, home, layer},
    gzip, zstd,
};
use serde_json::Value;

fn save(home: &Home, texts: &[&str]) -> Vec<u8> {
    let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
    let mut archive = Vec::new();
    home.store.save(&texts, &mut archive, &mut |_| {}).unwrap();
    archive
}

fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (path, content)
        })
        .collect()
}

fn names(image: &Image) -> Vec<String> {
    image.names.iter().map(ToString::to_string).collect()
}

/// Two images that share a layer: one from `docker save`, one from an OCI layout.
fn two_images() -> Home {
    let home = home();
    home.load(&docker_archive(&["app:1", "app:2", "other"], &[layer("base"), layer("one")]).finish())
        .unwrap();
    let layout = Layout::new().image(
        Some("registry.example:5000/team/web:3"),
        &[layer("base")],
        "amd64",
        GZIP_LAYER_TYPE,
    );
    home.load(&layout.archive()).unwrap();
    home
}

#[test]
fn what_is_saved_is_loaded_as_it_was() {
    let first = two_images();
    let archive = save(&first, &["app:1", "other", "registry.example:5000/team/web:3"]);
    assert!(archive == save(&first, &["app:1", "other", "registry.example:5000/team/web:3"]));
    let second = home();
    let loaded = second.load(&archive).unwrap();
    assert_eq!(loaded.len(), 2);
    assert_eq!(names(&loaded[0].image), ["app:1", "other:latest"]);
    for Image {
        id, layers, config, ..
    } in first.store.list().unwrap()
    {
        let again = second.store.image(&id).unwrap().unwrap();
        assert_eq!((again.layers, again.config), (layers, config));
    }
    assert_eq!(second.store.check().unwrap(), []);
}

#[test]
fn a_repository_is_saved_with_all_its_names_and_an_id_with_none() {
    let home = two_images();
    let id = home.store.resolve("app:1").unwrap().unwrap().id;
    let tags = |archive: &[u8]| -> Value {
        let manifest: Value = serde_json::from_slice(&entries(archive)["manifest.json"]).unwrap();
        manifest[0]["RepoTags"].clone()
    };
    assert_eq!(
        tags(&save(&home, &["app"])),
        serde_json::json!(["app:1", "app:2"])
    );
    assert_eq!(tags(&save(&home, &["app:2"])), serde_json::json!(["app:2"]));
    assert_eq!(tags(&save(&home, &[&id.short()])), Value::Null);
    for missing in ["nothing", "app:3"] {
        let error = home
            .store
            .save(&[missing.into()], &mut std::io::sink(), &mut |_| {})
            .unwrap_err();
        assert_eq!(error.to_string(), format!("no such image: {missing}"));
    }
}

#[test]
fn every_blob_of_an_archive_has_the_name_of_its_digest_and_each_is_there_once() {
    let home = two_images();
    let archive = save(&home, &["app", "registry.example:5000/team/web"]);
    let mut blobs = 0;
    for (path, content) in entries(&archive) {
        if let Some(hex) = path.strip_prefix("blobs/sha256/").filter(|hex| !hex.is_empty()) {
            assert_eq!(hex, Digest::of(&content).hex());
            blobs += 1;
        }
    }
    // Three layers (one is gzip, and so another blob), two configurations, two manifests.
    assert_eq!(blobs, 7);
}

#[test]
fn a_reader_that_goes_away_is_an_error_of_the_output() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = two_images()
        .store
        .save(&["app:1".into()], &mut Full, &mut |_| {})
        .unwrap_err();
    assert!(matches!(error, StoreError::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe));
}

fn skopeo(from: &str, to: &Path) -> Option<Value> {
    let to = format!("dir:{}", to.display());
    let output = match Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", from, &to])
        .output()
    {
        Ok(output) => output,
        Err(e) => {
            println!("SKIPPED: cannot run skopeo: {e}");
            return None;
        }
    };
    assert!(
        output.status.success(),
        "skopeo copy {from}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let manifest = fs::read(Path::new(&to[4..]).join("manifest.json")).unwrap();
    Some(serde_json::from_slice(&manifest).unwrap())
}

#[test]
fn skopeo_takes_an_archive_of_ours_as_docker_s_and_as_the_specification_s() {
    let home = two_images();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("saved.tar");
    fs::write(&path, save(&home, &["app", "registry.example:5000/team/web"])).unwrap();
    let sources = [
        ("docker-archive:", ":app:1", 2),
        ("docker-archive:", ":registry.example:5000/team/web:3", 1),
        ("oci-archive:", ":1", 2),
        ("oci-archive:", ":3", 1),
    ];
    for (n, (transport, name, layers)) in sources.into_iter().enumerate() {
        let from = format!("{transport}{}{name}", path.display());
        let Some(manifest) = skopeo(&from, &scratch.path().join(n.to_string())) else {
            return;
        };
        assert_eq!(
            manifest["layers"].as_array().unwrap().len(),
            layers,
            "{from}: {manifest}"
        );
    }
}

fn import(home: &Home, archive: &[u8], options: &ImportOptions) -> Result<Image, StoreError> {
    home.store.import(&mut &archive[..], options, &mut |_| {})
}

#[test]
fn an_archive_of_files_becomes_an_image() {
    let home = home();
    let files = layer("content");
    let changes = [r#"CMD ["/run"]"#, "ENV A=b"].map(|change| change.parse::<Change>().unwrap());
    let options = ImportOptions {
        changes: changes.to_vec(),
        message: "by hand".into(),
        name: Some("made:1".parse().unwrap()),
        created: "2024-01-02T03:04:05Z".into(),
    };
    let image = import(&home, &files, &options).unwrap();
    assert_eq!(names(&image), ["made:1"]);
    assert_eq!(
        (image.config.cmd.as_slice(), image.config.env.as_slice()),
        (&["/run".to_owned()][..], &["A=b".to_owned()][..])
    );
    assert_eq!(
        (image.layers[0].digest, image.layers[0].diff_id),
        (Digest::of(&files), Digest::of(&files))
    );
    let history = home.store.history(&image).unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(
        (history[0].comment.as_str(), history[0].size),
        ("by hand", files.len() as u64)
    );
    assert_eq!(home.store.check().unwrap(), []);
    // It is as good as one from elsewhere.
    assert_eq!(
        common::archives::home().load(&save(&home, &["made:1"])).unwrap()[0]
            .image
            .id,
        image.id
    );

    for packed in [gzip(&files), zstd(&files)] {
        let image = import(&home, &packed, &ImportOptions::default()).unwrap();
        assert_eq!(
            (image.layers[0].digest, image.layers[0].diff_id),
            (Digest::of(&packed), Digest::of(&files))
        );
    }
}

#[test]
fn what_is_no_archive_of_files_is_not_imported() {
    let home = home();
    let files = layer("content");
    for bytes in [&b""[..], b"hello", &[1; 2000]] {
        let error = import(&home, bytes, &ImportOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::NotAnArchive(_)), "{error:?}");
    }
    let packed = gzip(&files);
    for bytes in [
        &files[..700],
        &packed[..packed.len() - 9],
        b"\xfd7zXZ\0",
        b"BZh91AY",
    ] {
        let error = import(&home, bytes, &ImportOptions::default()).unwrap_err();
        assert!(
            matches!(error, StoreError::Archive(ArchiveError::Tar(_))),
            "{error:?}"
        );
    }
    assert!(home.files().is_empty(), "{:?}", home.files());
    // No entries are no error: an image may be empty.
    assert!(import(&home, &Tar::new().finish(), &ImportOptions::default()).is_ok());
}

#[test]
fn an_archive_of_files_that_is_larger_than_allowed_is_not_imported() {
    let home = home();
    let store = home.store.limited("1m".parse().unwrap());
    let files = Tar::new().file("zeros", &vec![0; 2 << 20]).finish();
    for (archive, words) in [
        (files.clone(), "the archive has more than 1 MiB: --max-image-size"),
        (gzip(&files), "the files of the archive have more than 1 MiB"),
        (zstd(&files), "the files of the archive have more than 1 MiB"),
    ] {
        let imported = store.import(&mut &archive[..], &ImportOptions::default(), &mut |_| {});
        let line = imported.unwrap_err().to_string();
        assert!(line.contains(words), "{line}");
    }
    assert!(home.files().is_empty(), "{:?}", home.files());
}

#[test]
fn a_history_names_each_layer_once() {
    let home = home();
    let image = home
        .load(&docker_archive(&["a"], &[layer("x"), layer("y")]).finish())
        .unwrap()
        .remove(0)
        .image;
    let history = home.store.history(&image).unwrap();
    let sizes: Vec<u64> = history.iter().map(|entry| entry.size).collect();
    assert_eq!(sizes, [image.layers[1].size, image.layers[0].size]);
}
