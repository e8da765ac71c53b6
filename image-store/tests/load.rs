//! Archives of all kinds, whole and broken, go into a store.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{fs, path::Path};

use brig_image_store::{
    Loaded, MaxImageSize, StoreError, archive::ArchiveError, digest::Digest, tar::TarError,
};
use common::{
    Tar,
    archives::{GZIP_LAYER_TYPE, Layout, archive_error, config, docker_archive, home, layer},
    gzip, zstd,
};
use proptest::prelude::*;

#[test]
fn a_docker_archive_is_loaded_with_its_names_and_its_configuration() {
    let home = home();
    let layers = [layer("one"), layer("two"), layer("one")];
    let loaded = home
        .load(&docker_archive(&["app:1", "team/app"], &layers).finish())
        .unwrap();
    let [Loaded { image, names }] = &loaded[..] else {
        panic!()
    };
    let shown: Vec<_> = names.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["app:1", "team/app:latest"]);
    assert_eq!(&image.names, names);
    assert_eq!(image.config.cmd, ["/run"]);
    assert_eq!(image.config.env, ["A=b"]);
    assert_eq!(image.config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(image.created.as_deref(), Some("2024-01-02T03:04:05Z"));
    assert_eq!(image.layers.len(), 3);
    assert_eq!(image.layers[0], image.layers[2]);
    for (layer, tar) in image.layers.iter().zip(&layers) {
        assert_eq!((layer.diff_id, layer.size), (Digest::of(tar), tar.len() as u64));
    }
    // Two layers, the configuration, the record and the names.
    assert_eq!(home.files().len(), 5);
    assert_eq!(home.store.list().unwrap(), std::slice::from_ref(image));
}

#[test]
fn an_oci_layout_is_loaded_from_a_tar_and_from_a_directory() {
    let layout = Layout::new().image(
        Some("docker.io/library/web:2"),
        &[layer("x")],
        "amd64",
        GZIP_LAYER_TYPE,
    );
    let directory = tempfile::tempdir().unwrap();
    layout.write_to(directory.path());
    let from_tar = home().load(&layout.archive()).unwrap();
    let home = home();
    let from_directory = home.store.load_path(directory.path(), &mut |_| {}).unwrap();
    assert_eq!(from_tar, from_directory);
    assert_eq!(from_tar[0].names[0].to_string(), "web:2");
    let manifest = from_tar[0].image.manifest.unwrap();
    assert!(home.store.resolve(&format!("web@{manifest}")).unwrap().is_some());
    assert!(home.store.resolve(&manifest.to_string()).unwrap().is_some());
}

#[test]
fn compressed_archives_are_taken_as_they_are() {
    let archive = docker_archive(&["a"], &[layer("x")]).finish();
    for packed in [gzip(&archive), zstd(&archive)] {
        assert_eq!(home().load(&packed).unwrap(), home().load(&archive).unwrap());
    }
    // What only looks like one of xz or bzip2 is damaged.
    for packed in [&b"\xfd7zXZ\0...."[..], b"BZh9...."] {
        let home = home();
        archive_error(home.load(packed));
        assert!(home.files().is_empty());
    }
}

#[test]
fn an_archive_of_more_bytes_than_allowed_is_refused_while_it_comes() {
    let archive = docker_archive(&["a"], &[vec![7; 3 << 20]]).finish();
    let limit = |text: &str| text.parse::<MaxImageSize>().unwrap();
    for packed in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let home = home();
        let mut seen = 0;
        let store = home.store.limited(limit("2m"));
        let error = store.load(&mut &packed[..], &mut |progress| seen = progress.bytes);
        let line = error.unwrap_err().to_string();
        assert_eq!(
            line,
            "the files of the archive have more than 2 MiB: --max-image-size allows more"
        );
        assert!(seen <= 2 << 20, "{seen}");
        assert!(home.files().is_empty());
        let store = home.store.limited(limit("4m"));
        store.load(&mut &packed[..], &mut |_| {}).unwrap();
    }
    let layout = Layout::new().image(Some("web:2"), &[noise(3 << 20)], "amd64", GZIP_LAYER_TYPE);
    let directory = tempfile::tempdir().unwrap();
    layout.write_to(directory.path());
    let home = home();
    let error = home
        .store
        .limited(limit("2m"))
        .load_path(directory.path(), &mut |_| {});
    assert!(matches!(error, Err(StoreError::TooLarge { .. })));
    assert!(home.files().is_empty());
}

