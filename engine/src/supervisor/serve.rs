//! Connections of the engine's: see [`crate::control`] for what is said on them.

use std::{cell::RefCell, rc::Rc, time::Duration};

use brig_protocol::spec::WindowSize;
use tokio::{
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
};

use super::{
    Order,
    exec::{ExecOrder, Replies, Session, Wanted},
    output::Output,
};
use crate::{
    control::{FRAME_BYTES, REQUEST_BYTES, Reply, Request},
    error::{CODE_BRIG, CODE_COMMAND},
    frames::{self, FrameReader},
    sandbox::state::Ender,
};

/// Pieces of standard input that wait for the process to take them.
const STDIN_PIECES: usize = 4;

/// Most connections at a time. They come from the user's own processes.
const CONNECTIONS: usize = 256;

/// How long an agent may take to answer a question.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);

/// How long to rest when the process has run out of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How far the sandbox is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// It is being started; there may be a line for the one who wants that.
    Starting(Option<String>),
    /// Its process runs; the line has perhaps not been told yet.
    Running(Option<String>),
    /// It is over, and this is what every client is told.
    Over(Reply),
}

impl Phase {
    /// The process runs.
    pub fn run(&mut self) {
        let notice = match self {
            Self::Starting(notice) => notice.take(),
            _ => None,
        };
        *self = Self::Running(notice);
    }
}

/// How the sandbox is to be started. The default is a start that nobody waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begin {
    /// Whether the starter wants output and exit status.
    attach: bool,
    /// Whether the sandbox shall be removed when the start is given up.
    discard: bool,
    /// Whether the guest shall boot, template or not.
    pub cold: bool,
    /// Whether what the guest costs is counted.
    pub count: bool,
    /// The size of the process's terminal.
    pub size: Option<WindowSize>,
}

/// Takes the first request of the one who starts the sandbox; `None` when that is no start, or no request at all.
pub(super) async fn begin(requests: &mut FrameReader<OwnedReadHalf, Request>) -> Option<Begin> {
    match requests.next().await {
        Ok(Request::Start {
            attach,
            discard,
            cold,
            count,
            size,
        }) => Some(Begin {
            attach,
            discard,
            cold,
            count,
            size,
        }),
        _ => None,
    }
}

/// What a connection's requests came to.
enum Left {
    /// The client is gone.
    Gone {
        /// What writes its replies.
        writer: Option<AbortHandle>,
        /// Whether it was attached to the first process.
        attached: bool,
    },
    /// It is for another process from here on.
    Exec { wanted: Wanted, write: OwnedWriteHalf },
}

/// Serves connections. Clones share everything.
#[derive(Clone)]
pub(super) struct Service(Rc<Inner>);

struct Inner {
    orders: mpsc::Sender<Order>,
    phase: watch::Receiver<Phase>,
    output: Output,
    /// Gone after the end of standard input.
    stdin: RefCell<Option<mpsc::Sender<Vec<u8>>>>,
    /// Whether it ends with the first client that was attached.
    stdin_once: bool,
    /// Tasks that write replies: to attached clients, and to the others.
    attached: RefCell<JoinSet<()>>,
    waiting: RefCell<JoinSet<()>>,
}

impl Service {
    /// A service and the process's standard input, as clients write it.
    pub fn new(
        orders: mpsc::Sender<Order>,
        phase: watch::Receiver<Phase>,
        output: Output,
        stdin_once: bool,
    ) -> (Self, mpsc::Receiver<Vec<u8>>) {
        let (stdin, input) = mpsc::channel(STDIN_PIECES);
        let inner = Inner {
            orders,
            phase,
            output,
            stdin: RefCell::new(Some(stdin)),
            stdin_once,
            attached: RefCell::default(),
            waiting: RefCell::default(),
        };
        (Self(Rc::new(inner)), input)
    }

