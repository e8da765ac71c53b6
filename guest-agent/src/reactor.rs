//! What the agent waits on: one epoll instance (epoll(7)) and what its tokens stand for.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};

/// Events taken from the kernel at a time.
const BATCH: usize = 32;

/// Everything that a stream's ends can report, edge-triggered: a stream is worked on until it would block, so a second
/// report of the same readiness would be for nothing, and no interest ever has to be changed.
pub const STREAM_EVENTS: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// Who an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The control connection.
    Control,
    /// The socket that streams are accepted on.
    Listener,
    /// The signal descriptor.
    Signals,
    /// One end of a stream.
    Stream {
        /// The stream's number; numbers are not used twice.
        id: u64,
        /// Which end.
        end: End,
    },
}

/// The two ends of a stream in the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The connection to the supervisor.
    Host,
    /// The pipe or socket of the sandbox.
    Sandbox,
}

/// Token numbers below are not streams'.
const FIRST_STREAM: u64 = 4;

impl Token {
    fn to_u64(self) -> u64 {
        match self {
            Self::Control => 0,
            Self::Listener => 1,
            Self::Signals => 2,
            Self::Stream { id, end } => FIRST_STREAM + id * 2 + u64::from(end == End::Sandbox),
        }
    }

    fn from_u64(number: u64) -> Self {
        match number {
            0 => Self::Control,
            1 => Self::Listener,
            2 | 3 => Self::Signals,
            n if n % 2 == 0 => Self::Stream {
                id: (n - FIRST_STREAM) / 2,
                end: End::Host,
            },
            n => Self::Stream {
                id: (n - FIRST_STREAM) / 2,
                end: End::Sandbox,
            },
        }
    }
}

/// The epoll instance.
#[derive(Debug)]
pub struct Reactor {
    epoll: OwnedFd,
}

impl Reactor {
    /// Makes it.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    /// Waits on `source` from now on, until all its descriptors are closed.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn add(&self, source: impl AsFd, token: Token, events: EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            source,
            EventData::new_u64(token.to_u64()),
            events,
        )?)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn modify(&self, source: impl AsFd, token: Token, events: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            source,
            EventData::new_u64(token.to_u64()),
            events,
        )?)
    }

    /// Waits until something happens or `deadline` has come, and appends what happened to `events`.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn wait(&self, deadline: Option<Instant>, events: &mut Vec<(Token, EventFlags)>) -> io::Result<()> {
        let timeout = deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        let mut buffer = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        let (ready, _) = match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(()),
            result => result?,
        };
        // The fields of a packed struct are copied out.
        events.extend(
            ready
                .iter()
                .map(|event| (Token::from_u64(event.data.u64()), event.flags)),
        );
        Ok(())
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were_given() {
        for token in [
            Token::Control,
            Token::Listener,
            Token::Signals,
            Token::Stream {
                id: 0,
                end: End::Host,
            },
            Token::Stream {
                id: 0,
                end: End::Sandbox,
            },
            Token::Stream {
                id: 1 << 60,
                end: End::Sandbox,
            },
        ] {
            assert_eq!(Token::from_u64(token.to_u64()), token);
        }
    }
}
