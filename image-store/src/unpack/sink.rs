//! What an image can be unpacked to.

use super::{UnpackError, tree::Tree};

/// Takes the data of files as it comes out of the layers, and the names when the last layer has been applied.
///
/// A file is one call of [`Sink::begin`], then [`Sink::write`] and [`Sink::zeros`] until all of its bytes are there, then
/// [`Sink::end`]. Files whose data nobody wants any more, because a higher layer replaced them, are dropped as
/// [`Sink::Data`].
pub trait Sink {
    /// Where the data of a file is.
    type Data;

    /// Begins a file of `size` bytes.
    ///
    /// # Errors
    /// [`UnpackError::NoSpace`] when it cannot fit; the output's.
    fn begin(&mut self, size: u64) -> Result<(), UnpackError>;

    /// Takes the file's next bytes.
    ///
    /// # Errors
    /// As [`Sink::begin`].
    fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError>;

    /// Takes `count` zeros as the file's next bytes.
    ///
    /// # Errors
    /// As [`Sink::begin`].
    fn zeros(&mut self, count: u64) -> Result<(), UnpackError>;

    /// The file is complete.
    ///
    /// # Errors
    /// As [`Sink::begin`].
    fn end(&mut self) -> Result<Self::Data, UnpackError>;

    /// Writes names and attributes; `id` follows from what is in the image. Returns the bytes of all of it.
    ///
    /// # Errors
    /// As [`Sink::begin`], and [`UnpackError::TooLarge`].
    fn finish(self, tree: &Tree<Self::Data>, id: [u8; 16]) -> Result<u64, UnpackError>;
}
