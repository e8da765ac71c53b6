//! Memory for large transfers: aligned as direct I/O wants it (open(2), `O_DIRECT`), in huge pages where there are any.
//!
//! A huge page is one page fault in place of 512, and a transfer from or to it is one segment of a disk's request in
//! place of one for each 4 KiB. Where KVM interprets the guest's kernel that is most of what a transfer costs.

use std::{ffi::c_void, io, ptr::NonNull, slice};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// What a huge page's address is a multiple of (x86-64).
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Zeros that start at a multiple of [`HUGE_PAGE_BYTES`]. Pages are only taken when they are touched.
pub struct HugeBuffer {
    mapping: NonNull<c_void>,
    mapped: usize,
    start: NonNull<u8>,
    length: usize,
}

impl HugeBuffer {
    /// A buffer of `length` bytes.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(length: usize) -> io::Result<Self> {
        // A mapping starts at any page; as much more is mapped as has to be skipped at most.
        let mapped = length + HUGE_PAGE_BYTES;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let mapping = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let mapping = NonNull::new(mapping).ok_or(io::ErrorKind::OutOfMemory)?;
        let skipped = mapping.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `skipped` is less than HUGE_PAGE_BYTES, so start and end lie in the mapping.
        let start = unsafe { mapping.cast::<u8>().add(skipped) };
        // SAFETY: the range lies in the mapping, and the advice changes nothing of its content. A kernel without huge pages
        // refuses it, which costs speed only.
        let _ = unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxHugepage) };
        Ok(Self {
            mapping,
            mapped,
            start,
            length,
        })
    }

    /// Its bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range lies in a mapping that is readable, writable, zeroed and ours alone until the drop; `self` is
        // borrowed as long as the slice.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for HugeBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is whole, ours, and no borrow of it outlives `self`.
        let _ = unsafe { munmap(self.mapping.as_ptr(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_writable_to_its_end() {
        for length in [1, 4096, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5] {
            let mut buffer = HugeBuffer::new(length).unwrap();
            let bytes = buffer.bytes_mut();
            assert_eq!(bytes.len(), length);
            assert!(bytes.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES));
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(1);
        }
    }
}
