//! Starting a sandbox, and staying attached to it.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    process::Stdio,
};

use brig_protocol::{frame::FrameError, spec::WindowSize};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
};

use crate::{
    Error, Paths, SandboxId,
    control::{CHUNK_BYTES, Exit, FRAME_BYTES, REQUEST_BYTES, Reply, Request},
    frames::{self, FrameReader},
    supervisor::Likely,
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
    /// The size of the process's terminal, if it has one.
    pub size: Option<WindowSize>,
}

/// A sandbox that is being started, and its supervisor; or one that runs and is attached to, or another process in it. Dropping both halves before [`SessionOutput::started`] has given
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
    /// Who it was that started it.
    supervisor: Option<Child>,
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
    /// The end of the process that was started beside the first, with its exit code.
    Ended(i32),
    /// The end. Everything is cleaned up.
    Exited(Box<Exit>),
}

/// A supervisor that has been spawned and not been told yet what to do. It ends when this is dropped.
#[derive(Debug)]
pub struct Summoned {
    id: SandboxId,
    supervisor: Child,
    stream: UnixStream,
}

impl Summoned {
    /// Runs `brig-supervisor ID [container | VCPUS MEMORY]`, with a socket as its standard input. Of the environment it gets only what says where brig's
    /// files are.
    pub(super) fn new(paths: &Paths, id: &SandboxId, likely: Likely) -> Result<Self, Error> {
        let program = paths.supervisor();
        let (ours, theirs) = StdUnixStream::pair().map_err(Error::Runtime)?;
        ours.set_nonblocking(true).map_err(Error::Runtime)?;
        // No working directory is asked for, so that it can be spawned without a fork (posix_spawn(3)): it goes where it
        // wants to be by itself. What it has to say before it opens its log is for the one who started it.
        let words = likely.words();
        let supervisor = Command::new(&program)
            .arg(id.as_str())
            .args(words)
            .env_clear()
            .env("BRIG_ROOT", &paths.root)
            .env("BRIG_RUNTIME", &paths.runtime)
            .env("BRIG_LIBDIR", &paths.lib)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| Error::Installation {
                path: program,
                source,
            })?;
        Ok(Self {
            id: id.clone(),
            supervisor,
            stream: UnixStream::from_std(ours).map_err(Error::Runtime)?,
        })
    }

    /// Whose supervisor it is.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Asks it to start the sandbox, which must be there now.
    ///
    /// # Errors
    /// [`Error::SupervisorLost`].
    pub async fn start(self, options: StartOptions) -> Result<Session, Error> {
        let mut session = Session::new(&self.id, self.stream, Some(self.supervisor));
        let StartOptions {
            attach,
            discard,
            cold,
            count,
            size,
        } = options;
        let start = Request::Start {
            attach,
            discard,
            cold,
            count,
            size,
        };
        session.input.send(&start).await?;
        Ok(session)
    }
}

impl Session {
    /// Over a connection to the supervisor of `id`.
    pub(super) fn new(id: &SandboxId, stream: UnixStream, supervisor: Option<Child>) -> Self {
        let (read, requests) = stream.into_split();
        let id = id.short().to_owned();
        Self {
            output: SessionOutput {
                id: id.clone(),
                supervisor,
                replies: FrameReader::new(read, FRAME_BYTES),
            },
            input: SessionInput { id, requests },
        }
    }
}

impl SessionOutput {
    /// Waits until the process runs. `notice` takes lines for the user about how the start goes. Gives how long the guest's agent
    /// took to start one beside the first, in microseconds. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Start`] with its exit code when it could not be started.
    pub async fn started(&mut self, notice: &mut dyn FnMut(&str)) -> Result<Option<u64>, Error> {
        loop {
            match self.reply().await? {
                Reply::Notice(line) => notice(&line),
                Reply::Started => return Ok(None),
                Reply::ExecStarted { took_us } => return Ok(Some(took_us)),
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
            Reply::Ended { code } => Ok(Message::Ended(code)),
            Reply::Exited(exit) => Ok(Message::Exited(exit)),
            Reply::Failed { code, message } => Err(self.failed(code, message).await),
            Reply::Notice(_)
            | Reply::Started
            | Reply::ExecStarted { .. }
            | Reply::Done
            | Reply::Saved(_)
            | Reply::Traffic(_) => Err(Error::SupervisorLost(self.id.clone())),
        }
    }

    /// Waits for the end of the supervisor process, after the last message.
    pub async fn ended(&mut self) {
        if let Some(supervisor) = &mut self.supervisor {
            let _ = supervisor.wait().await;
        }
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

    /// Says that the terminal that the process is seen on has this size.
    ///
    /// # Errors
    /// As [`Self::write_stdin`].
    pub async fn resize(&mut self, size: WindowSize) -> Result<(), Error> {
        self.send(&Request::Resize(size)).await
    }

    /// Lets a process that was started beside the first go on without this session, which is to be dropped then.
    ///
    /// # Errors
    /// As [`Self::write_stdin`].
    pub async fn detach(&mut self) -> Result<(), Error> {
        self.send(&Request::Detach).await
    }

    pub(super) async fn send(&mut self, request: &Request) -> Result<(), Error> {
        frames::write(&mut self.requests, request, REQUEST_BYTES)
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
