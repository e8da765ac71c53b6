//! What the engine and a sandbox's supervisor say to each other, over a unix socket in the runtime directory or, for the
//! process that starts a supervisor, over a socket that the supervisor is born with.
//!
//! | request | answers |
//! |---|---|
//! | `Start` | perhaps `Notice`, then `Started` or `Failed`; with `attach` then as `Attach` |
//! | `Attach` | any number of `Stdout` and `Stderr`, then `Exited`; takes `Stdin`, `StdinEnd` and `Resize` at any time |
//! | `Exec`, `Tool` | `ExecStarted` or `Failed`, any number of `Stdout` and `Stderr`, then `Ended`; takes the same, and `Detach` |
//! | `Signal` | `Done` |
//! | `Pause`, `Unpause` | `Done` or `Failed` |
//! | `Save` | `Saved` or `Failed` |
//! | `Traffic` | `Traffic` or `Failed` |
//! | `CopyDisk` | `Done` or `Failed` |
//! | `Stop`, `Kill`, `Wait` | `Exited`, when everything is cleaned up |
//!
//! A connection carries one request other than `Stdin`, `StdinEnd`, `Resize`, `Signal`, `Pause`, `Unpause`, `Save`, `CopyDisk` and
//! `Traffic`.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt, net::UnixListener as StdUnixListener},
    },
    path::{Path, PathBuf},
};

pub use brig_protocol::{agent::Traffic, spec::WindowSize, tool::Tool};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use crate::{Error, SandboxId, clock::Timing, snapshot::Layout};

/// Most bytes of output or input in one message.
pub const CHUNK_BYTES: usize = 32 << 10;

/// Most bytes of a frame, from a supervisor.
pub const FRAME_BYTES: usize = 64 << 10;

/// Most bytes of a frame to a supervisor: a command with its environment is in it.
pub const REQUEST_BYTES: usize = 2 << 20;

/// To a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Bind the ports, get a guest and start its process. Only on the socket that the supervisor was born with, and the first
    /// there; when that closes before `Started`, the start is given up.
    Start {
        /// Whether output and exit status are wanted on this connection.
        attach: bool,
        /// Whether the sandbox shall be removed when the start is given up.
        discard: bool,
        /// Whether the guest shall boot, template or not.
        cold: bool,
        /// Whether what the guest costs is counted, see [`crate::clock::Timing::costs`].
        count: bool,
        /// The size of the terminal that the process gets if it has one.
        size: Option<WindowSize>,
    },
    /// Send what the process writes from now on.
    Attach,
    /// Start another process, with this connection for its streams. When the connection closes before it has ended, its
    /// streams do: its terminal hangs up.
    Exec(Box<ExecRequest>),
    /// As `Exec`, for work of the agent's own in the sandbox.
    Tool(Tool),
    /// The process that this connection started goes on without it; what it writes goes nowhere.
    Detach,
    /// The terminal that this connection's process is seen on has this size.
    Resize(WindowSize),
    /// Bytes for the process's standard input; at most [`CHUNK_BYTES`].
    Stdin(Vec<u8>),
    /// The end of its standard input.
    StdinEnd,
    /// Send a signal to the process.
    Signal(u8),
    /// Send a signal, then SIGKILL when the process has not ended in time.
    Stop {
        /// The first signal.
        signal: u8,
        /// Seconds to wait; `None` waits for ever.
        timeout_s: Option<u32>,
        /// Whether the host goes down: its restart policy says then whether it is started after the next boot.
        with_host: bool,
    },
    /// Let all processes of the sandbox stand still.
    Pause,
    /// Let them go on.
    Unpause,
    /// Save the guest and the sandbox's disk, and let it go on.
    Save {
        /// The name of a [`crate::snapshot::Workspace`].
        workspace: String,
    },
    /// Copy the sandbox's disk, as it is between two writes.
    CopyDisk {
        /// The name of a [`crate::snapshot::Workspace`].
        workspace: String,
    },
    /// Tell what has gone through published ports.
    Traffic,
    /// End the guest at once.
    Kill,
    /// Wait for the end of the process.
    Wait,
}

