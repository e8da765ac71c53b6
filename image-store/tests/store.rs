//! What is in a store is found, unpacked once, and survives crowds and crashes.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
};

use brig_image_store::{Image, MaxImageSize, Store, StoreError, Unpack, unpack::unpack};
use common::{
    Tar,
    archives::{docker_archive, home, layer},
};

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

/// Does what the agent does.
fn finish_unpack(store: &Store, image: &Image) -> Option<u64> {
    let Unpack::Job(job) = store.begin_unpack(image, MaxImageSize::DEFAULT).unwrap() else {
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
        let Unpack::Job(job) = home.store.begin_unpack(&image, MaxImageSize::DEFAULT).unwrap() else {
            panic!()
        };
        assert!(home.files().len() > before.len());
        drop(job);
        assert_eq!(home.files(), before);
    }
    for bytes in [0, 1, 4097, u64::MAX, u64::MAX - 4095] {
        let Unpack::Job(job) = home.store.begin_unpack(&image, MaxImageSize::DEFAULT).unwrap() else {
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
    let Unpack::Job(job) = home.store.begin_unpack(&image, MaxImageSize::DEFAULT).unwrap() else {
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
    let Unpack::Job(job) = home.store.begin_unpack(&image, MaxImageSize::DEFAULT).unwrap() else {
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
