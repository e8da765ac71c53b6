//! A descriptor chain as two lists of buffers in guest memory: what the device reads, then what it writes. This is the
//! one place where a chain's addresses and lengths are checked.

use std::{mem::MaybeUninit, ops::Deref};

use virtio_queue::DescriptorChain;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::memory::Memory;

/// Most buffers of a chain: the kernel's limit of one vectored read or write (`UIO_MAXIOV`).
pub const BUFFERS_MAX: usize = 1024;

/// Why a chain is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A buffer does not lie in the guest's memory.
    #[error("A buffer lies outside of the guest's memory")]
    OutOfRange,
    /// A buffer for the device to read follows one for it to write.
    #[error("A readable buffer follows a writable one")]
    Order,
    /// There are more than [`BUFFERS_MAX`].
    #[error("A chain has too many buffers")]
    TooMany,
    /// The buffers end before what they must hold.
    #[error("A chain is too short")]
    TooShort,
}

/// Consecutive buffers in guest memory, all of them inside of it. They are empty, or each has at least one byte.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    bytes: usize,
}

/// The two halves of a chain.
#[derive(Debug)]
pub struct Chain<'m> {
    /// What the driver wrote for the device.
    pub readable: Buffers<'m>,
    /// Room for the device's answer.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Checks the descriptors of `chain`, which lie in `memory`.
    ///
    /// # Errors
    /// [`ChainError`]; the chain is to be given back unused.
    pub fn new<M>(memory: &'m Memory, chain: DescriptorChain<M>) -> Result<Self, ChainError>
    where
        M: Deref<Target = Memory>,
    {
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        for descriptor in chain {
            let buffers = if descriptor.is_write_only() {
                &mut writable
            } else if writable.slices.is_empty() {
                &mut readable
            } else {
                return Err(ChainError::Order);
            };
            buffers.push(memory, descriptor.addr(), descriptor.len())?;
        }
        if readable.slices.len() + writable.slices.len() > BUFFERS_MAX {
            return Err(ChainError::TooMany);
        }
        Ok(Self { readable, writable })
    }
}

impl<'m> Buffers<'m> {
    fn push(&mut self, memory: &'m Memory, address: GuestAddress, bytes: u32) -> Result<(), ChainError> {
        for slice in memory.get_slices(address, bytes as usize) {
            let slice = slice.map_err(|_| ChainError::OutOfRange)?;
            if self.slices.len() == BUFFERS_MAX {
                return Err(ChainError::TooMany);
            }
            // At most BUFFERS_MAX times 4 GiB: no overflow.
            self.bytes += slice.len();
            self.slices.push(slice);
        }
        Ok(())
    }

