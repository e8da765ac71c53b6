//! The process of a VMM: awaited, killed, and never left as a zombie.

use std::{io, process::ExitStatus, thread};

use tokio::io::{Interest, unix::AsyncFd};

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    /// `None` from the moment in which it has been collected, when its pid may be another's.
    child: Option<brig_jail::spawn::Process>,
    /// The child's pidfd, which is readable when it has ended.
    ended: AsyncFd<std::os::fd::OwnedFd>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Watches a child. Needs a tokio runtime.
    ///
    /// # Errors
    /// When its pidfd cannot be waited for; it is killed then.
    pub fn new(child: brig_jail::spawn::Process) -> io::Result<Self> {
        let watched = child
            .pidfd
            .try_clone()
            // SAFETY: an `OwnedFd` names the same open descriptor as long as it lives, and the `AsyncFd` owns it.
            .and_then(|pidfd| Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?));
        match watched {
            Ok(ended) => Ok(Self {
                child: Some(child),
                ended,
                status: None,
            }),
            Err(e) => {
                child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    /// Its pid, until its end has been noticed.
    pub fn pid(&self) -> Option<u32> {
        let child = self.child.as_ref()?;
        u32::try_from(child.pid.as_raw_nonzero().get()).ok()
    }

    /// Kills it; [`Self::wait`] tells its end.
    pub fn kill(&self) {
        if let Some(child) = &self.child {
            child.kill();
        }
    }

    /// Waits for its end. Cancel safe.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            let mut ready = self.ended.readable().await?;
            let Some(child) = &self.child else {
                return Err(io::ErrorKind::NotFound.into());
            };
            let collected = child.try_wait();
            if let Ok(None) = collected {
                ready.clear_ready();
                continue;
            }
            self.child = None;
            self.status = collected?;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        child.kill();
        // The kernel takes the guest's memory down meanwhile, for which nobody here has to wait.
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        let collect = move || {
            let _ = child.wait();
        };
        // Without a thread it stays a zombie until this process ends.
        let _ = thread::Builder::new().name("collect".into()).spawn(collect);
    }
}
