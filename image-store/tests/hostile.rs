//! Layers that nobody meant well with: each gives an error that says what is wrong, and none a panic.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{os::unix::fs::MetadataExt, path::Path};

use brig_image_store::{
    digest::Digest,
    tar::TarError,
    unpack::{LayerError, UnpackError},
};
use brig_protocol::agent::{Compression, UnpackFailure};
use common::{Header, Tar, disk, disk_of, gzip, mount, mount_disk, seal, zstd};
use proptest::prelude::*;

/// What is wrong with the only layer of an image.
fn layer_error(tar: Vec<u8>) -> LayerError {
    match disk(&[tar]).unpack().unwrap_err() {
        UnpackError::Layer {
            number: 1, source, ..
        } => source,
        other => panic!("{other:?}"),
    }
}

fn tar_error(tar: Vec<u8>) -> TarError {
    match layer_error(tar) {
        LayerError::Tar(error) => error,
        other => panic!("{other:?}"),
    }
}

/// A file with pax records before it.
fn with_pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let pax = records
        .iter()
        .map(|(key, value)| ((*key).to_string(), value.to_vec()))
        .collect();
    Tar::new()
        .add(&Header {
            pax,
            ..Header::new("f", b'0')
        })
        .finish()
}

/// A header that is changed after it was made, with its checksum right again.
fn changed(change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let mut bytes = Tar::new().file("f", b"data").finish();
    let mut block: [u8; 512] = bytes[..512].try_into().unwrap();
    change(&mut block);
    seal(&mut block);
    bytes[..512].copy_from_slice(&block);
    bytes
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in ["..", "../x", "a/../../x", "a/..", "/../etc/passwd"] {
        let error = layer_error(Tar::new().file(path, b"x").finish());
        assert!(matches!(error, LayerError::Path(_)), "{path}: {error:?}");
        let error = layer_error(Tar::new().file("f", b"").hard_link("l", path).finish());
        assert!(matches!(error, LayerError::Path(_)), "{path}: {error:?}");
    }
}

#[test]
fn names_that_no_file_can_have_are_refused() {
    let long = "n".repeat(256);
    assert!(matches!(
        layer_error(Tar::new().file(&long, b"").finish()),
        LayerError::Path(_)
    ));
    let below = format!("{long}/x");
    assert!(matches!(
        layer_error(Tar::new().file(&below, b"").finish()),
        LayerError::Path(_)
    ));
    let deep = "d/".repeat(3000);
    assert!(matches!(
        tar_error(Tar::new().directory(&deep).finish()),
        TarError::TooLong(_)
    ));
    assert!(matches!(tar_error(with_pax(&[("path", b"a\0b")])), TarError::Pax));
    for path in [".wh.", ".wh..", ".wh...", "d/.wh.x/y"] {
        let error = layer_error(Tar::new().file("d/x/y", b"").file(path, b"").finish());
        assert!(matches!(error, LayerError::Path(_)), "{path}: {error:?}");
    }
}

#[test]
fn a_name_in_a_link_that_no_file_can_have_is_refused() {
    let target = "n".repeat(256);
    let tar = Tar::new().symlink("l", &target).file("l/x", b"").finish();
    assert!(matches!(layer_error(tar), LayerError::Path(_)));
}

#[test]
fn links_to_nowhere_are_refused() {
    for (path, target) in [
        ("l", "missing"),
        ("l", "d"),
        ("l", ""),
        ("l", "/"),
        ("l", "f/x"),
        ("l", "l"),
    ] {
        let tar = Tar::new().directory("d").file("f", b"").hard_link(path, target);
        let error = layer_error(tar.finish());
        assert!(
            matches!(error, LayerError::HardLink { .. }),
            "{target}: {error:?}"
        );
    }
    assert!(matches!(
        layer_error(Tar::new().symlink("l", "").finish()),
        LayerError::Path(_)
    ));
    let long = "t".repeat(4096);
    assert!(matches!(
        layer_error(Tar::new().symlink("l", &long).finish()),
        LayerError::Path(_)
    ));
}

#[test]
fn a_circle_of_links_is_not_followed_forever() {
    let tar = Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"");
    assert!(matches!(layer_error(tar.finish()), LayerError::Loop(_)));
    // Each link doubles the way to go.
    let mut tar = Tar::new().directory("d0");
    for n in 1..40 {
        tar = tar.symlink(&format!("d{n}"), &format!("d{}/../d{}", n - 1, n - 1));
    }
    assert!(matches!(
        layer_error(tar.file("d39/x", b"").finish()),
        LayerError::Loop(_)
    ));
}

