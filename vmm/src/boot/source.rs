//! A file that is loaded into guest memory. The kernel moves its pages into the memory's file (sendfile(2)): half the work
//! of a read into the mapping, which would first fault in and clear every page.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use rustix::fs::{self, sendfile};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, bitmap::BitmapSlice};

use crate::memory::{self, Memory};

/// A file to be loaded into `memory`.
#[derive(Debug)]
pub struct Source<'a> {
    /// The file.
    pub file: &'a mut File,
    /// Where its bytes go.
    pub memory: &'a Memory,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl ReadVolatile for Source<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        if let Some((target, offset)) = memory::backing(self.memory, buffer.ptr_guard().as_ptr()) {
            fs::seek(target, fs::SeekFrom::Start(offset))
                .map_err(|e| VolatileMemoryError::IOError(e.into()))?;
            // Where the source's file system cannot do it, a read can.
            if let Ok(bytes) = sendfile(target, &*self.file, None, buffer.len()) {
                return Ok(bytes);
            }
        }
        self.file.read_volatile(buffer)
    }
}
