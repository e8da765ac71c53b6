//! A sandbox in the foreground: its output goes to this command's, standard input and signals go to it.

use std::{
    io::{self, Read, Write},
    thread,
};

use brig_engine::{
    Engine, Error, SandboxId,
    control::{CHUNK_BYTES, Exit},
    engine::{Message, Session, SessionInput},
    signal::Signal,
};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::mpsc,
};

use crate::failure::Failure;

/// Signals that are passed on to the process (signal(7)).
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

/// Stays with a sandbox until its end.
pub async fn attach(
    engine: &Engine,
    id: &SandboxId,
    session: Session,
    interactive: bool,
) -> Result<Exit, Failure> {
    let Session { mut output, input } = session;
    // Kept while there is no input to pass on: the supervisor ends standard input with the connection.
    let _input = if interactive {
        tokio::task::spawn_local(feed(input));
        None
    } else {
        Some(input)
    };
    let mut signals = forwarded()?;
    let mut interrupts = 0;
    let exit = loop {
        tokio::select! {
            message = output.next() => match message {
                Ok(Message::Stdout(bytes)) => write(io::stdout(), &bytes),
                Ok(Message::Stderr(bytes)) => write(io::stderr(), &bytes),
                Ok(Message::Exited(exit)) => break *exit,
                Err(Error::SupervisorLost(_)) => break engine.lost(id),
                Err(e) => return Err(Failure::of_run(e)),
            },
            Some(signal) = signals.recv() => {
                if matches!(libc::c_int::from(signal.number()), libc::SIGINT | libc::SIGTERM) {
                    interrupts += 1;
                }
                let signal = if interrupts >= INTERRUPTS { Signal::KILL } else { signal };
                // A sandbox that has just ended needs no signal.
                let _ = engine.kill(id.as_str(), signal).await;
            }
        }
    };
    output.ended().await;
    Ok(exit)
}

/// Standard output and standard error are written at once. A reader that is gone does not end the sandbox, as with
/// Docker: it goes on, and what it writes is in its log.
fn write(mut stream: impl Write, bytes: &[u8]) {
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
}

/// Passes standard input on to the sandbox.
async fn feed(mut input: SessionInput) {
    let mut pieces = read_stdin();
    while let Some(piece) = pieces.recv().await {
        if input.write_stdin(&piece).await.is_err() {
            return;
        }
    }
    let _ = input.close_stdin().await;
    // The connection stays: its end would mean that this command is gone.
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
