//! One header block: fields at fixed offsets (POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar, `tar.h`).

use std::ops::Range;

use super::{Entry, Kind, PATH_BYTES_MAX, TarError, Timestamp, pax::Records};

/// Bytes of a header, and what data is padded to.
pub const BLOCK_BYTES: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE_FLAG: usize = 156;
const LINK_NAME: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const DEVICE_MAJOR: Range<usize> = 329..337;
const DEVICE_MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
/// star's own flavour has a shorter prefix, times behind it, and this mark at its end.
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_MARK: Range<usize> = 508..512;

/// Permission, set-id and sticky bits.
const MODE_BITS: i64 = 0o7777;

/// A header.
pub struct Block(pub [u8; BLOCK_BYTES]);

impl Block {
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }

    pub fn type_flag(&self) -> u8 {
        self.0[TYPE_FLAG]
    }

    pub fn is_gnu_sparse(&self) -> bool {
        self.type_flag() == b'S'
    }

    /// The checksum is the sum of all bytes with its own field as spaces; old programs summed signed bytes.
    pub fn verify_checksum(&self) -> Result<(), TarError> {
        let want = self
            .number(CHECKSUM, "checksum")
            .map_err(|_| TarError::Checksum)?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, &byte) in self.0.iter().enumerate() {
            let byte = if CHECKSUM.contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if want == unsigned || want == signed {
            return Ok(());
        }
        Err(TarError::Checksum)
    }

    /// Bytes of data that follow, pax records not considered.
    pub fn size(&self) -> Result<u64, TarError> {
        u64::try_from(self.number(SIZE, "size")?).map_err(|_| TarError::Number("size"))
    }

    /// The entry of this header, with what the pax records before it say taken instead.
    pub fn entry(&self, records: &mut Records) -> Result<Entry, TarError> {
        let path = records.path.take().unwrap_or_else(|| self.path());
        let link = records
            .link
            .take()
            .unwrap_or_else(|| self.text(LINK_NAME).to_vec());
        let kind = self.kind(&path)?;
        for text in [&path, &link] {
            if text.len() > PATH_BYTES_MAX {
                return Err(TarError::TooLong("path"));
            }
            if text.contains(&0) {
                return Err(TarError::Pax);
            }
        }
        Ok(Entry {
            kind,
            mode: (self.number(MODE, "mode")? & MODE_BITS) as u16,
            uid: records.uid.map_or_else(|| self.id(UID, "owner"), Ok)?,
            gid: records.gid.map_or_else(|| self.id(GID, "group"), Ok)?,
            size: records.size.map_or_else(|| self.size(), Ok)?,
            mtime: match records.mtime {
                Some(mtime) => mtime,
                None => Timestamp {
                    seconds: self.number(MTIME, "modification time")?,
                    nanoseconds: 0,
                },
            },
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => (
                    self.id(DEVICE_MAJOR, "device number")?,
                    self.id(DEVICE_MINOR, "device number")?,
                ),
                _ => (0, 0),
            },
            link: match kind {
                Kind::HardLink | Kind::Symlink => link,
                _ => Vec::new(),
            },
            xattrs: std::mem::take(&mut records.xattrs),
            path,
        })
    }

    fn kind(&self, path: &[u8]) -> Result<Kind, TarError> {
        Ok(match self.type_flag() {
            // Before POSIX a directory was a file with a slash at the end.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(TarError::Kind(other)),
        })
    }

    /// Prefix and name. GNU's headers have other things where the prefix is.
    fn path(&self) -> Vec<u8> {
        let name = self.text(NAME);
        let prefix = match &self.0[MAGIC] {
            b"ustar\0" if &self.0[STAR_MARK] == b"tar\0" => self.text(STAR_PREFIX),
            b"ustar\0" => self.text(PREFIX),
            _ => &[],
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    /// A field up to its first NUL byte.
    fn text(&self, field: Range<usize>) -> &[u8] {
        let field = &self.0[field];
        &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
    }

    fn id(&self, field: Range<usize>, what: &'static str) -> Result<u32, TarError> {
        u32::try_from(self.number(field, what)?).map_err(|_| TarError::Number(what))
    }

    /// A numeric field of this header, see [`number`].
    pub fn number(&self, field: Range<usize>, what: &'static str) -> Result<i64, TarError> {
        number(&self.0[field]).ok_or(TarError::Number(what))
    }
}

/// A numeric field: octal digits between spaces and NUL bytes, or, with the top bit set, a big-endian number in
/// two's complement (GNU's base-256). An empty field is zero.
pub fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(&first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn base256(field: &[u8]) -> Option<i64> {
    // The top bit marks the encoding, the one below it is the sign.
    let negative = field[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (at, &byte) in field.iter().enumerate() {
        let byte = match (at, negative) {
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        value = value << 8 | i128::from(byte);
    }
    i64::try_from(value).ok()
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let digits = field.iter().skip_while(|b| blank(b));
    let mut value: i64 = 0;
    let mut ended = false;
    for &byte in digits {
        match byte {
            b'0'..=b'7' if !ended => value = value.checked_mul(8)?.checked_add(i64::from(byte - b'0'))?,
            b' ' | 0 => ended = true,
            // Some programs leave garbage behind the terminator: as in GNU tar, it does not count.
            _ if ended => {}
            _ => return None,
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_both_encodings() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777777\0"), Some(0o77777777777));
        assert_eq!(number(&[0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), Some(1 << 56));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(b"12x4567\0"), None);
        assert_eq!(number(b"0000008\0"), None);
    }
}
