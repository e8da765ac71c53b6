//! Keeping, exporting and importing snapshots.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    process::Command,
};

use brig_protocol::vmm::KvmKind;
use jiff::Timestamp;

use super::store::Part;
use super::*;
use crate::{
    Error, Paths, SandboxId,
    resources::MemoryMib,
    test_support::{config, paths},
    volume::{Source, VolumeMount},
};

const DISK: u64 = 8 << 20;

/// A snapshot named `warm`, with a sparse disk and a volume.
fn make(paths: &Paths) -> Record {
    let snapshots = Snapshots::new(paths);
    let workspace = snapshots.workspace().unwrap();
    let file = |name: &str, length: u64, data: &[(u64, &[u8])]| {
        let file = File::create_new(workspace.path().join(name)).unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).unwrap();
        }
        let file = File::open(workspace.path().join(name)).unwrap();
        FileRecord {
            bytes: length,
            digest: Some(sparse::digest(&file).unwrap()),
        }
    };
    let record = Record {
        version: VERSION,
        created: Timestamp::UNIX_EPOCH,
        imported: false,
        config: Config {
            mounts: vec![VolumeMount {
                source: Source::Volume("data".into()),
                target: "/data".into(),
                read_only: false,
                copy: true,
            }],
            ..config(SandboxId::random().unwrap(), "source".into())
        },
        layout: Layout::Fresh,
        kernel: "6.12".into(),
        image_bytes: 1,
        platform: Platform::this(paths, KvmKind::Standard).unwrap(),
        memory: file("memory", 2 << 20, &[(0, b"m"), (1 << 20, &[7; 9000])]),
        state: file("state", 777, &[(0, &[1; 777])]),
        disk: file("disk", DISK, &[(DISK - 5, b"tail")]),
        volumes: vec![file("volume0", DISK, &[(4096, b"row")])],
    };
    workspace.finish(&record).unwrap();
    snapshots.publish(workspace, "warm").unwrap();
    record
}

fn exported(paths: &Paths) -> Vec<u8> {
    let mut tar = Vec::new();
    archive::export(&Snapshots::new(paths), "warm", &mut tar).unwrap();
    tar
}

fn hidden(paths: &Paths) -> usize {
    let names = crate::files::names(&paths.snapshots()).unwrap();
    names.iter().filter(|name| name.starts_with('.')).count()
}

#[test]
fn a_snapshot_is_listed_opened_and_removed() {
    let (_temporary, paths) = paths();
    let snapshots = Snapshots::new(&paths);
    let record = make(&paths);
    let listed = snapshots.list().unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str()), (1, "warm"));
    assert_eq!(snapshots.open("warm").unwrap().record, record);
    assert!(matches!(
        snapshots.check_free("warm"),
        Err(Error::SnapshotExists(_))
    ));
    let again = snapshots.workspace().unwrap();
    assert!(matches!(
        snapshots.publish(again, "warm"),
        Err(Error::SnapshotExists(_))
    ));
    assert_eq!(hidden(&paths), 0);
    for name in ["cold", "../sandboxes", "", "..", ".new-", "a/b"] {
        assert!(
            matches!(snapshots.open(name), Err(Error::NoSuchSnapshot(_))),
            "{name}"
        );
        assert!(
            matches!(snapshots.remove(name), Err(Error::NoSuchSnapshot(_))),
            "{name}"
        );
    }
    snapshots.remove("warm").unwrap();
    assert!(snapshots.list().unwrap().is_empty());
}

#[test]
fn what_a_killed_maker_left_is_swept_and_what_is_in_use_is_not() {
    let (_temporary, paths) = paths();
    let snapshots = Snapshots::new(&paths);
    fs::create_dir(paths.snapshots().join(".new-dead")).unwrap();
    fs::create_dir(paths.snapshots().join(".dropped-dead")).unwrap();
    let used = snapshots.workspace().unwrap();
    let _other = snapshots.workspace().unwrap();
    assert!(used.path().is_dir());
    assert_eq!(hidden(&paths), 2);
    drop(snapshots.make_file(&used.name(), Part::Disk).unwrap());
    assert!(used.path().join("disk").exists());
    for wrong in ["", "..", "../sandboxes", ".new-nothing"] {
        let refused = snapshots.make_file(wrong, Part::Disk);
        assert!(matches!(refused, Err(Error::NoSuchSnapshot(_))), "{wrong}");
    }
    drop(used);
    assert_eq!(hidden(&paths), 1);
}

