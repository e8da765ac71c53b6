//! One `SOCK_SEQPACKET` socket between the supervisor and brig-vmm: a message and its file descriptors travel
//! together (unix(7), `SCM_RIGHTS`).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::vmm::{FDS_MAX, MESSAGE_BYTES};

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer is gone.
    #[error("the peer closed the channel")]
    Closed,
    /// A message or its list of descriptors is over the limit.
    #[error("a message is too long for the channel")]
    TooLong,
    /// The bytes are not the expected message.
    #[error("malformed message")]
    Malformed(#[source] postcard::Error),
    /// The socket failed.
    #[error("the channel failed")]
    Io(#[from] io::Error),
}

/// Makes the two ends of a channel, both close-on-exec.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Whether a descriptor may be an end of a channel.
pub fn is_one(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET)
}

/// Sends `message` with `fds`.
///
/// # Errors
/// [`ChannelError::TooLong`] over [`MESSAGE_BYTES`] or [`FDS_MAX`]; otherwise those of sendmsg(2), `WouldBlock` among
/// them when the socket is non-blocking.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ChannelError> {
    let body = postcard::to_stdvec(message).map_err(ChannelError::Malformed)?;
    if body.len() > MESSAGE_BYTES || fds.len() > FDS_MAX {
        return Err(ChannelError::TooLong);
    }
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(fds).size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ChannelError::TooLong);
    }
    match sendmsg(
        socket,
        &[IoSlice::new(&body)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    ) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(ChannelError::Closed),
        Err(e) => Err(ChannelError::Io(e.into())),
    }
}

/// Receives one message and its descriptors, which are close-on-exec.
///
/// # Errors
/// [`ChannelError::Closed`] when the peer is gone; those of recvmsg(2), `WouldBlock` among them when the socket is
/// non-blocking.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), ChannelError> {
    let mut body = vec![0; MESSAGE_BYTES];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut body)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|e| match e {
        rustix::io::Errno::CONNRESET => ChannelError::Closed,
        e => ChannelError::Io(e.into()),
    })?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.bytes == 0 {
        return Err(ChannelError::Closed);
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(ChannelError::TooLong);
    }
    match postcard::take_from_bytes(&body[..got.bytes]).map_err(ChannelError::Malformed)? {
        (message, []) => Ok((message, fds)),
        _ => Err(ChannelError::Malformed(postcard::Error::DeserializeBadEncoding)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
    };

    use super::*;
    use crate::vmm::{Command, Event};

    #[test]
    fn a_message_brings_its_descriptors_along() {
        let (a, b) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&a, &Command::Probe, &[writer.as_fd()]).unwrap();
        drop(writer);
        let (command, mut fds): (Command, _) = receive(&b).unwrap();
        assert_eq!(command, Command::Probe);
        assert_eq!(fds.len(), 1);
        File::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn other_descriptors_are_no_channels() {
        let (a, _b) = pair().unwrap();
        assert!(is_one(&a));
        assert!(!is_one(File::open("/dev/null").unwrap()));
        assert!(!is_one(&std::os::unix::net::UnixStream::pair().unwrap().0));
    }

    #[test]
    fn a_closed_peer_is_told_from_an_error() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert!(matches!(receive::<Event>(&b), Err(ChannelError::Closed)));
        assert!(matches!(
            send(&b, &Command::Probe, &[]),
            Err(ChannelError::Closed)
        ));
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (a, _b) = pair().unwrap();
        let fds = vec![a.as_fd(); FDS_MAX + 1];
        assert!(matches!(
            send(&a, &Command::Probe, &fds),
            Err(ChannelError::TooLong)
        ));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        let (a, b) = pair().unwrap();
        rustix::io::write(&a, &[0xff; 9]).unwrap();
        assert!(matches!(receive::<Command>(&b), Err(ChannelError::Malformed(_))));
    }
}
