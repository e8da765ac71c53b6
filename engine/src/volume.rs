//! Volumes: directories of sandboxes that outlive them. `volumes/<name>/` in the root has
//!
//! | file | what |
//! |---|---|
//! | `volume.json` | [`Record`], replaced atomically |
//! | `disk.ext4` | its files as a guest has them: a disk with one directory, `data`, so that no `lost+found` is in the way |
//! | `data/` | its files as a container has them |
//! | `use` | locked by the supervisors that use the disk; who writes to it is written in it |
//!
//! Which of the two it is its first user decides, and that never changes: a guest's disk is not mounted on the host's kernel.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

use brig_image_store::removal::remove_tree;
use jiff::Timestamp;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Isolation, Paths,
    cell::HostIds,
    disk,
    events::{Journal, Kind},
    id::SandboxId,
    sandbox::{Config, Sandbox, lock::Lock, read_record, write_record},
};

/// The directory on the disk that is the volume.
pub const DATA: &str = "data";

/// Most volumes of a sandbox.
pub const VOLUMES_MAX: usize = 8;

/// Most bytes of a name, as for files.
const NAME_BYTES: usize = 200;

/// What is known of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether a sandbox has made it, without a name that anybody chose.
    pub anonymous: bool,
    /// Whether a sandbox has been made that has it by its name nevertheless.
    #[serde(default)]
    pub shared: bool,
    /// What its files are kept for; none before it is used.
    pub isolation: Option<Isolation>,
}

/// A volume, a directory of the host's, or a filesystem in memory where a sandbox wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// What is mounted.
    pub source: Source,
    /// Where.
    pub target: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether a volume that is empty gets what the image has there.
    pub copy: bool,
}

impl VolumeMount {
    /// The name of the volume that is mounted.
    pub fn volume(&self) -> Option<&str> {
        match &self.source {
            Source::Volume(name) => Some(name),
            Source::Anonymous | Source::Host(_) => None,
        }
    }
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The volume of this name.
    Volume(String),
    /// A volume without a name, which goes with the sandbox when that is removed with its volumes.
    Anonymous,
    /// A file or directory of the host's.
    Host(PathBuf),
}

/// Checks a name: Docker's rule.
///
/// # Errors
/// A line that says what is wrong.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let starts = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !starts || name.len() < 2 || name.len() > NAME_BYTES || !name.bytes().all(good) {
        return Err(format!(
            "{name:?} is no name of a volume: two or more of a-z, A-Z, 0-9, '_', '.', '-', the first a letter or digit"
        ));
    }
    Ok(())
}

/// The volumes of a root.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

/// A volume's disk, in use by this process until it is dropped.
#[derive(Debug)]
pub struct Held {
    /// The disk.
    pub disk: File,
    _lock: File,
}

impl Volumes {
    /// Those of brig's root.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Makes the volumes that `mounts` name and that are not there, and gives those without a name one.
    ///
    /// # Errors
    /// Those of [`Self::create`]; what was made without a name is gone then.
    pub fn make(&self, mounts: &[VolumeMount]) -> Result<Vec<VolumeMount>, Error> {
        let mut made: Vec<VolumeMount> = Vec::new();
        for mount in mounts {
            let record = match &mount.source {
                Source::Host(_) => {
                    made.push(mount.clone());
                    continue;
                }
                Source::Volume(name) => self.take(name),
                Source::Anonymous => self.create(None, BTreeMap::new()),
            };
            match record {
                Ok(record) => made.push(VolumeMount {
                    source: Source::Volume(record.name),
                    ..mount.clone()
                }),
                Err(e) => {
                    self.forget_anonymous(&made, &[]);
                    return Err(e);
                }
            }
        }
        Ok(made)
    }

    /// The volume of this name, made unless it is there, for a sandbox whose maker knows the name.
    fn take(&self, name: &str) -> Result<Record, Error> {
        let record = self.create(Some(name), BTreeMap::new())?;
        if !record.anonymous || record.shared {
            return Ok(record);
        }
        let _lock = self.lock()?;
        let record = Record {
            shared: true,
            ..self.find(name)?
        };
        write_record(&self.path(name).join("volume.json"), &record)?;
        Ok(record)
    }

