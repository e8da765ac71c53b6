//! `brig load` and `brig images`, and what of an image's configuration reaches its process.

use std::path::Path;

use brig_tests::{
    archive::Image,
    brig::{Brig, Output},
    machine::Need,
    tests,
};
use serde_json::json;
use tempfile::NamedTempFile;

tests! {
    Need::Nothing =>
        both_archive_formats_are_loaded_and_listed,
        a_truncated_archive_is_refused,
        a_wrong_digest_is_refused,
        what_is_no_archive_is_refused;
    Need::Kvm =>
        an_image_s_configuration_is_what_run_starts_from,
        files_come_out_of_an_image_as_they_went_in,
        a_layer_that_lies_about_its_content_is_refused,
        hostile_layers_are_refused_in_one_line_and_leave_nothing,
        what_an_image_s_author_wrote_stays_inside_of_the_image;
}

fn both_archive_formats_are_loaded_and_listed() {
    let brig = Brig::empty();
    let config = json!({"Cmd": ["/hello"]});
    let files: &[(&str, u32, &[u8])] = &[("hello", 0o755, b"#!/bin/sh\n")];
    let oci = Image::of_files("from-oci", config.clone(), files);
    let docker = Image::of_files("from-docker", config, files);
    assert!(load(&brig, &oci.to_oci()).stdout.contains("from-oci:latest"));
    assert!(
        load(&brig, &docker.to_docker())
            .stdout
            .contains("from-docker:latest")
    );
    let table = brig.ok(&["images"]);
    for name in ["REPOSITORY", "from-oci", "from-docker"] {
        assert!(table.contains(name), "{name} is not in {table}");
    }
    brig.assert_nothing_left();
}

fn a_truncated_archive_is_refused() {
    let brig = Brig::empty();
    let archive = hello("cut").to_oci();
    for length in [0, 100, 512, archive.len() / 2, archive.len() - 1536] {
        refused(&brig, &archive[..length]);
    }
    nothing_is_listed(&brig, "cut");
}

fn a_wrong_digest_is_refused() {
    let brig = Brig::empty();
    let image = hello("forged");
    let mut layer = image.layer.clone();
    let place = layer.len() / 4;
    layer[place] ^= 1;
    let output = refused(&brig, &image.to_oci_with_layer(&layer));
    assert!(output.stderr.contains("sha256:"), "{output:?}");
    nothing_is_listed(&brig, "forged");
}

fn what_is_no_archive_is_refused() {
    let brig = Brig::empty();
    refused(&brig, b"#!/bin/sh\necho this is no image\n");
    refused(&brig, &vec![0; 4096]);
    let output = brig.run(&["load", "-i", "/no/such/file"]);
    output.assert_clear_failure(1, "load of a file that is not there");
    assert!(output.stderr.contains("/no/such/file"), "{output:?}");
}

pub(crate) fn an_image_s_configuration_is_what_run_starts_from() {
    let brig = Brig::new();
    let config = json!({
        "Entrypoint": ["sh", "-c", "echo $0 $GREETING; pwd; id -u"],
        "Cmd": ["by-default"],
        "Env": ["GREETING=ahoy"],
        "WorkingDir": "/srv/data",
        "User": "www-data",
    });
    load(&brig, &Image::of_busybox("configured", config).to_oci());
    assert_eq!(
        brig.ok(&["run", "--rm", "configured"]),
        "by-default ahoy\n/srv/data\n33\n"
    );
    assert_eq!(
        brig.ok(&["run", "--rm", "-e", "GREETING=hi", "configured", "other"]),
        "other hi\n/srv/data\n33\n"
    );
}

pub(crate) fn files_come_out_of_an_image_as_they_went_in() {
    let brig = Brig::new();
    let mut builder = tar::Builder::new(Vec::new());
    let mut large = vec![0; 1 << 20];
    brig_welcome::pattern::fill(0, &mut large);
    let digest = brig_tests::archive::sha256(&large);
    let busybox = Image::of_busybox("files", json!({"Cmd": ["sh"]}));
    let header = |kind: tar::EntryType, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_uid(33);
        header.set_gid(44);
        header.set_mtime(1_000_000_000);
        header
    };
    let deep = format!("data/{}", ["a-rather-long-directory-name"; 6].join("/"));
    builder
        .append_data(
            &mut header(tar::EntryType::Regular, 0o640, large.len()),
            "data/large",
            &large[..],
        )
        .unwrap();
    builder
        .append_data(
            &mut header(tar::EntryType::Regular, 0o4755, 0),
            "data/setuid",
            &b""[..],
        )
        .unwrap();
    builder
        .append_data(
            &mut header(tar::EntryType::Regular, 0o600, 2),
            format!("{deep}/x"),
            &b"x\n"[..],
        )
        .unwrap();
    builder
        .append_link(
            &mut header(tar::EntryType::Symlink, 0o777, 0),
            "data/soft",
            "/no/where",
        )
        .unwrap();
    builder
        .append_link(
            &mut header(tar::EntryType::Link, 0o640, 0),
            "data/hard",
            "data/large",
        )
        .unwrap();
    builder
        .append_data(&mut header(tar::EntryType::Fifo, 0o622, 0), "data/pipe", &b""[..])
        .unwrap();
    let mut layer = busybox.layer.clone();
    // A tar ends with zeros; what is put in their place is the rest of it.
    let end = layer.iter().rposition(|&byte| byte != 0).unwrap() / 512 * 512 + 512;
    layer.truncate(end);
    layer.extend(builder.into_inner().unwrap());
    load(
        &brig,
        &Image::of_layer("files", json!({"Cmd": ["sh"]}), layer)
            .gzip()
            .to_oci(),
    );

    let script = format!(
        "cd /data; sha256sum <large; stat -c '%n %a %u %g %h %F %Y' large setuid hard pipe; readlink soft; cat /{deep}/x"
    );
    let output = brig.ok(&["run", "--rm", "files", "sh", "-c", &script]);
    let expected = format!(
        "{digest}  -\n\
         large 640 33 44 2 regular file 1000000000\n\
         setuid 4755 33 44 1 regular empty file 1000000000\n\
         hard 640 33 44 2 regular file 1000000000\n\
         pipe 622 33 44 1 fifo 1000000000\n\
         /no/where\nx\n"
    );
    assert_eq!(output, expected);
}

