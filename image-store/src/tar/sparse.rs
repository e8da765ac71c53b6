//! Sparse files: the old GNU format (type flag `S`) and GNU's three pax formats 0.0, 0.1 and 1.0 (GNU tar manual,
//! "Sparse Formats"). Only the pieces with data are in the archive; a map says where they belong.

use std::io::BufRead;

use super::{
    Entry, Reader, TarError,
    header::{BLOCK_BYTES, Block, number},
    pax::decimal,
};

/// Most pieces of one file.
const PIECES_MAX: usize = 1 << 16;

/// Where the stored bytes of a file belong: pieces in ascending order, zeros between them, and the file's size.
#[derive(Default)]
pub struct Map {
    pieces: Vec<Piece>,
    size: u64,
    /// The piece that is read now.
    at: usize,
    /// Bytes of the file that were given out so far.
    position: u64,
}

#[derive(Clone, Copy)]
struct Piece {
    offset: u64,
    length: u64,
}

impl Map {
    /// The map of a file without holes.
    pub fn whole(size: u64) -> Self {
        Self {
            pieces: vec![Piece {
                offset: 0,
                length: size,
            }],
            size,
            ..Self::default()
        }
    }

    /// A map of pieces that lie apart, in ascending order and inside of the file.
    fn new(pieces: Vec<Piece>, size: u64) -> Result<Self, TarError> {
        let mut end = 0;
        for piece in &pieces {
            if piece.offset < end {
                return Err(TarError::Sparse);
            }
            end = piece.offset.checked_add(piece.length).ok_or(TarError::Sparse)?;
        }
        if end > size {
            return Err(TarError::Sparse);
        }
        Ok(Self {
            pieces,
            size,
            ..Self::default()
        })
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are in the archive.
    pub fn stored(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.length).sum()
    }

    /// The zeros that come next, counted as given out.
    pub fn next_hole(&mut self) -> Option<u64> {
        while self
            .pieces
            .get(self.at)
            .is_some_and(|p| p.offset + p.length == self.position)
        {
            self.at += 1;
        }
        let end = self.pieces.get(self.at).map_or(self.size, |piece| piece.offset);
        let hole = end.checked_sub(self.position).filter(|&hole| hole > 0)?;
        self.position = end;
        Some(hole)
    }

    /// Stored bytes that come next, when no hole does.
    pub fn next_bytes(&self) -> u64 {
        self.pieces
            .get(self.at)
            .map_or(0, |piece| piece.offset + piece.length - self.position)
    }

    /// Counts stored bytes as given out.
    pub fn consume(&mut self, count: u64) {
        self.position += count;
    }
}

/// What the `GNU.sparse.*` records of an extended header say.
#[derive(Default)]
pub struct PaxSparse {
    major: u64,
    minor: u64,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    pieces: Vec<Piece>,
    /// The offset of a piece in format 0.0, whose length is in the record after it.
    pending: Option<u64>,
}

impl PaxSparse {
    /// Takes one record; `key` is what follows `GNU.sparse.`.
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = || decimal(value).ok_or(TarError::Sparse);
        match key {
            b"major" => self.major = number()?,
            b"minor" => self.minor = number()?,
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" => self.pending = Some(number()?),
            b"numbytes" => {
                let offset = self.pending.take().ok_or(TarError::Sparse)?;
                push(&mut self.pieces, offset, number()?)?;
            }
            b"map" => {
                let mut numbers = value.split(|&b| b == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or(TarError::Sparse)?;
                    let parse = |text| decimal(text).ok_or(TarError::Sparse);
                    push(&mut self.pieces, parse(offset)?, parse(length)?)?;
                }
            }
            // The number of pieces: it follows from the pieces.
            b"numblocks" => {}
            _ => return Err(TarError::Sparse),
        }
        Ok(())
    }
}

