//! How large an image may be.

use std::{fmt, str::FromStr};

use crate::store::StoreError;

/// Most bytes that an image may have: those of its unpacked form, those of its compressed layers together, and those of the
/// files of an archive that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaxImageSize(u64);

/// Not an amount of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid size {0:?}: write it as 500m or 16g, from 1m to 16t")]
pub struct MaxImageSizeError(String);

impl MaxImageSize {
    /// What holds when the user says nothing: more than almost every image has, less than most disks.
    pub const DEFAULT: Self = Self(16 << 30);

    /// What an EROFS image of blocks of 4 KiB can number.
    const MAX: u64 = 16 << 40;

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Refuses more bytes than these. `what` has them, such as `the layers of the image have`.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub(crate) fn check(self, what: &'static str, bytes: u64) -> Result<(), StoreError> {
        if bytes > self.0 {
            return Err(StoreError::TooLarge { what, limit: self });
        }
        Ok(())
    }
}

impl Default for MaxImageSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl FromStr for MaxImageSize {
    type Err = MaxImageSizeError;

    fn from_str(text: &str) -> Result<Self, MaxImageSizeError> {
        parse_bytes(text)
            .map(f64::ceil)
            .filter(|bytes| (f64::from(1u32 << 20)..=Self::MAX as f64).contains(bytes))
            .map(|bytes| Self(bytes as u64))
            .ok_or_else(|| MaxImageSizeError(text.to_owned()))
    }
}

impl fmt::Display for MaxImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// Bytes, as a number with the suffix `b`, `k`, `m`, `g` or `t` (powers of 1,024; `mb`, `MiB` too) or without one; `None`
/// for anything else.
pub fn parse_bytes(text: &str) -> Option<f64> {
    let digits = text
        .bytes()
        .take_while(|b| b.is_ascii_digit() || *b == b'.')
        .count();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Some(number * f64::from(shift).exp2())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_and_shown() {
        for (text, bytes, shown) in [
            ("500m", 500 << 20, "500 MiB"),
            ("1.5g", 3 << 29, "1536 MiB"),
            ("2t", 2 << 40, "2 TiB"),
            ("1048577", (1 << 20) + 1, "1048577 bytes"),
        ] {
            let size: MaxImageSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, shown));
        }
        assert_eq!(MaxImageSize::default().to_string(), "16 GiB");
    }

    #[test]
    fn what_is_no_size_of_an_image_is_refused() {
        for text in ["", "x", "-1g", "1 gig", "1k", "0", "17t", "1e9", "nan", "inf"] {
            assert!(text.parse::<MaxImageSize>().is_err(), "{text}");
        }
    }
}