fn a_layer_that_lies_about_its_content_is_refused() {
    // The blob is what its digest says, but the stream in it is cut off: only unpacking can find that.
    let brig = Brig::new();
    let mut image = hello("liar").gzip();
    image.layer.truncate(image.layer.len() / 2);
    let loaded = load_any(&brig, &image.to_oci());
    if loaded.code == 0 {
        let output = brig.run(&["run", "--rm", "liar"]);
        output.assert_clear_failure(125, "run of a damaged image");
    } else {
        loaded.assert_clear_failure(1, "load of a damaged image");
    }
    brig.assert_nothing_left();
}

fn hostile_layers_are_refused_in_one_line_and_leave_nothing() {
    let brig = Brig::new();
    let tar = |path: &str, kind: tar::EntryType, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        // The crate refuses to write such names itself.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
        bytes
    };
    let file = tar::EntryType::Regular;
    let damaged = |mut image: Image, at: usize| {
        image.layer[at] ^= 0x55;
        image
    };
    let of = |name: &str, layer: Vec<u8>| Image::of_layer(name, json!({"Cmd": ["/x"]}), layer);
    let zeros = vec![0; 8 << 20];
    let before = erofs_files(&brig);
    for (image, said) in [
        (
            of("climber", tar("../../etc/cron.d/evil", file, "", b"x")),
            "bad path \"../../etc/cron.d/evil\"",
        ),
        (
            of("linker", tar("l", tar::EntryType::Link, "/etc/shadow", b"")),
            "hard link \"l\" to \"/etc/shadow\"",
        ),
        (
            of("bomb", tar("zeros", file, "", &zeros)).gzip(),
            "larger than 1 MiB when it is unpacked: --max-image-size",
        ),
        (of("garbage", vec![0x5a; 4096]), "not a tar archive"),
        (
            damaged(hello("bent").gzip(), 12),
            "cannot unpack image bent:latest",
        ),
        (
            of("odd", tar("x", tar::EntryType::new(b'Z'), "", b"")),
            "unsupported kind of tar entry",
        ),
    ] {
        load(&brig, &image.to_oci());
        let output = brig.run(&["run", "--rm", "--max-image-size", "1m", &image.name]);
        output.assert_clear_failure(125, &image.name);
        assert!(output.stderr.contains(said), "{}: {}", image.name, output.stderr);
        assert_eq!(erofs_files(&brig), before, "{} left an image", image.name);
    }
    // The store is as good as before.
    assert_eq!(brig.ok(&["run", "--rm", "busybox", "echo", "fine"]), "fine\n");
    brig.assert_nothing_left();
}

fn what_an_image_s_author_wrote_stays_inside_of_the_image() {
    let brig = Brig::new();
    let busybox = Image::of_busybox("author", json!({"Cmd": ["sh"]}));
    let mut builder = tar::Builder::new(busybox.entries().to_vec());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_device_major(8).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        builder.append(&header, content).unwrap();
    };
    let file = tar::EntryType::Regular;
    add("/etc/brig-absolute", file, 0o644, "", b"1\n");
    add("up", tar::EntryType::Symlink, 0o777, "../../../../..", b"");
    add("up/etc/brig-up", file, 0o4755, "", b"2\n");
    add("disk", tar::EntryType::Block, 0o666, "", b"");
    let layer = builder.into_inner().unwrap();
    load(&brig, &Image::of_layer("author", busybox.config, layer).to_oci());
    let script = "cat /etc/brig-absolute /etc/brig-up; stat -c %a /etc/brig-up; \
                  head -c 1 /disk 2>/dev/null | wc -c";
    assert_eq!(
        brig.ok(&["run", "--rm", "author", "sh", "-c", script]),
        "1\n2\n4755\n0\n"
    );
    for name in ["/etc/brig-absolute", "/etc/brig-up"] {
        assert!(!Path::new(name).exists(), "{name} of this machine");
    }
    brig.assert_nothing_left();
}

/// How many unpacked images, finished or not, a store has.
fn erofs_files(brig: &Brig) -> usize {
    let mut pending = vec![brig.root().join("images")];
    let mut count = 0;
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.to_string_lossy().ends_with("erofs") {
                count += 1;
            }
        }
    }
    count
}

fn hello(name: &str) -> Image {
    let content = b"#!/bin/sh\necho hello\n".repeat(500);
    Image::of_files(name, json!({"Cmd": ["/hello"]}), &[("hello", 0o755, &content)])
}

fn load_any(brig: &Brig, archive: &[u8]) -> Output {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), archive).unwrap();
    brig.run(&[Path::new("load"), Path::new("-i"), file.path()])
}

fn load(brig: &Brig, archive: &[u8]) -> Output {
    let output = load_any(brig, archive);
    assert_eq!(output.code, 0, "{output:?}");
    output
}

fn refused(brig: &Brig, archive: &[u8]) -> Output {
    let output = load_any(brig, archive);
    output.assert_clear_failure(1, &format!("load of {} bytes that are no image", archive.len()));
    output
}

fn nothing_is_listed(brig: &Brig, name: &str) {
    let table = brig.ok(&["images"]);
    assert!(!table.contains(name), "{table}");
    brig.assert_nothing_left();
}