    /// Bytes in all buffers.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The buffers one by one.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// Takes the first `bytes` off.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when there are fewer; nothing is taken then.
    pub fn split_off_front(&mut self, bytes: usize) -> Result<Buffers<'m>, ChainError> {
        if bytes > self.bytes {
            return Err(ChainError::TooShort);
        }
        let mut front = Vec::new();
        let mut missing = bytes;
        let mut whole = 0;
        for slice in &mut self.slices {
            if missing == 0 {
                break;
            }
            if slice.len() <= missing {
                missing -= slice.len();
                front.push(*slice);
                whole += 1;
            } else {
                // `missing` is less than the length of the slice.
                let (head, tail) = slice.split_at(missing).map_err(|_| ChainError::TooShort)?;
                front.push(head);
                *slice = tail;
                missing = 0;
            }
        }
        self.slices.drain(..whole);
        self.bytes -= bytes;
        Ok(Buffers { slices: front, bytes })
    }

    /// Takes the last `bytes` off.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when there are fewer.
    pub fn split_off_back(&mut self, bytes: usize) -> Result<Buffers<'m>, ChainError> {
        let rest = self.bytes.checked_sub(bytes).ok_or(ChainError::TooShort)?;
        let front = self.split_off_front(rest)?;
        Ok(std::mem::replace(self, front))
    }

    /// Forgets all but the first `bytes`.
    pub fn truncate(&mut self, bytes: usize) {
        if let Ok(front) = self.split_off_front(bytes) {
            *self = front;
        }
    }

    /// Reads a `T` off the front.
    ///
    /// # Errors
    /// [`ChainError::TooShort`].
    pub fn take<T: ByteValued>(&mut self) -> Result<T, ChainError> {
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: a `ByteValued` type is valid for any bytes, zeros included.
        let value = unsafe { value.assume_init_mut() };
        self.split_off_front(size_of::<T>())?.read(value.as_mut_slice());
        Ok(*value)
    }

    /// Copies from the start of the buffers into `to`; returns how many bytes that were.
    pub fn read(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            // A read from the start of a slice cannot fail; an empty one reads nothing.
            done += slice.read(&mut to[done..], 0).unwrap_or(0);
            if done == to.len() {
                break;
            }
        }
        done
    }

    /// Copies `from` to the start of the buffers; returns how many bytes that were.
    pub fn write(&self, from: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.write(&from[done..], 0).unwrap_or(0);
            if done == from.len() {
                break;
            }
        }
        done
    }

    /// Fills the buffers with zeros.
    pub fn zero(&self) {
        for slice in &self.slices {
            // SAFETY: the pointer is good for writing `len` bytes for as long as the guard lives, and any bytes are valid
            // there: only the guest shares this memory, never a Rust reference.
            unsafe { std::ptr::write_bytes(slice.ptr_guard_mut().as_ptr(), 0, slice.len()) };
        }
    }

    /// The buffers for readv(2) and its relatives. The addresses are good for as long as the guest memory that they were
    /// made from, which `'m` borrows.
    pub fn io_vectors(&self) -> Vec<libc::iovec> {
        self.slices
            .iter()
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::memory;

    pub(crate) fn buffers<'m>(memory: &'m Memory, ranges: &[(u64, u32)]) -> Buffers<'m> {
        let mut buffers = Buffers::default();
        for &(address, bytes) in ranges {
            buffers.push(memory, GuestAddress(address), bytes).unwrap();
        }
        buffers
    }

    #[test]
    fn buffers_are_split_where_one_ends_and_within_one() {
        let memory = memory::create(1 << 20).unwrap();
        let mut all = buffers(&memory, &[(0, 10), (100, 10), (200, 10)]);
        assert_eq!(all.write(&(0..30).collect::<Vec<u8>>()), 30);
        let front = all.split_off_front(15).unwrap();
        assert_eq!((front.len(), all.len()), (15, 15));
        let mut read = [0; 30];
        assert_eq!(front.read(&mut read), 15);
        assert_eq!(all.read(&mut read[15..]), 15);
        assert_eq!(read.to_vec(), (0..30).collect::<Vec<u8>>());
        let back = all.split_off_back(1).unwrap();
        assert_eq!((back.len(), all.len()), (1, 14));
        assert_eq!(back.read(&mut read), 1);
        assert_eq!(read[0], 29);
    }

    #[test]
    fn more_than_there_is_cannot_be_taken() {
        let memory = memory::create(1 << 20).unwrap();
        let mut all = buffers(&memory, &[(0, 3)]);
        assert_eq!(all.split_off_front(4).unwrap_err(), ChainError::TooShort);
        assert_eq!(all.take::<u32>().unwrap_err(), ChainError::TooShort);
        assert_eq!(all.split_off_back(4).unwrap_err(), ChainError::TooShort);
        assert_eq!(all.len(), 3);
        assert!(all.split_off_front(0).unwrap().is_empty());
    }

    #[test]
    fn a_buffer_outside_of_memory_is_refused() {
        let memory = memory::create(1 << 20).unwrap();
        for (address, bytes) in [((1 << 20) - 1, 2), (1 << 20, 1), (u64::MAX, 1), (u64::MAX - 1, 8)] {
            assert_eq!(
                Buffers::default().push(&memory, GuestAddress(address), bytes),
                Err(ChainError::OutOfRange)
            );
        }
    }
}
