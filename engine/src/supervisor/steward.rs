//! A supervisor's steward: a process that stays outside of its walls and does for it what they keep it from. That is a fixed list of
//! chores, each about this sandbox or a template: whoever has talked a supervisor into something gets no more than these.
//!
//! It is a fork of the supervisor from its beginning, and ends with it. brig-vmm, which it starts, is the supervisor's child all the
//! same.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::PathBuf,
};

use brig_jail::{
    identity::Identity,
    spawn::{self, spawn_sibling},
};
use brig_protocol::{
    channel::{self, ChannelError},
    vmm::KvmKind,
};
use rustix::{
    io::retry_on_intr,
    net::{Shutdown, shutdown},
    process::{Pid, Signal, WaitOptions, getpid, getppid, set_parent_process_death_signal, waitpid},
};
use serde::{Deserialize, Serialize};

use super::{needs::Needs, walls};
use crate::{
    Error, Paths, SandboxId,
    cell::HostIds,
    error::chain,
    host::{Host, Machine, page_map},
    sandbox::{Config, Registry, lock::Lock},
    snapshot::{Snapshots, store::Part},
    template::{Cache, Key},
    vmm::{BrigVmm, Spawn, Vmm, VmmError},
};

/// First descriptor that is not a standard stream.
const FIRST_OTHER: u32 = 3;

/// A chore.
#[derive(Debug, Serialize, Deserialize)]
enum Chore {
    /// Start a brig-vmm, whose standard streams come along.
    Start,
    /// Open the page map of the brig-vmm that was started last.
    PageMap,
    /// [`Cache::worked`].
    TemplateWorked { key: String },
    /// [`Cache::drop_broken`].
    DropTemplate { key: String },
    /// [`Cache::keep_pages`]; the file comes along.
    KeepPages { key: String },
    /// [`Snapshots::make_file`].
    MakeSnapshotFile { workspace: String, part: Part },
    /// Remove the control socket.
    RemoveSocket,
    /// Remove the sandbox, whose lock comes along.
    RemoveSandbox,
}

/// What has become of a chore.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    /// It is done; a file that was asked for comes along.
    Done,
    /// The process runs; its pidfd comes along.
    Started { pid: i32, uid: u32, gid: u32, own: bool },
    /// It was not done: why, in one line.
    Failed(String),
}

/// What a steward does its chores on.
struct Duties<'a> {
    paths: &'a Paths,
    id: &'a SandboxId,
    /// The brig-vmm that was started last.
    vmm: Option<Pid>,
}

/// The supervisor's end of its steward. The steward ends when this is dropped.
pub(super) struct Steward {
    socket: OwnedFd,
    process: Pid,
}

impl Drop for Steward {
    fn drop(&mut self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
        // It fails where something else has collected it already.
        let _ = retry_on_intr(|| waitpid(Some(self.process), WaitOptions::empty()));
    }
}

