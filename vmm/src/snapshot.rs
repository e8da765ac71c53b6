//! The state file of a saved guest: everything but its memory, in one checked piece.
//!
//! ```text
//! 0   8  "brig-vm\n"
//! 8   4  format version (LE)
//! 12  4  CRC-32 of the body (LE)
//! 16  8  bytes of the body (LE)
//! 24     the body: MachineState in postcard
//! ```
//! The file is written by this program for this program. It is parsed in the process that the guest will run in and that is
//! taken to be hostile anyway: a file that somebody has forged can do no more than the guest in it.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use serde::{Deserialize, Serialize};

use crate::{
    devices::virtio::mmio::TransportState,
    devices::{serial::SerialPortState, virtio::vsock::VsockState},
    kvm::{vcpu_state::VcpuState, vm_state::VmState},
};

const MAGIC: [u8; 8] = *b"brig-vm\n";

/// Changed whenever the body or the meaning of anything in it changes, a device's behaviour included.
const FORMAT: u32 = 3;

/// What wrote a state and may read it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const HEADER_BYTES: usize = 24;

/// Most bytes of a body. A vCPU takes some 10 KiB, a connection up to its buffer of 128 KiB.
const BODY_BYTES_MAX: u64 = 256 << 20;

/// Why a state file is not used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It does not begin as one.
    #[error("It is no saved guest")]
    Magic,
    /// Another version of this program wrote it.
    #[error("It was saved by brig-vmm of format {found}, and this one has format {FORMAT}")]
    Format {
        /// The version in the file.
        found: u32,
    },
    /// As above.
    #[error("It was saved by brig-vmm {found}, and this is brig-vmm {VERSION}")]
    Version {
        /// The version in the file.
        found: String,
    },
    /// It is shorter or longer than it says.
    #[error("It has {found} bytes, not {expected}")]
    Length {
        /// Bytes of the file.
        found: u64,
        /// Bytes that it should have.
        expected: u64,
    },
    /// It is longer than any.
    #[error("It says that it has {0} bytes, over the limit of {BODY_BYTES_MAX}")]
    TooLong(u64),
    /// Its checksum is another.
    #[error("It is damaged: its checksum is wrong")]
    Checksum,
    /// Its content makes no sense.
    #[error("It is damaged")]
    Malformed(#[source] postcard::Error),
    /// Reading or writing failed.
    #[error("Cannot read or write it")]
    Io(#[from] io::Error),
}

/// A machine that stands still, without its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// Version of the program that saved it.
    pub version: String,
    /// Whether it ran on an emulated KVM: its kernel then knows.
    pub emulated: bool,
    /// The host's time stamp counter then. An emulated KVM shows it to the guest as it is: after a restart of the host it
    /// has gone back, and the guest's clock would stand still until it has caught up.
    pub host_tsc: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The vCPUs in order.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers and clock.
    pub vm: VmState,
    /// The serial port.
    pub serial: SerialPortState,
    /// The registers and queues of the virtio devices, in the order of their slots: disks, vsock, entropy, balloon.
    pub transports: Vec<TransportState>,
    /// The disks in order.
    pub disks: Vec<DiskState>,
    /// The connections.
    pub vsock: VsockState,
}

/// What a guest knows of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Bytes that it was told.
    pub shown_bytes: u64,
    /// Whether it may write.
    pub writable: bool,
}

/// Writes `state` to `file`, which is empty.
///
/// # Errors
/// [`StateError::Io`]; [`StateError::TooLong`] when it could not be read again.
pub fn write(state: &MachineState, file: &File) -> Result<(), StateError> {
    let body = postcard::to_stdvec(state).map_err(StateError::Malformed)?;
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err(StateError::TooLong(body.len() as u64));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    Ok(file.write_all_at(&bytes, 0)?)
}

/// Reads what [`write`] wrote, and checks it.
///
/// # Errors
/// [`StateError`] says what is wrong with the file.
pub fn read(mut file: &File) -> Result<MachineState, StateError> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => StateError::Magic,
        _ => e.into(),
    })?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..8] != MAGIC {
        return Err(StateError::Magic);
    }
    if word(8) != FORMAT {
        return Err(StateError::Format { found: word(8) });
    }
    let length = u64::from(word(20)) << 32 | u64::from(word(16));
    if length > BODY_BYTES_MAX {
        return Err(StateError::TooLong(length));
    }
    let found = file.metadata()?.len();
    let expected = HEADER_BYTES as u64 + length;
    if found != expected {
        return Err(StateError::Length { found, expected });
    }
    let mut bytes = Vec::with_capacity(expected as usize);
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0)).map_err(io::Error::from)?;
    file.read_to_end(&mut bytes)?;
    let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
    if crc32fast::hash(body) != word(12) {
        return Err(StateError::Checksum);
    }
    parse(body)
}

/// The state in a body whose checksum is right.
///
/// # Errors
/// [`StateError::Malformed`], [`StateError::Version`].
pub fn parse(body: &[u8]) -> Result<MachineState, StateError> {
    let (state, []) = postcard::take_from_bytes::<MachineState>(body).map_err(StateError::Malformed)? else {
        return Err(StateError::Malformed(postcard::Error::DeserializeBadEncoding));
    };
    if state.version != VERSION {
        return Err(StateError::Version { found: state.version });
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state in which every list is empty and every number 0.
    fn least() -> Vec<u8> {
        let mut body = vec![VERSION.len() as u8];
        body.extend(VERSION.as_bytes());
        while parse(&body).is_err() {
            assert!(body.len() < 4096, "no state is that long");
            body.push(0);
        }
        body
    }

    /// CVE-2023-50711, lengths in a state file that are believed: whatever number of it says how much follows, no more is taken than
    /// there is.
    #[test]
    fn a_length_that_lies_is_no_promise_of_memory() {
        let body = least();
        // As postcard writes them: the largest number, one that would be more memory than there is, and one just over what is left.
        let numbers: [&[u8]; 3] = [
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10],
            &[0xff, 0x7f],
        ];
        for at in 0..body.len() {
            for number in numbers {
                let lying = [&body[..at], number, &body[at + 1..]].concat();
                if let Ok(state) = parse(&lying) {
                    // It was a number of its own, and no length.
                    let again = postcard::to_stdvec(&state).unwrap();
                    assert!(again.len() <= lying.len(), "at {at}");
                }
            }
        }
    }

    /// The same of the header.
    #[test]
    fn a_header_that_lies_about_the_length_is_refused() {
        let body = least();
        let with_length = |length: u64| {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(FORMAT.to_le_bytes());
            bytes.extend(crc32fast::hash(&body).to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(&body);
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            read(&file)
        };
        let length = body.len() as u64;
        assert!(with_length(length).is_ok());
        for lie in [0, length - 1, length + 1, BODY_BYTES_MAX] {
            assert!(
                matches!(with_length(lie), Err(StateError::Length { .. })),
                "{lie}"
            );
        }
        for lie in [BODY_BYTES_MAX + 1, u64::MAX] {
            assert!(matches!(with_length(lie), Err(StateError::TooLong(_))), "{lie}");
        }
    }
}
