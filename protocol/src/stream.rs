//! The header that starts each vsock connection to the agent other than its control connection.
//!
//! The supervisor hands a socket and a header to brig-vmm ([`crate::vmm::Command::Connect`]), brig-vmm opens a vsock
//! connection to the agent's [`STREAM_PORT`], sends the header, and then moves bytes both ways between that
//! connection and the socket. So each stdio stream and each forwarded port has a connection, and a credit window,
//! of its own: none can block another.

/// The vsock port on which the agent accepts streams.
pub const STREAM_PORT: u32 = 1025;

/// The vsock port of the host that the agent connects to for its control connection.
pub const CONTROL_PORT: u32 = 1024;

/// The guest's vsock context id. Each guest is alone on its VMM's vsock, so all have the same.
pub const GUEST_CID: u64 = 3;

/// Bytes of an encoded [`StreamHeader`].
pub const HEADER_BYTES: usize = 8;

/// What a connection to [`STREAM_PORT`] carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamHeader {
    /// Bytes for a process's standard input; the end of the stream closes it.
    Stdin {
        /// The process, as numbered in [`crate::agent::ToAgent`].
        process: u32,
    },
    /// Bytes that a process wrote to its standard output; ends when no writer is left.
    Stdout {
        /// The process.
        process: u32,
    },
    /// As [`StreamHeader::Stdout`], for standard error.
    Stderr {
        /// The process.
        process: u32,
    },
    /// A TCP connection to 127.0.0.1 (then `[::1]`) at `port` in the sandbox's network namespace. Half-close
    /// travels both ways.
    Tcp {
        /// The port inside of the sandbox.
        port: u16,
    },
}

impl StreamHeader {
    /// The header as it travels: kind (`u8`), zero (`u8`), port (`u16` LE), process (`u32` LE).
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let (kind, port, process) = match self {
            Self::Stdin { process } => (1, 0, process),
            Self::Stdout { process } => (2, 0, process),
            Self::Stderr { process } => (3, 0, process),
            Self::Tcp { port } => (4, port, 0),
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = kind;
        bytes[2..4].copy_from_slice(&u16::to_le_bytes(port));
        bytes[4..8].copy_from_slice(&u32::to_le_bytes(process));
        bytes
    }

    /// The header that `bytes` stand for, or `None` when they stand for none.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let port = u16::from_le_bytes([bytes[2], bytes[3]]);
        let process = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        match (bytes[0], bytes[1], port, process) {
            (1, 0, 0, process) => Some(Self::Stdin { process }),
            (2, 0, 0, process) => Some(Self::Stdout { process }),
            (3, 0, 0, process) => Some(Self::Stderr { process }),
            (4, 0, port, 0) if port != 0 => Some(Self::Tcp { port }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_sent() {
        for header in [
            StreamHeader::Stdin { process: 0 },
            StreamHeader::Stdout { process: 7 },
            StreamHeader::Stderr { process: u32::MAX },
            StreamHeader::Tcp { port: 65535 },
        ] {
            assert_eq!(StreamHeader::decode(header.encode()), Some(header));
        }
    }

    #[test]
    fn bytes_that_are_no_header_are_refused() {
        for bytes in [[0; 8], [4, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [9; 8]] {
            assert_eq!(StreamHeader::decode(bytes), None);
        }
    }
}
