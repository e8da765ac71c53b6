//! The connections of the supervisor's other than the control connection: standard streams and forwarded ports.
//!
//! Each is a small state machine, worked on when epoll says that one of its ends can move. None ever blocks, and none
//! holds more than a pipe's worth of bytes: a stalled reader stalls its own stream and nothing else.

mod tcp;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, OwnedFd},
};

use brig_protocol::stream::{HEADER_BYTES, StreamHeader};
use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{SocketFlags, accept_with},
};

use self::tcp::Tcp;
use crate::{
    reactor::{End, Reactor, STREAM_EVENTS, Token},
    relay::{PipeRelay, Turn},
};

/// Most streams at a time; a connection over it is closed.
pub const STREAMS_MAX: usize = 4096;

/// A process's output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What the loop has to know about a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// The stream says what it is for. It waits to be given that, see [`Streams::give_input`],
    /// [`Streams::give_output`] and [`Streams::connect`].
    Arrived {
        /// The stream.
        id: u64,
        /// What it is for.
        header: StreamHeader,
    },
    /// Every byte of the output has been handed to the supervisor's connection, or that is gone.
    OutputEnded(Output),
}

/// A connection and what it is joined with.
struct Stream {
    host: OwnedFd,
    state: State,
}

/// How far a stream is.
enum State {
    /// Its header is not complete.
    Header {
        bytes: [u8; HEADER_BYTES],
        filled: usize,
    },
    /// The header is known; the process that it names does not run yet.
    Waiting(StreamHeader),
    /// Bytes go to a process's standard input.
    Input { pipe: OwnedFd, relay: PipeRelay },
    /// A process's output goes to the host.
    Output {
        pipe: OwnedFd,
        relay: PipeRelay,
        output: Output,
    },
    /// Bytes go both ways between the host and a TCP connection inside of the sandbox.
    Tcp(Tcp),
}

/// What is to be done with a stream after a step.
enum Step {
    /// It waits for an event.
    Wait,
    /// It can go on at once.
    Again,
    /// It is over: both ends are closed.
    Close(Option<Notice>),
    /// It stays, and the loop has to know.
    Tell(Notice),
}

/// All streams.
pub struct Streams {
    all: BTreeMap<u64, Stream>,
    next: u64,
    /// Streams that can go on without an event.
    unfinished: BTreeSet<u64>,
}

impl Streams {
    /// None yet.
    pub fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            next: 0,
            unfinished: BTreeSet::new(),
        }
    }

    /// Accepts the connections that wait on `listener`, which does not block.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn accept(&mut self, listener: impl AsFd, reactor: &Reactor) -> io::Result<Vec<Notice>> {
        let mut notices = Vec::new();
        // Any error ends the turn: when more connections wait, the listener is reported again.
        while let Ok(host) = accept_with(&listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            if self.all.len() >= STREAMS_MAX {
                continue;
            }
            let id = self.next;
            self.next += 1;
            reactor.add(&host, Token::Stream { id, end: End::Host }, STREAM_EVENTS)?;
            self.all.insert(
                id,
                Stream {
                    host,
                    state: State::Header {
                        bytes: [0; HEADER_BYTES],
                        filled: 0,
                    },
                },
            );
            // The header has mostly come along.
            notices.extend(self.advance(id, End::Host, EventFlags::IN, reactor));
        }
        Ok(notices)
    }

    /// Works on a stream that an event came for; one that is gone meanwhile is no error.
    pub fn advance(&mut self, id: u64, end: End, events: EventFlags, reactor: &Reactor) -> Option<Notice> {
        let stream = self.all.get_mut(&id)?;
        match stream.step(id, end, events, reactor) {
            Step::Wait => None,
            Step::Again => {
                self.unfinished.insert(id);
                None
            }
            Step::Close(notice) => {
                self.all.remove(&id);
                notice
            }
            Step::Tell(notice) => Some(notice),
        }
    }

    /// Whether a stream can go on without an event.
    pub fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Gives each stream that had used up its turn another one.
    pub fn resume(&mut self, reactor: &Reactor) -> Vec<Notice> {
        let ids = std::mem::take(&mut self.unfinished);
        let both = EventFlags::IN | EventFlags::OUT;
        ids.into_iter()
            .flat_map(|id| [(id, End::Host), (id, End::Sandbox)])
            .filter_map(|(id, end)| self.advance(id, end, both, reactor))
            .collect()
    }

    /// Joins an arrived stream with a process's standard input.
    pub fn give_input(&mut self, id: u64, pipe: OwnedFd, reactor: &Reactor) -> Option<Notice> {
        self.give(
            id,
            reactor,
            State::Input {
                pipe,
                relay: PipeRelay::new(),
            },
        )
    }

    /// Joins an arrived stream with an output of a process.
    pub fn give_output(
        &mut self,
        id: u64,
        output: Output,
        pipe: OwnedFd,
        reactor: &Reactor,
    ) -> Option<Notice> {
        self.give(
            id,
            reactor,
            State::Output {
                pipe,
                relay: PipeRelay::new(),
                output,
            },
        )
    }

    /// Connects an arrived stream to a TCP port of the network namespace that the calling thread is in.
    pub fn connect(&mut self, id: u64, port: u16, reactor: &Reactor) -> Option<Notice> {
        match Tcp::connect(port) {
            Ok(tcp) => self.give(id, reactor, State::Tcp(tcp)),
            // Closing it tells the host.
            Err(_) => self.close(id),
        }
    }

    /// Closes an arrived stream that there is nothing to join with; the host reads its end.
    pub fn close(&mut self, id: u64) -> Option<Notice> {
        self.all.remove(&id);
        None
    }

    /// Lets an arrived stream wait for its process.
    pub fn keep_waiting(&mut self, id: u64, header: StreamHeader) {
        if let Some(stream) = self.all.get_mut(&id) {
            stream.state = State::Waiting(header);
        }
    }

    /// The streams that wait for a process.
    pub fn waiting(&self) -> Vec<(u64, StreamHeader)> {
        let header = |(id, stream): (&u64, &Stream)| match stream.state {
            State::Waiting(header) => Some((*id, header)),
            _ => None,
        };
        self.all.iter().filter_map(header).collect()
    }

    /// Sets the state that a stream goes on with and works on it.
    fn give(&mut self, id: u64, reactor: &Reactor, state: State) -> Option<Notice> {
        let stream = self.all.get_mut(&id)?;
        stream.state = state;
        let sandbox_end = match &stream.state {
            State::Input { pipe, .. } | State::Output { pipe, .. } => Some(pipe),
            State::Tcp(tcp) => Some(tcp.socket()),
            _ => None,
        };
        let token = Token::Stream {
            id,
            end: End::Sandbox,
        };
        if sandbox_end.is_some_and(|end| reactor.add(end, token, STREAM_EVENTS).is_err()) {
            return self.close(id);
        }
        // What has come before is not reported again.
        self.advance(id, End::Host, EventFlags::IN, reactor)
    }
}