    /// Whether all of `mounts` go with the one sandbox that has them once that is removed with its volumes.
    pub(crate) fn are_its_own(&self, mounts: &[VolumeMount]) -> bool {
        let own = |name| {
            self.find(name)
                .is_ok_and(|record| record.anonymous && !record.shared)
        };
        mounts.iter().all(|mount| mount.volume().is_some_and(own))
    }

    /// Removes those of `mounts` that nobody has given a name, but for those that `others` have.
    pub fn forget_anonymous(&self, mounts: &[VolumeMount], others: &[Sandbox]) {
        for name in mounts.iter().filter_map(VolumeMount::volume) {
            if self.find(name).is_ok_and(|record| record.anonymous) {
                // One that is in use stays.
                let _ = self.remove(name, others);
            }
        }
    }

    fn directory(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The directory of a volume.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    fn lock(&self) -> Result<Lock, Error> {
        let directory = self.directory();
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(Error::file("make", &directory))?,
        }
        Lock::take(&directory.with_extension("lock"))
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::Option`] for a name that is none, [`Error::File`].
    pub fn find(&self, name: &str) -> Result<Record, Error> {
        check_name(name).map_err(|reason| Error::option("volume", reason))?;
        let missing = || Error::NoSuchVolume(name.to_owned());
        read_record(&self.path(name).join("volume.json")).map_err(|e: Error| e.missing_as(missing))
    }

    /// All volumes, by their names.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn list(&self) -> Result<Vec<Record>, Error> {
        let directory = self.directory();
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::file("list", &directory))?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut all: Vec<Record> = names.filter_map(|name| self.find(&name).ok()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Makes a volume unless it is there; without a name one that has a random one.
    ///
    /// # Errors
    /// [`Error::Option`] for a name that is none; [`Error::File`].
    pub fn create(&self, name: Option<&str>, labels: BTreeMap<String, String>) -> Result<Record, Error> {
        let anonymous = name.is_none();
        let name = match name {
            Some(name) => name.to_owned(),
            None => SandboxId::random()?.to_string(),
        };
        check_name(&name).map_err(|reason| Error::option("volume", reason))?;
        let _lock = self.lock()?;
        match self.find(&name) {
            Err(Error::NoSuchVolume(_)) => {}
            found => return found,
        }
        let record = Record {
            name: name.clone(),
            created: Timestamp::now(),
            labels,
            anonymous,
            shared: false,
            isolation: None,
        };
        let path = self.path(&name);
        // What a killed creation left has no record.
        let _ = remove_tree(&path);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(Error::file("make", &path))?;
        write_record(&path.join("volume.json"), &record)?;
        self.note("create", &name);
        Ok(record)
    }

    fn note(&self, action: &str, name: &str) {
        Journal::of_root(&self.root).other(Kind::Volume, action, name, &[("driver", "local".to_owned())]);
    }

    /// Removes a volume that none of `sandboxes`, which are all, has.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::VolumeInUse`], [`Error::File`].
    pub fn remove(&self, name: &str, sandboxes: &[Sandbox]) -> Result<(), Error> {
        let _lock = self.lock()?;
        self.find(name)?;
        if let Some(user) = users(name, sandboxes).next() {
            return Err(Error::VolumeInUse {
                name: name.to_owned(),
                by: user.config.name.clone(),
            });
        }
        let path = self.path(name);
        // Without its record it is none, should the rest be interrupted.
        let record = path.join("volume.json");
        fs::remove_file(&record).map_err(Error::file("remove", &record))?;
        remove_tree(&path).map_err(Error::file("remove", &path))?;
        self.note("destroy", name);
        Ok(())
    }

