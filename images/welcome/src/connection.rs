//! One client: a state machine that goes as far as its socket lets it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    ops::Range,
};

use sha2::{Digest, Sha256};

use crate::{
    answer::{self, Answer, Body, Route},
    facts::Facts,
    pattern,
    request::{self, Request},
};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Bytes from the client.
    Readable,
    /// Room for bytes to the client.
    Writable,
    /// Nothing more: it is done.
    Done,
}

/// A client's connection.
pub struct Connection {
    stream: TcpStream,
    /// Bytes received and not yet used.
    input: Vec<u8>,
    /// Bytes to send before anything else happens, and how many of them are sent.
    output: Vec<u8>,
    sent: usize,
    /// The part of the pattern to send after `output`.
    pattern: Range<u64>,
    state: State,
}

/// What happens once everything that was to be sent is sent.
enum State {
    /// The head of the next request is collected.
    Head,
    /// The body of a request comes in.
    Body {
        request: Request,
        /// Bytes that are still to come; without a number it ends with the client's stream.
        left: Option<u64>,
        then: Then,
    },
    /// The answer was the last one: the client is told so, then read to its end, because closing a socket with unread
    /// bytes resets the connection and may take the answer with it.
    HalfClose { log: bool },
    /// Reading to the client's end.
    Drain { bytes: u64, log: bool },
}

/// What to do with a body, and after it.
enum Then {
    /// Pass over it, then send this.
    Answer(Answer),
    /// Hash it, then send the digest.
    Hash(Sha256),
}

impl Then {
    /// Takes a piece of the body, of which `left` bytes are still to come.
    fn take(&mut self, left: &mut Option<u64>, piece: &[u8]) {
        if let Self::Hash(hash) = self {
            hash.update(piece);
        }
        if let Some(left) = left {
            *left -= piece.len() as u64;
        }
    }
}

/// How many of `available` bytes belong to a body of which `left` bytes are still to come.
fn most(left: Option<u64>, available: usize) -> usize {
    left.map_or(available, |left| left.min(available as u64) as usize)
}

