//! Starting a sandbox, and staying attached to it.

use std::{
    fs::OpenOptions,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::Path,
    process::Stdio,
};

use brig_protocol::frame::FrameError;
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
};

use crate::{
    Error, Paths, SandboxId,
    control::{CHUNK_BYTES, Exit, FRAME_BYTES, Reply, Request},
    frames::{self, FrameReader},
    sandbox::Directory,
};

/// How a sandbox is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// Whether output and exit status are wanted.
    pub attach: bool,
    /// Whether the sandbox shall be removed when the session ends before the process was started.
    pub discard: bool,
    /// Whether the guest shall boot, template or not.
    pub cold: bool,
    /// Whether what the guest costs is counted.
    pub count: bool,
}

/// A sandbox that is being started, and its supervisor. Dropping both halves before [`SessionOutput::started`] has given
/// its answer gives the start up; afterwards the sandbox goes on.
#[derive(Debug)]
pub struct Session {
    /// What comes from the supervisor.
    pub output: SessionOutput,
    /// What goes to it.
    pub input: SessionInput,
}

/// What comes from a supervisor.
#[derive(Debug)]
pub struct SessionOutput {
    id: String,
    supervisor: Child,
    replies: FrameReader<OwnedReadHalf, Reply>,
}

/// What goes to a supervisor.
#[derive(Debug)]
pub struct SessionInput {
    id: String,
    requests: OwnedWriteHalf,
}

/// What an attached session hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Bytes of standard output.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The end. Everything is cleaned up.
    Exited(Box<Exit>),
}

impl Session {
    /// Spawns a supervisor and asks it to start the sandbox.
    pub(super) async fn start(
        program: &Path,
        paths: &Paths,
        id: &SandboxId,
        options: StartOptions,
    ) -> Result<Self, Error> {
        let (ours, theirs) = StdUnixStream::pair().map_err(Error::Runtime)?;
        ours.set_nonblocking(true).map_err(Error::Runtime)?;
        let stream = UnixStream::from_std(ours).map_err(Error::Runtime)?;
        let supervisor = spawn(program, paths, id, theirs.into())?;
        let (read, requests) = stream.into_split();
        let id = id.short().to_owned();
        let replies = FrameReader::new(read, FRAME_BYTES);
        let mut session = Self {
            output: SessionOutput {
                id: id.clone(),
                supervisor,
                replies,
            },
            input: SessionInput { id, requests },
        };
        match session.output.reply().await? {
            Reply::Ready => {}
            Reply::Failed { code, message } => return Err(session.output.failed(code, message).await),
            _ => return Err(Error::SupervisorLost(session.output.id)),
        }
        let StartOptions {
            attach,
            discard,
            cold,
            count,
        } = options;
        let start = Request::Start {
            attach,
            discard,
            cold,
            count,
        };
        session.input.send(&start).await?;
        Ok(session)
    }

    /// Gives the start up and waits for the end of the supervisor.
    pub async fn give_up(self) {
        let SessionOutput {
            mut supervisor,
            replies,
            ..
        } = self.output;
        drop((self.input, replies));
        let _ = supervisor.wait().await;
    }
}

impl SessionOutput {
    /// Waits until the process runs. `notice` takes lines for the user about how the start goes. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Start`] with its exit code when it could not be started.
    pub async fn started(&mut self, notice: &mut dyn FnMut(&str)) -> Result<(), Error> {
        loop {
            match self.reply().await? {
                Reply::Notice(line) => notice(&line),
                Reply::Started => return Ok(()),
                Reply::Failed { code, message } => return Err(self.failed(code, message).await),
                // Somebody else stopped it before it ran.
                _ => return Err(Error::Interrupted),
            }
        }
    }

    /// The next output, or the end. Cancel safe.
    ///
    /// # Errors
    /// [`Error::SupervisorLost`], [`Error::Control`].
    pub async fn next(&mut self) -> Result<Message, Error> {
        match self.reply().await? {
            Reply::Stdout(bytes) => Ok(Message::Stdout(bytes)),
            Reply::Stderr(bytes) => Ok(Message::Stderr(bytes)),
            Reply::Exited(exit) => Ok(Message::Exited(exit)),
            Reply::Failed { code, message } => Err(self.failed(code, message).await),
            Reply::Ready | Reply::Notice(_) | Reply::Started | Reply::Done | Reply::Saved(_) => {
                Err(Error::SupervisorLost(self.id.clone()))
            }
        }
    }

    /// Waits for the end of the supervisor process, after the last message.
    pub async fn ended(&mut self) {
        let _ = self.supervisor.wait().await;
    }

    async fn reply(&mut self) -> Result<Reply, Error> {
        self.replies.next().await.map_err(|e| failure(&self.id, e))
    }

    async fn failed(&mut self, code: i32, message: String) -> Error {
        self.ended().await;
        Error::Start { code, message }
    }
}

impl SessionInput {
    /// Writes bytes to the process's standard input.
    ///
    /// # Errors
    /// [`Error::SupervisorLost`] when the sandbox has ended.
    pub async fn write_stdin(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(CHUNK_BYTES) {
            self.send(&Request::Stdin(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// Ends the process's standard input.
    ///
    /// # Errors
    /// As [`Self::write_stdin`].
    pub async fn close_stdin(&mut self) -> Result<(), Error> {
        self.send(&Request::StdinEnd).await
    }

    async fn send(&mut self, request: &Request) -> Result<(), Error> {
        frames::write(&mut self.requests, request, FRAME_BYTES)
            .await
            .map_err(|e| failure(&self.id, e))
    }
}

fn failure(id: &str, error: FrameError) -> Error {
    match error {
        FrameError::Closed | FrameError::Io(_) => Error::SupervisorLost(id.to_owned()),
        source => Error::Control {
            id: id.to_owned(),
            source,
        },
    }
}

/// Runs `brig supervise ID` with `starter` as its standard input. Of the environment it gets only what says where brig's
/// files are.
fn spawn(program: &Path, paths: &Paths, id: &SandboxId, starter: OwnedFd) -> Result<Child, Error> {
    let log_path = Directory::new(paths.sandbox(id)).supervisor_log();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|e| Error::file("open", &log_path)(e).missing_as(|| Error::NoSuchSandbox(id.to_string())))?;
    Command::new(program)
        .args(["supervise", id.as_str()])
        .env_clear()
        .env("BRIG_ROOT", &paths.root)
        .env("BRIG_RUNTIME", &paths.runtime)
        .env("BRIG_LIBDIR", &paths.lib)
        .current_dir("/")
        .stdin(starter)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(Error::file("run", program))
}
