//! Processes beside the first: what the life of the guest knows of them, and how a client's connection is joined with one.
//!
//! The life of the guest numbers them and passes on what the agent says ([`Execs`]); their bytes go between their streams and
//! the client in a task of its own ([`Session`]), one piece at a time: a client that takes nothing holds its own
//! process and nobody else's. When the client leaves, the streams are closed and with them goes what depended on
//! them: the terminal hangs up, standard input ends, whoever writes gets `SIGPIPE`.

use std::{collections::BTreeMap, time::Duration};

use brig_protocol::{
    agent::{FromAgent, StartFailure, ToAgent},
    spec::WindowSize,
    tool::Tool,
};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::{Order, life::feed, start::Streams};
use crate::{
    control::{CHUNK_BYTES, ExecRequest, Reply, Request},
    error::{CODE_BRIG, CODE_COMMAND, CODE_NOT_EXECUTABLE, chain, one_line, start_failure_code},
    guest::Guest,
    sandbox::{Config, Directory, state::KILLED_CODE},
    spec::exec_spec,
};

/// Most characters of an agent's message that a user sees.
const AGENT_TEXT: usize = 1000;

/// How long a stream may be silent, after its process has ended, before it is taken for finished.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Pieces of standard input that wait for the process to take them.
const STDIN_PIECES: usize = 4;

/// What became of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It runs.
    Started {
        /// As [`Reply::ExecStarted`] tells it.
        took_us: u64,
    },
    /// It could not be started.
    Failed {
        /// Its exit code.
        code: i32,
        /// One line.
        message: String,
    },
    /// It ended with this exit code.
    Ended(i32),
}

/// A process that is being started.
#[derive(Debug)]
pub(super) struct Running {
    /// Its number.
    pub process: u32,
    /// Its streams.
    pub streams: Streams,
    /// What becomes of it: at most one of each.
    pub news: mpsc::UnboundedReceiver<News>,
}

/// What is wanted of the agent.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// To start a process.
    Exec(Box<ExecRequest>),
    /// To do something itself.
    Tool(Tool),
}

/// The order to start one.
#[derive(Debug)]
pub(super) struct ExecOrder {
    /// What to start.
    pub wanted: Wanted,
    /// Takes the process, or its exit code and one line about what is wrong. Dropped when this is no time for it.
    pub answer: oneshot::Sender<Result<Running, (i32, String)>>,
}

impl ExecOrder {
    /// Says that nothing is started.
    pub fn refuse(self, message: &str) {
        let _ = self.answer.send(Err((CODE_COMMAND, message.to_owned())));
    }
}

/// Numbers of processes that are left to those of a saved sandbox.
const NUMBERS: u32 = 1 << 30;

/// A process that has not ended.
#[derive(Debug)]
struct Known {
    client: mpsc::UnboundedSender<News>,
    /// Whether it is the user's own, so that events tell of it.
    is_told: bool,
}

/// The processes beside the first.
#[derive(Debug)]
pub(super) struct Execs {
    last: u32,
    all: BTreeMap<u32, Known>,
    directory: Directory,
}

impl Execs {
    /// None yet. In a copy of a saved sandbox some may run that its agent knows by their numbers: the new ones have others.
    pub fn new(is_copy: bool, directory: Directory) -> Self {
        let last = if is_copy {
            (crate::clock::monotonic_ns() >> 10) as u32 % NUMBERS
        } else {
            0
        };
        Self {
            last,
            all: BTreeMap::new(),
            directory,
        }
    }

    /// Starts one. A guest that has failed says so elsewhere.
    pub async fn begin(&mut self, guest: &mut Guest, config: &Config, order: ExecOrder) {
        let ExecOrder { wanted, answer } = order;
        let _ = answer.send(self.start(guest, config, wanted).await);
    }