impl Connection {
    /// A connection on an accepted, non-blocking socket.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            pattern: 0..0,
            state: State::Head,
        }
    }

    /// The socket to wait for.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Goes on until the socket would block. `scratch` is working space.
    ///
    /// # Errors
    /// Those of the socket; the connection is over then.
    pub fn advance(&mut self, facts: &Facts, scratch: &mut [u8]) -> io::Result<Wait> {
        loop {
            if !self.flush(scratch)? {
                return Ok(Wait::Writable);
            }
            let wait = match self.state {
                State::Head => self.read_head(facts, scratch)?,
                State::Body { .. } => self.read_body(scratch)?,
                State::HalfClose { log } => {
                    self.stream.shutdown(Shutdown::Write)?;
                    let bytes = self.input.len() as u64;
                    self.state = State::Drain { bytes, log };
                    None
                }
                State::Drain { .. } => self.drain(scratch)?,
            };
            if let Some(wait) = wait {
                return Ok(wait);
            }
        }
    }

    /// Sends what is to be sent; `false` when the socket takes no more for now.
    fn flush(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match unless_blocked(self.stream.write(&self.output[self.sent..]))? {
                Some(count) => self.sent += count,
                None => return Ok(false),
            }
        }
        self.output.clear();
        self.sent = 0;
        while !self.pattern.is_empty() {
            let length = (self.pattern.end - self.pattern.start).min(scratch.len() as u64) as usize;
            let piece = &mut scratch[..length];
            pattern::fill(self.pattern.start, piece);
            match unless_blocked(self.stream.write(piece))? {
                Some(count) => self.pattern.start += count as u64,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn read_head(&mut self, facts: &Facts, scratch: &mut [u8]) -> io::Result<Option<Wait>> {
        match request::parse(&self.input) {
            Ok(Some((request, used))) => {
                self.input.drain(..used);
                self.begin(request, facts);
                Ok(None)
            }
            Ok(None) => Ok(match unless_blocked(self.stream.read(scratch))? {
                Some(0) => Some(Wait::Done),
                Some(count) => {
                    self.input.extend_from_slice(&scratch[..count]);
                    None
                }
                None => Some(Wait::Readable),
            }),
            Err(reason) => {
                self.send(&answer::refuse(reason), false, true);
                self.state = State::HalfClose { log: false };
                Ok(None)
            }
        }
    }

    /// Acts on the head of a request.
    fn begin(&mut self, request: Request, facts: &Facts) {
        let mut left = Some(request.content_length.unwrap_or(0));
        let then = match answer::route(&request, facts) {
            _ if request.chunked => {
                println!("{} {} 411", request.method, request.path);
                self.send(
                    &answer::failure(411, "say Content-Length, or half-close"),
                    false,
                    true,
                );
                self.state = State::HalfClose { log: false };
                return;
            }
            Route::HalfClose => {
                println!("{} {} 200", request.method, request.path);
                self.send(&answer::half_closed(), false, true);
                self.state = State::HalfClose { log: true };
                return;
            }
            Route::Hash => {
                left = request.content_length;
                Then::Hash(Sha256::new())
            }
            Route::Answer(answer) => Then::Answer(answer),
        };
        if request.expects_continue && left != Some(0) && self.input.is_empty() {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.state = State::Body { request, left, then };
    }

    fn read_body(&mut self, scratch: &mut [u8]) -> io::Result<Option<Wait>> {
        let State::Body { left, then, .. } = &mut self.state else {
            return Ok(None);
        };
        let from_input = most(*left, self.input.len());
        then.take(left, &self.input[..from_input]);
        self.input.drain(..from_input);
        while *left != Some(0) {
            let room = most(*left, scratch.len());
            match unless_blocked(self.stream.read(&mut scratch[..room]))? {
                Some(0) if left.is_none() => break,
                Some(0) => return Ok(Some(Wait::Done)),
                None => return Ok(Some(Wait::Readable)),
                Some(count) => then.take(left, &scratch[..count]),
            }
        }
        self.end_of_body();
        Ok(None)
    }

    /// Sends the answer to a request whose body is over.
    fn end_of_body(&mut self) {
        let State::Body { request, left, then } = std::mem::replace(&mut self.state, State::Head) else {
            return;
        };
        let answer = match then {
            Then::Answer(answer) => answer,
            Then::Hash(hash) => answer::hash(&hash.finalize()),
        };
        println!("{} {} {}", request.method, request.path, answer.status);
        let keep_alive = request.keep_alive && left.is_some();
        self.send(&answer, keep_alive, request.method != "HEAD");
        if !keep_alive {
            self.state = State::HalfClose { log: false };
        }
    }

    fn send(&mut self, answer: &Answer, keep_alive: bool, with_body: bool) {
        self.output.extend_from_slice(&answer.head(keep_alive));
        if with_body {
            match &answer.body {
                Body::Bytes(bytes) => self.output.extend_from_slice(bytes),
                Body::Pattern(count) => self.pattern = 0..*count,
            }
        }
    }

    fn drain(&mut self, scratch: &mut [u8]) -> io::Result<Option<Wait>> {
        let State::Drain { bytes, log } = &mut self.state else {
            return Ok(None);
        };
        Ok(match unless_blocked(self.stream.read(scratch))? {
            Some(0) => {
                if *log {
                    println!("half-closed, then read {bytes} bytes");
                }
                Some(Wait::Done)
            }
            Some(count) => {
                *bytes += count as u64;
                None
            }
            None => Some(Wait::Readable),
        })
    }
}

/// `None` when a call on a non-blocking socket would have blocked; a call that a signal broke is one of those, because
/// poll(2) then says at once that the socket is ready.
fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Sends `input`, half-closes, and returns everything that a connection answers.
    fn talk(input: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(input).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (stream, _) = listener.accept().unwrap();
        // Blocking is what the test wants: the connection goes on until it is done.
        let mut connection = Connection::new(stream);
        let facts = Facts::gather();
        assert_eq!(connection.advance(&facts, &mut [0; 512]).unwrap(), Wait::Done);
        drop(connection);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    fn bodies(answer: &str) -> Vec<&str> {
        answer.split("\r\n\r\n").skip(1).collect()
    }

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";

    #[test]
    fn requests_of_one_connection_are_answered_in_order() {
        let answer = talk(
            b"GET /healthz HTTP/1.1\r\n\r\nPOST /sha256 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\
              GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n",
        );
        let bodies = bodies(&answer);
        assert_eq!(bodies.len(), 3);
        assert!(bodies[0].starts_with("ok\n"));
        assert!(bodies[1].starts_with(ABC));
        assert_eq!(bodies[2], "there is nothing here\n");
        assert_eq!(answer.matches("Connection: close").count(), 1);
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_stream() {
        let answer = talk(b"POST /sha256 HTTP/1.1\r\n\r\nabc");
        assert_eq!(bodies(&answer), [ABC]);
        assert!(answer.contains("Connection: close"));
    }

    #[test]
    fn a_client_that_expects_it_is_told_to_continue() {
        let answer = talk(b"POST /sha256 HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\n"), "{answer}");
    }

    #[test]
    fn head_has_the_length_and_no_body() {
        let answer = talk(b"HEAD /bytes/1000 HTTP/1.1\r\n\r\n");
        assert!(answer.contains("Content-Length: 1000\r\n"));
        assert_eq!(bodies(&answer), [""]);
    }

    #[test]
    fn the_rest_of_a_refused_connection_is_read() {
        let mut input = vec![b'x'; request::HEAD_BYTES_MAX];
        input.extend_from_slice(&[b'y'; 10_000]);
        assert!(talk(&input).starts_with("HTTP/1.1 431 "));
        assert!(
            talk(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
                .starts_with("HTTP/1.1 411 ")
        );
        assert!(talk(b"hello\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn half_close_answers_first_and_reads_on() {
        let answer = talk(b"POST /half-close HTTP/1.1\r\n\r\nmore and more");
        assert_eq!(bodies(&answer), ["half-closed\n"]);
    }
}
