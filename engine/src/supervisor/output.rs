//! What the sandbox's process writes: from its streams to the log and to the clients that are attached.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{Semaphore, mpsc, watch},
};

use crate::{
    clock::monotonic_ns,
    control::{CHUNK_BYTES, Reply},
    log::{LogWriter, Stream},
};

/// Bytes that a client may be behind before the process has to wait for it.
const WINDOW_BYTES: usize = 256 << 10;

/// How long a stream may be silent, after its process has ended, before it is taken for finished.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes that are taken from a stream after its process has ended: more than fits into all buffers on the way.
const DRAIN_BYTES: usize = 8 << 20;

/// Where output goes. Clones share it.
#[derive(Clone, Debug)]
pub struct Output(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    log: RefCell<LogWriter>,
    clients: RefCell<Vec<Client>>,
    first_byte_ns: Cell<Option<u64>>,
    /// Turns true when the process has ended: from then on nobody is waited for.
    ended: watch::Sender<bool>,
}

#[derive(Clone, Debug)]
struct Client {
    chunks: mpsc::UnboundedSender<Reply>,
    window: Rc<Semaphore>,
}

/// The end of the output that an attached client takes.
#[derive(Debug)]
pub struct Attached {
    chunks: mpsc::UnboundedReceiver<Reply>,
    window: Rc<Semaphore>,
}

impl Attached {
    /// The next piece, or `None` at the end of all output. Cancel safe.
    pub async fn next(&mut self) -> Option<Reply> {
        self.chunks.recv().await
    }

    /// Tells that `reply` has been delivered.
    pub fn delivered(&self, reply: &Reply) {
        self.window.add_permits(chunk_length(reply));
    }
}

fn chunk_length(reply: &Reply) -> usize {
    match reply {
        Reply::Stdout(bytes) | Reply::Stderr(bytes) => bytes.len(),
        _ => 0,
    }
}

impl Output {
    /// Output to `log`.
    pub fn new(log: LogWriter) -> Self {
        Self(Rc::new(Inner {
            log: RefCell::new(log),
            clients: RefCell::default(),
            first_byte_ns: Cell::new(None),
            ended: watch::Sender::new(false),
        }))
    }

    /// A new client, which gets what comes from now on.
    pub fn attach(&self) -> Attached {
        let (sender, chunks) = mpsc::unbounded_channel();
        let window = Rc::new(Semaphore::new(WINDOW_BYTES));
        self.0.clients.borrow_mut().push(Client {
            chunks: sender,
            window: Rc::clone(&window),
        });
        Attached { chunks, window }
    }