#[test]
fn a_file_below_a_file_of_the_same_layer_is_refused() {
    let tar = Tar::new().file("f", b"").file("f/x", b"").finish();
    assert!(matches!(layer_error(tar), LayerError::NotADirectory(_)));
    assert!(matches!(
        layer_error(Tar::new().symlink("/", "x").finish()),
        LayerError::Root
    ));
}

#[test]
fn malformed_headers_are_refused() {
    assert!(matches!(tar_error(vec![1; 4096]), TarError::Checksum));
    assert!(matches!(
        tar_error(changed(|b| b[156] = b'D')),
        TarError::Kind(b'D')
    ));
    assert!(matches!(
        tar_error(changed(|b| b[124..136].fill(0xff))),
        TarError::Number("size")
    ));
    assert!(matches!(
        tar_error(changed(|b| b[124..136].fill(b'x'))),
        TarError::Number("size")
    ));
    assert!(matches!(
        tar_error(changed(|b| b[108..116].fill(0xff))),
        TarError::Number("owner")
    ));
    assert!(matches!(
        tar_error(changed(|b| b[136..148].fill(b'9'))),
        TarError::Number("modification time")
    ));
    // A lone block of zeros.
    let tar = Tar::new().bytes(&[0; 512]).file("f", b"").finish();
    assert!(matches!(tar_error(tar), TarError::Checksum));
}

#[test]
fn a_size_that_is_not_there_is_no_promise_of_memory() {
    let huge = changed(|b| {
        b[124..136].fill(0);
        b[124] = 0x80;
        b[129] = 0x10;
    });
    assert!(matches!(disk(&[huge]).unpack(), Err(UnpackError::NoSpace(_))));
    let error = tar_error(with_pax(&[("size", b"100000")]));
    assert!(matches!(error, TarError::Truncated), "{error:?}");
    let pax = Tar::new().add(&Header {
        data: &vec![b'x'; 2 << 20],
        ..Header::new("p", b'x')
    });
    assert!(matches!(tar_error(pax.finish()), TarError::TooLong(_)));
    let name = Tar::new().add(&Header {
        data: &[b'x'; 5000],
        ..Header::new("p", b'L')
    });
    assert!(matches!(tar_error(name.finish()), TarError::TooLong(_)));
    let mut tar = Tar::new();
    for _ in 0..20 {
        tar = tar.add(&Header {
            data: b"n\0",
            ..Header::new("p", b'L')
        });
    }
    assert!(matches!(
        tar_error(tar.file("f", b"").finish()),
        TarError::TooLong(_)
    ));
}

#[test]
fn a_header_for_nothing_is_a_truncated_archive() {
    let tar = Tar::new().add(&Header {
        data: b"n\0",
        ..Header::new("p", b'L')
    });
    assert!(matches!(tar_error(tar.clone().finish()), TarError::Truncated));
    assert!(matches!(tar_error(tar.unfinished()), TarError::Truncated));
}

#[test]
fn attributes_and_devices_that_cannot_be_are_refused() {
    let big = vec![0; 65_536];
    assert!(matches!(
        layer_error(with_pax(&[("SCHILY.xattr.user.a", &big)])),
        LayerError::Xattrs(_)
    ));
    let device = |device| {
        Tar::new()
            .add(&Header {
                device,
                ..Header::new("d", b'3')
            })
            .finish()
    };
    assert!(matches!(layer_error(device((4096, 0))), LayerError::Device(_)));
    assert!(matches!(layer_error(device((0, 1 << 20))), LayerError::Device(_)));
}

#[test]
fn maps_of_sparse_files_that_cannot_be_are_refused() {
    let sparse = |map: &[u8], size: &[u8]| {
        with_pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.size", size),
            ("GNU.sparse.map", map),
        ])
    };
    for (map, size) in [
        ("0,10,5,10", "100"),
        ("0,10", "5"),
        ("18446744073709551615,2", "100"),
        ("10", "100"),
        ("", "100"),
        ("0,10", "100"),
        ("a,b", "100"),
    ] {
        let error = tar_error(sparse(map.as_bytes(), size.as_bytes()));
        assert!(matches!(error, TarError::Sparse), "{map}: {error:?}");
    }
    let error = tar_error(with_pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"1")]));
    assert!(matches!(error, TarError::Sparse));
    let mut far = disk(&[sparse(b"1000000000000,0", b"1000000000000")]);
    far.spec.max_bytes = 1 << 20;
    assert!(matches!(far.unpack(), Err(UnpackError::NoSpace(_))));
}

