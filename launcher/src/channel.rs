//! What the caller and a zygote say to each other over a Unix socket: frames, the first with descriptors (unix(7),
//! `SCM_RIGHTS`).

use std::{
    io::{self, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use brig_protocol::{
    agent::StartFailure,
    frame::{self, PREFIX_BYTES},
    spec::SandboxSpec,
};
use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, send, sendmsg,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    Stdio,
    error::{LaunchError, one_line},
    rootfs::Root,
};

/// Most bytes of an order. Not a matter of trust: both ends are the same program.
const ORDER_BYTES: usize = 4 << 20;

/// Most bytes of a verdict.
const VERDICT_BYTES: usize = 64 << 10;

/// Bytes of room that an order finds waiting: a usual one is smaller, and is taken in one piece.
const USUAL_BYTES: usize = 16 << 10;

/// What a zygote is told to become.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub spec: SandboxSpec,
    pub root: Root,
}

/// The same, lent.
#[derive(Debug, Serialize)]
pub(crate) struct OrderRef<'a> {
    pub spec: &'a SandboxSpec,
    pub root: &'a Root,
}

/// What a zygote says: that it is ready, or what failed. That it has become the process is said by the end of the stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Ready,
    Failed { kind: StartFailure, message: String },
}

impl Verdict {
    pub(crate) fn failed(error: &LaunchError) -> Self {
        Self::Failed {
            kind: error.kind(),
            message: one_line(error),
        }
    }
}

/// What comes of an order.
pub(crate) struct Outcome {
    /// What the zygote says; nothing, the end of the stream, when it has become the process.
    pub verdict: Option<Verdict>,
    /// The master of the process's terminal.
    pub terminal: Option<OwnedFd>,
}

/// What comes before a descriptor, in the place of the length of a frame: no frame is empty.
const TERMINAL: [u8; PREFIX_BYTES] = [0; PREFIX_BYTES];

/// Sends an order with the streams and waits for what comes of it. `BrokenPipe` and `ConnectionReset`: nobody was there to read the order.
///
/// Between the first byte sent and the first received this touches nothing but its stack: see [`crate::zygote`].
pub(crate) fn give_order(channel: &UnixStream, order: &OrderRef<'_>, stdio: &Stdio) -> io::Result<Outcome> {
    let bytes = frame::encode(order, ORDER_BYTES).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let streams;
    if let Stdio::Given([stdin, stdout, stderr]) = stdio {
        streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&streams));
    }
    let mut sent = retry_on_intr(|| {
        sendmsg(
            channel,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    while sent < bytes.len() {
        sent += retry_on_intr(|| send(channel, &bytes[sent..], SendFlags::NOSIGNAL))?;
    }
    receive_outcome(channel)
}

/// A zygote's side: the room is made before it is needed.
pub(crate) struct OrderReader {
    bytes: Vec<u8>,
}

impl OrderReader {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; USUAL_BYTES],
        }
    }

    /// Waits for an order. `None`: there will be none.
    pub(crate) fn receive(mut self, mut channel: &UnixStream) -> io::Result<Option<(Order, Stdio)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = loop {
            let room = &mut [IoSliceMut::new(&mut self.bytes)];
            match recvmsg(channel, room, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                result => break result?.bytes,
            }
        };
        if read == 0 {
            return Ok(None);
        }
        let streams: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(streams) => Some(streams),
                _ => None,
            })
            .flatten()
            .collect();
        let stdio = if streams.is_empty() {
            Stdio::Terminal
        } else {
            let streams = streams.try_into();
            Stdio::Given(streams.map_err(|_| io::Error::other("not three descriptors"))?)
        };
        // The first piece of a stream holds the prefix at least: it was sent in one.
        let prefix = self
            .bytes
            .first_chunk::<PREFIX_BYTES>()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let end = PREFIX_BYTES + frame::body_length(*prefix, ORDER_BYTES).map_err(io::Error::other)?;
        if end > read {
            self.bytes.resize(end, 0);
            channel.read_exact(&mut self.bytes[read..end])?;
        }
        let order = frame::decode(&self.bytes[PREFIX_BYTES..end]).map_err(io::Error::other)?;
        Ok(Some((order, stdio)))
    }
}

/// Says a verdict; the caller may be gone. Once it is said this touches nothing but its stack: see [`crate::zygote`].
pub(crate) fn send_verdict(channel: &UnixStream, verdict: &Verdict) {
    if let Ok(bytes) = frame::encode(verdict, VERDICT_BYTES) {
        // Never freed.
        let bytes = bytes.leak();
        let _ = retry_on_intr(|| send(channel, bytes, SendFlags::NOSIGNAL));
    }
}

/// Waits for a verdict. `None`: the stream has ended.
pub(crate) fn receive_verdict(channel: &UnixStream) -> io::Result<Option<Verdict>> {
    Ok(receive_outcome(channel)?.verdict)
}

/// Waits for what there is to say, up to the verdict or the end of the stream. Until that comes this touches nothing but its
/// stack: see [`crate::zygote`].
fn receive_outcome(mut channel: &UnixStream) -> io::Result<Outcome> {
    let mut terminal = None;
    loop {
        let (prefix, received) = receive_prefix(channel, RecvFlags::empty())?;
        match prefix {
            None => {
                return Ok(Outcome {
                    verdict: None,
                    terminal,
                });
            }
            Some(TERMINAL) => terminal = received,
            Some(prefix) => {
                let length = frame::body_length(prefix, VERDICT_BYTES).map_err(io::Error::other)?;
                let mut body = vec![0; length];
                channel.read_exact(&mut body)?;
                let verdict = Some(frame::decode(&body).map_err(io::Error::other)?);
                return Ok(Outcome { verdict, terminal });
            }
        }
    }
}

/// The next four bytes, `None` at the end of the stream, and a descriptor that came along.
fn receive_prefix(
    channel: &UnixStream,
    flags: RecvFlags,
) -> io::Result<(Option<[u8; PREFIX_BYTES]>, Option<OwnedFd>)> {
    let mut prefix = [0; PREFIX_BYTES];
    let mut received = None;
    let mut filled = 0;
    while filled < PREFIX_BYTES {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = &mut [IoSliceMut::new(&mut prefix[filled..])];
        let read = match recvmsg(channel, room, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => continue,
            result => result?.bytes,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                received = descriptors.last().or(received);
            }
        }
        match read {
            0 if filled == 0 => return Ok((None, received)),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok((Some(prefix), received))
}

/// Sends the master of a terminal.
pub(crate) fn send_terminal(channel: &UnixStream, master: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    retry_on_intr(|| {
        sendmsg(
            channel,
            &[IoSlice::new(&TERMINAL)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Takes the master of a terminal that has been sent.
pub(crate) fn take_terminal(channel: &UnixStream) -> Option<OwnedFd> {
    receive_prefix(channel, RecvFlags::DONTWAIT).ok()?.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_no_order_and_no_verdict() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(there);
        assert!(OrderReader::new().receive(&here).unwrap().is_none());
        assert!(receive_verdict(&here).unwrap().is_none());
    }

    #[test]
    fn a_failure_comes_through_with_its_kind() {
        let (here, there) = UnixStream::pair().unwrap();
        let error = LaunchError::NoSuchProgram {
            program: "/bin/x".into(),
        };
        send_verdict(&there, &Verdict::failed(&error));
        let Some(Verdict::Failed { kind, message }) = receive_verdict(&here).unwrap() else {
            panic!("no failure")
        };
        assert_eq!(kind, StartFailure::NotFound);
        assert_eq!(message, "exec: \"/bin/x\": no such file or directory");
    }
}
