//! Moving bytes one way between two descriptors without copying them through user space (splice(2)).
//!
//! splice needs a pipe at one side. Where neither side is one, for TCP, a pipe of the agent's own stands in between and is
//! the buffer, bounded by what a pipe holds.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::{Errno, retry_on_intr},
    pipe::{PipeFlags, SpliceFlags, pipe_with, splice},
};

/// Bytes that a first splice asks for. From a socket the kernel allocates pages for all that is asked, so it is doubled only
/// while it is all used.
const LEAST_BYTES: usize = 4 << 10;

/// Most bytes that a splice asks for: what a pipe holds.
const MOST_BYTES: usize = 64 << 10;

/// Splices after which another stream has its turn.
const TURN: u32 = 32;

/// How a turn of a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It would block: an event will tell when it can go on.
    Blocked,
    /// It has used up its turn and can go on at once.
    Unfinished,
    /// The source has ended and everything from it has been handed to the sink.
    Ended,
}

/// Which side of a relay broke.
#[derive(Debug)]
pub enum Broken {
    /// The source: nothing more can be read, and what was read before has been handed to the sink.
    Source(io::Error),
    /// The sink takes nothing more.
    Sink(io::Error),
}

/// One splice that does not block. `Ok(None)`: it would block.
fn splice_some(source: impl AsFd, sink: impl AsFd, most: usize) -> io::Result<Option<usize>> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    match retry_on_intr(|| splice(&source, None, &sink, None, most, flags)) {
        Ok(moved) => Ok(Some(moved)),
        Err(Errno::AGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// How much to ask for, learnt from what came.
#[derive(Debug)]
struct Chunk(usize);

impl Chunk {
    fn learn(&mut self, moved: usize) {
        if moved == self.0 {
            self.0 = (self.0 * 2).min(MOST_BYTES);
        } else if moved < self.0 / 2 {
            self.0 = (self.0 / 2).max(LEAST_BYTES);
        }
    }
}

/// A relay between a pipe of a process and a socket, either way.
#[derive(Debug)]
pub struct PipeRelay {
    chunk: Chunk,
}

impl PipeRelay {
    /// A relay that has moved nothing yet.
    pub fn new() -> Self {
        Self {
            chunk: Chunk(LEAST_BYTES),
        }
    }

    /// Moves what can be moved.
    ///
    /// # Errors
    /// Those of splice(2): the sink is gone, or the source broke.
    pub fn turn(&mut self, source: impl AsFd, sink: impl AsFd) -> io::Result<Turn> {
        for _ in 0..TURN {
            match splice_some(&source, &sink, self.chunk.0)? {
                None => return Ok(Turn::Blocked),
                Some(0) => return Ok(Turn::Ended),
                Some(moved) => self.chunk.learn(moved),
            }
        }
        Ok(Turn::Unfinished)
    }
}

/// Bytes that a terminal is read and written by: as many as one holds (n_tty.c, `N_TTY_BUF_SIZE`).
const TERMINAL_BYTES: usize = 4 << 10;

/// A relay between the master of a terminal and a socket, either way. Terminals cannot be spliced with sockets.
#[derive(Debug)]
pub struct TerminalRelay {
    buffer: Box<[u8]>,
    /// Bytes that have been read and not written.
    held: Range<usize>,
}

impl TerminalRelay {
    /// A relay that has moved nothing yet.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; TERMINAL_BYTES].into(),
            held: 0..0,
        }
    }

    /// Whether bytes wait for room in the sink.
    pub fn waits_for_sink(&self) -> bool {
        !self.held.is_empty()
    }

    /// Moves what can be moved. A terminal whose other end nobody has open any more has ended.
    ///
    /// # Errors
    /// Those of read(2) and write(2): the sink is gone, or the source broke.
    pub fn turn(&mut self, source: impl AsFd, sink: impl AsFd) -> io::Result<Turn> {
        for _ in 0..TURN {
            if self.held.is_empty() {
                match retry_on_intr(|| rustix::io::read(&source, &mut *self.buffer)) {
                    Err(Errno::AGAIN) => return Ok(Turn::Blocked),
                    Ok(0) | Err(Errno::IO) => return Ok(Turn::Ended),
                    read => self.held = 0..read?,
                }
            }
            match retry_on_intr(|| rustix::io::write(&sink, &self.buffer[self.held.clone()])) {
                Err(Errno::AGAIN) | Ok(0) => return Ok(Turn::Blocked),
                written => self.held.start += written?,
            }
        }
        Ok(Turn::Unfinished)
    }
}

