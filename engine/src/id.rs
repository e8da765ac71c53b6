//! Sandbox ids: 256 random bits, as 64 hexadecimal digits.

use std::{
    fmt::{self, Write},
    str::FromStr,
};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Digits of an id.
pub const ID_DIGITS: usize = 64;

/// Digits that tables show and hostnames are made of.
pub const SHORT_DIGITS: usize = 12;

/// The id of a sandbox: 64 lowercase hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// A new id from the kernel's random number generator.
    ///
    /// # Errors
    /// Those of getrandom(2).
    pub fn random() -> Result<Self, Error> {
        let mut digits = String::with_capacity(ID_DIGITS);
        for byte in random_bytes::<{ ID_DIGITS / 2 }>()? {
            // Writing to a String cannot fail.
            let _ = write!(digits, "{byte:02x}");
        }
        Ok(Self(digits))
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits.
    pub fn short(&self) -> &str {
        &self.0[..SHORT_DIGITS]
    }
}

/// `N` bytes from getrandom(2).
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            getrandom(&mut bytes[filled..], GetRandomFlags::empty()).map_err(|e| Error::Random(e.into()))?;
    }
    Ok(bytes)
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() == ID_DIGITS && is_lower_hex(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::NoSuchSandbox(text.to_owned()))
        }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// Whether `text` has only the digits that ids are written with.
pub(crate) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_well_formed_and_differ() {
        let (a, b) = (SandboxId::random().unwrap(), SandboxId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<SandboxId>().unwrap(), a);
        assert_eq!(a.short().len(), SHORT_DIGITS);
    }

    #[test]
    fn other_text_is_no_id() {
        for text in [
            "",
            "abc",
            &"g".repeat(64),
            &"A".repeat(64),
            &"a".repeat(65),
            "../../etc/passwd",
        ] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }
}
