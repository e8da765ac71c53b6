//! Files that are mostly holes: only what is not zero is read, hashed and carried.

use std::{fs::File, io, os::unix::fs::FileExt};

use brig_image_store::digest::Digest;
use rustix::fs::{SeekFrom, seek};
use sha2::{Digest as _, Sha256};

/// What is zero or not as a whole: a page.
pub const BLOCK_BYTES: u64 = 4096;

/// Bytes that are read at a time.
const BUFFER_BYTES: u64 = 1 << 20;

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// Calls `take` with each block of `file` that is not all zeros, in order, and its offset. The last may be short.
///
/// # Errors
/// Those of reading and of `take`.
pub fn for_each_block(file: &File, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut buffer = vec![0; BUFFER_BYTES as usize];
    let mut position = 0;
    while position < length {
        let data = match seek(file, SeekFrom::Data(position)) {
            Ok(data) => data / BLOCK_BYTES * BLOCK_BYTES,
            // No data up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = seek(file, SeekFrom::Hole(data.max(position)))?.min(length);
        position = data.max(position);
        while position < end {
            let want = (length - position).min(BUFFER_BYTES) as usize;
            file.read_exact_at(&mut buffer[..want], position)?;
            for block in buffer[..want].chunks(BLOCK_BYTES as usize) {
                if block.iter().any(|&byte| byte != 0) {
                    take(position, block)?;
                }
                position += block.len() as u64;
            }
        }
    }
    Ok(())
}

/// SHA-256 over the file's length and, for each block of 4 KiB that is not all zeros, its offset and its bytes; numbers
/// are little-endian with 64 bits. It does not depend on which zeros are holes, and takes no time for them.
///
/// # Errors
/// Those of reading.
pub fn digest(file: &File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(file.metadata()?.len().to_le_bytes());
    for_each_block(file, |offset, block| {
        hasher.update(offset.to_le_bytes());
        hasher.update(block);
        Ok(())
    })?;
    Ok(Digest::finish(hasher).to_string())
}

/// The parts of the file that are not zeros, at most `most` of them: zeros between parts are counted in where there
/// would be more.
///
/// # Errors
/// Those of reading.
pub fn pieces(file: &File, most: usize) -> io::Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for_each_block(file, |offset, block| {
        let length = block.len() as u64;
        match pieces.last_mut() {
            Some(last) if last.offset + last.length == offset => last.length += length,
            _ => pieces.push(Piece { offset, length }),
        }
        Ok(())
    })?;
    let mut gap = BLOCK_BYTES;
    while pieces.len() > most {
        pieces = joined(&pieces, gap);
        gap *= 2;
    }
    Ok(pieces)
}

/// The same with parts joined that are at most `gap` bytes apart.
fn joined(pieces: &[Piece], gap: u64) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last) if piece.offset - (last.offset + last.length) <= gap => {
                last.length = piece.offset + piece.length - last.offset;
            }
            _ => joined.push(*piece),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(length: u64, data: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn the_digest_tells_content_and_place_and_length_and_not_holes() {
        let base = digest(&file(3 << 20, &[(8192, b"x"), (2 << 20, b"y")])).unwrap();
        let filled = file(3 << 20, &[(0, &vec![0; 3 << 20])]);
        filled.write_all_at(b"x", 8192).unwrap();
        filled.write_all_at(b"y", 2 << 20).unwrap();
        assert_eq!(digest(&filled).unwrap(), base);
        for other in [
            file(3 << 20, &[(8192, b"x"), (2 << 20, b"z")]),
            file(3 << 20, &[(12288, b"x"), (2 << 20, b"y")]),
            file((3 << 20) + 1, &[(8192, b"x"), (2 << 20, b"y")]),
        ] {
            assert_ne!(digest(&other).unwrap(), base);
        }
    }

    #[test]
    fn pieces_are_what_is_not_zero_and_not_too_many() {
        let block = [7; 4096];
        let sparse = file(
            1 << 20,
            &[(0, &block), (4096, &block), (16384, &block), (524_288, b"z")],
        );
        let wanted = [(0, 8192), (16384, 4096), (524_288, 4096)];
        let found = pieces(&sparse, 10).unwrap();
        assert_eq!(found, wanted.map(|(offset, length)| Piece { offset, length }));
        let found = pieces(&sparse, 2).unwrap();
        assert_eq!(
            found[0],
            Piece {
                offset: 0,
                length: 20480
            }
        );
        assert_eq!(pieces(&sparse, 1).unwrap().len(), 1);
        // A file whose last block is short.
        let short = file(5000, &[(4999, b"x")]);
        let found = pieces(&short, 10).unwrap();
        assert_eq!(
            found,
            [Piece {
                offset: 4096,
                length: 904
            }]
        );
        assert!(pieces(&file(1 << 20, &[]), 1).unwrap().is_empty());
    }
}
