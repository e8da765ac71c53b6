//! The uncompressed stream of a layer, hashed as it passes.

use std::{
    io::{self, BufRead, Read},
    ops::Range,
};

use sha2::{Digest as _, Sha256};

use super::costs::{Step, Stopwatch};
use crate::digest::Digest;

/// A buffered reader that computes the digest of everything that was read from the stream under it.
pub struct HashingReader<'a, R> {
    source: R,
    buffer: &'a mut [u8],
    filled: Range<usize>,
    hasher: Sha256,
    watch: &'a Stopwatch,
    /// Bytes that may still come.
    budget: u64,
}

impl<'a, R: Read> HashingReader<'a, R> {
    /// Reads `source` through `buffer`; a stream of more than `limit` bytes is an error of the kind `FileTooLarge`.
    pub fn new(source: R, buffer: &'a mut [u8], watch: &'a Stopwatch, limit: u64) -> Self {
        Self {
            source,
            buffer,
            filled: 0..0,
            hasher: Sha256::new(),
            watch,
            budget: limit,
        }
    }

    /// Reads the stream to its end. Returns the digest of all of it.
    pub fn finish(mut self) -> io::Result<Digest> {
        loop {
            let count = self.fill_buf()?.len();
            if count == 0 {
                return Ok(Digest::finish(self.hasher));
            }
            self.consume(count);
        }
    }
}

impl<R: Read> BufRead for HashingReader<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.filled.is_empty() {
            match self
                .watch
                .time(Step::Decompress, || self.source.read(self.buffer))
            {
                Ok(0) => break,
                Ok(count) => {
                    self.budget = self
                        .budget
                        .checked_sub(count as u64)
                        .ok_or(io::ErrorKind::FileTooLarge)?;
                    let bytes = &self.buffer[..count];
                    self.watch.time(Step::Hash, || self.hasher.update(bytes));
                    self.filled = 0..count;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(&self.buffer[self.filled.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.filled.start += count;
    }
}

impl<R: Read> Read for HashingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
