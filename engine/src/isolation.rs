//! What a sandbox is walled off by.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Says which isolation a sandbox gets when the user does not; see [`crate::settings`].
pub const VARIABLE: &str = "BRIG_ISOLATION";

/// What a sandbox is walled off by. One that was made for either is never run in the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A microVM with a kernel of its own.
    #[default]
    Vm,
    /// Namespaces on the host's kernel.
    Container,
}

impl Isolation {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Container => "container",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Isolation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "vm" => Ok(Self::Vm),
            "container" => Ok(Self::Container),
            _ => Err(Error::InvalidIsolation(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_two() {
        for isolation in [Isolation::Vm, Isolation::Container] {
            assert_eq!(isolation.as_str().parse::<Isolation>().unwrap(), isolation);
        }
        for other in ["", "VM", "none", "hyperv"] {
            assert!(matches!(
                other.parse::<Isolation>(),
                Err(Error::InvalidIsolation(_))
            ));
        }
    }
}
