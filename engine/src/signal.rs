//! Signals by name and number, as `docker kill -s` and an image's `StopSignal` write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Signals of x86-64 Linux with their numbers (signal(7)).
const NAMES: [(&str, u8); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// First and last real-time signal as C libraries count them (signal(7)).
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// A signal number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Signal(u8);

impl Signal {
    /// Ends a process at once.
    pub const KILL: Self = Self(9);
    /// Asks a process to end.
    pub const TERM: Self = Self(15);

    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Signal {
    type Error = Error;

    fn try_from(number: u8) -> Result<Self, Error> {
        if (1..=RTMAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(Error::InvalidSignal(number.to_string()))
        }
    }
}

impl From<Signal> for u8 {
    fn from(signal: Signal) -> Self {
        signal.0
    }
}

impl FromStr for Signal {
    type Err = Error;

    /// Takes `9`, `KILL`, `SIGKILL`, `RTMIN+3`, `RTMAX-1`, in any case.
    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidSignal(text.to_owned());
        if let Ok(number) = text.parse::<u8>() {
            return Self::try_from(number).map_err(|_| invalid());
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Self(*number));
        }
        let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(""), _) => Some(RTMIN),
            (_, Some("")) => Some(RTMAX),
            (Some(offset), _) => offset
                .strip_prefix('+')
                .and_then(|n| n.parse().ok())
                .and_then(|n| RTMIN.checked_add(n)),
            (_, Some(offset)) => offset
                .strip_prefix('-')
                .and_then(|n| n.parse().ok())
                .and_then(|n| RTMAX.checked_sub(n)),
            (None, None) => None,
        };
        number
            .filter(|n| (RTMIN..=RTMAX).contains(n))
            .map(Self)
            .ok_or_else(invalid)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_known_by_number_and_by_name_in_any_case() {
        for text in ["9", "KILL", "SIGKILL", "sigkill", "kill"] {
            assert_eq!(text.parse::<Signal>().unwrap(), Signal::KILL, "{text}");
        }
        assert_eq!("RTMIN+3".parse::<Signal>().unwrap().number(), 37);
        assert_eq!("SIGRTMAX-1".parse::<Signal>().unwrap().number(), 63);
        assert_eq!("WINCH".parse::<Signal>().unwrap().to_string(), "SIGWINCH");
    }

    #[test]
    fn other_text_is_no_signal() {
        for text in [
            "", "0", "65", "-1", "SIG", "NOSUCH", "RTMIN+31", "RTMAX-99", "999999", "RTMIN+",
        ] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }
}
