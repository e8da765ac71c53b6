//! The host's end of a connection: a stream socket, or one end of a pipe, always non-blocking.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat},
    net::{Shutdown, shutdown},
};

use crate::devices::virtio::chain::Buffers;

/// What a read or a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing can be moved now; the event loop will tell when.
    NotNow,
    /// A read found the end of the stream, or nobody is left to read what is written.
    Ended,
    /// The connection has failed.
    Failed,
}

/// An open end.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    is_socket: bool,
    can_read: bool,
    can_write: bool,
    /// A read may find something. Edge-triggered: false only after a read has said so.
    readable: bool,
    /// As `readable`, for a write.
    writable: bool,
}

impl Stream {
    /// Makes `fd` non-blocking and finds out which directions it has.
    ///
    /// # Errors
    /// Those of fstat(2) and fcntl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let is_socket = FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Socket;
        let flags = fcntl_getfl(&fd)?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        let mode = flags & OFlags::RWMODE;
        Ok(Self {
            fd,
            is_socket,
            can_read: mode != OFlags::WRONLY,
            can_write: mode != OFlags::RDONLY,
            readable: true,
            writable: true,
        })
    }

    /// Whether bytes can come from it.
    pub fn can_read(&self) -> bool {
        self.can_read
    }

    /// Whether bytes can go to it.
    pub fn can_write(&self) -> bool {
        self.can_write
    }

    /// Whether it is a socket, whose peer may have more to say when everything is delivered.
    pub fn is_socket(&self) -> bool {
        self.is_socket
    }

    /// Whether a read is worth trying.
    pub fn is_readable(&self) -> bool {
        self.can_read && self.readable
    }

    /// Whether a write is worth trying.
    pub fn is_writable(&self) -> bool {
        self.can_write && self.writable
    }

    /// The event loop has seen a change.
    pub fn changed(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Reads once, into guest memory.
    pub fn read_into(&mut self, buffers: &Buffers<'_>) -> Transfer {
        let vectors = buffers.io_vectors();
        // SAFETY: each vector lies in guest memory, which `buffers` borrows and which only the guest shares.
        let read = unsafe { libc::readv(self.fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as i32) };
        let transfer = outcome(read);
        self.readable = matches!(transfer, Transfer::Bytes(_));
        transfer
    }

    /// Reads once and forgets what came.
    pub fn read_and_discard(&mut self) -> Transfer {
        let mut buffer = [0; 4096];
        let read = rustix::io::read(&self.fd, &mut buffer).map_err(io::Error::from);
        let transfer = match read {
            Ok(0) => Transfer::Ended,
            Ok(bytes) => Transfer::Bytes(bytes),
            Err(e) => of_error(&e),
        };
        self.readable = matches!(transfer, Transfer::Bytes(_));
        transfer
    }

    /// Writes once, from guest memory.
    pub fn write_from(&mut self, buffers: &Buffers<'_>) -> Transfer {
        self.write_vectors(&buffers.io_vectors())
    }

    /// Writes once, from the two halves of a ring buffer.
    pub fn write_slices(&mut self, (first, second): (&[u8], &[u8])) -> Transfer {
        let vector = |slice: &[u8]| libc::iovec {
            iov_base: slice.as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        };
        self.write_vectors(&[vector(first), vector(second)])
    }

    /// The vectors must be good for reading; both callers borrow what they point to.
    fn write_vectors(&mut self, vectors: &[libc::iovec]) -> Transfer {
        // SAFETY: the callers' vectors lie in memory that they borrow for the time of this call.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as i32) };
        let transfer = outcome(written);
        self.writable = matches!(transfer, Transfer::Bytes(_));
        transfer
    }

    /// Tells the peer that nothing more will come. A pipe says it by being closed.
    pub fn end_writing(&mut self) {
        if self.is_socket && self.can_write {
            // It fails when the peer is gone already.
            let _ = shutdown(&self.fd, Shutdown::Write);
        }
        self.can_write = false;
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn outcome(result: isize) -> Transfer {
    match usize::try_from(result) {
        Ok(0) => Transfer::Ended,
        Ok(bytes) => Transfer::Bytes(bytes),
        Err(_) => of_error(&io::Error::last_os_error()),
    }
}

fn of_error(error: &io::Error) -> Transfer {
    match error.kind() {
        io::ErrorKind::WouldBlock => Transfer::NotNow,
        io::ErrorKind::BrokenPipe => Transfer::Ended,
        _ => Transfer::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn each_kind_of_descriptor_has_its_directions() {
        let (reader, writer) = io::pipe().unwrap();
        let (socket, _peer) = UnixStream::pair().unwrap();
        let read_end = Stream::new(reader.into()).unwrap();
        let write_end = Stream::new(writer.into()).unwrap();
        let socket = Stream::new(socket.into()).unwrap();
        let directions = |stream: &Stream| (stream.can_read(), stream.can_write(), stream.is_socket());
        assert_eq!(directions(&read_end), (true, false, false));
        assert_eq!(directions(&write_end), (false, true, false));
        assert_eq!(directions(&socket), (true, true, true));
    }

    #[test]
    fn an_empty_stream_waits_and_a_closed_one_ends() {
        let (socket, peer) = UnixStream::pair().unwrap();
        let mut stream = Stream::new(socket.into()).unwrap();
        assert_eq!(stream.read_and_discard(), Transfer::NotNow);
        assert!(!stream.is_readable());
        drop(peer);
        stream.changed(true, true);
        assert_eq!(stream.read_and_discard(), Transfer::Ended);
        assert_eq!(stream.write_slices((b"x", b"")), Transfer::Ended);
    }
}