#[test]
fn limits_of_the_spec_are_kept() {
    let mut tar = Tar::new();
    for n in 0..20 {
        tar = tar.file(&format!("f{n}"), &[1; 10_000]);
    }
    let mut image = disk(&[tar.finish()]);
    image.spec.max_inodes = 20;
    assert_eq!(image.unpack().unwrap_err().failure(), UnpackFailure::TooLarge);
    image.spec.max_inodes = 21;
    assert_eq!(image.unpack().unwrap().inodes, 21);
    image.spec.max_bytes = 20 * 12_288;
    let error = image.unpack().unwrap_err();
    assert_eq!(error.failure(), UnpackFailure::NoSpace);
    // The superblock, the data, and one block of metadata.
    image.spec.max_bytes = (1 + 20 * 3 + 1) * 4096;
    assert_eq!(image.unpack().unwrap().bytes, image.spec.max_bytes);
}

#[test]
fn removed_files_do_not_count() {
    let layer = |n: usize| {
        let mut tar = Tar::new().file(&format!(".wh.d{}", n.wrapping_sub(1)), b"");
        for f in 0..50 {
            tar = tar.file(&format!("d{n}/f{f}"), b"");
        }
        tar.finish()
    };
    let mut image = disk(&(0..10).map(layer).collect::<Vec<_>>());
    // The root, and two directories with their files while one replaces the other.
    image.spec.max_inodes = 60;
    assert_eq!(image.unpack().unwrap().inodes, 52);
}

#[test]
fn names_that_would_fill_the_memory_are_refused() {
    let target = "t".repeat(4000);
    let mut tar = Tar::new();
    for n in 0..=(64 << 20) / 4000 {
        tar = tar.symlink(&format!("l{n}"), &target);
    }
    let error = disk(&[tar.finish()]).unpack().unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge(_)), "{error:?}");
}

