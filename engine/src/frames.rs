//! [`brig_protocol::frame`]s on tokio's streams.

use std::{io, marker::PhantomData};

use brig_protocol::frame::{self, FrameError, PREFIX_BYTES};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Reads frames of `T`, each at most `limit` bytes long.
#[derive(Debug)]
pub struct FrameReader<R, T> {
    stream: R,
    buffer: Vec<u8>,
    limit: usize,
    message: PhantomData<T>,
}

impl<R: AsyncRead + Unpin, T: DeserializeOwned> FrameReader<R, T> {
    /// Reads from `stream`.
    pub fn new(stream: R, limit: usize) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            limit,
            message: PhantomData,
        }
    }

    /// The next message. Cancel safe: what has been read of a frame is kept.
    ///
    /// # Errors
    /// [`FrameError`]; none can be recovered from, the stream is at an unknown place then.
    pub async fn next(&mut self) -> Result<T, FrameError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(match self.buffer.len() {
                    0 => FrameError::Closed,
                    _ => FrameError::Io(io::ErrorKind::UnexpectedEof.into()),
                });
            }
        }
    }

    /// Takes a message from the buffer when it is there as a whole.
    fn take(&mut self) -> Result<Option<T>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let end = PREFIX_BYTES + frame::body_length(*prefix, self.limit)?;
        if self.buffer.len() < end {
            self.buffer.reserve(end - self.buffer.len());
            return Ok(None);
        }
        let message = frame::decode(&self.buffer[PREFIX_BYTES..end]);
        self.buffer.drain(..end);
        message.map(Some)
    }
}

/// Writes one frame. Not cancel safe.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written, or [`FrameError::Io`].
pub async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
    limit: usize,
) -> Result<(), FrameError> {
    let bytes = frame::encode(message, limit)?;
    stream.write_all(&bytes).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_however_they_are_cut() {
        let (mut near, far) = tokio::io::duplex(3);
        let writer = tokio::spawn(async move {
            for word in ["one", "", "three"] {
                write(&mut near, &word, 64).await.unwrap();
            }
        });
        let mut reader = FrameReader::<_, String>::new(far, 64);
        for word in ["one", "", "three"] {
            assert_eq!(reader.next().await.unwrap(), word);
        }
        writer.await.unwrap();
        assert!(matches!(reader.next().await, Err(FrameError::Closed)));
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_or_cut_short_is_an_error() {
        let bytes = [0xff, 0xff, 0xff, 0x7f, 0];
        let mut reader = FrameReader::<_, String>::new(bytes.as_slice(), 64);
        assert!(matches!(reader.next().await, Err(FrameError::TooLong { .. })));
        let mut reader = FrameReader::<_, String>::new([9u8, 0, 0, 0, 1].as_slice(), 64);
        assert!(matches!(reader.next().await, Err(FrameError::Io(_))));
    }

    #[tokio::test]
    async fn a_cancelled_read_loses_nothing() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut reader = FrameReader::<_, String>::new(far, 64);
        let bytes = frame::encode(&"whole", 64).unwrap();
        near.write_all(&bytes[..6]).await.unwrap();
        tokio::select! {
            biased;
            _ = reader.next() => panic!("half a frame is no message"),
            () = tokio::task::yield_now() => {}
        }
        near.write_all(&bytes[6..]).await.unwrap();
        assert_eq!(reader.next().await.unwrap(), "whole");
    }
}
