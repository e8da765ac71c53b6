//! What goes from a store, what stays, and what is said of it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{fs, io::Read};

use brig_image_store::{
    Image, MaxImageSize, Prune, Removed, Store, StoreError, Unpack, User, store::Problem,
};
use common::archives::{Home, docker_archive, home, layer};

fn load(home: &Home, names: &[&str], layers: &[&str]) -> Image {
    let layers: Vec<_> = layers.iter().map(|content| layer(content)).collect();
    let archive = docker_archive(names, &layers).finish();
    home.load(&archive).unwrap().remove(0).image
}

#[allow(clippy::unnecessary_wraps, reason = "as those of an engine")]
fn nobody() -> Result<Vec<User>, StoreError> {
    Ok(Vec::new())
}

fn remove(store: &Store, text: &str, force: bool) -> Result<Removed, StoreError> {
    store.remove(text, force, nobody)
}

fn prune(store: &Store, which: Prune) -> Removed {
    store.prune(which, |_| true, nobody).unwrap()
}

fn user(image: &Image, running: bool) -> User {
    User {
        image: image.id,
        description: format!(
            "{} sandbox 0123 (web)",
            if running { "running" } else { "stopped" }
        ),
        running,
    }
}

fn shown(removed: &Removed) -> Vec<String> {
    removed.untagged.iter().map(ToString::to_string).collect()
}

#[test]
fn the_last_name_takes_the_image_with_it_and_leaves_what_others_share() {
    let home = home();
    let one = load(&home, &["one", "also-one"], &["base", "one"]);
    let two = load(&home, &["two"], &["base", "two"]);
    let removed = remove(&home.store, "one", false).unwrap();
    assert_eq!(
        (shown(&removed), removed.deleted.len()),
        (vec!["one:latest".into()], 0)
    );
    assert!(home.store.resolve("one").unwrap().is_none());
    let removed = remove(&home.store, "also-one", false).unwrap();
    // The image, which is its configuration's blob, and the layer that no other has.
    assert_eq!(removed.deleted, [one.id.0, one.layers[1].digest]);
    assert!(removed.bytes > 0);
    assert_eq!(home.store.list().unwrap(), std::slice::from_ref(&two));
    assert_eq!(home.store.check().unwrap(), []);
    assert!(matches!(
        remove(&home.store, "one", false),
        Err(StoreError::NoSuchImage(_))
    ));
    remove(&home.store, &two.id.short(), false).unwrap();
    assert_eq!(home.files(), ["names.json"]);
}

#[test]
fn an_id_with_several_names_needs_force() {
    let home = home();
    let image = load(&home, &["a:1", "b:2"], &["x"]);
    let error = remove(&home.store, &image.id.hex(), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "conflict: unable to delete {} (must be forced) - image is referenced by several names: a:1, b:2",
            image.id.short()
        )
    );
    let removed = remove(&home.store, &image.id.hex(), true).unwrap();
    assert_eq!(shown(&removed), ["a:1", "b:2"]);
    assert!(home.store.list().unwrap().is_empty());
}