#[test]
fn a_layer_that_lies_about_itself_is_refused() {
    let tar = Tar::new().file("f", b"x").finish();
    let promised = Digest::of(b"something else");
    let error = disk_of(&[(Compression::None, tar.clone(), promised)])
        .unpack()
        .unwrap_err();
    assert_eq!(error.failure(), UnpackFailure::BadLayer);
    assert!(error.to_string().contains(&promised.to_string()));
    let UnpackError::Layer {
        source: LayerError::DiffId { found },
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(found, Digest::of(&tar));
    // What follows the archive's end belongs to the stream.
    let mut longer = tar.clone();
    longer.extend([0; 5000]);
    let error = disk_of(&[(Compression::None, longer, Digest::of(&tar))])
        .unpack()
        .unwrap_err();
    assert_eq!(error.failure(), UnpackFailure::BadLayer);
}

#[test]
fn damaged_compression_is_a_bad_layer() {
    let tar = Tar::new().file("f", &vec![7; 50_000]).finish();
    for (compression, packed) in [(Compression::Gzip, gzip(&tar)), (Compression::Zstd, zstd(&tar))] {
        let digest = Digest::of(&tar);
        let cut = packed[..packed.len() - 1].to_vec();
        let mut flipped = packed.clone();
        flipped[packed.len() / 2] ^= 0x55;
        let trailing = [&packed[..], b"garbage"].concat();
        let other = match compression {
            Compression::Gzip => Compression::Zstd,
            _ => Compression::Gzip,
        };
        for (compression, blob) in [
            (compression, cut),
            (compression, flipped),
            (compression, trailing),
            (compression, Vec::new()),
            (other, packed.clone()),
            (Compression::None, packed),
        ] {
            let error = disk_of(&[(compression, blob, digest)]).unpack().unwrap_err();
            assert_eq!(error.failure(), UnpackFailure::BadLayer, "{error:?}");
        }
    }
}

#[test]
fn a_bomb_behind_the_archives_end_is_stopped() {
    let mut tar = Tar::new().file("f", b"x").finish();
    tar.resize(64 << 20, 0);
    let mut image = disk_of(&[(Compression::Gzip, gzip(&tar), Digest::of(&tar))]);
    image.spec.max_bytes = 1 << 20;
    image.spec.max_inodes = 100;
    let error = image.unpack().unwrap_err();
    assert_eq!(error.failure(), UnpackFailure::TooLarge, "{error:?}");
}

#[test]
fn a_blob_that_is_cut_off_is_a_bad_layer() {
    let mut image = disk(&[Tar::new().file("f", &vec![1; 20_000]).finish()]);
    image.blobs.set_len(8192).unwrap();
    let error = image.unpack().unwrap_err();
    assert_eq!(error.failure(), UnpackFailure::BadLayer);
    image.spec.layers[0].offset = 1 << 40;
    assert!(image.unpack().is_err());
}

#[test]
fn an_archive_may_end_anywhere() {
    let whole = Tar::new()
        .file(&"p".repeat(150), &[1; 700])
        .symlink("l", &"t".repeat(200))
        .file("g", b"x")
        .finish();
    for length in (0..whole.len()).step_by(64) {
        let end = disk(&[whole[..length].to_vec()]).unpack();
        assert!(end.is_ok() || end.unwrap_err().failure() == UnpackFailure::BadLayer);
    }
}

#[test]
fn absolute_names_and_links_out_of_the_image_lead_into_it() {
    let below = Tar::new().symlink("old", "/").directory("etc").finish();
    let tar = Tar::new()
        .file("/etc/absolute", b"1")
        .symlink("root", "/")
        .file("root/etc/by-root", b"2")
        .symlink("up", "../../../../..")
        .file("up/etc/by-up", b"3")
        .symlink("own", "/proc/self/root")
        .file("own/etc/by-proc", b"4")
        .file("old/etc/by-old", b"5")
        .hard_link("hard", "root/etc/absolute")
        .hard_link("root/etc/linked", "up/etc/by-up")
        .finish();
    let Some(mounted) = mount(&[below, tar]) else {
        return;
    };
    let read = |path: &str| std::fs::read(mounted.root().join(path)).unwrap();
    assert_eq!(read("etc/absolute"), b"1");
    assert_eq!(read("etc/by-root"), b"2");
    assert_eq!(read("etc/by-up"), b"3");
    // What a link names that is not there is made inside of the image.
    assert_eq!(read("proc/self/root/etc/by-proc"), b"4");
    // A lower layer's link is no way at all.
    assert_eq!(read("old/etc/by-old"), b"5");
    assert!(!mounted.root().join("old").is_symlink());
    assert_eq!((read("hard"), read("etc/linked")), (b"1".to_vec(), b"3".to_vec()));
    for name in ["absolute", "by-root", "by-up", "by-proc", "by-old", "linked"] {
        assert!(
            !Path::new("/etc").join(name).exists(),
            "/etc/{name} of this machine"
        );
    }
}

#[test]
fn whiteouts_hide_only_what_is_in_the_image() {
    for path in ["../.wh.etc", "d/../../.wh.x", ".wh.../x"] {
        let error = layer_error(Tar::new().directory("d").file(path, b"").finish());
        assert!(matches!(error, LayerError::Path(_)), "{path}: {error:?}");
    }
    let below = Tar::new().file("etc/a", b"").file("kept", b"").finish();
    // Through a link, to where there is nothing, and of a name with a slash in it, which is two names.
    let above = Tar::new()
        .symlink("l", "/../..")
        .file("l/.wh.etc", b"")
        .file("l/.wh..wh..opq/x", b"")
        .file("no/such/.wh.directory", b"")
        .file(".wh.nothing", b"")
        .finish();
    assert!(matches!(
        disk(&[below.clone(), above]).unpack().unwrap_err(),
        UnpackError::Layer {
            number: 2,
            source: LayerError::Path(_),
            ..
        }
    ));
    let above = Tar::new()
        .symlink("l", "/../..")
        .file("l/.wh.etc", b"")
        .file("no/such/.wh.directory", b"")
        .file(".wh.nothing", b"")
        .finish();
    let Some(mounted) = mount(&[below, above]) else {
        return;
    };
    assert!(!mounted.root().join("etc").exists() && mounted.root().join("kept").exists());
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn devices_and_setuid_files_are_only_what_the_image_says_of_them() {
    let tar = Tar::new()
        .add(&Header {
            device: (8, 0),
            mode: 0o666,
            ..Header::new("sda", b'4')
        })
        .add(&Header {
            mode: 0o6755,
            data: b"#!/bin/sh\n",
            ..Header::new("su", b'0')
        })
        .finish();
    let image = disk(&[tar]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    image.unpack_to(&path).unwrap();
    // On the host there is one plain file.
    let found = std::fs::metadata(&path).unwrap();
    assert!(
        found.is_file() && found.mode() & 0o6111 == 0,
        "{:o}",
        found.mode()
    );
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    let Some(mounted) = mount_disk(&image) else { return };
    let mode = |name: &str| std::fs::metadata(mounted.root().join(name)).unwrap().mode();
    assert_eq!(
        (mode("su") & 0o7777, mode("sda") & 0o170_777),
        (0o6755, 0o060_666)
    );
}

#[test]
fn the_last_of_entries_with_one_name_counts() {
    let mut tar = Tar::new();
    for n in 0..100u32 {
        tar = match n % 4 {
            0 => tar.file("x", &[n as u8; 9000]),
            1 => tar.directory("x").file("x/below", b""),
            2 => tar.symlink("x", "elsewhere"),
            _ => tar.file("y", b"").hard_link("x", "y").file("y", &n.to_le_bytes()),
        };
    }
    let mut image = disk(&[tar.file("x", b"last").finish()]);
    // What was replaced does not count.
    image.spec.max_inodes = 5;
    assert_eq!(image.unpack().unwrap().inodes, 3);
    let Some(mounted) = mount_disk(&image) else { return };
    assert_eq!(std::fs::read(mounted.root().join("x")).unwrap(), b"last");
}

#[test]
fn a_path_of_4096_bytes_is_taken_and_a_longer_one_refused() {
    let part = "p".repeat(255);
    let path = [part.as_str(); 16].join("/");
    assert_eq!(path.len(), 4095);
    let Some(mounted) = mount(&[Tar::new().file(&path, b"deep").finish()]) else {
        return;
    };
    // No system call takes a path as long with the directory of this test before it.
    let mut here = mounted.root();
    for _ in 0..8 {
        here.push(&part);
    }
    assert!(here.is_dir());
    drop(mounted);
    assert!(
        disk(&[Tar::new().file(&format!("/{path}"), b"").finish()])
            .unpack()
            .is_ok()
    );
    for longer in [format!("//{path}"), format!("{path}/x")] {
        let error = tar_error(Tar::new().file(&longer, b"").finish());
        assert!(matches!(error, TarError::TooLong("path")), "{error:?}");
        let link = Tar::new().file("f", b"").hard_link("l", &longer);
        assert!(matches!(tar_error(link.finish()), TarError::TooLong("path")));
    }
}

#[test]
fn pax_records_say_nothing_that_a_header_might_not() {
    for path in [&b"../x"[..], b"a/../../x", b"/../x"] {
        assert!(matches!(
            layer_error(with_pax(&[("path", path)])),
            LayerError::Path(_)
        ));
    }
    for size in ["18446744073709551615", "9223372036854775808"] {
        let error = disk(&[with_pax(&[("size", size.as_bytes())])])
            .unpack()
            .unwrap_err();
        assert!(matches!(error, UnpackError::NoSpace(_)), "{size}: {error:?}");
    }
    for (key, value) in [
        ("size", "-1"),
        ("size", "1e3"),
        ("uid", "4294967296"),
        ("gid", "-1"),
        ("mtime", "soon"),
    ] {
        let error = tar_error(with_pax(&[(key, value.as_bytes())]));
        assert!(matches!(error, TarError::Number(_)), "{key}={value}: {error:?}");
    }
    // A size that is smaller than the header's makes data into headers.
    let tar = Tar::new().add(&Header {
        pax: vec![("size".into(), b"0".to_vec())],
        data: &[b'x'; 512],
        ..Header::new("f", b'0')
    });
    assert!(matches!(tar_error(tar.finish()), TarError::Checksum));
    // Attributes of many entries are counted together.
    let mut tar = Tar::new();
    for n in 0..80 {
        let mut value = vec![b'v'; 1 << 20 >> 5];
        value[..4].copy_from_slice(&(n as u32).to_le_bytes());
        let pax = (0..20).map(|a| (format!("SCHILY.xattr.user.{a}"), value.clone()));
        tar = tar.add(&Header {
            pax: pax.collect(),
            ..Header::new(&format!("f{n}"), b'0')
        });
    }
    let error = disk(&[tar.finish()]).unpack().unwrap_err();
    assert_eq!(error.failure(), UnpackFailure::BadLayer, "{error:?}");
}

#[test]
fn a_sparse_file_is_a_hole_and_counts_whole() {
    let size = 3u64 << 30;
    let tar = with_pax(&[
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", size.to_string().as_bytes()),
        ("GNU.sparse.map", format!("{size},0").as_bytes()),
    ]);
    let mut image = disk(std::slice::from_ref(&tar));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    assert!(image.unpack_to(&path).unwrap().bytes > size);
    assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
    image.spec.max_bytes = size;
    assert!(matches!(image.unpack(), Err(UnpackError::NoSpace(_))));
    // Many of them are refused where the sum is too much, each being small in the archive.
    let many: Vec<u8> = (0..1000).flat_map(|_| tar[..tar.len() - 1024].to_vec()).collect();
    let mut image = disk(&[many]);
    image.spec.max_bytes = 64 << 30;
    assert!(matches!(image.unpack(), Err(UnpackError::NoSpace(_))));
}

#[test]
fn a_bomb_of_zeros_is_stopped_at_its_header_and_takes_no_space_below_the_limit() {
    let zeros = vec![0; 96 << 20];
    let tar = Tar::new().file("f", &zeros).finish();
    for (compression, packed) in [(Compression::Gzip, gzip(&tar)), (Compression::Zstd, zstd(&tar))] {
        assert!(packed.len() < 1 << 20);
        let mut image = disk_of(&[(compression, packed, Digest::of(&tar))]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        image.unpack_to(&path).unwrap();
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 4 << 20);
        image.spec.max_bytes = 64 << 20;
        assert_eq!(image.unpack().unwrap_err().failure(), UnpackFailure::NoSpace);
    }
}

#[test]
fn layers_without_entries_are_an_empty_root() {
    let nothing: Vec<Vec<u8>> = vec![Vec::new(), vec![0; 512], vec![0; 1024], vec![0; 10_240]];
    assert_eq!(disk(&[]).unpack().unwrap().inodes, 1);
    for tar in nothing {
        let digest = Digest::of(&tar);
        for (compression, packed) in [
            (Compression::None, tar.clone()),
            (Compression::Gzip, gzip(&tar)),
            (Compression::Zstd, zstd(&tar)),
        ] {
            let layer = (compression, packed, digest);
            let image = disk_of(&[layer.clone(), layer]);
            assert_eq!(image.unpack().unwrap().inodes, 1, "{compression:?} {}", tar.len());
        }
    }
}

#[test]
fn a_window_that_would_fill_the_memory_is_refused_and_said_so() {
    // Frame headers that announce windows of 2 GiB and of 16 MiB, and a frame of one segment of 1 TiB.
    for head in [
        &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0][..],
        &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 14 << 3, 1, 0, 0],
        &[0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0],
    ] {
        let image = disk_of(&[(Compression::Zstd, head.to_vec(), Digest::of(b""))]);
        let error = image.unpack().unwrap_err();
        assert_eq!(error.failure(), UnpackFailure::BadLayer, "{error:?}");
        let UnpackError::Layer { source, .. } = error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains("window"), "{source}");
    }
    // A skippable frame that promises 4 GiB.
    let head = vec![0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
    let error = disk_of(&[(Compression::Zstd, head, Digest::of(b""))])
        .unpack()
        .unwrap_err();
    assert_eq!(error.failure(), UnpackFailure::BadLayer, "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_an_archive_makes_a_panic(
        changes in prop::collection::vec((0usize..20_000, any::<u8>()), 1..20),
        repaired in any::<bool>(),
    ) {
        let mut bytes = Tar::new()
            .file("d/.wh.x", b"")
            .add(&Header {
                pax: vec![("SCHILY.xattr.user.a".into(), b"v".to_vec()), ("mtime".into(), b"1.5".to_vec())],
                data: &[1; 3000],
                ..Header::new("d/f", b'0')
            })
            .symlink("s", "d")
            .file("s/g", &[2; 600])
            .hard_link("h", "d/f")
            .file("d/.wh..wh..opq", b"")
            .finish();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
            if repaired {
                // Otherwise the checksum would stop almost everything at once.
                let start = at / 512 * 512;
                let mut block: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
                seal(&mut block);
                bytes[start..start + 512].copy_from_slice(&block);
            }
        }
        let mut image = disk(&[bytes]);
        image.spec.max_bytes = 1 << 24;
        image.spec.max_inodes = 1000;
        let _ = image.unpack();
    }
}