impl Steward {
    /// Makes one, which keeps nothing that this process has open. This process must have no thread but this one.
    ///
    /// # Errors
    /// [`Error::Runtime`].
    pub fn fork(paths: &Paths, id: &SandboxId) -> Result<Self, Error> {
        let (ours, theirs) = channel::pair().map_err(Error::Runtime)?;
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(Error::Runtime)?;
        let supervisor = getpid();
        // SAFETY: this process has one thread, so that its copy can go on as it would itself.
        match unsafe { libc::fork() } {
            0 => {
                drop(ours);
                let standard = rustix::stdio::dup2_stdin(&null)
                    .and_then(|()| rustix::stdio::dup2_stdout(&null))
                    .and_then(|()| rustix::stdio::dup2_stderr(&null));
                let bound = set_parent_process_death_signal(Some(Signal::KILL));
                close_all_but(theirs.as_raw_fd());
                // A supervisor that has ended before this was said.
                if standard.is_ok() && bound.is_ok() && getppid() == Some(supervisor) {
                    let _ = rustix::thread::set_name(c"brig-steward");
                    Duties { paths, id, vmm: None }.serve(&theirs);
                }
                // SAFETY: ends this process at once; nothing that the supervisor has set up is run twice.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Self {
                socket: ours,
                process: Pid::from_raw(pid.max(0))
                    .ok_or_else(|| Error::Runtime(io::Error::last_os_error()))?,
            }),
        }
    }

    fn ask(&self, chore: &Chore, fds: &[BorrowedFd<'_>]) -> Result<(Outcome, Option<OwnedFd>), ChannelError> {
        channel::send(&self.socket, chore, fds)?;
        let (outcome, fds) = channel::receive(&self.socket)?;
        Ok((outcome, fds.into_iter().next()))
    }

    /// Has a chore done from which a file comes, or none.
    fn have(&self, chore: &Chore, fds: &[BorrowedFd<'_>]) -> Result<Option<File>, Error> {
        match self.ask(chore, fds) {
            Ok((Outcome::Done, file)) => Ok(file.map(File::from)),
            Ok((Outcome::Failed(reason), _)) => Err(Error::Steward(reason)),
            Ok((Outcome::Started { .. }, _)) => Err(Error::Steward("another chore was done".to_owned())),
            Err(e) => Err(Error::Steward(gone(&e))),
        }
    }

    fn start(&self, streams: [BorrowedFd<'_>; 3]) -> Result<spawn::Process, VmmError> {
        let failed = |reason| Err(VmmError::NotStarted(reason));
        match self.ask(&Chore::Start, &streams) {
            Ok((Outcome::Started { pid, uid, gid, own }, Some(pidfd))) => match Pid::from_raw(pid) {
                Some(pid) => Ok(spawn::Process {
                    pid,
                    pidfd,
                    identity: Identity { uid, gid, own },
                }),
                None => failed("it has no pid".to_owned()),
            },
            Ok((Outcome::Failed(reason), _)) => failed(reason),
            Ok(_) => failed("another chore was done".to_owned()),
            Err(e) => failed(gone(&e)),
        }
    }
}

/// Closes every descriptor but the standard streams and `kept`: a lock, say, is held as long as anyone has it open.
fn close_all_but(kept: RawFd) {
    let kept = kept.cast_unsigned();
    for (first, last) in [(FIRST_OTHER, kept - 1), (kept + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: takes numbers. Whatever in this process owned the descriptors is never used or dropped: it ends by _exit.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

fn gone(error: &ChannelError) -> String {
    format!(
        "the steward of the sandbox's supervisor does not answer: {}",
        chain(error)
    )
}

impl Duties<'_> {
    /// Does chores until nobody can ask for any.
    fn serve(mut self, socket: &OwnedFd) {
        // One that makes no sense comes from a supervisor that has been taken over.
        while let Ok((chore, fds)) = channel::receive::<Chore>(socket) {
            let (outcome, file) = self
                .carry_out(&chore, &fds)
                .unwrap_or_else(|e| (Outcome::Failed(chain(&e)), None));
            let along: Vec<_> = file.iter().map(AsFd::as_fd).collect();
            if channel::send(socket, &outcome, &along).is_err() {
                return;
            }
        }
    }

    fn carry_out(&mut self, chore: &Chore, fds: &[OwnedFd]) -> Result<(Outcome, Option<OwnedFd>), Error> {
        let cache = Cache::new(self.paths);
        let key = |key: &str| -> Result<Key, Error> {
            key.parse().map_err(|_| Error::NoSuchTemplate(key.to_owned()))
        };
        let first = || {
            let file = fds.first().map(OwnedFd::try_clone);
            let missing = || Error::Steward("nothing came along".to_owned());
            file.ok_or_else(missing)?.map_err(Error::Runtime)
        };
        let mut made = None;
        match chore {
            Chore::Start => return self.start(fds),
            Chore::PageMap => {
                let map = self
                    .vmm
                    .and_then(|pid| page_map(pid.as_raw_nonzero().get().cast_unsigned()));
                made = map.map(OwnedFd::from);
            }
            Chore::TemplateWorked { key: of } => cache.worked(&key(of)?),
            Chore::DropTemplate { key: of } => cache.drop_broken(&key(of)?),
            Chore::KeepPages { key: of } => cache
                .keep_pages(&key(of)?, first()?.into())
                .map_err(Error::file("write", &cache.path(&key(of)?)))?,
            Chore::MakeSnapshotFile { workspace, part } => {
                made = Some(Snapshots::new(self.paths).make_file(workspace, *part)?.into());
            }
            Chore::RemoveSocket => Machine::new(self.paths).remove_socket(self.paths, self.id),
            Chore::RemoveSandbox => {
                let lock = Lock::of_another(first()?);
                Registry::new(self.paths.sandboxes()).remove(self.id, &lock, true)?;
            }
        }
        Ok((Outcome::Done, made))
    }

    fn start(&mut self, fds: &[OwnedFd]) -> Result<(Outcome, Option<OwnedFd>), Error> {
        let [channel, stdout, stderr] = fds else {
            return Err(Error::Steward("it needs three streams".to_owned()));
        };
        let program = BrigVmm {
            program: self.paths.vmm(),
        };
        let process = program.start([channel, stdout, stderr].map(AsFd::as_fd), spawn_sibling)?;
        self.vmm = Some(process.pid);
        let Identity { uid, gid, own } = process.identity;
        let started = Outcome::Started {
            pid: process.pid.as_raw_nonzero().get(),
            uid,
            gid,
            own,
        };
        Ok((started, Some(process.pidfd)))
    }
}

/// A machine behind walls: what it may not do its steward does.
pub(super) struct Walled<'a> {
    machine: &'a dyn Host,
    steward: Steward,
}

impl<'a> Walled<'a> {
    pub fn new(machine: &'a dyn Host, steward: Steward) -> Self {
        Self { machine, steward }
    }
}

impl Spawn for Walled<'_> {
    fn spawn(&self) -> Result<Vmm, VmmError> {
        Vmm::started(|streams| self.steward.start(streams))
    }
}

impl Host for Walled<'_> {
    fn kvm(&self) -> Result<File, Error> {
        self.machine.kvm()
    }

    fn image(&self, config: &Config) -> Result<File, Error> {
        self.machine.image(config)
    }

    fn image_directory(&self, config: &Config, ids: &HostIds) -> Result<PathBuf, Error> {
        self.machine.image_directory(config, ids)
    }

    fn complain_to(&self, log: File) -> Result<(), Error> {
        self.machine.complain_to(log)
    }

    fn page_map(&self, _vmm: &Vmm) -> Option<File> {
        self.steward.have(&Chore::PageMap, &[]).ok().flatten()
    }

    fn template_worked(&self, _cache: &Cache, key: &Key) {
        let key = key.to_string();
        let _ = self.steward.have(&Chore::TemplateWorked { key }, &[]);
    }

    fn drop_template(&self, _cache: &Cache, key: &Key) {
        let key = key.to_string();
        let _ = self.steward.have(&Chore::DropTemplate { key }, &[]);
    }

    fn keep_pages(&self, _cache: &Cache, key: &Key, pages: File) {
        let key = key.to_string();
        let _ = self.steward.have(&Chore::KeepPages { key }, &[pages.as_fd()]);
    }

    fn make_snapshot_file(&self, _snapshots: &Snapshots, workspace: &str, part: Part) -> Result<File, Error> {
        let workspace = workspace.to_owned();
        let made = self
            .steward
            .have(&Chore::MakeSnapshotFile { workspace, part }, &[])?;
        made.ok_or_else(|| Error::Steward("no file came".to_owned()))
    }

    fn remove_socket(&self, _paths: &Paths, _id: &SandboxId) {
        let _ = self.steward.have(&Chore::RemoveSocket, &[]);
    }

    fn remove_sandbox(&self, _paths: &Paths, _id: &SandboxId, lock: &Lock) -> Result<(), Error> {
        self.steward
            .have(&Chore::RemoveSandbox, &[lock.as_fd()])
            .map(drop)
    }

    fn wall_in(&self, needs: &Needs) -> Result<(), Error> {
        Ok(walls::close(needs)?)
    }

    fn wake_timeout(&self, kvm: KvmKind) -> std::time::Duration {
        self.machine.wake_timeout(kvm)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::{
        supervisor::tests::in_runtime,
        test_support::{config, paths},
    };

    /// A root with one sandbox, whose brig-vmm is this program.
    fn root(program: &str) -> (tempfile::TempDir, Paths, SandboxId) {
        let (temporary, paths) = paths();
        fs::remove_file(paths.vmm()).unwrap();
        symlink(program, paths.vmm()).unwrap();
        let registry = Registry::new(paths.sandboxes());
        let made = registry.create(SandboxId::random().unwrap(), None, config, |_| Ok(()));
        (temporary, paths, made.unwrap().id)
    }

    #[test]
    fn what_it_starts_is_the_supervisors_child() {
        let (_temporary, paths, id) = root("/bin/cat");
        let machine = Machine::new(&paths);
        let walled = Walled::new(&machine, Steward::fork(&paths, &id).unwrap());
        in_runtime(async {
            let mut vmm = walled.spawn().unwrap();
            let status = fs::read_to_string(format!("/proc/{}/status", vmm.pid().unwrap())).unwrap();
            let parent = format!("PPid:\t{}\n", std::process::id());
            assert!(status.contains(&parent), "{status}");
            assert!(walled.page_map(&vmm).is_some());
            assert!(vmm.kill().await.is_some());
        });
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let (_temporary, paths, id) = root("/nonexistent");
        let machine = Machine::new(&paths);
        let walled = Walled::new(&machine, Steward::fork(&paths, &id).unwrap());
        in_runtime(async {
            let error = walled.spawn().unwrap_err();
            assert!(error.is_of_host());
            let text = error.to_string();
            assert!(text.contains("brig-vmm") && text.contains("make build"), "{text}");
        });
    }

    #[test]
    fn it_does_what_is_about_its_sandbox_and_refuses_other_things() {
        let (_temporary, paths, id) = root("/bin/cat");
        let machine = Machine::new(&paths);
        let walled = Walled::new(&machine, Steward::fork(&paths, &id).unwrap());
        let chore = |chore: Chore| walled.steward.have(&chore, &[]);
        for key in ["", "..", "../sandboxes"] {
            let key = key.to_owned();
            assert!(matches!(
                chore(Chore::DropTemplate { key }),
                Err(Error::Steward(_))
            ));
        }
        let snapshots = Snapshots::new(&paths);
        for workspace in ["..", "../sandboxes", ".new-nothing"] {
            let made = walled.make_snapshot_file(&snapshots, workspace, Part::Disk);
            assert!(matches!(made, Err(Error::Steward(_))), "{workspace}");
        }
        let workspace = snapshots.workspace().unwrap();
        walled
            .make_snapshot_file(&snapshots, &workspace.name(), Part::Disk)
            .unwrap();
        assert!(workspace.path().join("disk").exists());
        // Without its lock a sandbox stays.
        assert!(matches!(chore(Chore::RemoveSandbox), Err(Error::Steward(_))));
        let directory = Registry::new(paths.sandboxes()).directory(&id);
        let lock = Lock::try_take(&directory.lock()).unwrap().unwrap();
        walled.remove_sandbox(&paths, &id, &lock).unwrap();
        assert!(!directory.path().exists());
    }

    #[test]
    fn a_request_that_makes_no_sense_ends_it() {
        let (_temporary, paths, id) = root("/bin/cat");
        let steward = Steward::fork(&paths, &id).unwrap();
        channel::send(&steward.socket, &u64::MAX, &[]).unwrap();
        let error = steward.have(&Chore::RemoveSocket, &[]).unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
    }
}