/// A process to start beside the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value` entries, beside those of the sandbox.
    pub env: Vec<String>,
    /// The user, when it is not the sandbox's.
    pub user: Option<String>,
    /// The working directory, when it is not the sandbox's.
    pub working_dir: Option<String>,
    /// Whether standard input will come.
    pub stdin: bool,
    /// With a terminal of this size.
    pub tty: Option<WindowSize>,
    /// With every capability that there is.
    pub privileged: bool,
    /// Nobody wants its output or its end.
    pub detach: bool,
}

/// From a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// One line for the user about how the start goes.
    Notice(String),
    /// The process runs.
    Started,
    /// A process beside the first runs.
    ExecStarted {
        /// Microseconds that the guest's agent took from the receipt of the request to the exec, in its own words.
        took_us: u64,
    },
    /// The sandbox has been saved and goes on.
    Saved(SavedSandbox),
    /// What has gone through published ports, as the agent counts it.
    Traffic(Traffic),
    /// The sandbox could not be started, and everything is cleaned up; or it could not be saved.
    Failed {
        /// 125, 126 or 127.
        code: i32,
        /// One line.
        message: String,
    },
    /// Bytes of its standard output.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// The signal is on its way.
    Done,
    /// The process that this connection started has ended.
    Ended {
        /// Its exit code: the code, or 128 + signal.
        code: i32,
    },
    /// The process ended.
    Exited(Box<Exit>),
}

/// What a supervisor knows about a sandbox that it has saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSandbox {
    /// Its guest's disks.
    pub layout: Layout,
    /// `uname -r` of its guest.
    pub kernel: String,
    /// Bytes of its image's EROFS file.
    pub image_bytes: u64,
}

/// How a sandbox ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As Docker counts: the code, or 128 + signal.
    pub code: i32,
    /// Why brig or the guest ended it, when the process did not do so itself.
    pub error: Option<String>,
    /// When what happened.
    pub timing: Timing,
}

/// The path of a sandbox's control socket.
pub fn socket_path(runtime: &Path, id: &SandboxId) -> PathBuf {
    runtime.join(socket_name(id))
}

fn socket_name(id: &SandboxId) -> String {
    format!("{id}.sock")
}

/// Binds a sandbox's control socket, in the place of one that a killed supervisor left.
///
/// # Errors
/// [`Error::File`].
pub fn bind(runtime: &Path, id: &SandboxId) -> Result<UnixListener, Error> {
    let path = socket_path(runtime, id);
    let _ = std::fs::remove_file(&path);
    let directory = open_directory(runtime)?;
    StdUnixListener::bind(through(&directory, id))
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        })
        .map_err(Error::file("bind", &path))
}

/// Connects to a sandbox's supervisor.
///
/// # Errors
/// [`Error::NotRunning`] when there is none, otherwise [`Error::File`].
pub async fn connect(runtime: &Path, id: &SandboxId) -> Result<UnixStream, Error> {
    let path = socket_path(runtime, id);
    let directory = open_directory(runtime)?;
    UnixStream::connect(through(&directory, id))
        .await
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NotRunning(id.short().to_owned())
            }
            _ => Error::file("connect to", &path)(e),
        })
}

fn open_directory(runtime: &Path) -> Result<File, Error> {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(runtime)
        .map_err(Error::file("open", runtime))
}

/// A path of the socket that fits into the 108 bytes of `sun_path` (unix(7)) wherever the runtime directory is.
fn through(directory: &File, id: &SandboxId) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(socket_name(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_works_below_a_path_that_is_longer_than_sun_path() {
        let temporary = tempfile::tempdir().unwrap();
        let runtime = temporary.path().join("x".repeat(120));
        std::fs::create_dir(&runtime).unwrap();
        let id = SandboxId::random().unwrap();
        assert!(matches!(connect(&runtime, &id).await, Err(Error::NotRunning(_))));
        let listener = bind(&runtime, &id).unwrap();
        connect(&runtime, &id).await.unwrap();
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_a_killed_supervisor_left_is_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        let id = SandboxId::random().unwrap();
        drop(bind(temporary.path(), &id).unwrap());
        assert!(matches!(
            connect(temporary.path(), &id).await,
            Err(Error::NotRunning(_))
        ));
        let _listener = bind(temporary.path(), &id).unwrap();
        connect(temporary.path(), &id).await.unwrap();
    }
}