/// Bytes that no compression makes fewer.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn the_image_for_this_platform_is_chosen() {
    let layout = Layout::new()
        .image(None, &[layer("arm")], "arm64", GZIP_LAYER_TYPE)
        .image(None, &[layer("amd")], "amd64", GZIP_LAYER_TYPE)
        .nested("registry.example/multi:1");
    let loaded = home().load(&layout.archive()).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].image.layers[0].diff_id, Digest::of(&layer("amd")));
    assert_eq!(loaded[0].names[0].to_string(), "registry.example/multi:1");

    let other = Layout::new().image(Some("a"), &[layer("arm")], "arm64", GZIP_LAYER_TYPE);
    let error = archive_error(home().load(&other.archive()));
    assert_eq!(
        error.to_string(),
        "the image is for linux/arm64, brig runs linux/amd64: get it with `--platform linux/amd64`"
    );
}

#[test]
fn what_is_no_image_is_said_so() {
    for archive in [
        Vec::new(),
        b"hello".to_vec(),
        vec![0; 1024],
        vec![1; 5000],
        gzip(b"hello"),
        layer("an archive, but of no image"),
    ] {
        let home = home();
        assert!(matches!(
            archive_error(home.load(&archive)),
            ArchiveError::NotAnImage
        ));
        assert!(home.files().is_empty());
    }
    let directory = tempfile::tempdir().unwrap();
    let error = home().store.load_path(directory.path(), &mut |_| {});
    assert!(matches!(archive_error(error), ArchiveError::NotAnImage));
    assert!(matches!(
        home().store.load_path(Path::new("/no/such"), &mut |_| {}),
        Err(StoreError::Io { .. })
    ));
}

#[test]
fn a_truncated_archive_leaves_nothing() {
    let archive = docker_archive(&["a"], &[layer("x"), layer("y")]).finish();
    for length in (512..archive.len() - 2048).step_by(300) {
        let home = home();
        let error = archive_error(home.load(&archive[..length]));
        assert!(
            matches!(
                error,
                ArchiveError::Tar(TarError::Truncated) | ArchiveError::NotAnImage
            ),
            "{length}: {error:?}"
        );
        assert!(home.files().is_empty(), "{:?}", home.files());
    }
    let packed = gzip(&archive);
    let error = archive_error(home().load(&packed[..packed.len() / 2]));
    assert!(matches!(error, ArchiveError::Tar(_)), "{error:?}");
}

#[test]
fn a_wrong_digest_is_named() {
    let mut layout = Layout::new().image(Some("a"), &[layer("x")], "amd64", GZIP_LAYER_TYPE);
    let (path, content) = layout
        .files
        .iter_mut()
        .find(|(_, content)| content.starts_with(&[0x1f, 0x8b]))
        .unwrap();
    content[10] ^= 1;
    let (hex, found) = (path.rsplit('/').next().unwrap().to_string(), Digest::of(content));
    let directory = tempfile::tempdir().unwrap();
    layout.write_to(directory.path());
    let home = home();
    for result in [
        home.load(&layout.archive()),
        home.store.load_path(directory.path(), &mut |_| {}),
    ] {
        let error = archive_error(result);
        assert!(matches!(error, ArchiveError::Digest { found: f, .. } if f == found));
        assert!(error.to_string().contains(&hex));
        assert!(home.files().is_empty());
    }
}

