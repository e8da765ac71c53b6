//! One brig-vmm process and the channel to it.

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{ExitStatus, Stdio},
    rc::Rc,
    time::Duration,
};

use brig_protocol::{
    channel::{self, ChannelError},
    vmm::{CHANNEL_FD, Command, Event},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command as Process},
    time::timeout,
};

/// How long a VMM that has said its last word may take to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a VMM could not be used.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The program is not there or cannot be run.
    #[error("cannot start {path}: run `make build`, or set BRIG_LIBDIR to the directory that has it")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why it cannot be started.
        source: io::Error,
    },
    /// The channel could not be made or used.
    #[error("cannot talk to brig-vmm")]
    Channel(#[from] ChannelError),
    /// It ended without a word.
    #[error("brig-vmm {0}")]
    Ended(String),
    /// It said that it failed.
    #[error("brig-vmm: {0}")]
    Failed(String),
    /// It was killed.
    #[error("brig-vmm {0}")]
    Killed(String),
    /// The guest in it failed.
    #[error("{0}")]
    Guest(String),
    /// It did not answer in time.
    #[error("brig-vmm did not answer within {0} seconds")]
    Timeout(u64),
}

/// Something that makes VMMs: brig-vmm processes, or in a test what plays one.
pub trait Spawn {
    /// Starts a VMM. What it writes to its standard error goes to `stderr`.
    ///
    /// # Errors
    /// [`VmmError::Spawn`] or [`VmmError::Channel`].
    fn spawn(&self, stderr: OwnedFd) -> Result<Vmm, VmmError>;
}

/// Starts the real brig-vmm.
#[derive(Clone, Debug)]
pub struct BrigVmm {
    /// The program.
    pub program: PathBuf,
}

impl Spawn for BrigVmm {
    fn spawn(&self, stderr: OwnedFd) -> Result<Vmm, VmmError> {
        let (ours, theirs) = channel::pair().map_err(ChannelError::Io)?;
        let mut command = std::process::Command::new(&self.program);
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let fd = theirs.as_raw_fd();
        let parent = std::process::id();
        // SAFETY: between fork and exec the closure calls only async-signal-safe functions (see `prepare_child`), and
        // `theirs` is dropped after the spawn, so `fd` is open in the child.
        unsafe { command.pre_exec(move || prepare_child(fd, parent)) };
        let child = Process::from(command).kill_on_drop(true).spawn();
        drop(theirs);
        let child = child.map_err(|source| VmmError::Spawn {
            path: self.program.clone(),
            source,
        })?;
        Vmm::new(ours, Some(child))
    }
}

/// In the child: the channel becomes [`CHANNEL_FD`], every other descriptor closes at the exec, and the process ends
/// when the thread that started it does, should it not heed the end of its channel.
fn prepare_child(channel: RawFd, parent: u32) -> io::Result<()> {
    if channel == CHANNEL_FD {
        // SAFETY: fcntl is async-signal-safe; the descriptor is open.
        check(unsafe { libc::fcntl(channel, libc::F_SETFD, 0) })?;
    } else {
        // SAFETY: dup2 is async-signal-safe. What CHANNEL_FD was before belongs to the parent's objects, none of
        // which is used in this child any more: std moves its own pipe for exec errors above 2 and marks it
        // close-on-exec; should it be this number, only the text of an exec error is lost.
        check(unsafe { libc::dup2(channel, CHANNEL_FD) })?;
    }
    // SAFETY: a plain system call without pointers; CLOSE_RANGE_CLOEXEC only sets flags.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            CHANNEL_FD as libc::c_uint + 1,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) as libc::c_int
    })?;
    // SAFETY: plain system calls without pointers.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The parent may have ended before the line above.
        if libc::getppid() as u32 != parent {
            libc::_exit(1);
        }
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The channel to a VMM.
#[derive(Debug)]
pub struct VmmChannel(AsyncFd<OwnedFd>);

impl VmmChannel {
    /// Sends a command with its descriptors; several tasks may do so at once.
    ///
    /// # Errors
    /// [`VmmError::Channel`].
    pub async fn send(&self, command: &Command, fds: &[BorrowedFd<'_>]) -> Result<(), VmmError> {
        self.io(Interest::WRITABLE, |socket| channel::send(socket, command, fds))
            .await
    }

    /// The next event. Cancel safe. Descriptors that a VMM sends along are closed: none is expected.
    ///
    /// # Errors
    /// [`VmmError::Channel`], with [`ChannelError::Closed`] when it has ended.
    pub async fn event(&self) -> Result<Event, VmmError> {
        let (event, _) = self
            .io(Interest::READABLE, |socket| channel::receive(socket))
            .await?;
        Ok(event)
    }

    async fn io<T>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(&OwnedFd) -> Result<T, ChannelError>,
    ) -> Result<T, VmmError> {
        let mut failure = None;
        let result = self
            .0
            .async_io(interest, |socket| {
                operation(socket).map_err(|e| match e {
                    ChannelError::Io(e) => e,
                    other => {
                        failure = Some(other);
                        io::ErrorKind::Other.into()
                    }
                })
            })
            .await;
        result.map_err(|e| VmmError::Channel(failure.unwrap_or(ChannelError::Io(e))))
    }
}

