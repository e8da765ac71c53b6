//! Writes the output from front to back, in whole blocks and large pieces.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{
    BLOCK_BYTES, UnpackError,
    costs::{Step, Stopwatch},
};

/// Holes from this length on are not written: the output reads as zeros already.
const SKIPPED_HOLE_BYTES: u64 = 256 << 10;

/// A position in an output that grows.
pub struct BlockWriter<'a> {
    output: &'a File,
    buffer: &'a mut [u8],
    /// Bytes in the buffer.
    filled: usize,
    /// Where on the output the buffer belongs, a multiple of [`BLOCK_BYTES`].
    offset: u64,
    max_bytes: u64,
    watch: &'a Stopwatch,
}

impl<'a> BlockWriter<'a> {
    /// Writes to `output` from the block `first` on, and no further than `max_bytes`. `buffer` is what is written at a
    /// time: aligned as direct I/O wants it, whole blocks long.
    pub fn new(
        output: &'a File,
        buffer: &'a mut [u8],
        first: u32,
        max_bytes: u64,
        watch: &'a Stopwatch,
    ) -> Self {
        debug_assert!(buffer.len().is_multiple_of(BLOCK_BYTES));
        Self {
            output,
            buffer,
            filled: 0,
            offset: u64::from(first) * BLOCK_BYTES as u64,
            max_bytes,
            watch,
        }
    }

    /// Bytes from the output's start to what is written next.
    pub fn position(&self) -> u64 {
        self.offset + self.filled as u64
    }

    /// The block that is written next. Call it when the position is at the start of a block.
    ///
    /// # Errors
    /// [`UnpackError::TooLarge`] when EROFS cannot number it.
    pub fn block(&self) -> Result<u32, UnpackError> {
        debug_assert!(self.position().is_multiple_of(BLOCK_BYTES as u64));
        u32::try_from(self.position() / BLOCK_BYTES as u64).map_err(|_| UnpackError::TooLarge("blocks"))
    }

    /// Makes sure that `count` more bytes fit, so that nothing is begun in vain.
    pub fn check_room(&self, count: u64) -> Result<(), UnpackError> {
        match self.position().checked_add(count) {
            Some(end) if end <= self.max_bytes => Ok(()),
            _ => Err(UnpackError::NoSpace(self.max_bytes)),
        }
    }

    /// Writes bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        self.check_room(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let room = &mut self.buffer[self.filled..];
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.advance(count)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Writes zeros; many of them by leaving a hole in the output.
    pub fn zeros(&mut self, mut count: u64) -> Result<(), UnpackError> {
        self.check_room(count)?;
        if count >= SKIPPED_HOLE_BYTES {
            let padding = self.padding();
            self.fill_zeros(padding)?;
            count -= padding as u64;
            self.flush()?;
            let skipped = count - count % BLOCK_BYTES as u64;
            self.offset += skipped;
            count -= skipped;
        }
        self.fill_zeros(count as usize)
    }

    /// Writes zeros up to the start of a block.
    pub fn pad(&mut self) -> Result<(), UnpackError> {
        let padding = self.padding();
        self.check_room(padding as u64)?;
        self.fill_zeros(padding)
    }

    /// Hands everything to the output. The position must be at the start of a block.
    pub fn flush(&mut self) -> Result<(), UnpackError> {
        debug_assert!(self.filled.is_multiple_of(BLOCK_BYTES));
        let bytes = &self.buffer[..self.filled];
        // What is not written reads as zeros: of a file of zeros nothing has to be.
        if bytes.iter().any(|&byte| byte != 0) {
            self.watch
                .time(Step::Write, || write_all_at(self.output, bytes, self.offset))?;
        }
        self.offset += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// Writes everything, and then one block at the start of the output.
    pub fn finish(mut self, first: &[u8; BLOCK_BYTES]) -> Result<u64, UnpackError> {
        self.pad()?;
        self.flush()?;
        let block = &mut self.buffer[..BLOCK_BYTES];
        block.copy_from_slice(first);
        self.watch
            .time(Step::Write, || write_all_at(self.output, block, 0))?;
        Ok(self.offset)
    }

    fn padding(&self) -> usize {
        self.filled.next_multiple_of(BLOCK_BYTES) - self.filled
    }

    fn fill_zeros(&mut self, mut count: usize) -> Result<(), UnpackError> {
        while count > 0 {
            let room = &mut self.buffer[self.filled..];
            let step = room.len().min(count);
            room[..step].fill(0);
            self.advance(step)?;
            count -= step;
        }
        Ok(())
    }

    fn advance(&mut self, count: usize) -> Result<(), UnpackError> {
        self.filled += count;
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(())
    }
}

/// Writes whole blocks. A full filesystem under the output shows as an error of the write.
fn write_all_at(output: &File, mut bytes: &[u8], mut offset: u64) -> Result<(), UnpackError> {
    while !bytes.is_empty() {
        match output.write_at(bytes, offset) {
            Ok(0) => return Err(UnpackError::Write(io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(UnpackError::Write(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_lies_where_it_belongs() {
        let output = tempfile::tempfile().unwrap();
        let mut buffer = vec![0; 64 << 10];
        let watch = Stopwatch::start();
        let mut writer = BlockWriter::new(&output, &mut buffer, 1, 16 << 20, &watch);
        let data: Vec<u8> = (0..700_001u32).map(|n| (n % 251) as u8).collect();
        writer.write(&data).unwrap();
        writer.zeros(1_000_003).unwrap();
        writer.write(b"end").unwrap();
        writer.pad().unwrap();
        let bytes = writer.finish(&[7; BLOCK_BYTES]).unwrap();
        assert_eq!(bytes, (4096 + 700_001 + 1_000_003 + 3u64).next_multiple_of(4096));
        let mut found = vec![0; bytes as usize];
        output.read_exact_at(&mut found, 0).unwrap();
        let mut expected = vec![7; 4096];
        expected.extend(&data);
        expected.resize(expected.len() + 1_000_003, 0);
        expected.extend(b"end");
        expected.resize(bytes as usize, 0);
        assert!(found == expected);
    }

    #[test]
    fn the_limit_holds_for_data_and_for_holes() {
        let output = tempfile::tempfile().unwrap();
        let mut buffer = vec![0; 4096];
        let watch = Stopwatch::start();
        let mut writer = BlockWriter::new(&output, &mut buffer, 1, 3 * 4096, &watch);
        writer.write(&[1; 8192]).unwrap();
        assert!(matches!(writer.write(&[1]), Err(UnpackError::NoSpace(12288))));
        assert!(matches!(writer.zeros(u64::MAX), Err(UnpackError::NoSpace(_))));
    }
}
