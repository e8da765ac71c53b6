//! Reading a log while it is written: woken by inotify(7), ended by the end of the sandbox's supervisor.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::{
    io::{AsyncReadExt, Interest, unix::AsyncFd},
    net::UnixStream,
};

use crate::{
    Error,
    events::{self, Event},
    log::{Entry, LineReader, LogOptions, LogReader},
    sandbox::Directory,
};

/// Bytes for the kernel's notices, of which only that they came is of interest.
const NOTICE_BYTES: usize = 4096;

/// A log that may still be written.
#[derive(Debug)]
pub struct LogFollower {
    reader: LogReader,
    notices: AsyncFd<OwnedFd>,
    /// A connection to the supervisor, which says something or closes at its end.
    supervisor: Option<UnixStream>,
}

impl LogFollower {
    /// Reads the log in `directory` until `supervisor` hears of the end; without a supervisor only what is there.
    pub(super) fn open(
        directory: &Directory,
        options: LogOptions,
        supervisor: Option<UnixStream>,
    ) -> Result<Self, Error> {
        let log = directory.log();
        let notices = watch(directory.path())?;
        // Opened after the watch, so that nothing falls between them.
        let reader = LogReader::open(&log, options).map_err(Error::file("read", &log))?;
        Ok(Self {
            reader,
            notices,
            supervisor,
        })
    }

    /// The next entry, or `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.reader.next()? {
                return Ok(Some(entry));
            }
            let Some(supervisor) = &mut self.supervisor else {
                return Ok(None);
            };
            let mut said = [0; 1];
            tokio::select! {
                // A word or the end of the connection: everything is written by then.
                _ = supervisor.read(&mut said) => self.supervisor = None,
                noticed = self.notices.async_io(Interest::READABLE, drain) => noticed?,
            }
        }
    }
}

/// Follows the events of a root, see [`crate::events`].
#[derive(Debug)]
pub struct EventFollower {
    reader: LineReader<Event>,
    notices: AsyncFd<OwnedFd>,
}

impl EventFollower {
    /// Those of the journal in `directory` from `since` on.
    pub(super) fn open(directory: &Path, since: Option<Timestamp>) -> Result<Self, Error> {
        let notices = watch(directory)?;
        // Opened after the watch, so that nothing falls between them.
        let reader = events::read(directory, since)?;
        Ok(Self { reader, notices })
    }

    /// The next event, which may be a long time off. Cancel safe.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.reader.next()? {
                return Ok(event);
            }
            self.notices.async_io(Interest::READABLE, drain).await?;
        }
    }
}

/// Notices of what is written in `directory`.
fn watch(directory: &Path) -> Result<AsyncFd<OwnedFd>, Error> {
    let watch = || -> io::Result<AsyncFd<OwnedFd>> {
        let notices = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let wanted = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
        inotify::add_watch(&notices, directory, wanted)?;
        // SAFETY: an `OwnedFd` names the same open descriptor as long as it lives, and the `AsyncFd` owns it.
        Ok(unsafe { AsyncFd::register_with_interest(notices, Interest::READABLE) }?)
    };
    watch().map_err(Error::file("watch", directory))
}

/// Takes the notices that are there.
fn drain(notices: &OwnedFd) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); NOTICE_BYTES];
    rustix::io::read(notices, &mut buffer)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Engine, SandboxId, control,
        log::{LogWriter, Stream},
        sandbox::{Registry, lock::Lock},
        test_support::{config, paths},
    };

    #[tokio::test]
    async fn entries_arrive_until_the_supervisor_ends() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path().to_owned());
        let (near, far) = UnixStream::pair().unwrap();
        let mut follower = LogFollower::open(&directory, LogOptions::default(), Some(far)).unwrap();
        let mut log = LogWriter::open(&directory.log(), crate::options::LogOptions::default()).unwrap();
        for line in ["one\n", "two\n"] {
            let next = follower.next();
            tokio::pin!(next);
            tokio::select! {
                biased;
                _ = &mut next => panic!("there is no entry yet"),
                () = tokio::task::yield_now() => {}
            }
            log.write(Stream::Stdout, line.as_bytes(), Timestamp::UNIX_EPOCH)
                .unwrap();
            assert_eq!(next.await.unwrap().unwrap().log, line);
        }
        log.write(Stream::Stdout, b"last\n", Timestamp::UNIX_EPOCH)
            .unwrap();
        drop(near);
        assert_eq!(follower.next().await.unwrap().unwrap().log, "last\n");
        assert_eq!(follower.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_log_of_a_sandbox_that_is_over_has_an_end() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path().to_owned());
        let mut follower = LogFollower::open(&directory, LogOptions::default(), None).unwrap();
        assert_eq!(follower.next().await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_that_is_just_starting_is_followed_to_its_end() {
        let (_temporary, paths) = paths();
        let registry = Registry::new(paths.sandboxes());
        let id = SandboxId::random().unwrap();
        registry
            .create(id.clone(), Some("web"), config, |_| Ok(()))
            .unwrap();
        let engine = Engine::open(paths.clone()).unwrap();
        let directory = registry.directory(&id);
        // What a supervisor does first; its socket comes later.
        let lock = Lock::try_take(&directory.lock()).unwrap().unwrap();
        let following = engine.follow("web", LogOptions::default());
        tokio::pin!(following);
        tokio::select! {
            biased;
            _ = &mut following => panic!("nobody has said yet that this sandbox has an end"),
            () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
        }
        let socket = control::bind(&paths.runtime, &id).unwrap();
        let mut follower = following.await.unwrap();
        let (connection, _) = socket.accept().await.unwrap();
        LogWriter::open(&directory.log(), crate::options::LogOptions::default())
            .unwrap()
            .write(Stream::Stdout, b"listening\n", Timestamp::UNIX_EPOCH)
            .unwrap();
        assert_eq!(follower.next().await.unwrap().unwrap().log, "listening\n");
        drop((connection, lock));
        assert_eq!(follower.next().await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_ends_without_its_socket_is_not_waited_for() {
        let (_temporary, paths) = paths();
        let registry = Registry::new(paths.sandboxes());
        let id = SandboxId::random().unwrap();
        registry
            .create(id.clone(), Some("web"), config, |_| Ok(()))
            .unwrap();
        let engine = Engine::open(paths).unwrap();
        let lock = Lock::try_take(&registry.directory(&id).lock()).unwrap().unwrap();
        let following = engine.follow("web", LogOptions::default());
        tokio::pin!(following);
        tokio::select! {
            biased;
            _ = &mut following => panic!("its supervisor may just have begun"),
            () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
        }
        drop(lock);
        assert_eq!(following.await.unwrap().next().await.unwrap(), None);
    }
}
