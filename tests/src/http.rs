//! An HTTP client that does no more than a test tells it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use sha2::{Digest, Sha256};

/// Most time without a byte. An answer from a guest on an emulated KVM with several guests beside it takes a while.
pub const READ_LIMIT: Duration = Duration::from_secs(180);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection with time limits.
///
/// # Errors
/// Those of connect(2).
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, READ_LIMIT)?;
    stream.set_read_timeout(Some(READ_LIMIT))?;
    stream.set_write_timeout(Some(READ_LIMIT))?;
    Ok(stream)
}

/// `GET` on a connection of its own.
///
/// # Errors
/// Those of the connection; `UnexpectedEof` when it ends early.
pub fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = connect(address)?;
    ask(&mut stream, path)?;
    read_answer(&mut stream)
}

/// Sends a `GET` after which the server closes the connection.
///
/// # Errors
/// Those of the connection.
pub fn ask(stream: &mut TcpStream, path: &str) -> io::Result<()> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
}

/// Reads one answer: its head, and as many bytes as the head says.
///
/// # Errors
/// Those of the connection; `UnexpectedEof` when it ends early, `InvalidData` when it is no HTTP.
pub fn read_answer(stream: &mut impl Read) -> io::Result<Answer> {
    let (status, length, mut body) = read_head(stream)?;
    let have = body.len() as u64;
    stream.take(length.saturating_sub(have)).read_to_end(&mut body)?;
    if (body.len() as u64) < length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(Answer { status, body })
}

/// Reads one answer and returns the number of its body's bytes and their SHA-256.
///
/// # Errors
/// As [`read_answer`].
pub fn hash_answer(stream: &mut impl Read) -> io::Result<(u64, String)> {
    let (_, length, body) = read_head(stream)?;
    let mut hash = Sha256::new();
    hash.update(&body);
    let mut count = body.len() as u64;
    let mut buffer = vec![0; 64 << 10];
    while count < length {
        match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => {
                hash.update(&buffer[..read]);
                count += read as u64;
            }
        }
    }
    Ok((count, hex(&hash.finalize())))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Status, length of the body, and what of the body was read along.
fn read_head(stream: &mut impl Read) -> io::Result<(u16, u64, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse().ok());
    match (status, length) {
        (Some(status), Some(length)) => Ok((status, length, bytes.split_off(end + 4))),
        _ => Err(io::Error::new(ErrorKind::InvalidData, head)),
    }
}
