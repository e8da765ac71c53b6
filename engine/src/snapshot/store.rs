//! Snapshots on disk: `snapshots/NAME/` with `memory`, `state` and `disk` as in a template, `volume0` and so on, and
//! `snapshot.json` ([`Record`]). A snapshot appears and goes by a rename. One that is being made, or that is there for a moment only, has
//! a hidden name, and is locked by its maker for as long as it lives.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{FileRecord, RECORD_BYTES, Record};
use crate::{
    Error, Paths, files,
    guest::Saved,
    id::random_bytes,
    name,
    sandbox::{lock::Lock, write_record},
};

/// Names in a snapshot's directory.
pub const RECORD: &str = "snapshot.json";
/// See [`RECORD`].
pub const MEMORY: &str = "memory";
/// See [`RECORD`].
pub const STATE: &str = "state";
/// See [`RECORD`].
pub const DISK: &str = "disk";

/// Starts the names of snapshots that are being made, and of those that are going.
const NEW: &str = ".new-";
const DROPPED: &str = ".dropped-";

/// A snapshot, open for a restore.
#[derive(Debug)]
pub struct Snapshot {
    /// What is written down about it.
    pub record: Record,
    /// The guest.
    pub saved: Saved,
    /// The sandbox's disk, to be copied.
    pub disk: File,
    /// Its volumes' disks, likewise.
    pub volumes: Vec<File>,
}

/// A snapshot as `brig snapshot ls` shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What is written down about it, or why that cannot be read.
    pub record: Result<Record, String>,
    /// Bytes that it takes on the disk.
    pub allocated: u64,
}

/// A snapshot that is being made. It goes when this is dropped.
#[derive(Debug)]
pub struct Workspace {
    directory: TempDir,
    /// Locked for as long as the directory is in use.
    _lock: OwnedFd,
}

impl Workspace {
    /// Its directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The name by which [`Snapshots::open`] finds it.
    pub fn name(&self) -> String {
        self.path()
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Makes the record of what is in it: everything is on the disk then.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn finish(&self, record: &Record) -> Result<(), Error> {
        write_record(&self.path().join(RECORD), record)?;
        files::sync(&self.path().join(RECORD))?;
        files::sync(self.path())
    }
}

/// A file of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The guest's memory.
    Memory,
    /// Everything else of the guest.
    State,
    /// The sandbox's disk.
    Disk,
    /// The disk of a volume, by its place among the mounts.
    Volume(u8),
}

impl Part {
    /// Its name in a snapshot's directory and in an archive.
    pub fn name(self) -> String {
        match self {
            Self::Memory => MEMORY.to_owned(),
            Self::State => STATE.to_owned(),
            Self::Disk => DISK.to_owned(),
            Self::Volume(index) => format!("volume{index}"),
        }
    }
}

/// The snapshots of one root.
#[derive(Clone, Debug)]
pub struct Snapshots {
    directory: PathBuf,
}

impl Snapshots {
    /// The snapshots of `paths`.
    pub fn new(paths: &Paths) -> Self {
        Self {
            directory: paths.snapshots(),
        }
    }

