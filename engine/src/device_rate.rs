//! Limits of reading and writing, as `--device-read-bps` and its relatives write them: `DEVICE:RATE`.
//!
//! A device is a block device of the host, as with Docker, or `/`: the disk of the host that brig's files are on. All that a guest
//! reads and writes is in files of brig's, so that there is no other device for it.

use std::{
    fmt, fs,
    num::NonZeroU64,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use brig_image_store::limits::parse_bytes;
use brig_protocol::vmm::IoLimits;
use rustix::fs::{major, minor};
use serde::{Deserialize, Serialize};

use crate::{Error, Isolation};

/// Stands for the disk with brig's files.
const OWN: &str = "/";

/// Most limits of one kind.
pub const RATES_MAX: usize = 32;

/// Where the kernel tells of its block devices, by their numbers.
const DEVICES: &str = "/sys/dev/block";

/// The numbers of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// Its driver's.
    pub major: u32,
    /// Its own among those of the driver.
    pub minor: u32,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A device and so much a second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRate {
    /// The device, as the user wrote it.
    pub path: String,
    /// Bytes or operations.
    pub rate: NonZeroU64,
}

impl DeviceRate {
    /// Reads `DEVICE:RATE`, where the rate is an amount of bytes.
    ///
    /// # Errors
    /// [`Error::InvalidRate`].
    pub fn bytes(text: &str) -> Result<Self, Error> {
        Self::parse(text, |rate| {
            let bytes = parse_bytes(rate)?;
            // Beyond that a number of bytes is none that a float can tell from the next.
            (bytes.fract() == 0.0 && bytes < (1u64 << 53) as f64).then_some(bytes as u64)
        })
    }

    /// Reads `DEVICE:RATE`, where the rate is a number of operations.
    ///
    /// # Errors
    /// [`Error::InvalidRate`].
    pub fn operations(text: &str) -> Result<Self, Error> {
        Self::parse(text, |rate| u64::from_str(rate).ok())
    }

    fn parse(text: &str, rate: impl Fn(&str) -> Option<u64>) -> Result<Self, Error> {
        let parsed = text.rsplit_once(':').and_then(|(path, number)| {
            let rate = rate(number).and_then(NonZeroU64::new)?;
            let known = path == OWN || path.starts_with("/dev/");
            known.then(|| Self {
                path: path.to_owned(),
                rate,
            })
        });
        parsed.ok_or_else(|| Error::InvalidRate(text.to_owned()))
    }
}

/// All that a user says of them. Of two for one device the later counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRates {
    /// Bytes read a second.
    pub read_bps: Vec<DeviceRate>,
    /// Bytes written.
    pub write_bps: Vec<DeviceRate>,
    /// Reads.
    pub read_iops: Vec<DeviceRate>,
    /// Writes.
    pub write_iops: Vec<DeviceRate>,
}

/// What a device is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes read a second.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Reads.
    ReadOperations,
    /// Writes.
    WriteOperations,
}

impl DeviceRates {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn each(&self) -> impl Iterator<Item = (Kind, &DeviceRate)> {
        [
            (Kind::ReadBytes, &self.read_bps),
            (Kind::WriteBytes, &self.write_bps),
            (Kind::ReadOperations, &self.read_iops),
            (Kind::WriteOperations, &self.write_iops),
        ]
        .into_iter()
        .flat_map(|(kind, rates)| rates.iter().map(move |rate| (kind, rate)))
    }

    /// Checks that a sandbox of this isolation, whose files are in `root`, can be held to it.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`], [`Error::TooManyRates`].
    pub fn check(&self, isolation: Isolation, root: &Path) -> Result<(), Error> {
        let lists = [&self.read_bps, &self.write_bps, &self.read_iops, &self.write_iops];
        if lists.iter().any(|rates| rates.len() > RATES_MAX) {
            return Err(Error::TooManyRates);
        }
        for (_, rate) in self.each() {
            if isolation == Isolation::Container {
                number(&rate.path, root)?;
            } else if rate.path != OWN && Some(number(&rate.path, root)?) != own_disk(root) {
                let why = "a guest has no other device than the disk with brig's files: write / for that";
                return Err(no_device(&rate.path, why));
            }
        }
        Ok(())
    }

    /// What a guest's disks are held to. They have been checked.
    pub fn of_guest(&self) -> IoLimits {
        let last = |rates: &[DeviceRate]| rates.last().map(|rate| rate.rate);
        IoLimits {
            read_bytes: last(&self.read_bps),
            write_bytes: last(&self.write_bps),
            read_operations: last(&self.read_iops),
            write_operations: last(&self.write_iops),
        }
    }

