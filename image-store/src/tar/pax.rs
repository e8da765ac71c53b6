//! The records of pax extended headers: `LENGTH KEY=VALUE\n`, the length being that of the whole record.

use super::{PATH_BYTES_MAX, TarError, Timestamp, sparse::PaxSparse};

/// Most extended attributes of one entry.
const XATTRS_MAX: usize = 1024;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What extended headers say about the entry that follows them.
#[derive(Default)]
pub struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<Timestamp>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Option<PaxSparse>,
    seen: bool,
}

impl Records {
    /// Whether no extended header came before the entry.
    pub fn is_empty(&self) -> bool {
        !self.seen && self.path.is_none() && self.link.is_none()
    }

    /// Adds the records of one extended header.
    pub fn parse(&mut self, mut data: &[u8]) -> Result<(), TarError> {
        self.seen = true;
        while !data.is_empty() {
            let space = data
                .iter()
                .take(20)
                .position(|&b| b == b' ')
                .ok_or(TarError::Pax)?;
            let length = decimal(&data[..space]).ok_or(TarError::Pax)?;
            let length = usize::try_from(length).map_err(|_| TarError::Pax)?;
            let record = data.get(space + 1..length).ok_or(TarError::Pax)?;
            let record = record.strip_suffix(b"\n").ok_or(TarError::Pax)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or(TarError::Pax)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            data = &data[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            // An empty value takes back what an earlier header said.
            b"path" => self.path = path(value)?,
            b"linkpath" => self.link = path(value)?,
            b"size" => self.size = optional(value, decimal, "size")?,
            b"uid" => self.uid = optional(value, id, "owner")?,
            b"gid" => self.gid = optional(value, id, "group")?,
            b"mtime" => self.mtime = optional(value, timestamp, "modification time")?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    return self.xattr(name, value);
                }
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.get_or_insert_default().record(key, value);
                }
                // Everything else (access times, character sets, comments, names of owners) has no place in an image.
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        if name.is_empty() || name.contains(&0) {
            return Err(TarError::Pax);
        }
        self.xattrs.retain(|(other, _)| other != name);
        if self.xattrs.len() == XATTRS_MAX {
            return Err(TarError::TooLong("list of extended attributes"));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

fn path(value: &[u8]) -> Result<Option<Vec<u8>>, TarError> {
    if value.len() > PATH_BYTES_MAX {
        return Err(TarError::TooLong("path"));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional<T>(
    value: &[u8],
    parse: impl Fn(&[u8]) -> Option<T>,
    what: &'static str,
) -> Result<Option<T>, TarError> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or(TarError::Number(what))
}

/// Decimal digits and nothing else.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

fn id(text: &[u8]) -> Option<u32> {
    u32::try_from(decimal(text)?).ok()
}

/// Seconds with a fraction, `-1.5` being half a second before -1.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let digit = |at: usize| fraction.get(at).map_or(0, |b| u32::from(b - b'0'));
    let nanoseconds = (0..9).fold(0, |value, at| value * 10 + digit(at));
    Some(match (negative, nanoseconds) {
        (false, nanoseconds) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds: 0,
        },
        (true, nanoseconds) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_round_down() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        assert_eq!(timestamp(b"12"), at(12, 0));
        assert_eq!(timestamp(b"12.5"), at(12, 500_000_000));
        assert_eq!(timestamp(b"12.0000000019"), at(12, 1));
        assert_eq!(timestamp(b"-1"), at(-1, 0));
        assert_eq!(timestamp(b"-1.25"), at(-2, 750_000_000));
        assert_eq!(timestamp(b"-9223372036854775807.5"), at(i64::MIN, 500_000_000));
        for bad in [&b""[..], b"-", b".", b"1.x", b"1e3", b"9223372036854775808"] {
            assert_eq!(timestamp(bad), None);
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"5",
            b"5 a=b",
            b"0 a=b\n",
            b"7 a=b\n",
            b"6 a=bc",
            b"6 abc\n",
            b"99999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"12 uid=1x34\n",
            b"18 SCHILY.xattr.=\n",
        ] {
            assert!(Records::default().parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        let mut records = Records::default();
        records.parse(b"6 a=b\n12 path=abc\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"abc"[..]));
    }
}