#[test]
fn an_image_in_use_stays_and_the_message_says_by_whom() {
    let home = home();
    let image = load(&home, &["a", "b"], &["x"]);
    let short = image.id.short();
    let with = |text: &str, force, running| {
        home.store
            .remove(text, force, || Ok::<_, StoreError>(vec![user(&image, running)]))
    };
    // A name that is not the last may go in any case.
    with("b", false, true).unwrap();
    let error = with("a", false, false).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "conflict: unable to remove repository reference \"a\" (must force) - its image {short} is being used by \
             stopped sandbox 0123 (web)"
        )
    );
    let error = with(&short, false, false).unwrap_err().to_string();
    assert!(
        error.contains("(must be forced) - image is being used by stopped sandbox 0123 (web)"),
        "{error}"
    );
    let error = with(&short, true, true).unwrap_err().to_string();
    assert!(
        error.contains("(cannot be forced) - image is being used by running sandbox 0123 (web)"),
        "{error}"
    );
    assert_eq!(home.store.resolve("a").unwrap().unwrap().id, image.id);

    // Force takes the name; the image stays for as long as it is used, pruning or not.
    let removed = with("a", true, true).unwrap();
    assert_eq!(
        (shown(&removed), removed.deleted),
        (vec!["a:latest".into()], vec![])
    );
    let used = || Ok::<_, StoreError>(vec![user(&image, false)]);
    assert_eq!(
        home.store.prune(Prune::Unused, |_| true, used).unwrap(),
        Removed::default()
    );
    assert_eq!(home.store.image(&image.id).unwrap().unwrap().names, []);
    assert_eq!(prune(&home.store, Prune::Dangling).deleted.len(), 2);
    assert!(home.store.list().unwrap().is_empty());
}

#[test]
fn pruning_takes_what_has_no_name_or_all_that_nobody_uses() {
    let home = home();
    load(&home, &["app"], &["old"]);
    let new = load(&home, &["app"], &["new"]);
    let other = load(&home, &["other"], &["other"]);
    assert_eq!(home.store.list().unwrap().len(), 3);
    assert_eq!(prune(&home.store, Prune::Dangling).untagged, []);
    assert_eq!(home.store.list().unwrap().len(), 2);
    let only_other = |image: &Image| image.id == other.id;
    let removed = home.store.prune(Prune::Unused, only_other, nobody).unwrap();
    assert_eq!(shown(&removed), ["other:latest"]);
    assert_eq!(home.store.list().unwrap(), [new]);
}

#[test]
fn whoever_has_opened_an_image_keeps_it() {
    let home = home();
    let image = load(&home, &["a"], &["x"]);
    let Unpack::Job(job) = home.store.begin_unpack(&image, MaxImageSize::DEFAULT).unwrap() else {
        panic!()
    };
    job.output().set_len(4096).unwrap();
    let mut unpacked = job.commit(4096).unwrap();
    let (Unpack::Done(_), blobs) = (
        home.store.begin_unpack(&image, MaxImageSize::DEFAULT).unwrap(),
        home.files(),
    ) else {
        panic!()
    };
    assert!(blobs.iter().any(|file| file.starts_with("erofs/")));
    remove(&home.store, "a", false).unwrap();
    assert_eq!(home.files(), ["names.json"]);
    let mut content = Vec::new();
    unpacked.read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), 4096);
}

#[test]
fn an_image_that_is_removed_while_it_is_unpacked_leaves_no_file() {
    let home = home();
    let image = load(&home, &["a"], &["x"]);
    let Unpack::Job(job) = home.store.begin_unpack(&image, MaxImageSize::DEFAULT).unwrap() else {
        panic!()
    };
    remove(&home.store, "a", false).unwrap();
    job.output().set_len(4096).unwrap();
    assert_eq!(job.commit(4096).unwrap().metadata().unwrap().len(), 4096);
    assert_eq!(home.files(), ["names.json"]);
}

#[test]
fn what_is_being_loaded_survives_the_removal_of_what_it_shares() {
    let home = home();
    load(&home, &["old"], &["shared"]);
    let layer = home.store.list().unwrap()[0].layers[0].digest;
    // As far as a load of another image with the same layer is before it publishes.
    let incoming = home.store.incoming().unwrap();
    let pinned = incoming.stored(&layer).unwrap().unwrap();
    assert_eq!(pinned.digest, layer);
    remove(&home.store, "old", false).unwrap();
    let path = incoming.directory().join("0");
    assert_eq!(fs::read(path).unwrap(), common::archives::layer("shared"));
    drop(incoming);
    assert_eq!(home.files(), ["names.json"]);
}