    /// A place to make a snapshot in. What killed makers left is removed.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn workspace(&self) -> Result<Workspace, Error> {
        let _lock = Lock::take(&self.directory.with_extension("lock"))?;
        self.sweep();
        let directory = tempfile::Builder::new()
            .prefix(NEW)
            .tempdir_in(&self.directory)
            .map_err(Error::file("make a directory in", &self.directory))?;
        let lock = lock(directory.path()).map_err(Error::file("lock", directory.path()))?;
        Ok(Workspace {
            directory,
            _lock: lock,
        })
    }

    /// Makes a file of a snapshot that is being made in the workspace of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`]; [`Error::File`].
    pub fn make_file(&self, workspace: &str, part: Part) -> Result<File, Error> {
        let path = self.directory.join(workspace);
        if !is_hidden_name(workspace) || !path.is_dir() {
            return Err(Error::NoSuchSnapshot(workspace.to_owned()));
        }
        files::make(&path.join(part.name()))
    }

    /// Checks that a name can be given to a new snapshot.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::SnapshotExists`].
    pub fn check_free(&self, name: &str) -> Result<(), Error> {
        name::check(name)?;
        if self.directory.join(name).exists() {
            return Err(Error::SnapshotExists(name.to_owned()));
        }
        Ok(())
    }

    /// Gives a finished snapshot its name.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::SnapshotExists`], [`Error::File`].
    pub fn publish(&self, workspace: Workspace, name: &str) -> Result<(), Error> {
        name::check(name)?;
        let path = self.directory.join(name);
        let cwd = rustix::fs::CWD;
        renameat_with(cwd, workspace.path(), cwd, &path, RenameFlags::NOREPLACE).map_err(|e| {
            match io::Error::from(e) {
                e if e.kind() == io::ErrorKind::AlreadyExists => Error::SnapshotExists(name.to_owned()),
                e => Error::file("make", &path)(e),
            }
        })?;
        files::sync(&self.directory)
    }

    /// Opens a snapshot.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`], [`Error::Snapshot`] when it is damaged.
    pub fn open(&self, name: &str) -> Result<Snapshot, Error> {
        let directory = self.open_directory(name)?;
        let open = || {
            let record = read_record(&directory)?;
            let whole =
                |part: Part, file: &FileRecord| files::open_whole(&directory, &part.name(), file.bytes);
            let volumes = (0..).zip(&record.volumes);
            Ok(Snapshot {
                saved: Saved {
                    memory: whole(Part::Memory, &record.memory)?,
                    state: whole(Part::State, &record.state)?,
                    // What a copy touches depends on what it is asked to do.
                    pages: None,
                },
                disk: whole(Part::Disk, &record.disk)?,
                volumes: volumes
                    .map(|(index, file)| whole(Part::Volume(index), file))
                    .collect::<Result<_, _>>()?,
                record,
            })
        };
        open().map_err(|reason| Error::snapshot(name, reason))
    }

    /// What is written down about a snapshot.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn record(&self, name: &str) -> Result<Record, Error> {
        read_record(&self.open_directory(name)?).map_err(|reason| Error::snapshot(name, reason))
    }

    /// All snapshots, by name.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut names = files::names(&self.directory)?;
        names.retain(|name| name::check(name).is_ok());
        names.sort();
        let look = |name: String| {
            let directory = files::open_directory(&self.directory.join(&name)).ok()?;
            Some(Listed {
                record: read_record(&directory),
                allocated: files::allocated(&self.directory.join(&name)).ok()?,
                name,
            })
        };
        Ok(names.into_iter().filter_map(look).collect())
    }

    /// Removes a snapshot; sandboxes that go on from it are left alone.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`], [`Error::File`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let unknown = || Error::NoSuchSnapshot(name.to_owned());
        name::check(name).map_err(|_| unknown())?;
        let going = format!("{DROPPED}{:016x}", u64::from_ne_bytes(random_bytes()?));
        let (path, going) = (self.directory.join(name), self.directory.join(going));
        fs::rename(&path, &going).map_err(|e| Error::file("remove", &path)(e).missing_as(unknown))?;
        match fs::remove_dir_all(&going) {
            // A sweep was faster.
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    fn open_directory(&self, name: &str) -> Result<OwnedFd, Error> {
        let unknown = || Error::NoSuchSnapshot(name.to_owned());
        if name::check(name).is_err() && !is_hidden_name(name) {
            return Err(unknown());
        }
        let path = self.directory.join(name);
        files::open_directory(&path).map_err(|e| Error::file("open", &path)(e).missing_as(unknown))
    }

    /// Removes what nobody holds. The caller has the lock under which workspaces are made.
    fn sweep(&self) {
        for name in files::names(&self.directory).unwrap_or_default() {
            let path = self.directory.join(&name);
            let abandoned = name.starts_with(NEW) && lock(&path).is_ok();
            if abandoned || name.starts_with(DROPPED) {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
}

/// Whether the name is one that [`Snapshots::workspace`] gives.
fn is_hidden_name(name: &str) -> bool {
    name.strip_prefix(NEW)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Takes the lock of a directory, or fails when somebody has it (flock(2)).
fn lock(path: &Path) -> io::Result<OwnedFd> {
    let directory = File::open(path)?;
    flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
    Ok(directory.into())
}

fn read_record(directory: &OwnedFd) -> Result<Record, String> {
    let mut bytes = Vec::new();
    files::open_at(directory, RECORD)?
        .take(RECORD_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("cannot be read: {e}"))?;
    parse_record(&bytes)
}

/// Reads and checks a record.
///
/// # Errors
/// One line that follows "the snapshot".
pub fn parse_record(bytes: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(bytes).map_err(|e| format!("has a damaged {RECORD}: {e}"))?;
    record.check()?;
    Ok(record)
}