/// A VMM. Dropping it kills it.
#[derive(Debug)]
pub struct Vmm {
    /// How to talk to it.
    pub channel: Rc<VmmChannel>,
    /// `None` when what is at the other end is no child of this process.
    process: Option<Child>,
}

impl Vmm {
    /// The VMM at the other end of `channel`. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`VmmError::Channel`] when the channel cannot be waited for.
    pub fn new(channel: OwnedFd, process: Option<Child>) -> Result<Self, VmmError> {
        rustix::io::ioctl_fionbio(&channel, true).map_err(|e| ChannelError::Io(e.into()))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: an `OwnedFd` names the same open descriptor as long as it lives, and the `AsyncFd` owns it.
        let channel = unsafe { AsyncFd::register_with_interest(channel, interest) }
            .map_err(|e| ChannelError::Io(e.into()))?;
        Ok(Self {
            channel: Rc::new(VmmChannel(channel)),
            process,
        })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    /// Waits for a VMM that has closed its channel or said its last word, kills it when that takes too long, and
    /// tells how it ended.
    pub async fn ended(&mut self) -> Option<ExitStatus> {
        let process = self.process.as_mut()?;
        if let Ok(status) = timeout(END_TIMEOUT, process.wait()).await {
            return status.ok();
        }
        self.kill().await
    }

    /// Kills it and waits for its end.
    pub async fn kill(&mut self) -> Option<ExitStatus> {
        // For one that is no child the end of its channel is all that there is.
        let _ = rustix::net::shutdown(&self.channel.0, rustix::net::Shutdown::Both);
        let process = self.process.as_mut()?;
        let _ = process.start_kill();
        process.wait().await.ok()
    }
}

/// The end of a process in words: `was killed by signal 9`, `ended with status 1`.
pub(crate) fn describe_end(status: Option<ExitStatus>) -> String {
    match status {
        Some(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => format!("was killed by signal {signal}"),
            (None, Some(code)) => format!("ended with status {code}"),
            (None, None) => "ended".to_owned(),
        },
        None => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn pipe() -> (io::PipeReader, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, writer.into())
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_named() {
        let (_reader, stderr) = pipe();
        let error = BrigVmm {
            program: "/nonexistent/brig-vmm".into(),
        }
        .spawn(stderr)
        .unwrap_err();
        assert!(error.to_string().contains("/nonexistent/brig-vmm"), "{error}");
    }

    #[tokio::test]
    async fn a_vmm_has_its_channel_and_no_other_descriptor() {
        let (mut reader, stderr) = pipe();
        // A shell in the place of brig-vmm, which lists its descriptors; those of the listing itself are closed by then.
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("brig-vmm");
        let script = "#!/bin/sh\nset -- /proc/$$/fd/*\n[ -S /proc/$$/fd/3 ] && echo channel >&2\n\
                      for fd; do [ -e $fd ] && echo ${fd##*/} >&2; done\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let mut vmm = BrigVmm { program }.spawn(stderr).unwrap();
        vmm.ended().await.unwrap();
        drop(vmm);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        // dash keeps the script itself open as 10.
        let fds: Vec<&str> = said.lines().filter(|&line| line != "10").collect();
        assert_eq!(fds, ["channel", "0", "1", "2", "3"]);
    }

    #[tokio::test]
    async fn the_end_of_a_vmm_is_seen_on_its_channel() {
        let (_reader, stderr) = pipe();
        let mut vmm = BrigVmm {
            program: "/bin/true".into(),
        }
        .spawn(stderr)
        .unwrap();
        assert!(matches!(
            vmm.channel.event().await,
            Err(VmmError::Channel(ChannelError::Closed))
        ));
        assert_eq!(describe_end(vmm.ended().await), "ended with status 0");
    }

    #[tokio::test]
    async fn a_killed_vmm_is_reaped() {
        let (_reader, stderr) = pipe();
        let mut vmm = BrigVmm {
            program: "/bin/cat".into(),
        }
        .spawn(stderr)
        .unwrap();
        let pid = vmm.pid().unwrap();
        let status = vmm.kill().await;
        assert!(describe_end(status).contains("ended") || describe_end(status).contains("signal 9"));
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
