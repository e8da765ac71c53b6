//! Archives whose author means harm. What an archive may do wrong, and where that is tried:
//!
//! | | |
//! |---|---|
//! | configuration of 100 MB, manifest of 4 MiB and a byte | here, `load.rs` |
//! | JSON that is none, of another shape, nested without end | here, `load.rs` |
//! | no layers, layers without entries | here |
//! | digests that lie | `load.rs` |
//! | sizes that lie | here |
//! | names that come twice, one name for two images | here |
//! | `..`, absolute names and links in the archive's own file names | here |
//! | more files than any image has, an archive without end | here |
//! | documents that name missing files | here, `load.rs` |
//! | truncated at any length, changed anywhere | `load.rs` |
//! | holes, bombs behind the archive's end | here, `hostile.rs` |
//! | layers: everything that is inside of them | `hostile.rs`, `unpack.rs` |

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;

use brig_image_store::{
    Loaded, MaxImageSize, StoreError, Unpack, archive::ArchiveError, digest::Digest, tar::TarError,
    unpack::unpack,
};
use common::{
    Header, Tar,
    archives::{GZIP_LAYER_TYPE, Home, Layout, archive_error, config, docker_archive, home, layer},
};

/// The error of an archive, which is one line and leaves nothing behind.
fn refused(archive: &[u8]) -> ArchiveError {
    let home = home();
    let error = archive_error(home.load(archive));
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 400, "{text}");
    assert!(home.files().is_empty(), "{:?}", home.files());
    error
}

/// An archive of `docker save`'s with this configuration and manifest.
fn archive_of(config: &[u8], manifest: &str) -> Vec<u8> {
    Tar::new()
        .file("c.json", config)
        .file("l.tar", &layer("x"))
        .file("manifest.json", manifest.as_bytes())
        .finish()
}

const MANIFEST: &str = r#"[{"Config":"c.json","RepoTags":["a"],"Layers":["l.tar"]}]"#;

#[test]
fn a_configuration_of_100_megabytes_is_not_read() {
    let mut long = config(&[layer("x")], "amd64").into_bytes();
    long.resize(100_000_000, b' ');
    let error = refused(&archive_of(&long, MANIFEST));
    assert!(
        matches!(error, ArchiveError::TooLong { limit: 8_388_608, .. }),
        "{error:?}"
    );
}

#[test]
fn documents_nested_without_end_are_refused() {
    let deep = "[".repeat(1 << 20);
    assert!(matches!(
        refused(&archive_of(deep.as_bytes(), MANIFEST)),
        ArchiveError::Json { .. }
    ));
    let deep = format!("[{{\"Config\":{}", "{\"a\":".repeat(1 << 19));
    assert!(matches!(
        refused(&archive_of(b"{}", &deep)),
        ArchiveError::Json { .. }
    ));
}

fn load_one(home: &Home, archive: &[u8]) -> Loaded {
    home.load(archive).unwrap().remove(0)
}

/// The bytes of the image that an agent would write.
fn unpacked(home: &Home, loaded: &Loaded) -> u64 {
    let Unpack::Job(job) = home
        .store
        .begin_unpack(&loaded.image, MaxImageSize::DEFAULT)
        .unwrap()
    else {
        panic!()
    };
    let mut disk = tempfile::tempfile().unwrap();
    for (mut blob, _) in job.blobs().unwrap() {
        let length = std::io::copy(&mut blob, &mut disk).unwrap();
        let zeros = vec![0; (length.next_multiple_of(4096) - length) as usize];
        std::io::Write::write_all(&mut disk, &zeros).unwrap();
    }
    let result = unpack(job.spec(), disk, job.output().try_clone().unwrap(), &mut |_| {}).unwrap();
    job.commit(result.bytes).unwrap();
    result.inodes
}

/// CVE-2026-24054, images that are malformed or have no layers, after which something else of the host is the root.
#[test]
fn an_image_without_layers_and_one_with_empty_layers_have_an_empty_root() {
    let home = home();
    let none = load_one(&home, &docker_archive(&["none"], &[]).finish());
    assert!(none.image.layers.is_empty());
    assert_eq!(unpacked(&home, &none), 1);
    let empty = [Tar::new().finish(), Vec::new()];
    let empty = load_one(&home, &docker_archive(&["empty"], &empty).finish());
    assert_eq!(empty.image.layers.len(), 2);
    assert_eq!(unpacked(&home, &empty), 1);
}

#[test]
fn a_size_that_lies_is_named() {
    let layers = [layer("x")];
    let layout = Layout::new().image(Some("a"), &layers, "amd64", GZIP_LAYER_TYPE);
    let size = common::gzip(&layers[0]).len();
    let archive = layout.archive();
    // The manifest is a blob itself, so what it says is changed together with everything that points to it.
    let manifest = layout
        .files
        .iter()
        .find(|(_, content)| content.starts_with(b"{\"schemaVersion\""))
        .unwrap();
    for lie in [0, size + 1, usize::MAX] {
        let text = String::from_utf8(manifest.1.clone()).unwrap();
        let changed = text.replace(&format!("\"size\":{size}}}]"), &format!("\"size\":{lie}}}]"));
        assert_ne!(changed, text);
        let mut tar = Tar::new();
        for (path, content) in layout.files.iter().filter(|(path, _)| *path != manifest.0) {
            tar = tar.file(path, content);
        }
        let digest = Digest::of(changed.as_bytes());
        let index = format!(
            r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{}}}]}}"#,
            changed.len()
        );
        let tar = tar
            .file(&format!("blobs/sha256/{}", digest.hex()), changed.as_bytes())
            .file("index.json", index.as_bytes());
        let error = refused(&tar.finish());
        assert!(
            matches!(error, ArchiveError::Size { found, .. } if found == size as u64),
            "{error:?}"
        );
    }
    assert!(home().load(&archive).is_ok());
}