impl Default for TerminalRelay {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for PipeRelay {
    fn default() -> Self {
        Self::new()
    }
}

/// A relay between two sockets, with its pipe.
#[derive(Debug)]
pub struct SocketRelay {
    read_end: OwnedFd,
    write_end: OwnedFd,
    /// Bytes in the pipe.
    held: usize,
    /// Bytes that the sink has taken and nobody has counted.
    moved: u64,
    chunk: Chunk,
    source: Source,
}

/// How far a relay's source is.
#[derive(Debug)]
enum Source {
    Open,
    Ended,
    Failed(io::Error),
}

impl SocketRelay {
    /// A relay that has moved nothing yet.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn new() -> io::Result<Self> {
        let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self {
            read_end,
            write_end,
            held: 0,
            moved: 0,
            chunk: Chunk(LEAST_BYTES),
            source: Source::Open,
        })
    }

    /// Whether bytes wait for room in the sink.
    pub fn waits_for_sink(&self) -> bool {
        self.held > 0
    }

    /// Bytes that the sink has taken since the last call.
    pub fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Moves what can be moved. Not to be called again after [`Turn::Ended`] or an error.
    ///
    /// # Errors
    /// [`Broken`] with what splice(2) said.
    pub fn turn(&mut self, source: impl AsFd, sink: impl AsFd) -> Result<Turn, Broken> {
        for _ in 0..TURN {
            let filled = self.fill(&source);
            let drained = self.drain(&sink).map_err(Broken::Sink)?;
            if self.held == 0 {
                match std::mem::replace(&mut self.source, Source::Open) {
                    Source::Open => {}
                    Source::Ended => return Ok(Turn::Ended),
                    Source::Failed(error) => return Err(Broken::Source(error)),
                }
            }
            // A full pipe and a dry source look alike to fill, so it is asked again when the pipe has been drained.
            if !filled && !drained {
                return Ok(Turn::Blocked);
            }
        }
        Ok(Turn::Unfinished)
    }

    /// Source to pipe; says whether something moved.
    fn fill(&mut self, source: impl AsFd) -> bool {
        if !matches!(self.source, Source::Open) {
            return false;
        }
        match splice_some(source, &self.write_end, self.chunk.0) {
            Ok(None) => return false,
            Ok(Some(0)) => self.source = Source::Ended,
            Err(e) => self.source = Source::Failed(e),
            Ok(Some(moved)) => {
                self.held += moved;
                self.chunk.learn(moved);
                return true;
            }
        }
        false
    }

    /// Pipe to sink; says whether something moved.
    fn drain(&mut self, sink: impl AsFd) -> io::Result<bool> {
        if self.held == 0 {
            return Ok(false);
        }
        let moved = splice_some(&self.read_end, sink, self.held)?.unwrap_or(0);
        self.held -= moved.min(self.held);
        self.moved += moved as u64;
        Ok(moved > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    /// A connection whose first end does not block.
    fn connection() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn what_goes_in_comes_out_and_the_end_follows_the_last_byte() {
        let (source, mut writer) = connection();
        let (sink, mut reader) = connection();
        let mut relay = SocketRelay::new().unwrap();
        assert_eq!(relay.turn(&source, &sink).unwrap(), Turn::Blocked);
        writer.write_all(b"last words").unwrap();
        drop(writer);
        assert_eq!(relay.turn(&source, &sink).unwrap(), Turn::Ended);
        drop(sink);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
    }

    #[test]
    fn a_reader_that_stalls_holds_no_more_than_a_pipe_and_loses_nothing() {
        let (source, mut writer) = connection();
        let (sink, mut reader) = connection();
        let mut relay = SocketRelay::new().unwrap();
        writer.set_nonblocking(true).unwrap();
        let mut sent = Vec::new();
        // Both sockets and the pipe fill up.
        loop {
            let block: Vec<u8> = (0..5000).map(|i| (sent.len() + i) as u8).collect();
            let written = writer.write(&block).unwrap_or(0);
            sent.extend_from_slice(&block[..written]);
            while relay.turn(&source, &sink).unwrap() == Turn::Unfinished {}
            if written == 0 {
                break;
            }
        }
        assert!(relay.waits_for_sink());
        drop(writer);
        let mut got = Vec::new();
        reader.set_nonblocking(true).unwrap();
        let mut ended = false;
        while !ended {
            ended = relay.turn(&source, &sink).unwrap() == Turn::Ended;
            let mut block = [0; 7000];
            while let Ok(read) = reader.read(&mut block) {
                got.extend_from_slice(&block[..read]);
            }
        }
        assert!(got == sent);
    }

    #[test]
    fn a_sink_that_is_gone_is_an_error() {
        let (source, mut writer) = connection();
        let (sink, reader) = connection();
        drop(reader);
        writer.write_all(b"x").unwrap();
        let result = SocketRelay::new().unwrap().turn(&source, &sink);
        assert!(matches!(result, Err(Broken::Sink(e)) if e.kind() == io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn a_pipe_is_relayed_to_its_last_byte() {
        let (source, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (sink, mut reader) = connection();
        let mut relay = PipeRelay::new();
        assert_eq!(relay.turn(&source, &sink).unwrap(), Turn::Blocked);
        rustix::io::write(&writer, b"output").unwrap();
        drop(writer);
        assert_eq!(relay.turn(&source, &sink).unwrap(), Turn::Ended);
        drop(sink);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "output");
    }

    #[test]
    fn a_busy_stream_gives_the_others_a_turn() {
        let (source, mut writer) = connection();
        let (sink, mut reader) = connection();
        let mut relay = SocketRelay::new().unwrap();
        let feeder = std::thread::spawn(move || while writer.write_all(&[1; 4096]).is_ok() {});
        let drainer = std::thread::spawn(move || {
            let mut block = [0; 4096];
            while reader.read(&mut block).is_ok_and(|read| read > 0) {}
        });
        while relay.turn(&source, &sink).unwrap() != Turn::Unfinished {}
        drop((source, sink, relay));
        feeder.join().unwrap();
        drainer.join().unwrap();
    }
}
