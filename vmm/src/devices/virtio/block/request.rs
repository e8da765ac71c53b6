//! One request of a block device: a header, data one way or the other, a status byte (virtio 1.2, 5.2.6).

use std::io;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::ByteValued;

use super::{
    disk::{Disk, SECTOR_BYTES},
    throttle::Direction,
};
use crate::devices::virtio::chain::{Buffers, Chain, ChainError};

/// Bytes of the answer to `GET_ID` (`VIRTIO_BLK_ID_BYTES`).
const ID_BYTES: usize = 20;

/// Most ranges of a discard or write-zeroes request.
pub const RANGES_MAX: u32 = 16;

/// Most sectors of a range.
pub const RANGE_SECTORS_MAX: u32 = 1 << 22;

/// `struct virtio_blk_outhdr`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Header {
    kind: u32,
    priority: u32,
    sector: u64,
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

// SAFETY: both consist of integers without padding, for which any bytes are valid.
unsafe impl ByteValued for Header {}
// SAFETY: as above.
unsafe impl ByteValued for Range {}

/// Why a request failed.
#[derive(Debug)]
enum Failure {
    /// Reported as `VIRTIO_BLK_S_IOERR`.
    Io,
    /// Reported as `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

impl From<ChainError> for Failure {
    fn from(_: ChainError) -> Self {
        Self::Io
    }
}

/// A request, read once: the guest may write to its header meanwhile.
#[derive(Debug)]
pub struct Request<'m> {
    header: Result<Header, ChainError>,
    readable: Buffers<'m>,
    writable: Buffers<'m>,
    status: Buffers<'m>,
}

impl<'m> Request<'m> {
    /// The request in `chain`.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when there is no room for a status.
    pub fn new(mut chain: Chain<'m>) -> Result<Self, ChainError> {
        let status = chain.writable.split_off_back(1)?;
        Ok(Self {
            header: chain.readable.take(),
            readable: chain.readable,
            writable: chain.writable,
            status,
        })
    }

    /// What it makes a disk do: which way, and how many bytes. `None` for one that costs nothing.
    pub fn cost(&self) -> Option<(Direction, u64)> {
        match self.header.ok()?.kind {
            VIRTIO_BLK_T_IN => Some((Direction::Read, self.writable.len() as u64)),
            VIRTIO_BLK_T_OUT => Some((Direction::Write, self.readable.len() as u64)),
            VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                Some((Direction::Write, 0))
            }
            _ => None,
        }
    }

    /// Carries it out and writes its status; returns the bytes that were written to its buffers.
    pub fn execute(self, disk: &Disk) -> u32 {
        let performed = self
            .header
            .map_err(Failure::from)
            .and_then(|header| perform(disk, header, self.readable, self.writable));
        let (code, written) = match performed {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Failure::Io) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        self.status.write(&[code as u8]);
        written.saturating_add(1)
    }
}

/// Returns the bytes that were written to `writable`.
fn perform(
    disk: &Disk,
    header: Header,
    readable: Buffers<'_>,
    writable: Buffers<'_>,
) -> Result<u32, Failure> {
    match header.kind {
        VIRTIO_BLK_T_IN => {
            let bytes = whole_sectors(&writable)?;
            disk.read(byte_offset(header.sector)?, writable)?;
            Ok(bytes)
        }
        VIRTIO_BLK_T_OUT => {
            whole_sectors(&readable)?;
            disk.write(byte_offset(header.sector)?, readable)?;
            Ok(0)
        }
        VIRTIO_BLK_T_FLUSH => {
            disk.flush()?;
            Ok(0)
        }
        VIRTIO_BLK_T_GET_ID => Ok(writable.write(&[0; ID_BYTES]) as u32),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if disk.is_writable() => {
            zero_ranges(disk, header.kind == VIRTIO_BLK_T_DISCARD, readable)?;
            Ok(0)
        }
        _ => Err(Failure::Unsupported),
    }
}

fn zero_ranges(disk: &Disk, discard: bool, mut ranges: Buffers<'_>) -> Result<(), Failure> {
    for _ in 0..RANGES_MAX {
        if ranges.is_empty() {
            return Ok(());
        }
        let range: Range = ranges.take()?;
        let unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        if range.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || discard && unmap {
            return Err(Failure::Unsupported);
        }
        if range.sectors > RANGE_SECTORS_MAX {
            return Err(Failure::Io);
        }
        let bytes = u64::from(range.sectors) * SECTOR_BYTES;
        disk.zero(byte_offset(range.sector)?, bytes, discard || unmap)?;
    }
    if ranges.is_empty() {
        Ok(())
    } else {
        Err(Failure::Io)
    }
}

fn byte_offset(sector: u64) -> Result<u64, Failure> {
    sector.checked_mul(SECTOR_BYTES).ok_or(Failure::Io)
}

fn whole_sectors(buffers: &Buffers<'_>) -> Result<u32, Failure> {
    match u32::try_from(buffers.len()) {
        Ok(bytes) if u64::from(bytes) % SECTOR_BYTES == 0 => Ok(bytes),
        _ => Err(Failure::Io),
    }
}