impl Default for Streams {
    fn default() -> Self {
        Self::new()
    }
}

impl Stream {
    fn step(&mut self, id: u64, end: End, events: EventFlags, reactor: &Reactor) -> Step {
        match &mut self.state {
            State::Header { bytes, filled } => read_header(id, &self.host, bytes, filled),
            State::Waiting(_) => Step::Wait,
            State::Input { pipe, relay } => match relay.turn(&self.host, pipe) {
                Ok(Turn::Blocked) if is_over(end, End::Sandbox, events) => Step::Close(None),
                Ok(Turn::Blocked) => Step::Wait,
                Ok(Turn::Unfinished) => Step::Again,
                // The end of the stream, or of its reader.
                Ok(Turn::Ended) | Err(_) => Step::Close(None),
            },
            State::Output { pipe, relay, output } => match relay.turn(pipe, &self.host) {
                Ok(Turn::Blocked) if is_over(end, End::Host, events) => {
                    Step::Close(Some(Notice::OutputEnded(*output)))
                }
                Ok(Turn::Blocked) => Step::Wait,
                Ok(Turn::Unfinished) => Step::Again,
                Ok(Turn::Ended) | Err(_) => Step::Close(Some(Notice::OutputEnded(*output))),
            },
            State::Tcp(tcp) => match tcp.turn(&self.host, end, events, |socket| {
                reactor.add(
                    socket,
                    Token::Stream {
                        id,
                        end: End::Sandbox,
                    },
                    STREAM_EVENTS,
                )
            }) {
                Ok(Turn::Blocked) => Step::Wait,
                Ok(Turn::Unfinished) => Step::Again,
                // Closing the connection tells the host, and resets it when bytes of the host's are left unread.
                Ok(Turn::Ended) | Err(_) => Step::Close(None),
            },
        }
    }
}

/// Whether an event says that `sink`, to which bytes go one way, is gone altogether.
fn is_over(end: End, sink: End, events: EventFlags) -> bool {
    end == sink && events.intersects(EventFlags::HUP | EventFlags::ERR)
}

/// Reads what has come of a header.
fn read_header(id: u64, host: &OwnedFd, bytes: &mut [u8; HEADER_BYTES], filled: &mut usize) -> Step {
    while *filled < HEADER_BYTES {
        match rustix::io::read(host, &mut bytes[*filled..]) {
            Ok(read) if read > 0 => *filled += read,
            Err(Errno::AGAIN) => return Step::Wait,
            Err(Errno::INTR) => {}
            _ => return Step::Close(None),
        }
    }
    match StreamHeader::decode(*bytes) {
        Some(header) => Step::Tell(Notice::Arrived { id, header }),
        None => Step::Close(None),
    }
}
