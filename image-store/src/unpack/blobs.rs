//! Reads a blob from the disk of blobs, in whole blocks.

use std::{
    fs::File,
    io::{self, BufRead, Read},
    os::unix::fs::FileExt,
};

use super::{
    BLOCK_BYTES,
    costs::{Step, Stopwatch},
};

/// A stream of the bytes of one blob.
pub struct BlobReader<'a> {
    disk: &'a File,
    buffer: &'a mut [u8],
    watch: &'a Stopwatch,
    progress: &'a mut dyn FnMut(u64),
    /// Where on the disk the next read starts.
    offset: u64,
    /// Bytes of the blob that were not read from the disk yet.
    remaining: u64,
    /// Bytes of the blob that were read from the disk.
    read: u64,
    /// The part of the buffer that was not consumed yet.
    filled: std::ops::Range<usize>,
}

impl<'a> BlobReader<'a> {
    /// The blob of `length` bytes at `offset`, a multiple of [`BLOCK_BYTES`], of `disk`. `buffer` is
    /// what is read at a time: aligned as direct I/O wants it, whole blocks long.
    pub fn new(
        disk: &'a File,
        offset: u64,
        length: u64,
        buffer: &'a mut [u8],
        watch: &'a Stopwatch,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        Self {
            disk,
            buffer,
            watch,
            progress,
            offset,
            remaining: length,
            read: 0,
            filled: 0..0,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let buffer = &mut *self.buffer;
        let want = usize::try_from(self.remaining).map_or(buffer.len(), |n| n.min(buffer.len()));
        // Direct I/O reads whole blocks; what lies behind the blob's end is not looked at.
        let whole = want.next_multiple_of(BLOCK_BYTES);
        let mut have = 0;
        while have < want {
            let (target, from) = (&mut buffer[have..whole], self.offset + have as u64);
            match self.watch.time(Step::Read, || self.disk.read_at(target, from)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.offset += want as u64;
        self.remaining -= want as u64;
        self.read += want as u64;
        self.filled = 0..want;
        (self.progress)(self.read);
        Ok(())
    }
}

impl BufRead for BlobReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.filled.is_empty() && self.remaining > 0 {
            self.fill()?;
        }
        Ok(&self.buffer[self.filled.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.filled.start += count;
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
