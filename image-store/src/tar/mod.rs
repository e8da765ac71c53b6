//! A bounded, streaming reader of tar archives: POSIX ustar and pax (POSIX.1-2017, pax), GNU tar's long names, base-256
//! numbers and sparse files (GNU tar manual, "Standard", "Sparse Formats"), and the extended attributes that Go's
//! `archive/tar` and star write (`SCHILY.xattr.*`).
//!
//! An archive is untrusted. What the reader keeps in memory is bounded by the constants here, whatever the headers
//! say, and no input makes it panic. Paths are given as they stand in the archive: what they mean is the caller's to
//! decide.

mod header;
mod pax;
mod sparse;
pub mod write;

use std::io::{self, BufRead};

use self::{
    header::{BLOCK_BYTES, Block},
    pax::Records,
    sparse::Map,
};

/// Most bytes of a path or link target, as of Linux's `PATH_MAX`.
pub const PATH_BYTES_MAX: usize = 4096;

/// Most bytes of the pax records before an entry. Linux lets a file have 64 KiB of attribute names and values.
pub const PAX_BYTES_MAX: u64 = 1 << 20;

/// Most headers that may describe one entry (`x`, `L` and `K`).
const PREFIXES_MAX: usize = 8;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The archive ends inside of an entry.
    #[error("the archive is truncated")]
    Truncated,
    /// A header's checksum is wrong: this is no tar archive, or it is damaged.
    #[error("not a tar archive, or a damaged one: a header's checksum is wrong")]
    Checksum,
    /// A numeric field is none.
    #[error("malformed tar header: bad {0}")]
    Number(&'static str),
    /// A pax record is malformed.
    #[error("malformed pax header")]
    Pax,
    /// The map of a sparse file is malformed or has too many pieces.
    #[error("malformed or unsupported map of a sparse file")]
    Sparse,
    /// A path or the headers of an entry are longer than anything Linux could use.
    #[error("a tar entry's {0} is too long")]
    TooLong(&'static str),
    /// A kind of entry that no image has.
    #[error("unsupported kind of tar entry (type flag {0:#04x})")]
    Kind(u8),
    /// The stream under the archive failed.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Truncated;
        }
        Self::Io(error)
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its data follows.
    File,
    /// Another name for the file at [`Entry::link`].
    HardLink,
    /// A symbolic link to [`Entry::link`].
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A point in time since 1970, before it when negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds after that second.
    pub nanoseconds: u32,
}

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path as it stands in the archive, at most [`PATH_BYTES_MAX`] bytes, without NUL bytes.
    pub path: Vec<u8>,
    /// Target of a link, bounded as the path; empty for what is no link.
    pub link: Vec<u8>,
    /// What the entry is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file, holes included; zero for everything else.
    pub size: u64,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, full name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A piece of a file's data.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// These bytes come next. The caller says with [`Reader::consume`] how many it took.
    Bytes(&'a [u8]),
    /// So many zeros come next. They count as taken.
    Hole(u64),
    /// The file is complete.
    End,
}

/// Reads the entries of an archive from a stream.
pub struct Reader<R> {
    source: R,
    /// Bytes of the current entry in the archive that were not read yet.
    stored: u64,
    /// Padding that follows them.
    padding: u64,
    /// Where the stored bytes of the current entry belong.
    map: Map,
}

impl<R: BufRead> Reader<R> {
    /// A reader of the archive that starts at the stream's position.
    pub fn new(source: R) -> Self {
        Self {
            source,
            stored: 0,
            padding: 0,
            map: Map::default(),
        }
    }