    async fn start(
        &mut self,
        guest: &mut Guest,
        config: &Config,
        wanted: Wanted,
    ) -> Result<Running, (i32, String)> {
        let failed = |message: String| (CODE_BRIG, message);
        let spec = match &wanted {
            Wanted::Exec(request) => Some(exec_spec(config, request).map_err(|e| failed(chain(&e)))?),
            Wanted::Tool(_) => None,
        };
        let Some(process) = self.last.checked_add(1) else {
            return Err(failed("too many processes have been started in it".to_owned()));
        };
        self.last = process;
        let (stdin, tty) = spec
            .as_ref()
            .map_or((true, false), |spec| (spec.stdin, spec.tty.is_some()));
        let streams = Streams::connect(&guest.vmm.channel, process, stdin, tty);
        let streams = streams.await.map_err(|e| failed(chain(&e)))?;
        let command = spec.as_ref().map(|spec| spec.args.join(" "));
        let message = match (wanted, spec) {
            (Wanted::Tool(tool), _) => {
                let root = None;
                ToAgent::Tool { process, tool, root }
            }
            (Wanted::Exec(_), Some(spec)) => ToAgent::Exec {
                process,
                spec: Box::new(spec),
            },
            (Wanted::Exec(_), None) => return Err(failed("it has nothing to start".to_owned())),
        };
        guest.tell(&message).await.map_err(|e| failed(chain(&e)))?;
        let (client, news) = mpsc::unbounded_channel();
        let is_told = command.is_some();
        self.all.insert(process, Known { client, is_told });
        if let Some(command) = command {
            for action in ["exec_create", "exec_start"] {
                self.note(process, &format!("{action}: {command}"), None);
            }
        }
        Ok(Running {
            process,
            streams,
            news,
        })
    }

    /// Takes what the agent says of one.
    pub fn heed(&mut self, message: &FromAgent) {
        let (process, news) = match message {
            FromAgent::Started { process, took_us, .. } => (process, News::Started { took_us: *took_us }),
            FromAgent::StartFailed {
                process,
                kind,
                message,
            } => {
                let message = one_line(message, AGENT_TEXT);
                let code = failure_code(*kind);
                (process, News::Failed { code, message })
            }
            FromAgent::Exited { process, status } => (process, News::Ended(status.code())),
            _ => return,
        };
        // One that nobody waits for any more is no business of anybody's.
        if matches!(news, News::Started { .. }) {
            if let Some(known) = self.all.get(process) {
                let _ = known.client.send(news);
            }
        } else if let Some(known) = self.all.remove(process) {
            if let News::Ended(code) | News::Failed { code, .. } = &news
                && known.is_told
            {
                self.note(*process, "exec_die", Some(*code));
            }
            let _ = known.client.send(news);
        }
    }

    /// Notes what has happened to a process, see [`crate::events`].
    fn note(&self, process: u32, action: &str, code: Option<i32>) {
        let mut told = vec![("execID", process.to_string())];
        told.extend(code.map(|code| ("exitCode", code.to_string())));
        self.directory.note(action, &told);
    }

    /// The first process has ended, and with it all others.
    pub fn finish(&mut self) {
        for (process, known) in std::mem::take(&mut self.all) {
            if known.is_told {
                self.note(process, "exec_die", Some(KILLED_CODE));
            }
            let _ = known.client.send(News::Ended(KILLED_CODE));
        }
    }
}

/// As Docker's: what cannot be executed for whatever reason is 126, but for what is not there.
fn failure_code(kind: StartFailure) -> i32 {
    match kind {
        StartFailure::UnknownUser | StartFailure::Other => CODE_NOT_EXECUTABLE,
        kind => start_failure_code(kind),
    }
}

/// The client's side of a process. Replies go out through `reply`, requests come in through `request`.
pub(super) struct Session {
    orders: mpsc::Sender<Order>,
    process: u32,
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    feeding: Option<JoinHandle<()>>,
}

impl Session {
    /// Takes the input's stream of `running`.
    pub fn new(orders: mpsc::Sender<Order>, running: &mut Running) -> Self {
        let (mut stdin, mut feeding) = (None, None);
        if let Some(socket) = running.streams.stdin.take() {
            let (sender, pieces) = mpsc::channel(STDIN_PIECES);
            stdin = Some(sender);
            feeding = Some(tokio::task::spawn_local(feed(socket, pieces)));
        }
        Self {
            orders,
            process: running.process,
            stdin,
            feeding,
        }
    }

