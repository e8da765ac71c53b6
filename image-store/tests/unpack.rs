//! Layers are unpacked, the image is mounted by the host's kernel, and every file is read back.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use brig_image_store::digest::Digest;
use brig_protocol::agent::Compression;
use common::{Header, Tar, check, disk, disk_of, gzip, mount, mount_disk, zstd};

fn read(root: &Path, path: &str) -> Vec<u8> {
    fs::read(root.join(path)).unwrap()
}

fn exists(root: &Path, path: &str) -> bool {
    fs::symlink_metadata(root.join(path)).is_ok()
}

/// The names in a directory, sorted.
fn names(root: &Path, path: &str) -> Vec<String> {
    let entries = fs::read_dir(root.join(path)).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_kind_of_file_keeps_what_it_has() {
    let big: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let tar = Tar::new()
        .add(&Header {
            mode: 0o1777,
            uid: 7,
            gid: 8,
            mtime: -5,
            ..Header::new("./", b'5')
        })
        .file("empty", b"")
        .file("small", b"hello")
        .file("exact", &[7; 4096])
        .file("big", &big)
        .add(&Header {
            mode: 0o4755,
            uid: 100_000,
            gid: 4_000_000_000,
            mtime: 1 << 34,
            data: b"suid",
            ..Header::new("etc/suid", b'0')
        })
        .symlink("link", "etc/suid")
        .symlink("long-link", &"x/".repeat(2000))
        .hard_link("etc/other", "etc/suid")
        .add(&Header {
            device: (1, 3),
            mode: 0o666,
            ..Header::new("dev/null", b'3')
        })
        .add(&Header {
            device: (259, 0x12345),
            ..Header::new("dev/disk", b'4')
        })
        .add(&Header::new("pipe", b'6'))
        .finish();
    let Some(mounted) = mount(&[tar]) else { return };
    let root = &mounted.root();
    let stat = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();

    assert_eq!(stat(".").mode(), 0o041_777);
    assert_eq!((stat(".").uid(), stat(".").gid(), stat(".").mtime()), (7, 8, -5));
    assert_eq!(read(root, "empty"), b"");
    assert_eq!(read(root, "small"), b"hello");
    assert_eq!(read(root, "exact"), [7; 4096]);
    assert!(read(root, "big") == big);
    let suid = stat("etc/suid");
    assert_eq!(
        (suid.mode(), suid.uid(), suid.gid()),
        (0o104_755, 100_000, 4_000_000_000)
    );
    assert_eq!((suid.mtime(), suid.nlink()), (1 << 34, 2));
    assert_eq!(stat("etc/other").ino(), suid.ino());
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("etc/suid"));
    assert_eq!(
        fs::read_link(root.join("long-link")).unwrap().as_os_str().len(),
        4000
    );
    assert!(stat("dev/null").file_type().is_char_device());
    assert_eq!(stat("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert!(stat("dev/disk").file_type().is_block_device());
    assert_eq!(stat("dev/disk").rdev(), rustix::fs::makedev(259, 0x12345));
    assert!(stat("pipe").file_type().is_fifo());
    // Nothing described these two.
    assert_eq!((stat("etc").mode(), stat("dev").mode()), (0o040_755, 0o040_755));
    assert_eq!(stat(".").nlink(), 4);
    assert_eq!(
        names(root, "."),
        [
            "big",
            "dev",
            "empty",
            "etc",
            "exact",
            "link",
            "long-link",
            "pipe",
            "small"
        ]
    );
}

#[test]
fn whiteouts_hide_what_is_below_them_and_nothing_else() {
    let lower = Tar::new()
        .file("gone", b"1")
        .file("dir/gone", b"1")
        .file("dir/stays", b"1")
        .file("tree/a/b", b"1")
        .file("again", b"old")
        .file("opaque/old", b"1")
        .file("opaque/sub/old", b"1")
        .finish();
    let upper = Tar::new()
        .file(".wh.gone", b"")
        .file("dir/.wh.gone", b"")
        .file(".wh.tree", b"")
        .file(".wh.never-was", b"")
        .file("nowhere/.wh.x", b"")
        // Whiteouts are of lower layers only, whatever the order in the layer is.
        .file("again", b"new")
        .file(".wh.again", b"")
        .file("opaque/sub/new", b"2")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"2")
        .file(".wh..wh.plnk/1.2", b"aufs")
        .finish();
    let Some(mounted) = mount(&[lower, upper]) else {
        return;
    };
    let root = &mounted.root();
    assert_eq!(names(root, "."), ["again", "dir", "opaque"]);
    assert_eq!(names(root, "dir"), ["stays"]);
    assert_eq!(read(root, "again"), b"new");
    assert_eq!(names(root, "opaque"), ["new", "sub"]);
    assert_eq!(names(root, "opaque/sub"), ["new"]);
}

#[test]
fn replaced_types_leave_nothing_of_the_old() {
    let lower = Tar::new()
        .file("file-to-dir", b"1")
        .file("dir-to-file/inner/x", b"1")
        .directory("dir-to-link")
        .symlink("link-to-file", "file-to-dir")
        .symlink("link-to-dir", "dir-to-link")
        .add(&Header {
            mode: 0o700,
            ..Header::new("dir-over-dir", b'5')
        })
        .file("dir-over-dir/kept", b"1")
        .finish();
    let upper = Tar::new()
        .file("file-to-dir/inner", b"2")
        .file("dir-to-file", b"2")
        .symlink("dir-to-link", "elsewhere")
        .file("link-to-file", b"2")
        .file("link-to-dir/inner", b"2")
        .add(&Header {
            mode: 0o711,
            uid: 5,
            ..Header::new("dir-over-dir/", b'5')
        })
        .finish();
    let Some(mounted) = mount(&[lower, upper]) else {
        return;
    };
    let root = &mounted.root();
    assert_eq!(read(root, "file-to-dir/inner"), b"2");
    assert_eq!(read(root, "dir-to-file"), b"2");
    assert_eq!(
        fs::read_link(root.join("dir-to-link")).unwrap(),
        Path::new("elsewhere")
    );
    assert_eq!(read(root, "link-to-file"), b"2");
    assert!(
        !fs::symlink_metadata(root.join("link-to-file"))
            .unwrap()
            .is_symlink()
    );
    // As Docker's overlay2 shows it: the upper layer's directory, not what the lower link led to.
    assert!(fs::symlink_metadata(root.join("link-to-dir")).unwrap().is_dir());
    let merged = fs::metadata(root.join("dir-over-dir")).unwrap();
    assert_eq!((merged.mode(), merged.uid()), (0o040_711, 5));
    assert_eq!(read(root, "dir-over-dir/kept"), b"1");
}

#[test]
fn links_of_the_same_layer_are_followed_inside_of_the_image() {
    let tar = Tar::new()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("usr/up", "../../../../lib")
        .symlink("abs", "/usr/./lib")
        .file("lib/a", b"1")
        .file("usr/up/b", b"2")
        .file("abs/c", b"3")
        .hard_link("lib/d", "abs/c")
        .symlink("dangling", "made/by/entry")
        .file("dangling/e", b"4")
        .finish();
    let Some(mounted) = mount(&[tar]) else { return };
    let root = &mounted.root();
    assert_eq!(names(root, "usr/lib"), ["a", "b", "c", "d"]);
    assert_eq!(names(root, "made/by/entry"), ["e"]);
    assert_eq!(names(root, "."), ["abs", "dangling", "lib", "made", "usr"]);
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let lower = Tar::new().file("a", b"shared").file("b", b"b").finish();
    let upper = Tar::new()
        .hard_link("dir/link", "a")
        .hard_link("b", "./a")
        .hard_link("a", "a")
        .file(".wh.c", b"")
        .finish();
    let top = Tar::new().file("a", b"replaced").finish();
    let Some(mounted) = mount(&[lower, upper, top]) else {
        return;
    };
    let root = &mounted.root();
    assert_eq!(read(root, "a"), b"replaced");
    assert_eq!(read(root, "b"), b"shared");
    let (b, link) = (
        fs::metadata(root.join("b")).unwrap(),
        fs::metadata(root.join("dir/link")).unwrap(),
    );
    assert_eq!((b.ino(), b.nlink()), (link.ino(), 2));
}

#[test]
fn a_link_to_what_its_own_name_hides_survives() {
    let lower = Tar::new().file("dir/inner", b"data").finish();
    let upper = Tar::new().hard_link("dir", "dir/inner").finish();
    let Some(mounted) = mount(&[lower, upper]) else {
        return;
    };
    assert_eq!(read(&mounted.root(), "dir"), b"data");
    assert_eq!(fs::metadata(mounted.root().join("dir")).unwrap().nlink(), 1);
}

#[test]
fn extended_attributes_are_kept() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattr = |name: &str, value: &[u8]| (format!("SCHILY.xattr.{name}"), value.to_vec());
    let many: Vec<_> = (0..40).map(|n| xattr(&format!("user.n{n}"), &[n; 100])).collect();
    let tar = Tar::new()
        .add(&Header {
            pax: vec![
                xattr("security.capability", &capability),
                xattr("user.note", b"a\0b=c\nd"),
                xattr("trusted.overlay.opaque", b"y"),
                xattr("unknown.space", b"z"),
            ],
            data: b"x",
            ..Header::new("ping", b'0')
        })
        .add(&Header {
            pax: many,
            data: &[1; 1000],
            ..Header::new("many", b'0')
        })
        .add(&Header {
            pax: vec![
                xattr("user.dir", b"d"),
                ("mtime".into(), b"12.000000345".to_vec()),
            ],
            ..Header::new("dir", b'5')
        })
        .finish();
    let Some(mounted) = mount(&[tar]) else { return };
    let get = |path: &str, name: &str| {
        let mut value = [0; 256];
        rustix::fs::lgetxattr(mounted.root().join(path), name, &mut value).map(|n| value[..n].to_vec())
    };
    assert_eq!(get("ping", "security.capability").unwrap(), capability);
    assert_eq!(get("ping", "user.note").unwrap(), b"a\0b=c\nd");
    assert!(get("ping", "trusted.overlay.opaque").is_err());
    for n in 0..40 {
        assert_eq!(get("many", &format!("user.n{n}")).unwrap(), [n; 100]);
    }
    assert_eq!(read(&mounted.root(), "many"), [1; 1000]);
    assert_eq!(get("dir", "user.dir").unwrap(), b"d");
    let stat = fs::metadata(mounted.root().join("dir")).unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (12, 345));
}

