//! Archives that come from outside may be packed in more ways than layers: beside gzip and zstd also xz and bzip2, as Docker
//! takes them. The host unpacks that in bounded memory; what is in a layer is still unpacked in a guest alone.

use std::io::{self, BufRead, Read};

use brig_protocol::agent::Compression;
use bzip2::bufread::MultiBzDecoder;
use lzma_rust2::XzReader;

use crate::compression::{self, Decoder};

/// Most memory for the dictionary of an xz stream, in KiB. `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 96 << 10;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all, or as a layer can be, too.
    Layer(Compression),
    /// By xz.
    Xz,
    /// By bzip2.
    Bzip2,
}

impl Packing {
    /// How a stream is packed that starts with `head`, told by its magic number; a tar archive cannot start so.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // A level, then the first digits of pi, or those of its square root when there is no block.
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::Layer(compression::detect(head)),
        }
    }
}

/// A stream of the unpacked bytes of another.
pub enum Unpacker<R: BufRead> {
    /// Not packed, or as a layer can be.
    Layer(Decoder<R>),
    /// By xz; several streams may follow one another.
    Xz(Box<XzReader<R>>),
    /// By bzip2; the same.
    Bzip2(Box<MultiBzDecoder<R>>),
}

impl<R: BufRead> Unpacker<R> {
    /// Unpacks `source`.
    pub fn new(packing: Packing, source: R) -> Self {
        match packing {
            Packing::Layer(compression) => Self::Layer(Decoder::new(compression, source)),
            Packing::Xz => Self::Xz(Box::new(XzReader::new_mem_limit(source, true, XZ_MEMORY_KIB))),
            Packing::Bzip2 => Self::Bzip2(Box::new(MultiBzDecoder::new(source))),
        }
    }
}

impl<R: BufRead> Read for Unpacker<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Layer(decoder) => decoder.read(buffer),
            Self::Xz(decoder) => decoder.read(buffer).map_err(|e| match e.kind() {
                io::ErrorKind::OutOfMemory => io::Error::new(
                    io::ErrorKind::InvalidData,
                    "its xz dictionary is larger than 64 MiB: pack it with a smaller one",
                ),
                _ => e,
            }),
            Self::Bzip2(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Unpacker::new(Packing::of(bytes), bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    /// `printf hello | xz` and `printf hello | bzip2`.
    const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x16,
        0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x04, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x00, 0x00,
        0x00, 0x00, 0xb1, 0x37, 0xb9, 0xdb, 0xe5, 0xda, 0x1e, 0x9b, 0x00, 0x01, 0x1d, 0x05, 0xb8, 0x2d, 0x80,
        0xaf, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];
    const BZIP2: &[u8] = &[
        0x42, 0x5a, 0x68, 0x39, 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, 0x19, 0x31, 0x65, 0x3d, 0x00, 0x00, 0x00,
        0x81, 0x00, 0x02, 0x44, 0xa0, 0x00, 0x21, 0x9a, 0x68, 0x33, 0x4d, 0x07, 0x33, 0x8b, 0xb9, 0x22, 0x9c,
        0x28, 0x48, 0x0c, 0x98, 0xb2, 0x9e, 0x80,
    ];

    #[test]
    fn streams_follow_one_another() {
        for packed in [XZ, BZIP2] {
            assert_eq!(unpack(packed).unwrap(), b"hello");
            assert_eq!(unpack(&packed.repeat(3)).unwrap(), b"hellohellohello");
        }
        assert_eq!(unpack(b"plain").unwrap(), b"plain");
    }

    /// The same with `--lzma2=dict=1GiB`.
    const XZ_OF_A_LARGE_DICTIONARY: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x24,
        0x00, 0x00, 0x00, 0x5e, 0x1f, 0xc7, 0xf9, 0x01, 0x00, 0x04, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x00, 0x00,
        0x00, 0x00, 0xb1, 0x37, 0xb9, 0xdb, 0xe5, 0xda, 0x1e, 0x9b, 0x00, 0x01, 0x1d, 0x05, 0xb8, 0x2d, 0x80,
        0xaf, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];

    #[test]
    fn a_dictionary_over_the_limit_is_refused_before_it_is_allocated() {
        let error = unpack(XZ_OF_A_LARGE_DICTIONARY).unwrap_err().to_string();
        assert!(error.contains("dictionary is larger than 64 MiB"), "{error}");
    }

    #[test]
    fn a_truncated_or_damaged_stream_is_an_error() {
        for packed in [XZ, BZIP2] {
            for length in 6..packed.len() {
                assert!(unpack(&packed[..length]).is_err(), "{length}");
            }
            let mut damaged = packed.to_vec();
            damaged[packed.len() / 2] ^= 0x55;
            assert!(unpack(&damaged).map_or(true, |out| out != b"hello"));
        }
    }
}
