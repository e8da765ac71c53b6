//! Data of files, on its way to the image.

use std::fs::File;

use super::FIRST_DATA_BLOCK;
use crate::unpack::{Sink, UnpackError, blocks::BlockWriter, costs::Stopwatch, tree::Tree};

/// Files up to this length are kept in memory and written beside their inodes: reading one then costs no block more.
pub const INLINE_FILE_BYTES_MAX: u64 = 2048;

/// Most bytes that are kept so; files that come later get blocks.
pub const INLINE_TOTAL_BYTES_MAX: u64 = 16 << 20;

/// Where a file's data is.
#[derive(Debug)]
pub enum FileData {
    /// In memory, to be written beside the inode.
    Inline(Box<[u8]>),
    /// On the output already.
    Blocks {
        /// First block.
        start: u32,
        /// Bytes.
        size: u64,
    },
}

/// The file that is written just now.
enum Current {
    Inline(Vec<u8>),
    Blocks { start: u32, from: u64 },
}

/// An image whose data is being written.
pub struct ImageWriter<'a> {
    blocks: BlockWriter<'a>,
    inline_left: u64,
    current: Current,
}

impl<'a> ImageWriter<'a> {
    /// An image on `output` of at most `max_bytes` bytes, written through `buffer`.
    pub fn new(output: &'a File, buffer: &'a mut [u8], max_bytes: u64, watch: &'a Stopwatch) -> Self {
        Self {
            blocks: BlockWriter::new(output, buffer, FIRST_DATA_BLOCK, max_bytes, watch),
            inline_left: INLINE_TOTAL_BYTES_MAX,
            current: Current::Inline(Vec::new()),
        }
    }
}

impl Sink for ImageWriter<'_> {
    type Data = FileData;

    fn begin(&mut self, size: u64) -> Result<(), UnpackError> {
        self.current = if size <= INLINE_FILE_BYTES_MAX.min(self.inline_left) {
            self.inline_left -= size;
            Current::Inline(Vec::with_capacity(size as usize))
        } else {
            self.blocks.check_room(size)?;
            Current::Blocks {
                start: self.blocks.block()?,
                from: self.blocks.position(),
            }
        };
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        match &mut self.current {
            Current::Inline(data) => data.extend_from_slice(bytes),
            Current::Blocks { .. } => self.blocks.write(bytes)?,
        }
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> Result<(), UnpackError> {
        match &mut self.current {
            Current::Inline(data) => data.resize(data.len() + count as usize, 0),
            Current::Blocks { .. } => self.blocks.zeros(count)?,
        }
        Ok(())
    }

    fn end(&mut self) -> Result<FileData, UnpackError> {
        match &mut self.current {
            Current::Inline(data) => Ok(FileData::Inline(std::mem::take(data).into())),
            &mut Current::Blocks { start, from } => {
                let size = self.blocks.position() - from;
                self.blocks.pad()?;
                Ok(FileData::Blocks { start, size })
            }
        }
    }

    fn finish(self, tree: &Tree<FileData>, id: [u8; 16]) -> Result<u64, UnpackError> {
        super::write_tree(tree, self.blocks, id)
    }
}