    /// The next entry, or `None` at the archive's end. Data of the entry before it that was not read is skipped.
    ///
    /// # Errors
    /// See [`TarError`]; the reader cannot be used after one.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_entry()?;
        let mut records = Records::default();
        for _ in 0..=PREFIXES_MAX {
            let Some(block) = self.next_header()? else {
                return if records.is_empty() {
                    Ok(None)
                } else {
                    Err(TarError::Truncated)
                };
            };
            let size = block.size()?;
            match block.type_flag() {
                b'x' => records.parse(&self.read_extension(size, PAX_BYTES_MAX, "pax header")?)?,
                b'L' => records.path = Some(self.read_long_name(size)?),
                b'K' => records.link = Some(self.read_long_name(size)?),
                // Global headers carry comments (git archive); Docker and containerd pass over them too.
                b'g' => self.skip_padded(size)?,
                _ => return self.entry(&block, records).map(Some),
            }
        }
        Err(TarError::TooLong("list of headers"))
    }

    /// The next piece of the current entry's data.
    ///
    /// # Errors
    /// [`TarError::Truncated`] when the archive ends before the data does; the stream's errors.
    pub fn chunk(&mut self) -> Result<Chunk<'_>, TarError> {
        if let Some(hole) = self.map.next_hole() {
            return Ok(Chunk::Hole(hole));
        }
        let want = self.map.next_bytes().min(self.stored);
        if want == 0 {
            return Ok(Chunk::End);
        }
        let bytes = self.source.fill_buf()?;
        if bytes.is_empty() {
            return Err(TarError::Truncated);
        }
        let take = bytes.len().min(usize::try_from(want).unwrap_or(usize::MAX));
        Ok(Chunk::Bytes(&bytes[..take]))
    }

    /// Takes `count` bytes of the piece that [`Reader::chunk`] gave.
    pub fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.stored -= count as u64;
        self.map.consume(count as u64);
    }

    fn entry(&mut self, block: &Block, mut records: Records) -> Result<Entry, TarError> {
        let mut entry = block.entry(&mut records)?;
        if entry.kind != Kind::File {
            // Only files have data, whatever the size field says: as in Go's archive/tar.
            self.start_data(0);
            self.map = Map::default();
            entry.size = 0;
            return Ok(entry);
        }
        self.start_data(entry.size);
        let map = if block.is_gnu_sparse() {
            self.read_gnu_sparse(block)?
        } else if let Some(sparse) = records.sparse.take() {
            self.read_pax_sparse(sparse, &mut entry)?
        } else {
            Map::whole(entry.size)
        };
        if map.stored() != self.stored {
            return Err(TarError::Sparse);
        }
        entry.size = map.size();
        self.map = map;
        Ok(entry)
    }

    /// The next header, or `None` at the end: two blocks of zeros, or the end of the stream between two entries.
    fn next_header(&mut self) -> Result<Option<Block>, TarError> {
        let Some(block) = self.read_block()? else {
            return Ok(None);
        };
        if !block.is_zero() {
            block.verify_checksum()?;
            return Ok(Some(block));
        }
        match self.read_block()? {
            Some(second) if !second.is_zero() => Err(TarError::Checksum),
            _ => Ok(None),
        }
    }

    /// A block, or `None` at the end of the stream.
    fn read_block(&mut self) -> Result<Option<Block>, TarError> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK_BYTES];
        self.source.read_exact(&mut block)?;
        Ok(Some(Block(block)))
    }

    fn read_extension(&mut self, size: u64, limit: u64, what: &'static str) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(TarError::TooLong(what));
        }
        // What the header promises is only reserved once the bytes are there.
        let mut data = Vec::new();
        while (data.len() as u64) < size {
            let bytes = self.source.fill_buf()?;
            if bytes.is_empty() {
                return Err(TarError::Truncated);
            }
            let take = bytes.len().min((size - data.len() as u64) as usize);
            data.extend_from_slice(&bytes[..take]);
            self.source.consume(take);
        }
        self.skip(padding(size))?;
        Ok(data)
    }

    /// The data of an `L` or `K` entry: a path and a NUL byte.
    fn read_long_name(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.read_extension(size, PATH_BYTES_MAX as u64 + 1, "path")?;
        name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn start_data(&mut self, stored: u64) {
        self.stored = stored;
        self.padding = padding(stored);
    }

    fn skip_entry(&mut self) -> Result<(), TarError> {
        let (stored, padding) = (self.stored, self.padding);
        self.start_data(0);
        self.map = Map::default();
        self.skip(stored)?;
        self.skip(padding)
    }

    fn skip_padded(&mut self, size: u64) -> Result<(), TarError> {
        self.skip(size)?;
        self.skip(padding(size))
    }

    fn skip(&mut self, mut count: u64) -> Result<(), TarError> {
        while count > 0 {
            let available = self.source.fill_buf()?.len();
            if available == 0 {
                return Err(TarError::Truncated);
            }
            let take = available.min(usize::try_from(count).unwrap_or(usize::MAX));
            self.source.consume(take);
            count -= take as u64;
        }
        Ok(())
    }
}

/// Bytes from the end of `size` bytes of data to the next header.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}