    /// Does what the client asks for. `false`: it wants nothing more of this process.
    pub async fn take(&mut self, request: Request) -> bool {
        match request {
            Request::Stdin(bytes) => {
                if let Some(stdin) = &self.stdin {
                    let _ = stdin.send(bytes).await;
                }
            }
            Request::StdinEnd => self.stdin = None,
            Request::Resize(size) => self.resize(size).await,
            Request::Signal(signal) => {
                let process = self.process;
                let _ = self.orders.send(Order::SignalProcess { process, signal }).await;
            }
            _ => return false,
        }
        true
    }

    async fn resize(&self, size: WindowSize) {
        let process = self.process;
        let _ = self.orders.send(Order::Resize { process, size }).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(feeding) = &self.feeding {
            feeding.abort();
        }
    }
}

/// What a process writes and what becomes of it, in the order in which a client is to hear of it.
pub(super) struct Replies {
    news: mpsc::UnboundedReceiver<News>,
    stdout: Source,
    stderr: Source,
    ended: Option<i32>,
    over: bool,
}

/// A stream that is read piece by piece.
struct Source {
    /// Gone at its end.
    socket: Option<UnixStream>,
    buffer: Vec<u8>,
}

impl Source {
    fn new(socket: Option<UnixStream>) -> Self {
        Self {
            socket,
            buffer: vec![0; CHUNK_BYTES],
        }
    }

    /// The next piece, empty at the end of the stream; never for one that is over. Cancel safe.
    async fn next(&mut self) -> Vec<u8> {
        let Some(socket) = &mut self.socket else {
            return std::future::pending().await;
        };
        let count = socket.read(&mut self.buffer).await.unwrap_or(0);
        if count == 0 {
            self.socket = None;
        }
        self.buffer[..count].to_vec()
    }
}

impl Replies {
    /// Of this process.
    pub fn new(running: Running) -> Self {
        let Streams { stdout, stderr, .. } = running.streams;
        Self {
            news: running.news,
            stdout: Source::new(Some(stdout)),
            stderr: Source::new(stderr),
            ended: None,
            over: false,
        }
    }

    /// The next one; `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Reply> {
        while !self.over {
            let is_drained = self.stdout.socket.is_none() && self.stderr.socket.is_none();
            if let Some(code) = self.ended
                && is_drained
            {
                self.over = true;
                return Some(Reply::Ended { code });
            }
            let patience = self.ended.map_or(Duration::MAX, |_| DRAIN_TIMEOUT);
            let something = async {
                tokio::select! {
                    // That it runs is said before what it writes.
                    biased;
                    news = self.news.recv(), if self.ended.is_none() => Happened::News(news),
                    bytes = self.stdout.next() => Happened::Stdout(bytes),
                    bytes = self.stderr.next() => Happened::Stderr(bytes),
                }
            };
            match timeout(patience, something).await {
                Ok(Happened::News(Some(News::Started { took_us }))) => {
                    return Some(Reply::ExecStarted { took_us });
                }
                Ok(Happened::News(Some(News::Failed { code, message }))) => {
                    self.over = true;
                    return Some(Reply::Failed { code, message });
                }
                Ok(Happened::News(Some(News::Ended(code)))) => self.ended = Some(code),
                Ok(Happened::News(None)) => self.ended = Some(KILLED_CODE),
                Ok(Happened::Stdout(bytes)) if !bytes.is_empty() => return Some(Reply::Stdout(bytes)),
                Ok(Happened::Stderr(bytes)) if !bytes.is_empty() => return Some(Reply::Stderr(bytes)),
                Ok(_) => {}
                Err(_) => (self.stdout.socket, self.stderr.socket) = (None, None),
            }
        }
        None
    }

    /// Takes everything to the end, for nobody.
    pub async fn discard(mut self) {
        while self.next().await.is_some() {}
    }
}

/// What a process does next.
enum Happened {
    News(Option<News>),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}
