//! An image of 1 GiB and 100,000 files, unpacked in a guest of 256 MiB.
//!
//! ```text
//! big-image [--files N] [--bytes N]
//! ```
//! It fails when the image is not what it should be: `fsck.erofs` looks at all of it, the kernel of this machine reads files
//! of it (as root), and so does a sandbox. How long it takes is printed, and compared with nothing.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use brig_tests::{
    archive::{Image, sha256},
    brig::Brig,
    http::hex,
    machine,
};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Files of a directory.
const FILES_OF_DIRECTORY: usize = 1000;

fn main() -> ExitCode {
    let (files, bytes) = match options() {
        Ok(options) => options,
        Err(what) => {
            eprintln!("big-image: {what}");
            return ExitCode::from(2);
        }
    };
    if let Some(reason) = machine::Need::Kvm.missing() {
        eprintln!("big-image: skipped, {reason}");
        return ExitCode::SUCCESS;
    }
    let brig = Brig::empty();
    let began = Instant::now();
    let (image, size) = make_image(files, bytes).expect("an image");
    println!(
        "{files} files, {size} bytes in the layer, {} compressed: made in {:.1} s",
        image.layer.len(),
        began.elapsed().as_secs_f64()
    );
    let archive = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(archive.path(), image.to_oci()).expect("the archive");
    let began = Instant::now();
    brig.ok(&[
        Path::new("load"),
        Path::new("-q"),
        Path::new("-i"),
        archive.path(),
    ]);
    println!("load: {:.1} s", began.elapsed().as_secs_f64());
    drop(archive);

    // A guest that boots has 256 MiB for an unpack; one from the template has what a sandbox has.
    let output = brig.run(&[
        "run",
        "--rm",
        "--no-template",
        "--timing",
        "big",
        "/bin/sh",
        "-c",
        &script(files),
    ]);
    eprintln!("{}", output.stderr);
    assert_eq!(output.code, 0, "{output:?}");
    let expected = samples(files).map(|n| format!("{}  {}\n", sha256(&content(n, files, bytes)), path(n)));
    assert_eq!(output.stdout, expected.concat(), "what the sandbox reads");

    let erofs = unpacked(brig.root());
    check(&erofs);
    look(&erofs, files, bytes);
    brig.assert_nothing_left();
    println!("the image is whole");
    ExitCode::SUCCESS
}

fn options() -> Result<(usize, usize), String> {
    let (mut files, mut bytes) = (100_000, 1 << 30);
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok());
        let value = value.ok_or(format!("{name} needs a number"))?;
        match name.as_str() {
            "--files" => files = value,
            "--bytes" => bytes = value,
            _ => return Err(format!("unknown option {name}: --files and --bytes")),
        }
    }
    Ok((files, bytes))
}

fn path(n: usize) -> String {
    format!("/srv/directory-{:03}/file-{n:06}.txt", n / FILES_OF_DIRECTORY)
}

/// What is in a file: text, so that it compresses well, other in each, and of a length of its own.
fn content(n: usize, files: usize, bytes: usize) -> Vec<u8> {
    let mean = bytes / files;
    let length = mean / 2 + n * 7919 % mean.max(1);
    let line = format!("this is line {n} of file {n}, and every line of it is the same\n");
    line.bytes().cycle().take(length).collect()
}

/// Files that are read.
fn samples(files: usize) -> [usize; 4] {
    [0, files / 3, files - files / 10, files - 1]
}

fn script(files: usize) -> String {
    let paths: Vec<String> = samples(files).iter().map(|&n| path(n)).collect();
    format!("sha256sum {}", paths.join(" "))
}

/// An image of one gzip layer with busybox in it, and the bytes of that layer's tar.
fn make_image(files: usize, bytes: usize) -> io::Result<(Image, u64)> {
    let mut layer = tar::Builder::new(Hashing {
        encoder: GzEncoder::new(Vec::new(), Compression::fast()),
        hasher: Sha256::new(),
        bytes: 0,
    });
    let mut busybox = tar::Archive::new(io::Cursor::new(Image::of_busybox("busybox", json!({})).layer));
    for entry in busybox.entries()? {
        let mut entry = entry?;
        let (mut header, path) = (entry.header().clone(), entry.path()?.into_owned());
        match entry.link_name()?.map(std::borrow::Cow::into_owned) {
            Some(link) => layer.append_link(&mut header, path, link)?,
            None => layer.append_data(&mut header, path, &mut entry)?,
        }
    }
    for n in 0..files {
        let content = content(n, files, bytes);
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000 + n as u64);
        layer.append_data(&mut header, &path(n)[1..], &content[..])?;
    }
    let Hashing {
        encoder,
        hasher,
        bytes,
    } = layer.into_inner()?;
    let image = Image::of_gzip("big", json!({}), encoder.finish()?, hex(&hasher.finalize()));
    Ok((image, bytes))
}

/// Compresses what is written, and hashes it.
struct Hashing {
    encoder: GzEncoder<Vec<u8>>,
    hasher: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}

/// The one unpacked image of a store.
fn unpacked(root: &Path) -> PathBuf {
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "erofs") {
                return path;
            }
        }
    }
    panic!("the store has no unpacked image");
}

fn check(erofs: &Path) {
    match Command::new("fsck.erofs").arg(erofs).output() {
        Ok(output) => assert!(
            output.status.success(),
            "fsck.erofs: {}",
            String::from_utf8_lossy(&output.stdout)
        ),
        Err(error) => println!("SKIPPED: not checked by fsck.erofs: {error}"),
    }
}

/// Reads files by the EROFS of this machine's kernel.
fn look(erofs: &Path, files: usize, bytes: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mounted = Command::new("mount")
        .args(["-t", "erofs", "-o", "ro,loop"])
        .arg(erofs)
        .arg(directory.path())
        .output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: not mounted on this machine: {mounted:?}");
        return;
    }
    let found = (0..files).step_by(files.div_ceil(500)).try_for_each(|n| {
        let read = fs::read(directory.path().join(&path(n)[1..]))?;
        if read == content(n, files, bytes) {
            Ok(())
        } else {
            Err(io::Error::other(format!("file {n} differs")))
        }
    });
    let names = fs::read_dir(directory.path().join("srv")).map(|entries| {
        entries
            .flatten()
            .map(|entry| fs::read_dir(entry.path()).map_or(0, Iterator::count))
            .sum::<usize>()
    });
    let unmounted = Command::new("umount").arg(directory.path()).status();
    found.expect("files as they went in");
    assert_eq!(names.expect("a listing"), files, "files in the image");
    assert!(unmounted.is_ok_and(|status| status.success()), "umount");
}
