//! The other end of the network rows.
//!
//! The client's first byte says what a connection is for; the server answers with the same byte. Then, until the client
//! closes:
//!
//! | first byte | |
//! |---|---|
//! | `e` | each byte is sent back |
//! | `k` | the client sends a number (8 bytes, little-endian) and as many bytes; the server answers with one byte |
//! | `s` | the client sends a number, the server as many bytes |

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{report, sys::Signals};

/// Most connections at a time; one more is closed at once.
const CONNECTIONS_MAX: usize = 256;

const BUFFER_BYTES: usize = 64 << 10;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All comes back.
    Echo,
    /// The client sends.
    Sink,
    /// The server sends.
    Source,
}

impl Mode {
    /// The first byte of such a connection.
    pub fn byte(self) -> u8 {
        match self {
            Self::Echo => b'e',
            Self::Sink => b'k',
            Self::Source => b's',
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Self::Echo, Self::Sink, Self::Source]
            .into_iter()
            .find(|mode| mode.byte() == byte)
    }
}

/// Serves on `port` of every address, says so, and ends on SIGTERM or SIGINT.
///
/// # Errors
/// Those of bind(2) and of writing to `out`.
pub fn run(port: u16, out: &mut impl Write) -> io::Result<()> {
    let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT])?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot serve port {port}: {error}")))?;
    report::event(out, "listening", "port", listener.local_addr()?.port().into())?;
    thread::spawn(move || serve(&listener));
    signals.wait(None).map(drop)
}

/// Serves whoever connects, each in a thread of its own.
pub fn serve(listener: &TcpListener) {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming().flatten() {
        if connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        connections.fetch_add(1, Ordering::Relaxed);
        let connections = Arc::clone(&connections);
        thread::spawn(move || {
            // A client that goes away in the middle is nothing to complain about.
            let _ = connection(stream);
            connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    let Some(mode) = Mode::of(first[0]) else {
        return Ok(());
    };
    stream.write_all(&first)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match mode {
            Mode::Echo => {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..count])?;
            }
            Mode::Sink => {
                let wanted = read_number(&mut stream)?;
                let got = io::copy(&mut (&stream).take(wanted), &mut io::sink())?;
                if got < wanted {
                    return Ok(());
                }
                stream.write_all(&first)?;
            }
            Mode::Source => {
                let mut left = read_number(&mut stream)?;
                while left > 0 {
                    let part = left.min(BUFFER_BYTES as u64);
                    stream.write_all(&buffer[..part as usize])?;
                    left -= part;
                }
            }
        }
    }
}

fn read_number(stream: &mut TcpStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(send: &[u8]) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        thread::spawn(move || serve(&listener));
        stream.write_all(send).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    }

    #[test]
    fn an_echo_sends_all_back() {
        assert_eq!(talk(b"ehello"), b"ehello");
    }

    #[test]
    fn a_sink_answers_when_all_is_there() {
        assert_eq!(talk(b"k\x03\0\0\0\0\0\0\0abc\x01\0\0\0\0\0\0\0d"), b"kkk");
        assert_eq!(talk(b"k\x03\0\0\0\0\0\0\0ab"), b"k");
    }

    #[test]
    fn a_source_sends_as_much_as_it_is_asked_for() {
        assert_eq!(talk(b"s\x00\x01\x01\0\0\0\0\0").len(), 1 + 0x10100);
    }

    #[test]
    fn another_first_byte_is_not_answered() {
        assert_eq!(talk(b"G"), b"");
    }
}