    /// What a cgroup holds the host's devices to, for a sandbox whose files are in `root`.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`].
    pub fn of_cgroup(&self, root: &Path) -> Result<Vec<(Number, Kind, u64)>, Error> {
        self.each()
            .map(|(kind, rate)| Ok((number(&rate.path, root)?, kind, rate.rate.get())))
            .collect()
    }
}

/// The whole disk that a device is, or is a part of.
fn number(path: &str, root: &Path) -> Result<Number, Error> {
    if path == OWN {
        let why = "the files of brig are on no block device: write the device that is to be limited";
        return own_disk(root).ok_or_else(|| no_device(path, why));
    }
    let metadata = fs::metadata(path).map_err(|e| no_device(path, &e.to_string()))?;
    if !metadata.file_type().is_block_device() {
        return Err(no_device(path, "it is no block device"));
    }
    whole_disk(metadata.rdev()).ok_or_else(|| no_device(path, "the kernel knows no disk of this number"))
}

/// The disk that brig's files are on.
fn own_disk(root: &Path) -> Option<Number> {
    whole_disk(fs::metadata(root).ok()?.dev())
}

/// Limits are those of a disk, never of a part of it.
fn whole_disk(device: u64) -> Option<Number> {
    let number = Number {
        major: major(device),
        minor: minor(device),
    };
    let entry: PathBuf = fs::canonicalize(Path::new(DEVICES).join(number.to_string())).ok()?;
    if !entry.join("partition").exists() {
        return Some(number);
    }
    let text = fs::read_to_string(entry.parent()?.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(Number {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

fn no_device(path: &str, why: &str) -> Error {
    Error::NoSuchDevice {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(path: &str, rate: u64) -> DeviceRate {
        DeviceRate {
            path: path.to_owned(),
            rate: NonZeroU64::new(rate).unwrap(),
        }
    }

    #[test]
    fn rates_are_read_as_docker_reads_them() {
        for (text, path, bytes) in [
            ("/dev/sda:1mb", "/dev/sda", 1 << 20),
            ("/dev/sda:1024", "/dev/sda", 1024),
            (
                "/dev/disk/by-path/pci-0000:00:1f.2:2kb",
                "/dev/disk/by-path/pci-0000:00:1f.2",
                2048,
            ),
            ("/:1.5m", "/", 3 << 19),
        ] {
            assert_eq!(DeviceRate::bytes(text).unwrap(), rate(path, bytes), "{text}");
        }
        assert_eq!(DeviceRate::operations("/:100").unwrap(), rate("/", 100));
        for text in [
            "", "/", "/:", "/:0", "/:-1", "/:x", "/:0.3", "1mb", "sda:1mb", "/tmp:1mb", "/:99999t", ":1mb",
        ] {
            assert!(
                matches!(DeviceRate::bytes(text), Err(Error::InvalidRate(_))),
                "{text}"
            );
        }
        for text in ["/:1mb", "/:1.5", "/:0", "/dev/sda"] {
            assert!(DeviceRate::operations(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_of_several_counts_for_a_guest() {
        let rates = DeviceRates {
            read_bps: vec![rate("/", 1), rate("/", 7)],
            write_iops: vec![rate("/", 3)],
            ..DeviceRates::default()
        };
        assert_eq!(
            rates.of_guest(),
            IoLimits {
                read_bytes: NonZeroU64::new(7),
                write_operations: NonZeroU64::new(3),
                ..IoLimits::default()
            }
        );
        assert!(!rates.is_empty());
    }

    #[test]
    fn what_is_no_device_of_the_sandbox_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let with = |path: &str| DeviceRates {
            read_bps: vec![rate(path, 1)],
            ..DeviceRates::default()
        };
        let check = |path: &str, isolation| with(path).check(isolation, root.path());
        assert!(check("/", Isolation::Vm).is_ok());
        for path in ["/dev/null", "/dev/no-such-disk"] {
            for isolation in [Isolation::Vm, Isolation::Container] {
                let error = check(path, isolation).unwrap_err();
                assert!(error.to_string().contains(path), "{error}");
            }
        }
        let many = DeviceRates {
            read_bps: vec![rate("/", 1); RATES_MAX + 1],
            ..DeviceRates::default()
        };
        assert!(matches!(
            many.check(Isolation::Vm, root.path()),
            Err(Error::TooManyRates)
        ));
    }

    #[test]
    fn a_part_of_a_disk_stands_for_the_disk() {
        for entry in fs::read_dir(DEVICES).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (first, second) = name.split_once(':').unwrap();
            let device = rustix::fs::makedev(first.parse().unwrap(), second.parse().unwrap());
            let disk = whole_disk(device).unwrap();
            let disk = Path::new(DEVICES).join(disk.to_string());
            assert!(
                !fs::canonicalize(disk).unwrap().join("partition").exists(),
                "{name}"
            );
        }
    }
}