#[test]
fn an_export_is_small_and_its_import_is_the_same_and_marked() {
    let (_temporary, paths) = paths();
    let record = make(&paths);
    let tar = exported(&paths);
    assert!(tar.len() < 64 << 10, "{} bytes", tar.len());
    let snapshots = Snapshots::new(&paths);
    archive::import(&snapshots, "taken", tar.as_slice()).unwrap();
    let taken = snapshots.open("taken").unwrap();
    assert_eq!(
        taken.record,
        Record {
            imported: true,
            ..record
        }
    );
    let disk = fs::metadata(paths.snapshots().join("taken/disk")).unwrap();
    assert!(disk.len() == DISK && disk.blocks() * 512 < 1 << 20);
    for name in ["memory", "state", "disk", "volume0"] {
        let read = |snapshot: &str| fs::read(paths.snapshots().join(snapshot).join(name)).unwrap();
        assert!(read("warm") == read("taken"), "{name}");
    }
    assert!(matches!(
        archive::import(&snapshots, "taken", tar.as_slice()),
        Err(Error::SnapshotExists(_))
    ));
}

#[test]
fn other_programs_can_extract_an_export() {
    let (temporary, paths) = paths();
    make(&paths);
    let file = temporary.path().join("warm.tar");
    fs::write(&file, exported(&paths)).unwrap();
    let to = temporary.path().join("extracted");
    fs::create_dir(&to).unwrap();
    match Command::new("tar")
        .arg("-xf")
        .arg(&file)
        .arg("-C")
        .arg(&to)
        .status()
    {
        Ok(status) => assert!(status.success()),
        Err(_) => return eprintln!("skipped: tar is not installed"),
    }
    for name in ["memory", "state", "disk"] {
        let original = fs::read(paths.snapshots().join("warm").join(name)).unwrap();
        assert!(fs::read(to.join(name)).unwrap() == original, "{name}");
    }
}

#[test]
fn an_archive_that_is_damaged_anywhere_is_refused_and_leaves_nothing() {
    let (_temporary, paths) = paths();
    make(&paths);
    let tar = exported(&paths);
    let snapshots = Snapshots::new(&paths);
    let refuse = |bytes: &[u8], what: &str| {
        let refused = archive::import(&snapshots, "taken", bytes);
        assert!(matches!(refused, Err(Error::Import(_))), "{what}: {refused:?}");
        assert_eq!(hidden(&paths), 0);
    };
    for cut in [0, 1, 511, 512, 1024, tar.len() / 2, tar.len() - 2048] {
        refuse(&tar[..cut], "cut");
    }
    // One bit of the memory, the state and the disk.
    for marker in [&[7_u8; 600][..], &[1; 600], b"tail"] {
        let at = tar
            .windows(marker.len())
            .position(|window| window == marker)
            .unwrap();
        let mut flipped = tar.clone();
        flipped[at] ^= 0x10;
        refuse(&flipped, "flipped");
    }
    refuse(
        &[&tar[..tar.len() - 1024], &tar[..]].concat(),
        "something follows",
    );
    refuse(b"not a tar", "text");
}

#[test]
fn a_record_from_elsewhere_is_checked() {
    let (_temporary, paths) = paths();
    let good = make(&paths);
    good.check().unwrap();
    let changes: [fn(&mut Record); 14] = [
        |r| r.version += 1,
        |r| r.platform.agent += 1,
        |r| r.config.memory = serde_json::from_str::<MemoryMib>("1").unwrap(),
        |r| r.config.cpus = serde_json::from_str("4000000").unwrap(),
        |r| r.config.hostname = "a b".into(),
        |r| r.config.working_dir = "x".into(),
        |r| r.memory.bytes = u64::MAX,
        |r| r.state.bytes = 1 << 40,
        |r| r.disk.bytes = 0,
        |r| r.volumes[0].bytes = 1 << 40,
        |r| r.volumes.clear(),
        |r| r.config.mounts.clear(),
        |r| {
            // More than a guest of a template has slots for.
            r.volumes = vec![r.volumes[0].clone(); VOLUME_SLOTS + 1];
            r.config.mounts = vec![r.config.mounts[0].clone(); VOLUME_SLOTS + 1];
        },
        |r| r.config.isolation = Isolation::Container,
    ];
    for change in changes {
        let mut record = good.clone();
        change(&mut record);
        let reason = record.check().unwrap_err();
        assert!(!reason.contains('\n'), "{reason}");
    }
}