    /// Settles what the files of a volume are kept for, at its first use.
    fn settle(&self, name: &str, isolation: Isolation) -> Result<(), Error> {
        let _lock = self.lock()?;
        let record = self.find(name)?;
        check_isolation(&record, isolation)?;
        let path = self.path(name);
        match isolation {
            Isolation::Vm if !self.disk(name).exists() => {
                let blank = disk::open_blank(&Paths::templates_in(&self.root))?;
                disk::copy_whole(&blank, &self.disk(name))?;
            }
            Isolation::Container => {
                let data = path.join(DATA);
                match fs::DirBuilder::new().mode(0o755).create(&data) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    made => {
                        made.map_err(Error::file("make", &data))?;
                        if let Some(root) = HostIds::look_up().root() {
                            chown(&data, Some(root), Some(root)).map_err(Error::file("give away", &data))?;
                        }
                    }
                }
            }
            Isolation::Vm => {}
        }
        if record.isolation.is_none() {
            let record = Record {
                isolation: Some(isolation),
                ..record
            };
            write_record(&path.join("volume.json"), &record)?;
        }
        Ok(())
    }

    /// Sees to it that the disk of a volume for guests is there.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::Option`] for one of containers, those of making a disk.
    pub(crate) fn lay_out(&self, name: &str) -> Result<(), Error> {
        self.settle(name, Isolation::Vm)
    }

    /// What using a volume changes: its directory, and the lock of all.
    pub(crate) fn changed_by_use(&self, name: &str) -> [PathBuf; 2] {
        [self.path(name), self.directory().with_extension("lock")]
    }

    /// The disk of a volume for guests.
    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        self.path(name).join("disk.ext4")
    }

    /// Opens the disk of a volume for a guest. Only one may write to it, and then nobody else may read it. With `content` it
    /// becomes a copy of that first.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::Option`] for one of containers, [`Error::VolumeInUse`].
    pub fn open(
        &self,
        name: &str,
        user: &Config,
        read_only: bool,
        content: Option<&File>,
    ) -> Result<Held, Error> {
        check_isolation(&self.find(name)?, Isolation::Vm)?;
        let path = self.path(name).join("use");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        let operation = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&lock, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut by = String::new();
                let _ = lock.read_to_string(&mut by);
                return Err(Error::VolumeInUse {
                    name: name.to_owned(),
                    by: by.lines().next().unwrap_or("another sandbox").to_owned(),
                });
            }
            Err(e) => return Err(Error::file("lock", &path)(e.into())),
        }
        // Only for the message above.
        let _ = lock
            .rewind()
            .and_then(|()| lock.set_len(0))
            .and_then(|()| writeln!(lock, "{}", user.name));
        let disk = self.disk(name);
        if let Some(content) = content {
            disk::copy_whole(content, &disk)?;
        }
        self.settle(name, Isolation::Vm)?;
        let opened = OpenOptions::new().read(true).write(!read_only).open(&disk);
        Ok(Held {
            disk: opened.map_err(Error::file("open", &disk))?,
            _lock: lock,
        })
    }

    /// The directory of a volume for a container.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::Option`] for one of guests.
    pub fn data(&self, name: &str) -> Result<PathBuf, Error> {
        self.settle(name, Isolation::Container)?;
        Ok(self.path(name).join(DATA))
    }
}

/// The sandboxes that have this volume.
pub fn users<'a>(name: &'a str, sandboxes: &'a [Sandbox]) -> impl Iterator<Item = &'a Sandbox> {
    sandboxes.iter().filter(move |sandbox| {
        let mounts = &sandbox.config.mounts;
        mounts.iter().any(|mount| mount.volume() == Some(name))
    })
}

/// Refuses a volume whose files are kept for the other isolation.
///
/// # Errors
/// [`Error::Option`].
pub fn check_isolation(record: &Record, isolation: Isolation) -> Result<(), Error> {
    match record.isolation {
        Some(kept) if kept != isolation => Err(Error::option(
            "--volume",
            format!(
                "{} has files of {} isolation, which {isolation} isolation cannot read: take another volume, or --isolation {kept}",
                record.name,
                kept.as_str()
            ),
        )),
        _ => Ok(()),
    }
}
