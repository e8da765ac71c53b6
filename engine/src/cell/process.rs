//! Starting brig-cell.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use brig_jail::identity::Identity;
use brig_protocol::{
    cell::{Begin, Job},
    channel::{self, ChannelError},
    vmm::Event,
};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open},
};

use super::HostIds;
use crate::{
    Paths,
    vmm::{Process, Vmm, VmmError},
};

/// What brig-cell is called where it is told from brig-vmm.
pub(crate) const NAME: &str = "brig-cell";

/// Starts the real brig-cell.
#[derive(Clone, Debug)]
pub struct BrigCell {
    /// The program.
    pub program: PathBuf,
}

impl BrigCell {
    /// Starts one. `what` says in a list of processes what it is for.
    ///
    /// # Errors
    /// [`VmmError::Spawn`] or [`VmmError::Channel`].
    pub fn spawn(&self, what: &Path) -> Result<Vmm, VmmError> {
        let (ours, theirs) = channel::pair().map_err(ChannelError::Io)?;
        let (said, stderr) = io::pipe().map_err(ChannelError::Io)?;
        let cannot = |source| VmmError::Spawn {
            path: self.program.clone(),
            source,
        };
        let sealed = self.sealed()?;
        let program = sealed.as_ref().map_or(self.program.clone(), path_of);
        let child = Command::new(program)
            .arg0(&self.program)
            .arg(what)
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(cannot)?;
        let pid = Pid::from_child(&child);
        // It has not been waited for: the pid is its own.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| cannot(e.into()))?;
        let process = Process::new(brig_jail::spawn::Process {
            pid,
            pidfd,
            // The keeper is whoever starts it; what it makes has ids of its own.
            identity: Identity {
                uid: geteuid().as_raw(),
                gid: getegid().as_raw(),
                own: false,
            },
        })
        .map_err(cannot)?;
        Ok(Vmm::new(ours, said.into(), Some(process))?.of_a_cell())
    }

    /// A copy of the program that nobody can change, for a user whose sandboxes' root is the program's owner: a process in one
    /// could get at the program that started it by `/proc/self/exe`, and write to it (CVE-2019-5736). Root's sandboxes have ids
    /// of their own.
    fn sealed(&self) -> Result<Option<File>, VmmError> {
        if geteuid().is_root() {
            return Ok(None);
        }
        let seal = || {
            let mut program = File::open(&self.program)?;
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let mut copy = File::from(memfd_create(NAME, flags)?);
            io::copy(&mut program, &mut copy)?;
            fcntl_add_seals(
                &copy,
                SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
            )?;
            // Nobody executes a file that is open for writing.
            File::open(path_of(&copy))
        };
        seal().map(Some).map_err(|source| VmmError::Spawn {
            path: self.program.clone(),
            source,
        })
    }
}

/// Where an open file can be opened again.
fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Empties a directory with files of the user's subordinate ids, for [`brig_image_store::removal`].
pub(crate) fn empty(directory: &Path) -> io::Result<()> {
    let paths = Paths::from_environment().map_err(io::Error::other)?;
    let ids = HostIds::look_up();
    let (ours, theirs) = channel::pair()?;
    let mut child = Command::new(paths.cell())
        .arg(directory)
        .env_clear()
        .stdin(theirs)
        .stdout(Stdio::null())
        .spawn()?;
    let begin = Begin {
        ids: ids.map().clone(),
        job: Job::Empty {
            directory: directory.to_string_lossy().into_owned(),
        },
    };
    let told = channel::send(&ours, &begin, &[]);
    let said = channel::receive::<Event>(&ours);
    let ended = child.wait()?;
    told.map_err(io::Error::other)?;
    match said {
        Ok((Event::Failed { message }, _)) => Err(io::Error::other(message)),
        _ if ended.success() => Ok(()),
        _ => Err(io::ErrorKind::PermissionDenied.into()),
    }
}
