//! Layers that nobody meant well with: each gives an error that says what is wrong, and none a panic.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use brig_image_store::{
    digest::Digest,
    tar::TarError,
    unpack::{LayerError, UnpackError},
};
use brig_protocol::agent::{Compression, UnpackFailure};
use common::{Header, Tar, disk, disk_of, gzip, seal, zstd};
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
