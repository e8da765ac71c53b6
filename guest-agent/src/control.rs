//! The control connection: frames of [`brig_protocol::agent`] both ways, never blocking the loop.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use brig_protocol::{
    agent::{FROM_AGENT_BYTES, FromAgent, TO_AGENT_BYTES, ToAgent},
    frame::{self, FrameError, PREFIX_BYTES},
};
use rustix::io::Errno;

/// Bytes that one read asks for.
const READ_BYTES: usize = 16 << 10;

/// The agent's end of the control connection.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    /// What has come and is not a whole frame yet. At most [`TO_AGENT_BYTES`] and a read.
    inbox: Vec<u8>,
    /// What the socket has not taken yet. There are only as many messages as there are requests, and progress reports are
    /// left out while something waits here.
    outbox: Vec<u8>,
}

impl Control {
    /// Takes a connected, non-blocking socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            inbox: Vec::new(),
            outbox: Vec::new(),
        }
    }

    /// Queues a message and sends what the socket takes.
    ///
    /// # Errors
    /// [`FrameError::Closed`] when the supervisor is gone.
    pub fn send(&mut self, message: &FromAgent) -> Result<(), FrameError> {
        self.outbox.extend(frame::encode(message, FROM_AGENT_BYTES)?);
        self.flush()
    }

    /// Sends what the socket takes of what is queued.
    ///
    /// # Errors
    /// [`FrameError::Closed`] when the supervisor is gone.
    pub fn flush(&mut self) -> Result<(), FrameError> {
        while !self.outbox.is_empty() {
            match rustix::io::write(&self.socket, &self.outbox) {
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(lost(e)),
            }
        }
        Ok(())
    }

    /// Whether messages wait for room in the socket.
    pub fn is_backed_up(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Reads once and returns the messages that are whole then, oldest first.
    ///
    /// # Errors
    /// [`FrameError::Closed`] when the supervisor is gone; otherwise it broke the protocol.
    pub fn receive(&mut self) -> Result<Vec<ToAgent>, FrameError> {
        let filled = self.inbox.len();
        self.inbox.resize(filled + READ_BYTES, 0);
        let result = rustix::io::read(&self.socket, &mut self.inbox[filled..]);
        self.inbox.truncate(filled + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => return Err(FrameError::Closed),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Vec::new()),
            Err(e) => return Err(lost(e)),
        }
        let mut messages = Vec::new();
        while let Some(message) = self.take_frame()? {
            messages.push(message);
        }
        Ok(messages)
    }

    /// The first frame of the inbox when it is whole.
    fn take_frame(&mut self) -> Result<Option<ToAgent>, FrameError> {
        let Some(prefix) = self.inbox.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let end = PREFIX_BYTES + frame::body_length(*prefix, TO_AGENT_BYTES)?;
        let Some(body) = self.inbox.get(PREFIX_BYTES..end) else {
            return Ok(None);
        };
        let message = frame::decode(body)?;
        self.inbox.drain(..end);
        Ok(Some(message))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A connection that the peer has closed or reset is closed, whichever call says so.
fn lost(error: Errno) -> FrameError {
    match error {
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::SHUTDOWN => FrameError::Closed,
        error => FrameError::Io(io::Error::from(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    fn pair() -> (Control, UnixStream) {
        let (agent, supervisor) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        (Control::new(agent.into()), supervisor)
    }

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let (mut control, mut supervisor) = pair();
        let signal = ToAgent::Signal {
            process: 0,
            signal: 15,
        };
        let bytes = [
            frame::encode(&signal, TO_AGENT_BYTES).unwrap(),
            frame::encode(&ToAgent::Shutdown, TO_AGENT_BYTES).unwrap(),
        ]
        .concat();
        let mut got = Vec::new();
        for byte in &bytes {
            supervisor.write_all(&[*byte]).unwrap();
            got.extend(control.receive().unwrap());
        }
        assert_eq!(got, [signal.clone(), ToAgent::Shutdown]);
        supervisor.write_all(&bytes).unwrap();
        assert_eq!(control.receive().unwrap(), [signal, ToAgent::Shutdown]);
    }

    #[test]
    fn nothing_to_read_is_no_message_and_the_end_is_an_error() {
        let (mut control, supervisor) = pair();
        assert!(control.receive().unwrap().is_empty());
        drop(supervisor);
        assert!(matches!(control.receive(), Err(FrameError::Closed)));
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_at_its_prefix() {
        let (mut control, mut supervisor) = pair();
        supervisor.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(control.receive(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn what_the_socket_does_not_take_is_sent_later_and_in_order() {
        let (mut control, mut supervisor) = pair();
        let mut sent = 0u64;
        while !control.is_backed_up() {
            sent += 1;
            control.send(&FromAgent::Unpacking { bytes: sent }).unwrap();
        }
        for expected in 1..=sent {
            control.flush().unwrap();
            let message: FromAgent = frame::read(&mut supervisor, FROM_AGENT_BYTES).unwrap();
            assert_eq!(message, FromAgent::Unpacking { bytes: expected });
        }
        supervisor.set_nonblocking(true).unwrap();
        assert_eq!(
            supervisor.read(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
