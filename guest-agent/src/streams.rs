//! The connections of the supervisor's other than the control connection: standard streams and forwarded ports.
//!
//! Each is a small state machine, worked on when epoll says that one of its ends can move. None ever blocks, and none
//! holds more than a pipe's worth of bytes: a stalled reader stalls its own stream and nothing else.

mod tcp;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use brig_protocol::{
    agent::Traffic,
    channel::{self, ChannelError},
    stream::{HEADER_BYTES, StreamHeader},
    vmm::Command,
};
use rustix::{
    event::epoll::EventFlags,
    io::{Errno, ioctl_fionread},
    net::{SocketFlags, accept_with},
};

use self::tcp::Tcp;
use crate::{
    reactor::{End, Reactor, STREAM_EVENTS, Token},
    relay::{PipeRelay, TerminalRelay, Turn},
};

/// Most streams at a time; a connection over it is closed.
pub const STREAMS_MAX: usize = 4096;

/// Where streams come from. None of these blocks.
#[derive(Debug)]
pub enum Arrivals {
    /// Connections to a listening socket, each with a header of its own: in a guest.
    Listener(OwnedFd),
    /// Descriptors that come with a [`Command::Connect`], which has the header: on the host.
    Channel(OwnedFd),
}

impl Arrivals {
    /// The next one, with its header if that is known, or `None` when no more have arrived.
    fn next(&self) -> io::Result<Option<(OwnedFd, Option<StreamHeader>)>> {
        match self {
            // Any error ends the turn: when more connections wait, the listener is reported again.
            Self::Listener(listener) => {
                let accepted = accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC);
                Ok(accepted.ok().map(|host| (host, None)))
            }
            Self::Channel(socket) => loop {
                match channel::receive(socket) {
                    Ok((Command::Connect { header, .. }, mut fds)) => {
                        if let (Some(host), Some(header)) = (fds.pop(), StreamHeader::decode(header)) {
                            return Ok(Some((host, Some(header))));
                        }
                    }
                    // Only a VMM can do anything else.
                    Ok(_) => {}
                    Err(ChannelError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    Err(ChannelError::Io(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(ChannelError::Closed) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(e) => return Err(io::Error::other(e)),
                }
            },
        }
    }
}

impl AsFd for Arrivals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(socket) | Self::Channel(socket) => socket.as_fd(),
        }
    }
}

/// A process's output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The sandbox's end of a standard stream.
#[derive(Debug)]
pub enum SandboxEnd {
    /// The other end of the process's pipe.
    Pipe(OwnedFd),
    /// The master of the process's terminal, non-blocking.
    Terminal(OwnedFd),
}

impl AsFd for SandboxEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (Self::Pipe(fd) | Self::Terminal(fd)) = self;
        fd.as_fd()
    }
}

/// What moves bytes between a [`SandboxEnd`] and the host.
enum Relay {
    Pipe(PipeRelay),
    Terminal(TerminalRelay),
}

impl Relay {
    fn of(end: &SandboxEnd) -> Self {
        match end {
            SandboxEnd::Pipe(_) => Self::Pipe(PipeRelay::new()),
            SandboxEnd::Terminal(_) => Self::Terminal(TerminalRelay::new()),
        }
    }

    fn turn(&mut self, source: impl AsFd, sink: impl AsFd) -> io::Result<Turn> {
        match self {
            Self::Pipe(relay) => relay.turn(source, sink),
            Self::Terminal(relay) => relay.turn(source, sink),
        }
    }