#[test]
fn compressed_layers_are_the_same_as_plain_ones() {
    let first = Tar::new().file("a", &vec![1; 100_000]).finish();
    let second = Tar::new().file("b", &vec![2; 100_000]).finish();
    // Two members, as pigz and estargz write them.
    let (head, tail) = second.split_at(1000);
    let members = [gzip(head), gzip(tail)].concat();
    let disk = disk_of(&[
        (Compression::Zstd, zstd(&first), Digest::of(&first)),
        (Compression::Gzip, members, Digest::of(&second)),
    ]);
    let Some(mounted) = mount_disk(&disk) else { return };
    assert!(read(&mounted.root(), "a") == vec![1; 100_000]);
    assert!(read(&mounted.root(), "b") == vec![2; 100_000]);
}

#[test]
fn names_are_any_bytes_up_to_255() {
    let long = "n".repeat(255);
    let deep = vec!["d".repeat(200); 20].join("/");
    let tar = Tar::new()
        .file(&long, b"1")
        .file(&deep, b"2")
        .file("+before-dot", b"3")
        .add(&Header {
            data: b"4",
            ..Header::new(b"\xff\x01", b'0')
        })
        .finish();
    let Some(mounted) = mount(&[tar]) else { return };
    let root = &mounted.root();
    assert_eq!(read(root, &long), b"1");
    assert_eq!(read(root, &deep), b"2");
    assert_eq!(read(root, "+before-dot"), b"3");
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff\x01");
    assert_eq!(fs::read(root.join(odd)).unwrap(), b"4");
}