    /// Serves the control socket.
    pub async fn listen(self, listener: Rc<UnixListener>) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= CONNECTIONS {
                connections.join_next().await;
            }
            match listener.accept().await {
                Ok((stream, _)) => {
                    connections.spawn_local(self.clone().client(stream));
                }
                Err(_) => tokio::time::sleep(ACCEPT_REST).await,
            }
        }
    }

    /// Serves the connection of the one who starts the sandbox, from what follows `begin` on: what the process writes from
    /// now on is for it.
    pub fn serve_starter(
        self,
        mut requests: FrameReader<OwnedReadHalf, Request>,
        write: OwnedWriteHalf,
        begin: Begin,
    ) {
        let attached = begin.attach.then(|| self.0.output.attach());
        let replies = self.clone().replies(write, true, attached);
        let writer = if begin.attach {
            self.spawn_attached(replies)
        } else {
            self.spawn_waiting(replies)
        };
        tokio::task::spawn_local(async move {
            self.requests(&mut requests, None).await;
            if matches!(*self.0.phase.borrow(), Phase::Starting(_)) {
                let discard = begin.discard;
                let _ = self.0.orders.send(Order::GiveUp { discard }).await;
            }
            if begin.attach {
                self.end_stdin();
            }
            writer.abort();
        });
    }

    async fn client(self, stream: UnixStream) {
        let (read, write) = stream.into_split();
        let mut requests = FrameReader::new(read, REQUEST_BYTES);
        match self.requests(&mut requests, Some(write)).await {
            // Nobody reads the replies any more.
            Left::Gone { writer, attached } => {
                if let Some(writer) = writer {
                    writer.abort();
                }
                if attached {
                    self.end_stdin();
                }
            }
            // Not with the connections that are given up when the process has ended: this one has its end to tell.
            Left::Exec { wanted, write } => {
                let session = self.clone().exec(requests, write, wanted);
                self.spawn_attached(session);
            }
        }
    }

    /// Starts a process with this connection for its streams.
    async fn exec(
        self,
        mut requests: FrameReader<OwnedReadHalf, Request>,
        mut write: OwnedWriteHalf,
        wanted: Wanted,
    ) {
        let detached = matches!(&wanted, Wanted::Exec(request) if request.detach);
        let (answer, running) = oneshot::channel();
        let order = Order::Exec(ExecOrder { wanted, answer });
        let _ = self.0.orders.send(order).await;
        let mut running = match running.await {
            Ok(Ok(running)) => running,
            failed => {
                let (code, message) = match failed {
                    Ok(Err(failed)) => failed,
                    _ => (CODE_COMMAND, "the sandbox does not run".to_owned()),
                };
                let _ = send(&mut write, &Reply::Failed { code, message }).await;
                return;
            }
        };
        let mut session = Session::new(self.0.orders.clone(), &mut running);
        let mut replies = Replies::new(running);
        let outward = async {
            while let Some(reply) = replies.next().await {
                if send(&mut write, &reply).await.is_err() {
                    // The client is gone. Whether it has said that the process goes on is still to be read.
                    return std::future::pending().await;
                }
                if detached && matches!(reply, Reply::ExecStarted { .. }) {
                    return true;
                }
            }
            false
        };
        let inward = async {
            while let Ok(request) = requests.next().await {
                if matches!(request, Request::Detach) {
                    return true;
                }
                if !session.take(request).await {
                    return false;
                }
            }
            false
        };
        let goes_on = tokio::select! {
            goes_on = outward => goes_on,
            goes_on = inward => goes_on,
        };
        if goes_on {
            // Its input stays open with the session.
            replies.discard().await;
        }
    }

    /// Takes requests until the client is gone. The first that is answered over time takes `write`.
    async fn requests(
        &self,
        requests: &mut FrameReader<OwnedReadHalf, Request>,
        mut write: Option<OwnedWriteHalf>,
    ) -> Left {
        let mut writer = None;
        let mut attached = false;
        while let Ok(request) = requests.next().await {
            let order = match request {
                // Only the starter's first.
                Request::Start { .. } | Request::Detach => break,
                Request::Exec(request) => {
                    let Some(write) = write.take() else { break };
                    let wanted = Wanted::Exec(request);
                    return Left::Exec { wanted, write };
                }
                Request::Tool(tool) => {
                    let Some(write) = write.take() else { break };
                    let wanted = Wanted::Tool(tool);
                    return Left::Exec { wanted, write };
                }
                Request::Resize(size) => {
                    let _ = self.0.orders.send(Order::Resize { process: 0, size }).await;
                    continue;
                }
                Request::Stdin(bytes) => {
                    self.feed_stdin(bytes).await;
                    continue;
                }
                Request::StdinEnd => {
                    self.end_stdin();
                    continue;
                }
                Request::Signal(signal) => {
                    self.signal(signal, write.as_mut()).await;
                    continue;
                }
                Request::Pause | Request::Unpause => {
                    let still = request == Request::Pause;
                    let (done, answer) = oneshot::channel();
                    let _ = self.0.orders.send(Order::Pause { still, done }).await;
                    reply_when_done(answer, |()| Reply::Done, write.as_mut()).await;
                    continue;
                }
                Request::Save { workspace } => {
                    self.save(workspace, write.as_mut()).await;
                    continue;
                }
                Request::CopyDisk { workspace } => {
                    self.copy_disk(workspace, write.as_mut()).await;
                    continue;
                }
                Request::Traffic => {
                    self.traffic(write.as_mut()).await;
                    continue;
                }
                Request::Attach => {
                    let Some(write) = write.take() else { break };
                    let replies = self.clone().replies(write, false, Some(self.0.output.attach()));
                    writer = Some(self.spawn_attached(replies));
                    attached = true;
                    continue;
                }
                Request::Wait => None,
                Request::Stop {
                    signal,
                    timeout_s,
                    with_host,
                } => Some(Order::Stop {
                    signal,
                    timeout_s,
                    ender: if with_host { Ender::Host } else { Ender::User },
                }),
                Request::Kill => Some(Order::Kill),
            };
            let Some(write) = write.take() else { break };
            let replies = self.clone().replies(write, false, None);
            writer = Some(self.spawn_waiting(replies));
            if let Some(order) = order {
                let _ = self.0.orders.send(order).await;
            }
        }
        Left::Gone { writer, attached }
    }

    fn spawn_attached(&self, replies: impl Future<Output = ()> + 'static) -> AbortHandle {
        spawn(&self.0.attached, replies)
    }

    fn spawn_waiting(&self, replies: impl Future<Output = ()> + 'static) -> AbortHandle {
        spawn(&self.0.waiting, replies)
    }

    async fn signal(&self, signal: u8, write: Option<&mut OwnedWriteHalf>) {
        let _ = self.0.orders.send(Order::Signal(signal)).await;
        if let Some(write) = write {
            let _ = send(write, &Reply::Done).await;
        }
    }

    async fn save(&self, workspace: String, write: Option<&mut OwnedWriteHalf>) {
        let (done, answer) = oneshot::channel();
        let _ = self.0.orders.send(Order::Save { workspace, done }).await;
        reply_when_done(answer, Reply::Saved, write).await;
    }

    async fn copy_disk(&self, workspace: String, write: Option<&mut OwnedWriteHalf>) {
        let (done, answer) = oneshot::channel();
        let _ = self.0.orders.send(Order::CopyDisk { workspace, done }).await;
        reply_when_done(answer, |()| Reply::Done, write).await;
    }

    async fn traffic(&self, write: Option<&mut OwnedWriteHalf>) {
        let (done, answer) = oneshot::channel();
        let _ = self.0.orders.send(Order::Traffic { done }).await;
        // A guest that does not answer must not keep connections for ever.
        let answer = async {
            let answer = tokio::time::timeout(AGENT_PATIENCE, answer).await;
            answer.unwrap_or_else(|_| Ok(Err("its agent does not answer".to_owned())))
        };
        reply_when_done(answer, Reply::Traffic, write).await;
    }

    async fn feed_stdin(&self, bytes: Vec<u8>) {
        let sender = self.0.stdin.borrow().clone();
        if let Some(sender) = sender {
            let _ = sender.send(bytes).await;
        }
    }

    /// A client has no more input: as with Docker that is the end for the process only when nobody else is to come.
    fn end_stdin(&self) {
        if self.0.stdin_once {
            self.0.stdin.borrow_mut().take();
        }
    }

    /// Sends output as it comes, then how everything ended; for the starter, also that the process runs.
    async fn replies(
        self,
        mut write: OwnedWriteHalf,
        starter: bool,
        attached: Option<super::output::Attached>,
    ) {
        let mut phase = self.0.phase.clone();
        if starter {
            let mut told = false;
            loop {
                let now = phase.borrow_and_update().clone();
                if let Phase::Starting(Some(notice)) | Phase::Running(Some(notice)) = &now
                    && !told
                {
                    told = true;
                    if send(&mut write, &Reply::Notice(notice.clone())).await.is_err() {
                        return;
                    }
                }
                match now {
                    Phase::Starting(_) if phase.changed().await.is_err() => return,
                    Phase::Starting(_) => {}
                    Phase::Running(_) if send(&mut write, &Reply::Started).await.is_err() => return,
                    Phase::Running(_) | Phase::Over(_) => break,
                }
            }
        }
        if let Some(mut attached) = attached {
            while let Some(reply) = attached.next().await {
                if send(&mut write, &reply).await.is_err() {
                    return;
                }
                attached.delivered(&reply);
            }
        }
        let over = phase
            .wait_for(|phase| matches!(phase, Phase::Over(_)))
            .await
            .map(|now| now.clone());
        if let Ok(Phase::Over(reply)) = over {
            let _ = send(&mut write, &reply).await;
        }
    }

    /// Waits until every client has been told how it ended: `patience` for those that wait, without a limit for those
    /// that take output, unless they leave.
    pub async fn finish(&self, patience: Duration) {
        let mut attached = self.0.attached.take();
        while attached.join_next().await.is_some() {}
        let mut waiting = self.0.waiting.take();
        let all = async { while waiting.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(patience, all).await;
    }
}

/// Waits for what the life of the guest says of an order, and tells the client.
async fn reply_when_done<T>(
    answer: impl Future<Output = Result<Result<T, String>, oneshot::error::RecvError>>,
    good: impl FnOnce(T) -> Reply,
    write: Option<&mut OwnedWriteHalf>,
) {
    let failed = |message: String| Reply::Failed {
        code: CODE_BRIG,
        message,
    };
    let reply = match answer.await {
        Ok(Ok(done)) => good(done),
        Ok(Err(message)) => failed(message),
        Err(_) => failed("its process does not run".to_owned()),
    };
    if let Some(write) = write {
        let _ = send(write, &reply).await;
    }
}

/// Adds a task to `set`, which forgets those that have ended.
fn spawn(set: &RefCell<JoinSet<()>>, task: impl Future<Output = ()> + 'static) -> AbortHandle {
    let mut set = set.borrow_mut();
    while set.try_join_next().is_some() {}
    set.spawn_local(task)
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) -> Result<(), brig_protocol::frame::FrameError> {
    frames::write(write, reply, FRAME_BYTES).await
}