fn push(pieces: &mut Vec<Piece>, offset: u64, length: u64) -> Result<(), TarError> {
    if pieces.len() == PIECES_MAX {
        return Err(TarError::Sparse);
    }
    pieces.push(Piece { offset, length });
    Ok(())
}

impl<R: BufRead> Reader<R> {
    /// The map of an `S` entry: four pieces in the header, then blocks of 21 while a flag says so.
    pub(super) fn read_gnu_sparse(&mut self, block: &Block) -> Result<Map, TarError> {
        const PIECES: std::ops::Range<usize> = 386..482;
        const EXTENDED: usize = 482;
        const REAL_SIZE: std::ops::Range<usize> = 483..495;
        const EXTENSION_PIECES: std::ops::Range<usize> = 0..504;
        const EXTENSION_EXTENDED: usize = 504;

        let mut pieces = Vec::new();
        gnu_pieces(&block.0[PIECES], &mut pieces)?;
        let mut extended = block.0[EXTENDED] != 0;
        while extended {
            // These blocks lie between the header and the data and are not counted in the entry's size.
            let extension = self.read_block()?.ok_or(TarError::Truncated)?;
            gnu_pieces(&extension.0[EXTENSION_PIECES], &mut pieces)?;
            extended = extension.0[EXTENSION_EXTENDED] != 0;
        }
        let size = block.number(REAL_SIZE, "size")?;
        Map::new(pieces, u64::try_from(size).map_err(|_| TarError::Sparse)?)
    }

    /// The map of a pax entry. In format 1.0 it stands, as decimal numbers on lines, in blocks before the data.
    pub(super) fn read_pax_sparse(
        &mut self,
        mut sparse: PaxSparse,
        entry: &mut Entry,
    ) -> Result<Map, TarError> {
        if let Some(name) = sparse.name.take() {
            if name.len() > super::PATH_BYTES_MAX || name.contains(&0) {
                return Err(TarError::Pax);
            }
            entry.path = name;
        }
        match (sparse.major, sparse.minor) {
            (0, _) => {}
            (1, 0) => sparse.pieces = self.read_pax_map()?,
            _ => return Err(TarError::Sparse),
        }
        Map::new(sparse.pieces, sparse.size.ok_or(TarError::Sparse)?)
    }

    fn read_pax_map(&mut self) -> Result<Vec<Piece>, TarError> {
        let mut lines = Lines {
            block: [0; BLOCK_BYTES],
            at: BLOCK_BYTES,
        };
        let count = lines.next_number(self)?;
        if count > PIECES_MAX as u64 {
            return Err(TarError::Sparse);
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            let offset = lines.next_number(self)?;
            let length = lines.next_number(self)?;
            push(&mut pieces, offset, length)?;
        }
        Ok(pieces)
    }
}

/// Decimal numbers on lines that fill whole blocks of an entry's data.
struct Lines {
    block: [u8; BLOCK_BYTES],
    at: usize,
}

impl Lines {
    fn next_number<R: BufRead>(&mut self, reader: &mut Reader<R>) -> Result<u64, TarError> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK_BYTES {
                self.block = reader.read_block()?.ok_or(TarError::Truncated)?.0;
                reader.stored = reader
                    .stored
                    .checked_sub(BLOCK_BYTES as u64)
                    .ok_or(TarError::Sparse)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(&digits).ok_or(TarError::Sparse),
                _ if digits.len() == 20 => return Err(TarError::Sparse),
                _ => digits.push(byte),
            }
        }
    }
}

/// Pairs of 12-byte fields; an empty one ends the list.
fn gnu_pieces(fields: &[u8], pieces: &mut Vec<Piece>) -> Result<(), TarError> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let value = |field: &[u8]| {
            number(field)
                .and_then(|value| u64::try_from(value).ok())
                .ok_or(TarError::Sparse)
        };
        push(pieces, value(&pair[..12])?, value(&pair[12..])?)?;
    }
    Ok(())
}
