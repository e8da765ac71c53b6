//! The keys that end a command and leave what it shows running: `ctrl-p,ctrl-q`, or what `--detach-keys` says.

use std::str::FromStr;

/// Docker's.
const DEFAULT: [u8; 2] = [0x10, 0x11];

/// A sequence of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    fn default() -> Self {
        Self(DEFAULT.into())
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    /// Keys with commas between them: a character, or `ctrl-` and one of a-z, @, [, \, ], ^, _ (moby/term,
    /// `ToBytes`).
    fn from_str(text: &str) -> Result<Self, String> {
        let keys = text.split(',').map(key).collect::<Option<Vec<u8>>>();
        keys.map(Self).ok_or_else(|| {
            "write keys with commas between them, each a character or ctrl- and a letter: ctrl-p,ctrl-q"
                .to_owned()
        })
    }
}

fn key(text: &str) -> Option<u8> {
    if let &[character] = text.as_bytes() {
        return character.is_ascii().then_some(character);
    }
    match text.strip_prefix("ctrl-")?.as_bytes() {
        &[letter @ (b'a'..=b'z' | b'A'..=b'Z' | b'@' | b'['..=b'_')] => Some(letter & 0x1f),
        _ => None,
    }
}

/// What is typed, without the sequence.
#[derive(Debug)]
pub struct Watch {
    keys: Vec<u8>,
    /// How many of them were typed last.
    typed: usize,
}

impl Watch {
    /// Looks out for these keys.
    pub fn new(keys: DetachKeys) -> Self {
        Self {
            keys: keys.0,
            typed: 0,
        }
    }

    /// Takes what is typed. Returns what is to be passed on, keys included that were held back and turned out to be no
    /// sequence, and whether the sequence has been typed.
    pub fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + self.typed);
        for &key in typed {
            if key != self.keys[self.typed] && self.typed > 0 {
                passed.extend_from_slice(&self.keys[..self.typed]);
                self.typed = 0;
            }
            if key != self.keys[self.typed] {
                passed.push(key);
                continue;
            }
            self.typed += 1;
            if self.typed == self.keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_with_docker() {
        let keys = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.0);
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(DEFAULT.into()));
        assert_eq!(
            keys("a,ctrl-A,ctrl-@,ctrl-[,ctrl-_"),
            Ok(vec![b'a', 1, 0, 0x1b, 0x1f])
        );
        for wrong in ["", ",", "ctrl-", "ctrl-1", "ab", "ctrl-pq", "ä", "alt-x"] {
            assert!(keys(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_sequence_is_passed_on() {
        let mut watch = Watch::new(DetachKeys::default());
        assert_eq!(watch.pass(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(watch.pass(b"\x10"), (vec![], false));
        assert_eq!(watch.pass(b"x\x10\x10"), (b"\x10x\x10".to_vec(), false));
        assert_eq!(watch.pass(b"\x11y"), (vec![], true));
    }

    #[test]
    fn a_sequence_is_found_wherever_it_is_cut() {
        let mut watch = Watch::new("a,b,c".parse().unwrap());
        let mut passed = Vec::new();
        let mut found = false;
        for byte in b"xababc" {
            let (more, now) = watch.pass(&[*byte]);
            passed.extend(more);
            found |= now;
        }
        assert_eq!((passed.as_slice(), found), (&b"xab"[..], true));
    }
}
