//! Templates on disk: `templates/<key>/` with
//!
//! | file | what |
//! |---|---|
//! | `memory` | the guest's memory, sparse |
//! | `state` | everything else of the guest; only ever parsed by brig-vmm |
//! | `disk` | its writable disk as it was then, sparse |
//! | `template.json` | [`Record`]; its modification time is when the template was used last |
//!
//! A template appears and goes by a rename, so it is seen whole or not at all, and a guest that was restored from one
//! that is dropped keeps its files. `<key>.lock` is held while one is made; `<key>.broken` counts how often in a row the
//! template of this key could not be used.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempDir};

use super::key::{Ingredients, Key};
use crate::{
    Error, Paths, files,
    guest::{PAGES, Saved},
    id::{is_lower_hex, random_bytes},
    sandbox::{lock::Lock, write_record},
};

/// Version of `template.json`.
const RECORD_VERSION: u32 = 1;

/// Most bytes of a `template.json`.
const RECORD_BYTES: u64 = 1 << 20;

/// Most bytes of a list of pages.
const PAGES_BYTES: u64 = 64 << 20;

/// Names in a template's directory.
const RECORD: &str = "template.json";
const MEMORY: &str = "memory";
const STATE: &str = "state";
const DISK: &str = "disk";

/// Starts the names of templates that are being made, and of those that are going.
const NEW: &str = ".new-";
const DROPPED: &str = ".dropped-";

/// After so many failures in a row no template is made for a key until [`BROKEN_REST`] is over.
const BROKEN_TIMES: u64 = 2;
const BROKEN_REST: Duration = Duration::from_secs(3600);

/// What is written down about a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// What it was made from.
    pub made_from: Ingredients,
    /// When.
    pub created: Timestamp,
    /// `uname -r` of the guest, in its own words.
    pub kernel: String,
    /// Bytes of the files.
    pub memory_bytes: u64,
    /// See `memory_bytes`.
    pub state_bytes: u64,
    /// See `memory_bytes`.
    pub disk_bytes: u64,
}

/// A template, open for a restore.
#[derive(Debug)]
pub struct Template {
    /// The guest.
    pub saved: Saved,
    /// Its writable disk, to be copied.
    pub disk: File,
    /// `uname -r` of the guest.
    pub kernel: String,
}

/// What was found under a key.
#[derive(Debug)]
pub enum Found {
    /// A template that looks whole.
    Template(Box<Template>),
    /// None.
    Nothing,
    /// One that cannot be used, and why.
    Broken(String),
}

/// A template as `brig template ls` shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its id.
    pub key: Key,
    /// What is written down about it; `None` when that cannot be read.
    pub record: Option<Record>,
    /// Bytes that it takes on the disk.
    pub allocated: u64,
    /// When a sandbox last started from it.
    pub used: SystemTime,
}

