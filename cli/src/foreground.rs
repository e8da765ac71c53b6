//! A sandbox's process in the foreground: its output goes to this command's, standard input, keys and signals go to it.

use std::{
    io::{self, Read, Write},
    thread,
};

use brig_engine::{
    Engine, Error, SandboxId,
    clock::monotonic_ns,
    control::{CHUNK_BYTES, Exit, WindowSize},
    engine::{Message, Session, SessionInput},
    signal::Signal,
};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::{mpsc, oneshot},
};

use crate::{
    detach::{DetachKeys, Watch},
    failure::Failure,
    terminal::{self, Raw},
};

/// Signals that are passed on to the process (signal(7)). `SIGWINCH` is, unless it has a terminal, which is told the size.
const FORWARDED: [libc::c_int; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGCONT,
];

/// After so many interrupts the process is killed: PID 1 of a namespace is deaf to those that it does not handle.
const INTERRUPTS: u32 = 3;

/// Pieces of standard input that wait for the sandbox to take them.
const STDIN_PIECES: usize = 2;

/// Sizes of the terminal that wait to be told.
const SIZES: usize = 4;

/// How to stay with a process.
#[derive(Debug)]
pub struct Stay {
    /// Whether standard input goes to it.
    pub stdin: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether signals are passed on; otherwise those that end programs end this one.
    pub signals: bool,
    /// What leaves it running, when it has a terminal and standard input goes to it.
    pub keys: DetachKeys,
}

/// How it came to an end.
#[derive(Debug)]
pub enum Ending {
    /// The sandbox did.
    Exited(Box<Exit>),
    /// The process that was started beside the first did.
    Ended {
        /// Its exit code.
        code: i32,
        /// When the first byte of its output came, in nanoseconds of `CLOCK_MONOTONIC`.
        output_ns: Option<u64>,
    },
    /// The user left.
    Detached,
}

/// Has a program that fills its terminal draw everything again: one that is attached to anew at the same size would not
/// (docker/cli, `attach.go`).
pub async fn show_anew(session: &mut Session) -> Result<(), Failure> {
    if let Some(size) = terminal::size() {
        let other = WindowSize {
            rows: size.rows.saturating_add(1),
            ..size
        };
        session.input.resize(other).await?;
        session.input.resize(size).await?;
    }
    Ok(())
}

/// Stays with a process of a sandbox until its end, or until the user leaves.
pub async fn stay(
    engine: &Engine,
    id: &SandboxId,
    session: Session,
    options: Stay,
) -> Result<Ending, Failure> {
    let Session { mut output, input } = session;
    let raw = if options.tty && options.stdin {
        Raw::enter()?
    } else {
        None
    };
    let (sizes, new_sizes) = mpsc::channel(SIZES);
    let (left, mut leaving) = oneshot::channel();
    let watch = (options.tty && options.stdin).then(|| Watch::new(options.keys));
    let pieces = options.stdin.then(read_stdin);
    let feeding = tokio::task::spawn_local(feed(input, pieces, new_sizes, watch, left));
    let mut signals = forwarded()?;
    let mut interrupts = 0;
    let mut output_ns = None;
    let ending = loop {
        tokio::select! {
            // The supervisor closes the connection of a client that leaves: that is no loss of it.
            biased;
            Ok(()) = &mut leaving => break Ending::Detached,
            Some(signal) = signals.recv() => {
                let number = libc::c_int::from(signal.number());
                if number == libc::SIGWINCH && options.tty {
                    if let Some(size) = terminal::size() {
                        // One more that finds no room is followed by another that does.
                        let _ = sizes.try_send(size);
                    }
                    continue;
                }
                if number == libc::SIGCONT
                    && let Some(raw) = &raw
                {
                    raw.again()?;
                }
                if !options.signals {
                    if !matches!(number, libc::SIGCONT | libc::SIGWINCH) {
                        return Err(Failure::signalled(number));
                    }
                    continue;
                }
                if matches!(number, libc::SIGINT | libc::SIGTERM) {
                    interrupts += 1;
                }
                let signal = if interrupts >= INTERRUPTS { Signal::KILL } else { signal };
                // A sandbox that has just ended needs no signal.
                let _ = engine.kill(id.as_str(), signal).await;
            }
            message = output.next() => match message {
                Ok(Message::Stdout(bytes)) => {
                    output_ns.get_or_insert_with(monotonic_ns);
                    write(io::stdout(), &bytes);
                }
                Ok(Message::Stderr(bytes)) => {
                    output_ns.get_or_insert_with(monotonic_ns);
                    write(io::stderr(), &bytes);
                }
                Ok(Message::Ended(code)) => break Ending::Ended { code, output_ns },
                Ok(Message::Exited(exit)) => break Ending::Exited(exit),
                Err(Error::SupervisorLost(_)) => break Ending::Exited(Box::new(engine.lost(id))),
                Err(e) => return Err(Failure::of_run(e)),
            },
        }
    };
    drop(raw);
    match ending {
        Ending::Detached => {
            // It has said so to the supervisor, which hears the rest by the end of the connection.
            eprintln!("read escape sequence");
        }
        // The supervisor ends standard input with the connection, so it was kept.
        _ => feeding.abort(),
    }
    if matches!(ending, Ending::Exited(_)) {
        output.ended().await;
    }
    Ok(ending)
}