#[test]
fn of_names_that_come_twice_the_last_one_counts() {
    let home = home();
    let first = docker_archive(&["a"], &[layer("first")]).unfinished();
    let second = docker_archive(&["a"], &[layer("second")]).finish();
    let loaded = home
        .load(&Tar::new().bytes(&first).bytes(&second).unfinished())
        .unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].image.layers[0].diff_id, Digest::of(&layer("second")));

    // One name for two images of an archive.
    let layout = Layout::new()
        .image(
            Some("docker.io/library/b:1"),
            &[layer("x")],
            "amd64",
            GZIP_LAYER_TYPE,
        )
        .image(
            Some("docker.io/library/b:1"),
            &[layer("y")],
            "amd64",
            GZIP_LAYER_TYPE,
        );
    home.load(&layout.archive()).unwrap();
    let image = home.store.resolve("b:1").unwrap().unwrap();
    assert_eq!(image.layers[0].diff_id, Digest::of(&layer("y")));
    assert!(
        !home
            .store
            .check()
            .unwrap()
            .iter()
            .any(brig_image_store::store::Problem::is_damage)
    );
}

#[test]
fn names_in_an_archive_are_no_paths_of_the_host() {
    let home = home();
    let mut tar = Tar::new();
    for path in [
        "../evil",
        "../../../../../../tmp/brig-evil",
        "/tmp/brig-evil",
        "blobs/../../evil",
        "a/\u{1b}[31m",
        "",
    ] {
        tar = tar.file(path, b"evil");
    }
    tar = tar
        .add(&Header::new(b"\xff\xfe", b'0'))
        .file(&format!("{}x", "long/".repeat(150)), b"evil")
        .symlink("link", "/etc/passwd")
        .symlink("loop", "loop")
        .hard_link("hard", "/etc/passwd")
        .add(&Header::new("device", b'3'));
    let archive = tar
        .bytes(&docker_archive(&["a"], &[layer("x")]).finish())
        .unfinished();
    home.load(&archive).unwrap();
    // Two blobs, the record, the names.
    assert_eq!(home.files().len(), 4, "{:?}", home.files());
    assert!(!home.directory.path().parent().unwrap().join("evil").exists());
    assert!(!fs::exists("/tmp/brig-evil").unwrap());

    for path in [
        "../c.json",
        "/etc/passwd",
        "link",
        "loop",
        "hard",
        "a/../../c.json",
    ] {
        let manifest = MANIFEST.replace("l.tar", path);
        let archive = Tar::new()
            .symlink("link", "/etc/passwd")
            .symlink("loop", "loop")
            .hard_link("hard", "/etc/passwd")
            .bytes(&archive_of(config(&[layer("x")], "amd64").as_bytes(), &manifest))
            .unfinished();
        let error = refused(&archive);
        assert!(
            matches!(&error, ArchiveError::Missing(missing) if missing == path),
            "{path}: {error:?}"
        );
    }
}

#[test]
fn a_hole_in_an_archive_of_images_is_refused() {
    let mut header = Header::new("manifest.json", b'0');
    header.data = b"1\n0\n1\n";
    header.pax = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.realsize", "1099511627776"),
    ]
    .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
    .to_vec();
    let error = refused(&Tar::new().add(&header).finish());
    assert!(
        matches!(error, ArchiveError::Tar(TarError::Sparse | TarError::Truncated)),
        "{error:?}"
    );
}

#[test]
fn an_error_repeats_only_the_start_of_what_an_archive_says() {
    let name = "x".repeat(1 << 20);
    for (config, manifest) in [
        (
            config(&[layer("x")], "amd64"),
            MANIFEST.replace("\"a\"", &format!("\"{name}\\u001b[31m\"")),
        ),
        (config(&[layer("x")], &name), MANIFEST.to_owned()),
        (config(&[layer("x")], "amd64"), MANIFEST.replace("l.tar", &name)),
        (
            config(&[layer("x")], "amd64").replace("80/tcp", &name),
            MANIFEST.to_owned(),
        ),
    ] {
        refused(&archive_of(config.as_bytes(), &manifest));
    }
}

#[test]
fn more_entries_than_any_image_has_are_refused_and_so_an_archive_without_end() {
    struct Endless(Vec<u8>);
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = buffer.len().min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            Ok(count)
        }
    }
    let home = home();
    // Directories are no files of an archive of images, but they count.
    let entries = Tar::new().directory("d/").unfinished().repeat(256);
    let error = home.store.load(&mut Endless(entries), &mut |_| {}).unwrap_err();
    assert!(
        matches!(error, StoreError::Archive(ArchiveError::TooManyEntries(_))),
        "{error:?}"
    );
    assert!(home.files().is_empty());
}
