//! Length-prefixed frames on a byte stream: a little-endian `u32` length, then that many bytes of postcard.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Bytes of the length that starts a frame.
pub const PREFIX_BYTES: usize = 4;

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// A frame is longer than its reader or writer allows.
    #[error("a message of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// Bytes that the frame has or would have.
        length: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// The bytes of a frame are not the message that was expected.
    #[error("malformed message")]
    Malformed(#[source] postcard::Error),
    /// The stream failed, or ended inside of a frame.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// Encodes `message` as one frame, prefix included.
///
/// # Errors
/// [`FrameError::TooLong`] when the body would be over `limit` bytes.
pub fn encode<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = postcard::to_extend(message, vec![0; PREFIX_BYTES]).map_err(FrameError::Malformed)?;
    let length = bytes.len() - PREFIX_BYTES;
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    bytes[..PREFIX_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// The length of the body that follows `prefix`.
///
/// # Errors
/// [`FrameError::TooLong`] when it is over `limit` bytes; nothing has been allocated then.
pub fn body_length(prefix: [u8; PREFIX_BYTES], limit: usize) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    Ok(length)
}

/// Decodes the body of a frame.
///
/// # Errors
/// [`FrameError::Malformed`] when the bytes are not a `T`, or more bytes follow it.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body).map_err(FrameError::Malformed)? {
        (message, []) => Ok(message),
        _ => Err(FrameError::Malformed(postcard::Error::DeserializeBadEncoding)),
    }
}

/// Writes one frame with a single `write_all`.
///
/// # Errors
/// [`FrameError::TooLong`], or [`FrameError::Io`] of the stream.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T, limit: usize) -> Result<(), FrameError> {
    Ok(stream.write_all(&encode(message, limit)?)?)
}

/// Reads one frame, blocking until it is whole.
///
/// # Errors
/// [`FrameError::Closed`] when the stream ends before the first byte; see [`FrameError`] for the others.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read, limit: usize) -> Result<T, FrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    let mut filled = 0;
    while filled < PREFIX_BYTES {
        match stream.read(&mut prefix[filled..]) {
            Ok(0) if filled == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut body = vec![0; body_length(prefix, limit)?];
    stream.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was_sent() {
        let mut bytes = Vec::new();
        write(&mut bytes, &("hello".to_string(), 7u32), 64).unwrap();
        let back: (String, u32) = read(&mut bytes.as_slice(), 64).unwrap();
        assert_eq!(back, ("hello".to_string(), 7));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_read() {
        let bytes = u32::MAX.to_le_bytes();
        let error = read::<String>(&mut bytes.as_slice(), 1024).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { limit: 1024, .. }));
        assert!(matches!(
            encode(&"x".repeat(100), 64),
            Err(FrameError::TooLong { .. })
        ));
    }

    #[test]
    fn an_end_between_frames_is_told_from_one_inside_of_a_frame() {
        assert!(matches!(
            read::<u8>(&mut [].as_slice(), 8),
            Err(FrameError::Closed)
        ));
        assert!(matches!(
            read::<u8>(&mut [1u8, 0].as_slice(), 8),
            Err(FrameError::Io(_))
        ));
        assert!(matches!(
            read::<u8>(&mut [1u8, 0, 0, 0].as_slice(), 8),
            Err(FrameError::Io(_))
        ));
    }

    #[test]
    fn bytes_after_a_message_are_an_error() {
        let error = decode::<u8>(&[1, 2]).unwrap_err();
        assert!(matches!(error, FrameError::Malformed(_)));
    }
}