#[test]
fn a_record_that_cannot_be_read_stops_a_removal_before_anything_is_gone() {
    let home = home();
    let image = load(&home, &["a"], &["x"]);
    load(&home, &["b"], &["y"]);
    let record = home
        .directory
        .path()
        .join("images")
        .join(format!("{}.json", image.id.hex()));
    fs::write(&record, "{").unwrap();
    let before = home.files();
    assert!(matches!(
        remove(&home.store, "b", false),
        Err(StoreError::Record { .. })
    ));
    assert!(matches!(
        home.store.prune(Prune::Unused, |_| true, nobody),
        Err(StoreError::Record { .. })
    ));
    assert_eq!(home.files(), before);
    assert!(matches!(
        &home.store.check().unwrap()[..],
        [Problem::Record { .. }, ..]
    ));
}

#[test]
fn a_crash_leaves_what_the_next_removal_takes() {
    let home = home();
    let image = load(&home, &["a"], &["x"]);
    load(&home, &["b"], &["y"]);
    let root = home.directory.path();
    // As a power cut between the record and the blobs leaves it.
    fs::remove_file(root.join("images").join(format!("{}.json", image.id.hex()))).unwrap();
    fs::write(root.join("images/.new-123"), "half").unwrap();
    fs::write(root.join("erofs/0000.erofs"), "nobody's").unwrap();
    let problems = home.store.check().unwrap();
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(problems.iter().all(|problem| !problem.is_damage()));
    assert_eq!(home.store.list().unwrap().len(), 1);
    remove(&home.store, "b", false).unwrap();
    assert_eq!(home.files(), ["names.json"]);
    assert_eq!(home.store.check().unwrap(), []);
}

#[test]
fn a_name_can_be_given_and_taken_from_another_image() {
    let home = home();
    let one = load(&home, &["one"], &["1"]);
    let two = load(&home, &["two"], &["2"]);
    home.store
        .tag("one", "registry.example/new:3".parse().unwrap())
        .unwrap();
    home.store.tag(&two.id.short(), "one".parse().unwrap()).unwrap();
    let names = |image: &Image| -> Vec<String> {
        let image = home.store.image(&image.id).unwrap().unwrap();
        image.names.iter().map(ToString::to_string).collect()
    };
    assert_eq!(names(&one), ["registry.example/new:3"]);
    assert_eq!(names(&two), ["one:latest", "two:latest"]);
    assert!(matches!(
        home.store.tag("nothing", "x".parse().unwrap()),
        Err(StoreError::NoSuchImage(_))
    ));
}

#[test]
fn a_damaged_blob_is_found_and_a_shortened_one_is_mended_by_the_next_load() {
    let home = home();
    let image = load(&home, &["a"], &["x"]);
    let blob = home
        .directory
        .path()
        .join("blobs/sha256")
        .join(image.layers[0].digest.hex());
    let mut content = fs::read(&blob).unwrap();
    content[0] ^= 1;
    fs::write(&blob, &content).unwrap();
    let blob_digest = image.layers[0].digest;
    assert_eq!(
        home.store.check().unwrap(),
        [Problem::Damaged { blob: blob_digest }]
    );
    let error = home
        .store
        .save(&["a".into()], &mut std::io::sink(), &mut |_| {})
        .unwrap_err();
    assert!(
        matches!(error, StoreError::DamagedBlob(d) if d == blob_digest),
        "{error}"
    );

    fs::write(&blob, "short").unwrap();
    // A layout's blobs are known by their digests before they come.
    let mut archive = Vec::new();
    let fresh = common::archives::home();
    load(&fresh, &["a"], &["x"]);
    fresh
        .store
        .save(&["a".into()], &mut archive, &mut |_| {})
        .unwrap();
    let error = home.load(&archive).unwrap_err();
    assert!(
        matches!(error, StoreError::RemovedBlob(d) if d == blob_digest),
        "{error}"
    );
    home.load(&archive).unwrap();
    assert!(
        home.store
            .check()
            .unwrap()
            .iter()
            .all(|problem| !problem.is_damage())
    );
}