/// The templates of one root.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The templates of `paths`.
    pub fn new(paths: &Paths) -> Self {
        Self {
            directory: paths.templates(),
        }
    }

    /// Opens the template that is made from `ingredients`.
    pub fn find(&self, ingredients: &Ingredients) -> Found {
        let directory = match files::open_directory(&self.path(&ingredients.key())) {
            Ok(directory) => directory,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(e) => return Found::Broken(format!("cannot open it: {e}")),
        };
        match open(&directory, ingredients) {
            Ok(template) => Found::Template(Box::new(template)),
            Err(reason) => Found::Broken(reason),
        }
    }

    /// Remembers that a template is used now.
    pub fn touch(&self, key: &Key) {
        let omit = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: omit,
            last_modification: now,
        };
        let record = self.path(key).join(RECORD);
        let _ = rustix::fs::utimensat(rustix::fs::CWD, record, &times, rustix::fs::AtFlags::empty());
    }

    /// Waits until nobody else makes a template of this key, and keeps others from it. Blocks.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn lock(&self, key: &Key) -> Result<Lock, Error> {
        loop {
            match Lock::take(&self.lock_path(key)) {
                Ok(lock) => return Ok(lock),
                // A sweep removed the file.
                Err(Error::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && self.directory.exists() => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// A directory to make a template in. It goes when it is dropped, or with a later sweep.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn workspace(&self, key: &Key, _held: &Lock) -> Result<TempDir, Error> {
        tempfile::Builder::new()
            .prefix(&format!("{NEW}{key}-"))
            .tempdir_in(&self.directory)
            .map_err(Error::file("make a directory in", &self.directory))
    }

    /// Makes what is in `workspace` the template that is made from `ingredients`: everything is on the disk before it has
    /// its name.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn publish(
        &self,
        ingredients: Ingredients,
        kernel: String,
        workspace: TempDir,
        _held: &Lock,
    ) -> Result<(), Error> {
        let at = workspace.path();
        let key = ingredients.key();
        let mut lengths = [0; 3];
        for (length, name) in lengths.iter_mut().zip([MEMORY, STATE, DISK]) {
            *length = files::seal(&at.join(name))?;
        }
        let [memory_bytes, state_bytes, disk_bytes] = lengths;
        let record = Record {
            version: RECORD_VERSION,
            made_from: ingredients,
            created: Timestamp::now(),
            kernel,
            memory_bytes,
            state_bytes,
            disk_bytes,
        };
        write_record(&at.join(RECORD), &record)?;
        files::sync(&at.join(RECORD))?;
        files::sync(at)?;
        let path = self.path(&key);
        // What is there is broken, or it would have been used.
        self.drop_template(&key);
        fs::rename(at, &path).map_err(Error::file("make", &path))?;
        files::sync(&self.directory)
    }

    /// Removes a template; guests that were restored from it go on.
    pub fn drop_template(&self, key: &Key) -> bool {
        let Ok(random) = random_bytes::<8>() else {
            return false;
        };
        let name = format!("{DROPPED}{key}-{:016x}", u64::from_ne_bytes(random));
        let going = self.directory.join(name);
        let found = fs::rename(self.path(key), &going).is_ok();
        let _ = fs::remove_dir_all(&going);
        found
    }

    /// Drops a template that could not be used.
    pub fn drop_broken(&self, key: &Key) {
        self.drop_template(key);
        self.failed(key);
    }

    /// A template of this key could not be made or not be used.
    pub fn failed(&self, key: &Key) {
        let _ = write_record(&self.broken_path(key), &(self.broken_times(key) + 1));
    }

    /// A template of this key was used with success.
    pub fn worked(&self, key: &Key) {
        let _ = fs::remove_file(self.broken_path(key));
    }

    /// Keeps what is written in `pages`, the list of the pages that a start touches, with the template of this key.
    ///
    /// # Errors
    /// Those of the files.
    pub fn keep_pages(&self, key: &Key, pages: File) -> io::Result<()> {
        let template = self.path(key);
        let mut file = NamedTempFile::new_in(&template)?;
        file.write_all(&files::read_from_start(pages, PAGES_BYTES)?)?;
        file.persist(template.join(PAGES))?;
        Ok(())
    }

    /// Whether templates of this key have just failed again and again, so that making another is no use.
    pub fn is_hopeless(&self, key: &Key) -> bool {
        let recent = fs::metadata(self.broken_path(key))
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < BROKEN_REST));
        recent && self.broken_times(key) >= BROKEN_TIMES
    }

    fn broken_times(&self, key: &Key) -> u64 {
        fs::read(self.broken_path(key))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or(0)
    }

    /// Removes what killed processes left: directories that nobody makes a template in any more. `held` is the lock of
    /// `key`.
    pub fn sweep(&self, key: &Key, _held: &Lock) {
        for name in files::names(&self.directory).unwrap_or_default() {
            let path = self.directory.join(&name);
            if name.starts_with(DROPPED) {
                let _ = fs::remove_dir_all(&path);
            } else if let Some(of) = key_in(&name, NEW) {
                if of == *key {
                    let _ = fs::remove_dir_all(&path);
                } else if let Ok(Some(_lock)) = Lock::try_take(&self.lock_path(&of)) {
                    let _ = fs::remove_dir_all(&path);
                }
            } else if let Some(Ok(of)) = name.strip_suffix(".lock").map(str::parse::<Key>)
                && of != *key
                && !self.path(&of).exists()
                && let Ok(Some(_lock)) = Lock::try_take(&path)
            {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Drops the templates that were used least recently until all together take at most `limit` bytes. The one of
    /// `keep` stays.
    pub fn evict(&self, limit: u64, keep: &Key) {
        let mut listed = self.list().unwrap_or_default();
        listed.sort_by_key(|template| template.used);
        let mut total: u64 = listed.iter().map(|template| template.allocated).sum();
        for template in listed.iter().filter(|template| template.key != *keep) {
            if total <= limit {
                break;
            }
            self.drop_template(&template.key);
            let _ = fs::remove_file(self.broken_path(&template.key));
            total -= template.allocated;
        }
    }

    /// All templates, the one used last first.
    ///
    /// # Errors
    /// [`Error::File`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut listed: Vec<Listed> = files::names(&self.directory)?
            .iter()
            .filter_map(|name| name.parse().ok())
            .filter_map(|key| self.look(key))
            .collect();
        listed.sort_by_key(|template| std::cmp::Reverse(template.used));
        Ok(listed)
    }

    /// The template whose id starts with `prefix`.
    ///
    /// # Errors
    /// [`Error::NoSuchTemplate`], [`Error::AmbiguousTemplate`], [`Error::File`].
    pub fn resolve(&self, prefix: &str) -> Result<Key, Error> {
        let unknown = || Error::NoSuchTemplate(prefix.to_owned());
        if prefix.is_empty() || !is_lower_hex(prefix) {
            return Err(unknown());
        }
        let listed = self.list()?;
        let mut matches = listed
            .into_iter()
            .filter(|template| template.key.as_str().starts_with(prefix));
        match (matches.next(), matches.next()) {
            (Some(template), None) => Ok(template.key),
            (None, _) => Err(unknown()),
            (Some(_), Some(_)) => Err(Error::AmbiguousTemplate(prefix.to_owned())),
        }
    }

    fn look(&self, key: Key) -> Option<Listed> {
        let path = self.path(&key);
        let allocated = files::allocated(&path).ok()?;
        let used = fs::metadata(path.join(RECORD))
            .and_then(|metadata| metadata.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let record = File::open(path.join(RECORD))
            .ok()
            .and_then(|file| read_record(file).ok());
        Some(Listed {
            key,
            record,
            allocated,
            used,
        })
    }

    pub(crate) fn path(&self, key: &Key) -> PathBuf {
        self.directory.join(key.as_str())
    }

    fn lock_path(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{key}.lock"))
    }

    fn broken_path(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{key}.broken"))
    }
}

/// The files of a template that is being made in `workspace`: those that the VMM writes, memory and state.
///
/// # Errors
/// [`Error::File`].
pub fn new_files(workspace: &Path) -> Result<[File; 2], Error> {
    Ok([
        files::make(&workspace.join(MEMORY))?,
        files::make(&workspace.join(STATE))?,
    ])
}

/// The path of the disk of a template that is being made in `workspace`.
pub fn new_disk(workspace: &Path) -> PathBuf {
    workspace.join(DISK)
}

/// The key in the name of a directory, after `prefix` and before a dash.
fn key_in(name: &str, prefix: &str) -> Option<Key> {
    name.strip_prefix(prefix)?.split('-').next()?.parse().ok()
}

/// Opens a template's files, all of the one directory: another template may take its name at any moment.
fn open(directory: &OwnedFd, ingredients: &Ingredients) -> Result<Template, String> {
    let record = read_record(files::open_at(directory, RECORD)?)?;
    if record.made_from != *ingredients {
        return Err(format!("its {RECORD} tells of another"));
    }
    let whole = |name: &str, bytes| files::open_whole(directory, name, bytes);
    Ok(Template {
        saved: Saved {
            memory: whole(MEMORY, record.memory_bytes)?,
            state: whole(STATE, record.state_bytes)?,
            pages: files::open_at(directory, PAGES).ok(),
        },
        disk: whole(DISK, record.disk_bytes)?,
        kernel: record.kernel,
    })
}

fn read_record(file: File) -> Result<Record, String> {
    let bytes =
        files::read_bounded(file, RECORD_BYTES).map_err(|e| format!("cannot read its {RECORD}: {e}"))?;
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|e| format!("its {RECORD} is damaged: {e}"))?;
    if record.version != RECORD_VERSION {
        return Err(format!("its {RECORD} is of version {}", record.version));
    }
    Ok(record)
}
