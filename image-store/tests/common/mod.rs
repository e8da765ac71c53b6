//! What the tests share: a writer of tar archives that can be as wrong as wanted, and mounting of EROFS images.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test may fail")]

pub mod archives;
pub mod structure;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use brig_image_store::{
    digest::Digest,
    unpack::{UnpackError, Unpacked, unpack},
};
use brig_protocol::agent::{Compression, LayerSpec, UnpackSpec};
use flate2::write::GzEncoder;

/// Room for the images of the tests.
pub const MAX_BYTES: u64 = 4 << 30;

/// The largest image that is read into memory to be checked.
const STRUCTURE_BYTES_MAX: u64 = 256 << 20;

/// A tar archive in memory.
#[derive(Clone, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

/// What a header says; the defaults are those of a file of root's.
#[derive(Clone)]
pub struct Header<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub device: (u32, u32),
    pub data: &'a [u8],
    pub pax: Vec<(String, Vec<u8>)>,
}

impl<'a> Header<'a> {
    pub fn new(path: &'a (impl AsRef<[u8]> + ?Sized), kind: u8) -> Self {
        Self {
            path: path.as_ref(),
            kind,
            link: b"",
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            data: b"",
            pax: Vec::new(),
        }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.add(&Header {
            data,
            ..Header::new(path, b'0')
        })
    }

    pub fn directory(self, path: &str) -> Self {
        self.add(&Header::new(path, b'5'))
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.add(&Header {
            link: target.as_bytes(),
            ..Header::new(path, b'2')
        })
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.add(&Header {
            link: target.as_bytes(),
            ..Header::new(path, b'1')
        })
    }

    /// Adds an entry; what does not fit into its header goes into a pax header before it.
    pub fn add(mut self, header: &Header<'_>) -> Self {
        let mut pax = header.pax.clone();
        for (key, text) in [("path", header.path), ("linkpath", header.link)] {
            if text.len() > 100 {
                pax.push((key.into(), text.to_vec()));
            }
        }
        if !pax.is_empty() {
            let records = pax_records(&pax);
            self.raw(&Header {
                data: &records,
                ..Header::new("pax", b'x')
            });
        }
        self.raw(header);
        self
    }

    fn raw(&mut self, header: &Header<'_>) {
        let mut block = [0u8; 512];
        let short = |text: &[u8]| text[..text.len().min(100)].to_vec();
        let path = short(header.path);
        block[..path.len()].copy_from_slice(&path);
        octal(&mut block[100..108], header.mode.into());
        octal(&mut block[108..116], header.uid);
        octal(&mut block[116..124], header.gid);
        octal(&mut block[124..136], header.data.len() as u64);
        signed(&mut block[136..148], header.mtime);
        block[156] = header.kind;
        let link = short(header.link);
        block[157..157 + link.len()].copy_from_slice(&link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], header.device.0.into());
        octal(&mut block[337..345], header.device.1.into());
        seal(&mut block);
        self.bytes.extend(block);
        self.bytes.extend(header.data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    /// Adds bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    /// The archive with its end.
    pub fn finish(self) -> Vec<u8> {
        self.bytes(&[0; 1024]).bytes
    }

    /// The archive without an end.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// Computes the checksum of a header.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    octal(&mut block[148..156], sum);
}

pub fn pax_records(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        out.extend(format!("{length} {key}=").bytes());
        out.extend(value);
        out.push(b'\n');
    }
    out
}

fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}", width = field.len() - 1);
    if text.len() < field.len() {
        field[..text.len()].copy_from_slice(text.as_bytes());
    } else {
        signed(field, value as i64);
    }
}

