//! Decompression of gzip (RFC 1952, several members) and zstd (RFC 8878, several frames) streams in bounded memory.

use std::io::{self, BufRead, Read};

use brig_protocol::agent::Compression;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// Largest zstd window that is accepted, in bytes: 8 MiB is what RFC 8878 asks every decoder to support and what
/// `zstd -19` uses.
pub const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// Bytes that [`detect`] needs.
pub const MAGIC_BYTES: usize = 4;

/// The compression of a stream that starts with `head`, told by its magic number; a tar archive cannot start so.
pub fn detect(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame in front, as pzstd writes it.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// A stream of the decompressed bytes of another.
pub enum Decoder<R: BufRead> {
    /// Not compressed.
    Plain(R),
    /// gzip.
    Gzip(Box<MultiGzDecoder<R>>),
    /// zstd.
    Zstd(Box<ZstdDecoder<R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Decompresses `source`.
    pub fn new(compression: Compression, source: R) -> Self {
        match compression {
            Compression::None => Self::Plain(source),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => Self::Zstd(Box::new(ZstdDecoder::new(source))),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// The frames of a zstd stream, one after the other.
pub struct ZstdDecoder<R> {
    source: R,
    decoder: FrameDecoder,
}

impl<R: BufRead> ZstdDecoder<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW_MAX);
        Self { source, decoder }
    }

    /// Starts the next frame with data; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.decoder.can_collect() == 0 {
            if self.decoder.is_finished() {
                if !self.next_frame()? {
                    return Ok(0);
                }
                continue;
            }
            self.decoder
                .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        }
        self.decoder.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        compress_to_vec(data, CompressionLevel::Fastest)
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(detect(bytes), bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    fn sample() -> Vec<u8> {
        (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect()
    }

    #[test]
    fn members_and_frames_follow_one_another() {
        let data = sample();
        for pack in [gzip as fn(&[u8]) -> Vec<u8>, zstd] {
            let both = [pack(&data), pack(b""), pack(b"tail")].concat();
            assert!(decode(&both).unwrap() == [&data[..], b"tail"].concat());
        }
    }

    #[test]
    fn a_skippable_frame_is_skipped() {
        let mut bytes = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        bytes.extend(zstd(b"data"));
        assert_eq!(decode(&bytes).unwrap(), b"data");
        assert!(decode(&bytes[..9]).is_err());
    }

    #[test]
    fn a_truncated_or_damaged_stream_is_an_error() {
        for packed in [gzip(&sample()), zstd(&sample())] {
            assert!(decode(&packed[..packed.len() - 1]).is_err());
            assert!(decode(&packed[..packed.len() / 2]).is_err());
            let mut damaged = packed.clone();
            damaged[3] ^= 0xff;
            damaged[20] ^= 0xff;
            assert!(decode(&damaged).map_or(true, |out| out != sample()));
        }
    }

    #[test]
    fn a_window_over_the_limit_is_refused_before_it_is_allocated() {
        // A frame header with a window descriptor of exponent 21: 2 GiB.
        let bytes = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0];
        assert!(decode(&bytes).is_err());
    }

    #[test]
    fn an_uncompressed_stream_passes_through() {
        assert_eq!(decode(b"plain").unwrap(), b"plain");
    }
}