#[test]
fn directories_of_any_size_are_whole() {
    // Around the sizes where a directory stops to fit beside its inode, and into a block.
    for count in [0, 1, 150, 180, 190, 200, 210, 220, 230, 500] {
        let mut tar = Tar::new().directory("d");
        let names_in: Vec<_> = (0..count).map(|n| format!("name-{n:04}")).collect();
        for name in &names_in {
            tar = tar.file(&format!("d/{name}"), name.as_bytes());
        }
        let Some(mounted) = mount(&[tar.finish()]) else {
            return;
        };
        let root = &mounted.root();
        assert_eq!(names(root, "d"), names_in);
        for name in &names_in {
            assert_eq!(read(root, &format!("d/{name}")), name.as_bytes());
        }
    }
}

#[test]
fn a_directory_of_a_hundred_thousand_files_is_searched_and_listed() {
    let mut tar = Tar::new();
    for n in 0..100_000 {
        tar = tar.file(
            &format!("d/file-{}", n * 7919 % 100_000),
            n.to_string().as_bytes(),
        );
    }
    let Some(mounted) = mount(&[tar.finish()]) else {
        return;
    };
    let root = &mounted.root();
    assert_eq!(names(root, "d").len(), 100_000);
    for n in (0..100_000).step_by(997) {
        assert_eq!(
            read(root, &format!("d/file-{}", n * 7919 % 100_000)),
            n.to_string().as_bytes()
        );
    }
    assert!(!exists(root, "d/file-100000"));
}

#[test]
fn an_inode_at_the_very_end_is_whole() {
    // For some of these the last inode ends with its block.
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let mut tar = Tar::new();
    for n in 0..130 {
        tar = tar.file(&format!("{n}"), b"");
        disk(&[tar.clone().finish()]).unpack_to(&image).unwrap();
        check(&image);
    }
}