    /// Whether it has blocked because the source has nothing, and not because the sink has no room.
    fn is_dry(&self, source: &SandboxEnd) -> bool {
        match self {
            Self::Pipe(_) => ioctl_fionread(source).unwrap_or(0) == 0,
            Self::Terminal(relay) => !relay.waits_for_sink(),
        }
    }
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
    OutputEnded {
        /// Whose it is.
        process: u32,
        /// Which one.
        output: Output,
    },
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
    Input {
        process: u32,
        sink: SandboxEnd,
        relay: Relay,
    },
    /// A process's output goes to the host.
    Output {
        process: u32,
        output: Output,
        source: SandboxEnd,
        relay: Relay,
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
    traffic: Traffic,
}

impl Streams {
    /// None yet.
    pub fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            next: 0,
            unfinished: BTreeSet::new(),
            traffic: Traffic::default(),
        }
    }

    /// What TCP connections have carried.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Counts from nothing on.
    pub fn forget_traffic(&mut self) {
        self.traffic = Traffic::default();
    }

    /// Takes the streams that have arrived.
    ///
    /// # Errors
    /// Those of epoll_ctl(2); `UnexpectedEof` when the supervisor is gone.
    pub fn accept(&mut self, arrivals: &Arrivals, reactor: &Reactor) -> io::Result<Vec<Notice>> {
        let mut notices = Vec::new();
        while let Some((host, header)) = arrivals.next()? {
            if self.all.len() >= STREAMS_MAX {
                continue;
            }
            let id = self.next;
            self.next += 1;
            reactor.add(&host, Token::Stream { id, end: End::Host }, STREAM_EVENTS)?;
            let state = header.map_or(
                State::Header {
                    bytes: [0; HEADER_BYTES],
                    filled: 0,
                },
                State::Waiting,
            );
            self.all.insert(id, Stream { host, state });
            match header {
                Some(header) => notices.push(Notice::Arrived { id, header }),
                // The header has mostly come along.
                None => notices.extend(self.advance(id, End::Host, EventFlags::IN, reactor)),
            }
        }
        Ok(notices)
    }

    /// Works on a stream that an event came for; one that is gone meanwhile is no error.
    pub fn advance(&mut self, id: u64, end: End, events: EventFlags, reactor: &Reactor) -> Option<Notice> {
        let stream = self.all.get_mut(&id)?;
        match stream.step(id, end, events, reactor, &mut self.traffic) {
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
    pub fn give_input(
        &mut self,
        id: u64,
        process: u32,
        sink: SandboxEnd,
        reactor: &Reactor,
    ) -> Option<Notice> {
        let relay = Relay::of(&sink);
        self.give(id, reactor, State::Input { process, sink, relay })
    }

    /// Joins an arrived stream with an output of a process.
    pub fn give_output(
        &mut self,
        id: u64,
        process: u32,
        output: Output,
        source: SandboxEnd,
        reactor: &Reactor,
    ) -> Option<Notice> {
        let relay = Relay::of(&source);
        self.give(
            id,
            reactor,
            State::Output {
                process,
                output,
                source,
                relay,
            },
        )
    }

    /// Ends those outputs of a process that have nothing more to relay, though somebody may still write to them.
    pub fn end_dry_outputs(&mut self, process: u32, reactor: &Reactor) -> Vec<Notice> {
        let ids: Vec<u64> = self.all.keys().copied().collect();
        let mut notices = Vec::new();
        for id in ids {
            let is_its =
                |stream: &Stream| matches!(stream.state, State::Output { process: of, .. } if of == process);
            if !self.all.get(&id).is_some_and(is_its) {
                continue;
            }
            // What has come meanwhile is still taken.
            notices.extend(self.advance(id, End::Sandbox, EventFlags::IN, reactor));
            if self.unfinished.contains(&id) {
                continue;
            }
            if let Some(Stream {
                state:
                    State::Output {
                        source,
                        relay,
                        output,
                        ..
                    },
                ..
            }) = self.all.get(&id)
                && relay.is_dry(source)
            {
                let output = *output;
                self.all.remove(&id);
                notices.push(Notice::OutputEnded { process, output });
            }
        }
        notices
    }

    /// Closes all streams of a process that is over, or did not come to be.
    pub fn close_all_of(&mut self, process: u32) {
        self.all.retain(|_, stream| match stream.state {
            State::Input { process: of, .. }
            | State::Output { process: of, .. }
            | State::Waiting(
                StreamHeader::Stdin { process: of }
                | StreamHeader::Stdout { process: of }
                | StreamHeader::Stderr { process: of },
            ) => of != process,
            _ => true,
        });
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

    /// Takes a stream away, as it is.
    pub fn take(&mut self, id: u64) -> Option<OwnedFd> {
        self.all.remove(&id).map(|stream| stream.host)
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
            State::Input { sink: end, .. } | State::Output { source: end, .. } => Some(end.as_fd()),
            State::Tcp(tcp) => Some(tcp.socket().as_fd()),
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
    fn step(
        &mut self,
        id: u64,
        end: End,
        events: EventFlags,
        reactor: &Reactor,
        traffic: &mut Traffic,
    ) -> Step {
        match &mut self.state {
            State::Header { bytes, filled } => read_header(id, &self.host, bytes, filled),
            // Nobody waits on the other side any more.
            State::Waiting(header) if is_over(end, End::Host, events) || is_left(*header, events) => {
                Step::Close(None)
            }
            State::Waiting(_) => Step::Wait,
            State::Input { sink, relay, .. } => match relay.turn(&self.host, sink) {
                Ok(Turn::Blocked) if is_over(end, End::Sandbox, events) => Step::Close(None),
                Ok(Turn::Blocked) => Step::Wait,
                Ok(Turn::Unfinished) => Step::Again,
                // The end of the stream, or of its reader.
                Ok(Turn::Ended) | Err(_) => Step::Close(None),
            },
            State::Output {
                process,
                output,
                source,
                relay,
            } => {
                let ended = Notice::OutputEnded {
                    process: *process,
                    output: *output,
                };
                match relay.turn(source, &self.host) {
                    // Nobody reads who says no more: the host's end of an output is closed as a whole.
                    Ok(Turn::Blocked) if end == End::Host && events.intersects(GONE) => {
                        Step::Close(Some(ended))
                    }
                    Ok(Turn::Blocked) => Step::Wait,
                    Ok(Turn::Unfinished) => Step::Again,
                    Ok(Turn::Ended) | Err(_) => Step::Close(Some(ended)),
                }
            }
            State::Tcp(tcp) => match tcp.turn(&self.host, end, events, traffic, |socket| {
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

/// What says that a host is gone that says nothing and only reads. vsock(7) tells a peer that has closed its socket apart from
/// one that says no more only when it is written to.
const GONE: EventFlags = EventFlags::HUP.union(EventFlags::ERR).union(EventFlags::RDHUP);

/// Whether nobody reads an output any more that waits for its process.
fn is_left(header: StreamHeader, events: EventFlags) -> bool {
    let is_output = matches!(header, StreamHeader::Stdout { .. } | StreamHeader::Stderr { .. });
    is_output && events.contains(EventFlags::RDHUP)
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
