//! Archives go into a store and come out as images.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
};

use brig_image_store::{
    Image, Loaded, Store, StoreError, Unpack, archive::ArchiveError, digest::Digest, tar::TarError,
    unpack::unpack,
};
use common::{Tar, gzip, zstd};
use proptest::prelude::*;

/// A store in a directory that goes with it.
struct Home {
    directory: tempfile::TempDir,
    store: Store,
}

fn home() -> Home {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    Home { directory, store }
}

impl Home {
    fn load(&self, archive: &[u8]) -> Result<Vec<Loaded>, StoreError> {
        self.store.load(&mut &archive[..], &mut |_| {})
    }

    /// Everything in the store, but locks.
    fn files(&self) -> Vec<String> {
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

fn layer(content: &str) -> Vec<u8> {
    Tar::new().file("file", content.as_bytes()).finish()
}

fn config(layers: &[Vec<u8>], architecture: &str) -> String {
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
fn docker_archive(names: &[&str], layers: &[Vec<u8>]) -> Tar {
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
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifests: Vec<String>,
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const GZIP_LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Layout {
    fn new() -> Self {
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

    fn image(mut self, name: Option<&str>, layers: &[Vec<u8>], architecture: &str, layer_type: &str) -> Self {
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
    fn nested(mut self, name: &str) -> Self {
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

    fn archive(&self) -> Vec<u8> {
        let mut tar = Tar::new();
        for (path, content) in &self.files {
            tar = tar.file(path, content);
        }
        tar.file("index.json", &self.index()).finish()
    }

    fn write_to(&self, directory: &Path) {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        for (path, content) in &self.files {
            fs::write(directory.join(path), content).unwrap();
        }
        fs::write(directory.join("index.json"), self.index()).unwrap();
    }
}

fn archive_error(result: Result<Vec<Loaded>, StoreError>) -> ArchiveError {
    match result.unwrap_err() {
        StoreError::Archive(error) => error,
        other => panic!("{other:?}"),
    }
}

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
    assert!(matches!(
        archive_error(home().load(b"\xfd7zXZ\0....")),
        ArchiveError::Compression { program: "xz" }
    ));
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
fn a_new_image_takes_the_name_of_an_old_one() {
    let home = home();
    let old = home
        .load(&docker_archive(&["app"], &[layer("old")]).finish())
        .unwrap()
        .remove(0)
        .image;
    let new = home
        .load(&docker_archive(&["app"], &[layer("new")]).finish())
        .unwrap()
        .remove(0)
        .image;
    assert_eq!(home.store.resolve("app").unwrap().unwrap().id, new.id);
    assert_eq!(home.store.image(&old.id).unwrap().unwrap().names, []);
    assert_eq!(home.store.list().unwrap().len(), 2);
}

#[test]
fn images_are_found_by_everything_that_means_them() {
    let home = home();
    let image = home
        .load(&docker_archive(&["welcome"], &[layer("x")]).finish())
        .unwrap()
        .remove(0)
        .image;
    let hex = image.id.hex();
    for text in [
        "welcome",
        "welcome:latest",
        "docker.io/library/welcome",
        "index.docker.io/library/welcome:latest",
        &hex,
        &hex[..12],
        &hex[..1],
        &image.id.to_string(),
        &image.id.to_string()[..20],
    ] {
        assert_eq!(home.store.resolve(text).unwrap().as_ref(), Some(&image), "{text}");
    }
    for text in [
        "welcome:2",
        "other",
        "example.com/welcome",
        "0123456789abcdef0",
        &"0".repeat(64),
    ] {
        assert_eq!(home.store.resolve(text).unwrap(), None, "{text}");
    }
    assert!(matches!(
        home.store.resolve("No Such"),
        Err(StoreError::Reference(_))
    ));
}

#[test]
fn a_prefix_that_fits_several_images_is_an_error() {
    let home = home();
    // Seventeen ids have two that start with the same digit.
    for n in 0..17 {
        home.load(&docker_archive(&[], &[layer(&n.to_string())]).finish())
            .unwrap();
    }
    let ids: Vec<_> = home
        .store
        .list()
        .unwrap()
        .iter()
        .map(|image| image.id.hex())
        .collect();
    let same = |id: &&String| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1;
    let ambiguous = &ids.iter().find(same).unwrap()[..1];
    assert!(matches!(
        home.store.resolve(ambiguous),
        Err(StoreError::AmbiguousPrefix(_))
    ));
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

/// Does what the agent does.
fn finish_unpack(store: &Store, image: &Image) -> Option<u64> {
    let Unpack::Job(job) = store.begin_unpack(image).unwrap() else {
        return None;
    };
    let mut disk = tempfile::tempfile().unwrap();
    for (mut blob, length) in job.blobs().unwrap() {
        let mut content = Vec::new();
        blob.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, length);
        content.resize(content.len().next_multiple_of(4096), 0);
        disk.write_all(&content).unwrap();
    }
    let unpacked = unpack(job.spec(), disk, job.output().try_clone().unwrap(), &mut |_| {}).unwrap();
    job.commit(unpacked.bytes).unwrap();
    Some(unpacked.bytes)
}

#[test]
fn an_image_is_unpacked_once() {
    let home = home();
    let image = home
        .load(&docker_archive(&["a"], &[layer("x"), layer("y")]).finish())
        .unwrap()
        .remove(0)
        .image;
    assert!(home.store.unpacked(&image).unwrap().is_none());
    let bytes = finish_unpack(&home.store, &image).unwrap();
    assert_eq!(finish_unpack(&home.store, &image), None);
    let file = home.store.unpacked(&image).unwrap().unwrap();
    assert_eq!(file.metadata().unwrap().len(), bytes);
    assert!((&file).write(b"x").is_err());
    assert_eq!(
        fs::read_dir(home.directory.path().join("tmp")).unwrap().count(),
        0
    );
}

#[test]
fn a_dropped_job_leaves_nothing_and_lets_the_next_one_in() {
    let home = home();
    let image = home
        .load(&docker_archive(&["a"], &[layer("x")]).finish())
        .unwrap()
        .remove(0)
        .image;
    let before = home.files();
    for _ in 0..2 {
        let Unpack::Job(job) = home.store.begin_unpack(&image).unwrap() else {
            panic!()
        };
        assert!(home.files().len() > before.len());
        drop(job);
        assert_eq!(home.files(), before);
    }
    for bytes in [0, 1, 4097, u64::MAX, u64::MAX - 4095] {
        let Unpack::Job(job) = home.store.begin_unpack(&image).unwrap() else {
            panic!()
        };
        assert!(matches!(job.commit(bytes), Err(StoreError::ImpossibleLength(_))));
        assert_eq!(home.files(), before);
    }
}

#[test]
fn a_missing_or_shortened_blob_is_named() {
    let home = home();
    let image = home
        .load(&docker_archive(&["a"], &[layer("x")]).finish())
        .unwrap()
        .remove(0)
        .image;
    let blob = home
        .directory
        .path()
        .join("blobs/sha256")
        .join(image.layers[0].digest.hex());
    let Unpack::Job(job) = home.store.begin_unpack(&image).unwrap() else {
        panic!()
    };
    fs::File::options()
        .write(true)
        .open(&blob)
        .unwrap()
        .set_len(10)
        .unwrap();
    assert!(matches!(job.blobs(), Err(StoreError::MissingBlob(d)) if d == image.layers[0].digest));
    fs::remove_file(&blob).unwrap();
    assert!(matches!(job.blobs(), Err(StoreError::MissingBlob(_))));
}

#[test]
fn many_load_and_unpack_at_the_same_time() {
    let home = home();
    let archives: Vec<_> = (0..3)
        .map(|n| {
            docker_archive(
                &["same", &format!("own{n}")],
                &[layer("base"), layer(&n.to_string())],
            )
            .finish()
        })
        .collect();
    let barrier = Barrier::new(6);
    let unpacked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (barrier, unpacked, archives, root) = (&barrier, &unpacked, &archives, home.directory.path());
            scope.spawn(move || {
                barrier.wait();
                // Each opens the store anew, as a process of its own would.
                let store = Store::open(root).unwrap();
                let loaded = store.load(&mut &archives[n % 3][..], &mut |_| {}).unwrap();
                if finish_unpack(&store, &loaded[0].image).is_some() {
                    unpacked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(unpacked.into_inner(), 3);
    assert_eq!(home.store.list().unwrap().len(), 3);
    for n in 0..3 {
        assert!(home.store.resolve(&format!("own{n}")).unwrap().is_some());
    }
    assert!(home.store.resolve("same").unwrap().is_some());
    assert_eq!(
        fs::read_dir(home.directory.path().join("tmp")).unwrap().count(),
        0
    );
}

#[test]
fn what_a_dead_process_left_is_swept_and_what_a_living_one_has_is_not() {
    let home = home();
    let image = home
        .load(&docker_archive(&["a"], &[layer("x")]).finish())
        .unwrap()
        .remove(0)
        .image;
    let Unpack::Job(job) = home.store.begin_unpack(&image).unwrap() else {
        panic!()
    };
    let stale = home.directory.path().join("tmp/stale");
    fs::create_dir(&stale).unwrap();
    fs::write(stale.join("0"), "half").unwrap();
    Store::open(home.directory.path()).unwrap();
    assert!(!stale.exists());
    job.commit(4096).unwrap();
}

#[test]
fn a_damaged_record_is_named() {
    let home = home();
    let image = home
        .load(&docker_archive(&["a"], &[layer("x")]).finish())
        .unwrap()
        .remove(0)
        .image;
    let record = home
        .directory
        .path()
        .join("images")
        .join(format!("{}.json", image.id.hex()));
    fs::write(&record, "{").unwrap();
    let error = home.store.resolve("a").unwrap_err();
    assert!(error.to_string().contains(record.to_str().unwrap()));
}

#[test]
fn a_full_disk_is_said_so_and_nothing_stays() {
    let directory = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let output = std::process::Command::new("mount")
            .args(arguments)
            .arg(directory.path())
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=256k", "tmpfs"]) {
        println!("SKIPPED: cannot mount a tmpfs");
        return;
    }
    let store = Store::open(directory.path()).unwrap();
    let noise: Vec<u8> = (0..1u32 << 18)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let archive = docker_archive(&["a"], &[Tar::new().file("f", &noise).finish()]).finish();
    let result = store.load(&mut &archive[..], &mut |_| {});
    let left = fs::read_dir(directory.path().join("tmp")).unwrap().count();
    let status = std::process::Command::new("umount")
        .arg(directory.path())
        .status()
        .unwrap();
    assert!(status.success());
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains(directory.path().to_str().unwrap()));
    assert_eq!(left, 0);
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