#[test]
fn manifests_that_do_not_add_up_are_refused() {
    let layers = [layer("x")];
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let layout = Layout::new().image(Some("a"), &layers, "amd64", foreign);
    assert!(
        matches!(archive_error(home().load(&layout.archive())), ArchiveError::MediaType(t) if t == foreign)
    );

    let mut missing = Layout::new().image(Some("a"), &layers, "amd64", GZIP_LAYER_TYPE);
    missing
        .files
        .retain(|(_, content)| !content.starts_with(&[0x1f, 0x8b]));
    assert!(matches!(
        archive_error(home().load(&missing.archive())),
        ArchiveError::Missing(_)
    ));

    let deep = Layout::new()
        .image(None, &layers, "amd64", GZIP_LAYER_TYPE)
        .nested("a:1")
        .nested("a:2");
    assert!(matches!(
        archive_error(home().load(&deep.archive())),
        ArchiveError::TooManyIndexes
    ));

    let bad_name = Layout::new().image(Some("UPPER:1"), &layers, "amd64", GZIP_LAYER_TYPE);
    assert!(matches!(
        archive_error(home().load(&bad_name.archive())),
        ArchiveError::Name(_)
    ));

    let config = config(&[layer("x"), layer("y")], "amd64");
    let count = Tar::new()
        .file("c.json", config.as_bytes())
        .file("l.tar", &layers[0])
        .file(
            "manifest.json",
            br#"[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]}]"#,
        );
    assert!(matches!(
        archive_error(home().load(&count.finish())),
        ArchiveError::LayerCount {
            manifest: 1,
            config: 2
        }
    ));

    for json in [
        "",
        "[]",
        "{}",
        "[{}]",
        "[[[[",
        r#"[{"Config":"../../etc/passwd","Layers":[]}]"#,
    ] {
        let archive = Tar::new().file("manifest.json", json.as_bytes()).finish();
        let error = archive_error(home().load(&archive));
        assert!(
            matches!(
                error,
                ArchiveError::Json { .. } | ArchiveError::NotAnImage | ArchiveError::Missing(_)
            ),
            "{json}: {error:?}"
        );
    }
    let long = Tar::new()
        .file("manifest.json", &vec![b' '; (4 << 20) + 1])
        .finish();
    assert!(matches!(
        archive_error(home().load(&long)),
        ArchiveError::TooLong { .. }
    ));
}

#[test]
fn a_docker_archive_with_an_index_gets_the_names_of_both() {
    let layout = Layout::new().image(
        Some("docker.io/library/a:1"),
        &[layer("x")],
        "amd64",
        GZIP_LAYER_TYPE,
    );
    let config = Digest::of(config(&[layer("x")], "amd64").as_bytes()).hex();
    let manifest = format!(r#"[{{"Config":"blobs/sha256/{config}","RepoTags":["a:1","b:2"],"Layers":[]}}]"#);
    let archive = Tar::new().file("manifest.json", manifest.as_bytes()).unfinished();
    let archive = Tar::new().bytes(&archive).bytes(&layout.archive()).unfinished();
    let loaded = home().load(&archive).unwrap();
    let names: Vec<_> = loaded[0].names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a:1", "b:2"]);
}

#[test]
fn progress_counts_every_byte() {
    let directory = tempfile::tempdir().unwrap();
    let archive = docker_archive(&["a"], &[layer(&"x".repeat(1_000_000))]).finish();
    let path = directory.path().join("a.tar");
    fs::write(&path, &archive).unwrap();
    let mut seen = Vec::new();
    home()
        .store
        .load_path(&path, &mut |progress| seen.push(progress))
        .unwrap();
    assert!(seen.windows(2).all(|pair| pair[0].bytes < pair[1].bytes));
    assert!(
        seen.iter()
            .all(|progress| progress.total == Some(archive.len() as u64))
    );
    assert!(seen.last().unwrap().bytes > 1_000_000);
}

#[test]
fn more_layers_than_a_guest_takes_are_refused() {
    let layers = vec![layer("x"); 129];
    let error = archive_error(home().load(&docker_archive(&["a"], &layers).finish()));
    assert!(matches!(error, ArchiveError::TooManyLayers(129)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_an_archive_makes_a_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10)) {
        let layout = Layout::new().image(Some("a:1"), &[layer("x")], "amd64", GZIP_LAYER_TYPE);
        let mut archive = layout.archive();
        for (at, byte) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        let home = home();
        if home.load(&archive).is_err() {
            prop_assert!(home.files().is_empty());
        }
    }
}