fn signed(field: &mut [u8], value: i64) {
    if (0..1 << 33).contains(&value) && field.len() == 12 {
        let text = format!("{value:011o}");
        field[..11].copy_from_slice(text.as_bytes());
        return;
    }
    let bytes = i128::from(value).to_be_bytes();
    let length = field.len();
    field.copy_from_slice(&bytes[16 - length..]);
    field[0] |= 0x80;
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An image on its way: what an agent would be given.
pub struct Disk {
    pub spec: UnpackSpec,
    pub blobs: File,
}

/// A disk of uncompressed layers.
pub fn disk(layers: &[Vec<u8>]) -> Disk {
    let layers: Vec<_> = layers
        .iter()
        .map(|tar| (Compression::None, tar.clone(), Digest::of(tar)))
        .collect();
    disk_of(&layers)
}

/// A disk of blobs with what is to be said of them.
pub fn disk_of(layers: &[(Compression, Vec<u8>, Digest)]) -> Disk {
    let mut blobs = tempfile::tempfile().unwrap();
    let mut offset = 0;
    let mut specs = Vec::new();
    for (compression, blob, diff_id) in layers {
        let padded = blob.len().next_multiple_of(4096);
        blobs.write_all(blob).unwrap();
        blobs.write_all(&vec![0; padded - blob.len()]).unwrap();
        specs.push(LayerSpec {
            offset,
            length: blob.len() as u64,
            compression: *compression,
            diff_id: diff_id.0,
        });
        offset += padded as u64;
    }
    Disk {
        spec: UnpackSpec {
            layers: specs,
            target: 1,
            max_bytes: MAX_BYTES,
            max_inodes: 1 << 20,
        },
        blobs,
    }
}

impl Disk {
    /// Unpacks to a file at `path`.
    pub fn unpack_to(&self, path: &Path) -> Result<Unpacked, UnpackError> {
        let output = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        output.set_len(self.spec.max_bytes).unwrap();
        let unpacked = unpack(
            &self.spec,
            self.blobs.try_clone().unwrap(),
            output.try_clone().unwrap(),
            &mut |_| {},
        )?;
        output.set_len(unpacked.bytes).unwrap();
        Ok(unpacked)
    }

    /// Unpacks to nowhere.
    pub fn unpack(&self) -> Result<Unpacked, UnpackError> {
        let directory = tempfile::tempdir().unwrap();
        self.unpack_to(&directory.path().join("image"))
    }
}

/// A mounted EROFS image; unmounted when it is dropped.
pub struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.root()).status();
        // A second panic would hide what the first one says.
        assert!(
            std::thread::panicking() || status.is_ok_and(|status| status.success()),
            "umount failed"
        );
    }
}

/// Unpacks layers, checks the image with `fsck.erofs` and mounts it. `None`, with the reason printed, where that
/// cannot be done.
pub fn mount(layers: &[Vec<u8>]) -> Option<Mounted> {
    mount_disk(&disk(layers))
}

/// As [`mount`].
pub fn mount_disk(disk: &Disk) -> Option<Mounted> {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let unpacked = disk.unpack_to(&image).unwrap();
    if unpacked.bytes <= STRUCTURE_BYTES_MAX {
        assert_eq!(
            structure::check(&std::fs::read(&image).unwrap()),
            Ok(unpacked.inodes)
        );
    }
    check(&image);
    mount_image(&image, directory)
}

/// Checks an image with `fsck.erofs`, where there is one.
pub fn check(image: &Path) {
    match Command::new("fsck.erofs").arg(image).output() {
        Ok(output) => assert!(
            output.status.success(),
            "fsck.erofs: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(e) => println!("not checked by fsck.erofs: {e}"),
    }
}

fn mount_image(image: &Path, directory: tempfile::TempDir) -> Option<Mounted> {
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let output = Command::new("mount")
        .args(["-t", "erofs", "-o", "ro,loop"])
        .arg(image)
        .arg(&root)
        .output();
    match output {
        Ok(output) if output.status.success() => Some(Mounted { directory }),
        // Without the right to mount there is nothing to compare; a kernel that refuses the image is a failure.
        Ok(output) if !rustix::process::geteuid().is_root() || !loop_devices() => {
            println!(
                "SKIPPED: cannot mount: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            None
        }
        Ok(output) => panic!("mount: {}", String::from_utf8_lossy(&output.stderr)),
        Err(e) => {
            println!("SKIPPED: cannot run mount: {e}");
            None
        }
    }
}

fn loop_devices() -> bool {
    let erofs = std::fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("erofs"));
    erofs && Path::new("/dev/loop-control").exists()
}