/// Standard output and standard error are written at once. A reader that is gone does not end the sandbox, as with
/// Docker: it goes on, and what it writes is in its log.
fn write(mut stream: impl Write, bytes: &[u8]) {
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
}

/// Passes standard input and sizes of the terminal on to the process, until the user leaves. Without `pieces` there is no
/// input. The connection stays after the end of it: its end would mean that this command is gone.
async fn feed(
    mut input: SessionInput,
    mut pieces: Option<mpsc::Receiver<Vec<u8>>>,
    mut sizes: mpsc::Receiver<WindowSize>,
    mut watch: Option<Watch>,
    left: oneshot::Sender<()>,
) {
    loop {
        let next = async {
            match &mut pieces {
                Some(pieces) => pieces.recv().await,
                None => std::future::pending().await,
            }
        };
        let sent = tokio::select! {
            biased;
            Some(size) = sizes.recv() => input.resize(size).await,
            piece = next => match (piece, &mut watch) {
                (Some(typed), Some(watch)) => {
                    let (typed, is_leaving) = watch.pass(&typed);
                    let sent = input.write_stdin(&typed).await;
                    if is_leaving {
                        let _ = input.detach().await;
                        let _ = left.send(());
                        return;
                    }
                    sent
                }
                (Some(bytes), None) => input.write_stdin(&bytes).await,
                (None, _) => {
                    pieces = None;
                    input.close_stdin().await
                }
            },
        };
        if sent.is_err() {
            break;
        }
    }
    std::future::pending::<()>().await;
}

/// Reads standard input in a thread, which the end of the process ends: a terminal cannot be read without blocking
/// unless other programs that use it see that too.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel(STDIN_PIECES);
    thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) if sender.blocking_send(buffer[..count].to_vec()).is_ok() => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    pieces
}

/// Collects the signals that are to be passed on.
fn forwarded() -> Result<mpsc::Receiver<Signal>, Failure> {
    let (sender, signals) = mpsc::channel(FORWARDED.len());
    for number in FORWARDED {
        let kind = SignalKind::from_raw(number);
        let incoming = signal(kind)?;
        let signal = Signal::try_from(number as u8)?;
        tokio::task::spawn_local(pass(incoming, signal, sender.clone()));
    }
    Ok(signals)
}

async fn pass(mut incoming: Signals, signal: Signal, sender: mpsc::Sender<Signal>) {
    while incoming.recv().await.is_some() {
        if sender.send(signal).await.is_err() {
            return;
        }
    }
}
