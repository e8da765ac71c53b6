//! Data of files, on its way to the image.

use std::fs::File;

use super::FIRST_DATA_BLOCK;
use crate::unpack::{UnpackError, blocks::BlockWriter};

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

/// An image whose data is being written.
pub struct ImageWriter<'a> {
    blocks: BlockWriter<'a>,
    inline_left: u64,
}

impl<'a> ImageWriter<'a> {
    /// An image on `output` of at most `max_bytes` bytes.
    pub fn new(output: &'a File, max_bytes: u64) -> Self {
        Self {
            blocks: BlockWriter::new(output, FIRST_DATA_BLOCK, max_bytes),
            inline_left: INLINE_TOTAL_BYTES_MAX,
        }
    }

    /// The output, at the start of the first block behind the data.
    pub fn into_blocks(self) -> BlockWriter<'a> {
        self.blocks
    }
}

/// Takes the data of one file.
pub struct FileWriter<'w, 'a> {
    image: &'w mut ImageWriter<'a>,
    data: Pending,
}

enum Pending {
    Inline(Vec<u8>),
    Blocks { start: u32, from: u64 },
}

impl<'w, 'a> FileWriter<'w, 'a> {
    /// Begins a file of `size` bytes.
    ///
    /// # Errors
    /// [`UnpackError::NoSpace`] when it cannot fit.
    pub fn begin(size: u64, image: &'w mut ImageWriter<'a>) -> Result<Self, UnpackError> {
        let data = if size <= INLINE_FILE_BYTES_MAX.min(image.inline_left) {
            image.inline_left -= size;
            Pending::Inline(Vec::with_capacity(size as usize))
        } else {
            image.blocks.check_room(size)?;
            Pending::Blocks {
                start: image.blocks.block()?,
                from: image.blocks.position(),
            }
        };
        Ok(Self { image, data })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`UnpackError::NoSpace`], [`UnpackError::Write`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        match &mut self.data {
            Pending::Inline(data) => data.extend_from_slice(bytes),
            Pending::Blocks { .. } => self.image.blocks.write(bytes)?,
        }
        Ok(())
    }

    /// Takes `count` zeros.
    ///
    /// # Errors
    /// As [`FileWriter::write`].
    pub fn zeros(&mut self, count: u64) -> Result<(), UnpackError> {
        match &mut self.data {
            Pending::Inline(data) => data.resize(data.len() + count as usize, 0),
            Pending::Blocks { .. } => self.image.blocks.zeros(count)?,
        }
        Ok(())
    }

    /// The file is complete.
    ///
    /// # Errors
    /// As [`FileWriter::write`].
    pub fn finish(self) -> Result<FileData, UnpackError> {
        match self.data {
            Pending::Inline(data) => Ok(FileData::Inline(data.into())),
            Pending::Blocks { start, from } => {
                let size = self.image.blocks.position() - from;
                self.image.blocks.pad()?;
                Ok(FileData::Blocks { start, size })
            }
        }
    }
}