    /// When the first byte came, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn first_byte_ns(&self) -> Option<u64> {
        self.0.first_byte_ns.get()
    }

    /// The process has ended: what is left of its output is taken without waiting for any client.
    pub fn process_ended(&self) {
        self.0.ended.send_replace(true);
    }

    /// No more output will come: the clients see its end.
    pub fn close(&self) {
        self.0.clients.borrow_mut().clear();
    }

    /// Moves `stream`'s bytes until its end.
    pub async fn pump(self, stream: Stream, mut source: impl AsyncRead + Unpin) {
        let mut ended = self.0.ended.subscribe();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut drained = 0;
        while drained < DRAIN_BYTES {
            let read = source.read(&mut buffer);
            let count = if *ended.borrow_and_update() {
                match tokio::time::timeout(DRAIN_TIMEOUT, read).await {
                    Ok(Ok(count)) => count,
                    Ok(Err(_)) | Err(_) => break,
                }
            } else {
                tokio::select! {
                    // Goes round to the branch above.
                    _ = ended.changed() => continue,
                    count = read => count.unwrap_or(0),
                }
            };
            if count == 0 {
                break;
            }
            if *ended.borrow() {
                drained += count;
            }
            self.deliver(stream, &buffer[..count]).await;
        }
        let _ = self.0.log.borrow_mut().finish(stream, Timestamp::now());
    }

    async fn deliver(&self, stream: Stream, bytes: &[u8]) {
        if self.0.first_byte_ns.get().is_none() {
            self.0.first_byte_ns.set(Some(monotonic_ns()));
        }
        // A full disk must not end the sandbox; the clients still get what it writes.
        let _ = self.0.log.borrow_mut().write(stream, bytes, Timestamp::now());
        let clients = self.0.clients.borrow().clone();
        for client in clients {
            let reply = match stream {
                Stream::Stdout => Reply::Stdout(bytes.to_vec()),
                Stream::Stderr => Reply::Stderr(bytes.to_vec()),
            };
            self.room(&client, bytes.len()).await;
            // One that is gone is forgotten below.
            let _ = client.chunks.send(reply);
        }
        self.0
            .clients
            .borrow_mut()
            .retain(|client| !client.chunks.is_closed());
    }

    /// Waits until the client has room, is gone, or the process has ended.
    async fn room(&self, client: &Client, bytes: usize) {
        let mut ended = self.0.ended.subscribe();
        tokio::select! {
            permit = client.window.acquire_many(bytes as u32) => {
                if let Ok(permit) = permit {
                    permit.forget();
                }
            }
            () = client.chunks.closed() => {}
            _ = ended.wait_for(|ended| *ended) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, task::LocalSet};

    use super::*;
    use crate::log::{LogOptions, LogReader};

    fn output() -> (tempfile::TempDir, Output) {
        let directory = tempfile::tempdir().unwrap();
        let log = LogWriter::open(
            &directory.path().join("log.json"),
            crate::options::LogOptions::default(),
        )
        .unwrap();
        (directory, Output::new(log))
    }

    #[tokio::test]
    async fn output_goes_to_the_log_and_to_every_client() {
        let (directory, output) = output();
        let mut clients = [output.attach(), output.attach()];
        output.clone().pump(Stream::Stderr, b"hello\n".as_slice()).await;
        output.close();
        for client in &mut clients {
            assert_eq!(client.next().await, Some(Reply::Stderr(b"hello\n".to_vec())));
            assert_eq!(client.next().await, None);
        }
        let mut log = LogReader::open(&directory.path().join("log.json"), LogOptions::default()).unwrap();
        assert_eq!(log.next().unwrap().unwrap().log, "hello\n");
        assert!(output.first_byte_ns().is_some());
    }

    #[tokio::test]
    async fn a_client_that_stalls_holds_the_process_and_loses_nothing_at_its_end() {
        let (_directory, output) = output();
        let total = 1 << 20;
        LocalSet::new()
            .run_until(async {
                let mut client = output.attach();
                let (mut near, far) = tokio::io::duplex(1 << 10);
                let pump = tokio::task::spawn_local(output.clone().pump(Stream::Stdout, far));
                // The client takes nothing: the process is held after a window.
                let bytes = vec![7; total];
                let writing = near.write_all(&bytes);
                tokio::pin!(writing);
                let stalled = async {
                    while client.window.available_permits() >= CHUNK_BYTES {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    biased;
                    _ = &mut writing => panic!("nobody took these bytes"),
                    () = stalled => {}
                }
                output.process_ended();
                writing.await.unwrap();
                drop(near);
                pump.await.unwrap();
                output.close();
                let mut got = 0;
                while let Some(reply) = client.next().await {
                    got += chunk_length(&reply);
                    client.delivered(&reply);
                }
                assert_eq!(got, total);
            })
            .await;
    }

    #[tokio::test]
    async fn a_client_that_is_gone_holds_nobody() {
        let (_directory, output) = output();
        drop(output.attach());
        output
            .clone()
            .pump(Stream::Stdout, vec![0; WINDOW_BYTES * 2].as_slice())
            .await;
        assert!(output.0.clients.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_ends_is_given_up_when_its_process_has() {
        let (_directory, output) = output();
        let (_near, far) = tokio::io::duplex(64);
        output.process_ended();
        output.clone().pump(Stream::Stdout, far).await;
    }
}
