//! A sandbox on disk: `sandboxes/<id>/` with
//!
//! | file | what | written by |
//! |---|---|---|
//! | `config.json` | [`Config`], immutable but for the name | the creator, before the directory has its name |
//! | `state.json` | [`State`], replaced atomically | whoever holds `lock` |
//! | `lock` | held by the supervisor while it lives ([`lock`]) | |
//! | `disk.ext4` | the writable layer, sparse; made at the first start | the VMM |
//! | `layer/` | the writable layer of a sandbox without a guest | the cell |
//! | `log.json` | output of the first process ([`crate::log`]) | the supervisor |
//! | `console.log` | the end of the guest kernel's log | the supervisor |

pub mod config;
pub mod health;
pub mod lock;
mod registry;
pub mod state;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use self::lock::Lock;
pub use self::{
    config::Config,
    registry::Registry,
    state::{State, Status},
};
use crate::{
    Error, SandboxId,
    events::{self, Journal},
    files,
};

/// Most bytes of a `config.json` or `state.json` that is read back.
const RECORD_BYTES: u64 = 16 << 20;

/// A file that is not larger has one block, on any filesystem.
const BLOCK_BYTES: usize = 4096;

/// A sandbox as it was when it was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// What it is.
    pub config: Config,
    /// What it is doing; already corrected when its supervisor is dead.
    pub state: State,
    /// Whether a supervisor is alive: also while it starts and ends.
    pub supervised: bool,
}

/// The files of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(PathBuf);

impl Directory {
    /// The directory at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its own path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `lock`.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// `disk.ext4`.
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk.ext4")
    }

    /// `layer`.
    pub fn layer(&self) -> PathBuf {
        self.0.join("layer")
    }

    /// `log.json`.
    pub fn log(&self) -> PathBuf {
        self.0.join("log.json")
    }

    /// `console.log`.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// `supervisor.log`: what the supervisor has to say when it fails itself.
    pub fn supervisor_log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    /// Notes that something has happened to it, by the name that it has now. See [`crate::events`].
    pub fn note(&self, action: &str, more: &[(&str, String)]) {
        let root = self.0.parent().and_then(Path::parent);
        if let (Some(root), Ok(config)) = (root, self.read_config()) {
            events::note(&Journal::of_root(root), &config, action, more);
        }
    }

    fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Record`].
    pub fn read_config(&self) -> Result<Config, Error> {
        self.read_config_as()
    }

    /// Reads a part of `config.json`.
    fn read_config_as<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read_record(&self.config())
    }

    /// Replaces `config.json`. The caller holds the lock of names.
    fn write_config(&self, config: &Config) -> Result<(), Error> {
        write_record(&self.config(), config)
    }

    /// Reads `state.json` as it stands.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Record`].
    pub fn read_state(&self) -> Result<State, Error> {
        read_record(&self.state())
    }

    /// Replaces `state.json`. The caller holds the lock.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_state(&self, state: &State) -> Result<(), Error> {
        write_record(&self.state(), state)
    }

    /// Looks at the sandbox. One that says it runs and has no supervisor any more is corrected on disk too.
    ///
    /// # Errors
    /// [`Error::File`], with `NotFound` as its source's kind when the sandbox is gone; [`Error::Record`].
    pub fn load(&self) -> Result<Sandbox, Error> {
        let config = self.read_config()?;
        // The lock is looked at first: a supervisor that ends in between has written its last state by then.
        let mut supervised = lock::is_held(&self.lock())?;
        let mut state = self.read_state()?;
        if !supervised && matches!(state.status, Status::Running | Status::Restarting) {
            // Running without a supervisor: it was killed, or has begun since the lock was looked at.
            if let Some(lock) = Lock::try_take(&self.lock())? {
                state = self.correct(&lock)?;
            } else {
                (supervised, state) = (true, self.read_state()?);
            }
        }
        Ok(Sandbox {
            config,
            state,
            supervised,
        })
    }

    /// Writes down that the supervisor was killed. Where that cannot be written it is so all the same, and the next one who looks tries
    /// again: a sandbox that nobody can see is one that nobody can remove.
    fn correct(&self, _held: &Lock) -> Result<State, Error> {
        let before = self.read_state()?;
        let state = before.without_supervisor(Timestamp::now());
        if self.write_state(&state).is_err() {
            return Ok(state);
        }
        if before.status == Status::Running {
            self.note("die", &[("exitCode", state.exit_code.to_string())]);
        }
        Ok(state)
    }

    fn write_new(&self, config: &Config) -> Result<(), Error> {
        // The directory appears as a whole, so its files need not.
        write_directly(&self.config(), config)?;
        write_directly(&self.state(), &State::created())?;
        File::create(self.lock()).map_err(Error::file("make", &self.lock()))?;
        Ok(())
    }
}

impl Sandbox {
    /// Its id.
    pub fn id(&self) -> &SandboxId {
        &self.config.id
    }

    /// Whether its first process runs.
    pub fn is_running(&self) -> bool {
        self.state.status == Status::Running
    }
}

pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = File::open(path)
        .and_then(|file| files::read_bounded(file, RECORD_BYTES))
        .map_err(Error::file("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Record {
        path: path.to_owned(),
        source,
    })
}

/// Writes a record so that a reader sees the old one or the new one, whole.
pub(crate) fn write_record<T: Serialize>(path: &Path, record: &T) -> Result<(), Error> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let written = write_directly(&temporary, record)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::file("write", path)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    match written {
        Err(Error::File { ref source, .. }) if is_full(source) => overwrite(path, record).or(written),
        written => written,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Writes a record over the old one, for a disk without room for both: an exit code must not be lost because of that. It is one
/// write(2) into a block that the file has already. What is left of a longer one is blanked out.
fn overwrite<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let mut bytes = serde_json::to_vec_pretty(record)?;
    let old = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    if bytes.len().max(old) > BLOCK_BYTES {
        return Err(io::ErrorKind::StorageFull.into());
    }
    bytes.resize(bytes.len().max(old), b' ');
    file.write_all(&bytes)
}

fn write_directly<T: Serialize>(path: &Path, record: &T) -> Result<(), Error> {
    let write = || File::create(path)?.write_all(&serde_json::to_vec_pretty(record)?);
    write().map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_written_over_another_is_read_whatever_their_lengths() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for text in [
            "a long text that is there first",
            "short",
            "one that is longer than both were, again",
        ] {
            if !path.exists() {
                write_record(&path, &text).unwrap();
            }
            overwrite(&path, &text).unwrap();
            assert_eq!(read_record::<String>(&path).unwrap(), text);
        }
        let error = overwrite(&path, &"x".repeat(BLOCK_BYTES)).unwrap_err();
        assert!(is_full(&error));
        assert!(read_record::<String>(&path).is_ok(), "the old one is left");
    }
}
