//! Archives that GNU tar writes, in each of its formats, unpacked and compared by `tar --compare`.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::Path,
    process::Command,
};

use common::mount;
use rustix::fs::{FileType, Mode, XattrFlags, mknodat};

/// A directory with everything that an archive can say.
fn make_tree(root: &Path) {
    let long = "long-name-".repeat(20);
    fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    fs::write(root.join(&long).join(&long).join("file"), "deep").unwrap();
    fs::write(root.join("small"), "small").unwrap();
    fs::write(root.join("large"), vec![7; 1_000_000]).unwrap();
    fs::set_permissions(root.join("large"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(root.join("large"), root.join(&long).join("link")).unwrap();
    symlink("t".repeat(300), root.join("symlink")).unwrap();
    let odd: &std::ffi::OsStr = OsStrExt::from_bytes(b"not \xff text\n");
    fs::write(root.join(odd), "odd").unwrap();

    // Holes at the start, in the middle and at the end; more pieces than fit into one header.
    let sparse = File::create(root.join("sparse")).unwrap();
    for piece in 1..60 {
        sparse
            .write_all_at(&[piece; 5000], u64::from(piece) * 300_000)
            .unwrap();
    }
    sparse.set_len(60 * 300_000).unwrap();
    File::create(root.join("hole")).unwrap().set_len(8 << 20).unwrap();

    if rustix::process::geteuid().is_root() {
        chown(root.join("small"), Some(3_000_000), Some(4_000_000)).unwrap();
        let device = rustix::fs::makedev(10, 229);
        mknodat(
            rustix::fs::CWD,
            root.join("device"),
            FileType::CharacterDevice,
            Mode::from(0o600),
            device,
        )
        .unwrap();
        mknodat(
            rustix::fs::CWD,
            root.join("fifo"),
            FileType::Fifo,
            Mode::from(0o640),
            0,
        )
        .unwrap();
    }
    for (name, value) in [
        ("user.one", &b"1"[..]),
        ("trusted.two", &[0, 1, 2]),
        ("user.long", &[9; 900]),
    ] {
        // tmpfs of older kernels has no user attributes.
        let _ = rustix::fs::setxattr(root.join("large"), name, value, XattrFlags::empty());
    }
}

#[test]
fn what_gnu_tar_writes_comes_back_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    for options in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=oldgnu", "--sparse"],
        &["--format=posix", "--xattrs", "--xattrs-include=*"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
    ] {
        let archive = directory.path().join("archive.tar");
        let status = Command::new("tar")
            .args(options)
            .arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status();
        if !status.is_ok_and(|status| status.success()) {
            println!("SKIPPED: no GNU tar that takes {options:?}");
            continue;
        }
        let Some(mounted) = mount(&[fs::read(&archive).unwrap()]) else {
            return;
        };
        compare(&tree, &mounted.root(), options);
    }
}

fn compare(tree: &Path, found: &Path, options: &[&str]) {
    let difference = Command::new("diff")
        .args(["-r", "--no-dereference", "-x", "device", "-x", "fifo"])
        .arg(tree)
        .arg(found)
        .output()
        .unwrap();
    assert!(
        difference.status.success(),
        "{options:?}: {}",
        String::from_utf8_lossy(&difference.stdout)
    );
    for name in [
        "", "large", "sparse", "hole", "symlink", "device", "fifo", "small",
    ] {
        let Ok(expected) = fs::symlink_metadata(tree.join(name)) else {
            continue;
        };
        let found = fs::symlink_metadata(found.join(name)).unwrap();
        let all = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.rdev());
        assert_eq!(all(&found), all(&expected), "{name} with {options:?}");
        if !expected.is_dir() {
            assert_eq!(
                (found.nlink(), found.size()),
                (expected.nlink(), expected.size()),
                "{name}"
            );
        }
    }
    if options.contains(&"--xattrs") {
        for name in ["user.one", "trusted.two", "user.long"] {
            let get = |root: &Path| {
                let mut value = [0; 1000];
                rustix::fs::getxattr(root.join("large"), name, &mut value)
                    .map(|length| value[..length].to_vec())
            };
            if let Ok(expected) = get(tree) {
                assert_eq!(get(found).unwrap(), expected, "{name}");
            }
        }
    }
}
