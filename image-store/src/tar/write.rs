//! Writes entries of tar archives as [`super::Reader`] and every other program of today reads them: ustar headers, with pax
//! records (POSIX.1-2017, pax) for what does not fit into one, `SCHILY.xattr.*` for extended attributes and GNU tar's
//! format 1.0 for sparse files.

use std::io::{self, Write};

use super::header::BLOCK_BYTES;

/// The largest number that the field of a size can have.
const SIZE_MAX: u64 = 0o77_777_777_777;

/// The largest number that the field of a user or a group can have.
const ID_MAX: u32 = 0o7_777_777;

/// Bytes of the fields for a path and for a link's target.
const NAME_BYTES: usize = 100;

/// What kind of file an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type<'a> {
    /// A regular file of so many bytes, which follow.
    File(u64),
    /// A regular file of `length` bytes, of which only `pieces` (offset and length each, in order) are there. The bytes of
    /// the map come first ([`sparse_map`]), then those of the pieces.
    Sparse {
        /// Bytes.
        length: u64,
        /// Where data is.
        pieces: &'a [(u64, u64)],
    },
    /// A hard link to the entry of this path.
    HardLink(&'a [u8]),
    /// A symbolic link.
    Symlink(&'a [u8]),
    /// A character device: major and minor.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// What stands before an entry's bytes.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its path, without a slash at the beginning.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Type<'a>,
    /// Permissions.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes: name and value.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Writes the headers of an entry. Its bytes come next, and then [`padding`].
///
/// # Errors
/// Those of `output`.
pub fn entry(output: &mut dyn Write, entry: &Entry<'_>) -> io::Result<()> {
    let mut records = Vec::new();
    let (size, link): (u64, &[u8]) = match entry.kind {
        Type::File(size) => (size, b""),
        Type::Sparse { length, pieces } => {
            for (key, value) in [("major", "1"), ("minor", "0")] {
                record(&mut records, &format!("GNU.sparse.{key}"), value.as_bytes());
            }
            record(&mut records, "GNU.sparse.name", entry.path);
            record(&mut records, "GNU.sparse.realsize", length.to_string().as_bytes());
            (sparse_bytes(pieces, length), b"")
        }
        Type::HardLink(target) | Type::Symlink(target) => (0, target),
        _ => (0, b""),
    };
    if entry.path.len() > NAME_BYTES {
        record(&mut records, "path", entry.path);
    }
    if link.len() > NAME_BYTES {
        record(&mut records, "linkpath", link);
    }
    if size > SIZE_MAX {
        record(&mut records, "size", size.to_string().as_bytes());
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > ID_MAX {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    let (seconds, nanoseconds) = entry.mtime;
    if seconds < 0 || seconds as u64 > SIZE_MAX || nanoseconds != 0 {
        record(&mut records, "mtime", decimal(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in entry.xattrs {
        record(
            &mut records,
            &format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)),
            value,
        );
    }
    if !records.is_empty() {
        let size = records.len() as u64;
        output.write_all(&header(b"PaxHeaders/entry", b'x', size, b"", entry, (0, 0)))?;
        output.write_all(&records)?;
        output.write_all(padding(size))?;
    }
    let (flag, device) = match entry.kind {
        Type::File(_) | Type::Sparse { .. } => (b'0', (0, 0)),
        Type::HardLink(_) => (b'1', (0, 0)),
        Type::Symlink(_) => (b'2', (0, 0)),
        Type::Character(major, minor) => (b'3', (major, minor)),
        Type::Block(major, minor) => (b'4', (major, minor)),
        Type::Directory => (b'5', (0, 0)),
        Type::Fifo => (b'6', (0, 0)),
    };
    output.write_all(&header(entry.path, flag, size, link, entry, device))
}

/// Zeros that follow `bytes` bytes of an entry.
pub fn padding(bytes: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    &ZEROS[..(bytes.wrapping_neg() % BLOCK_BYTES as u64) as usize]
}

/// What stands before the pieces of a sparse file. A last, empty piece says where the file ends.
pub fn sparse_map(pieces: &[(u64, u64)], length: u64) -> Vec<u8> {
    let mut map = format!("{}\n", pieces.len() + 1).into_bytes();
    for (offset, length) in pieces.iter().chain([&(length, 0)]) {
        map.extend(format!("{offset}\n{length}\n").bytes());
    }
    map.extend(padding(map.len() as u64));
    map
}

/// Bytes of a sparse file in the archive, map and pieces.
pub fn sparse_bytes(pieces: &[(u64, u64)], length: u64) -> u64 {
    sparse_map(pieces, length).len() as u64 + pieces.iter().map(|(_, length)| length).sum::<u64>()
}

/// The end of an archive.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

fn header(
    path: &[u8],
    flag: u8,
    size: u64,
    link: &[u8],
    entry: &Entry<'_>,
    device: (u32, u32),
) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let octal = |value: u64, digits: usize| format!("{value:0digits$o}").into_bytes();
    put(0, &path[..path.len().min(NAME_BYTES)]);
    put(100, &octal(u64::from(entry.mode & 0o7777), 7));
    put(108, &octal(u64::from(entry.uid.min(ID_MAX)), 7));
    put(116, &octal(u64::from(entry.gid.min(ID_MAX)), 7));
    put(124, &octal(size.min(SIZE_MAX), 11));
    put(136, &octal((entry.mtime.0.max(0) as u64).min(SIZE_MAX), 11));
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &link[..link.len().min(NAME_BYTES)]);
    put(257, b"ustar\x0000");
    put(329, &octal(u64::from(device.0) & 0o7_777_777, 7));
    put(337, &octal(u64::from(device.1) & 0o7_777_777, 7));
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(format!("{length} {key}=").bytes());
    records.extend(value);
    records.push(b'\n');
}

/// Seconds with a fraction; one before 1970 counts from the second before.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        (-1, _) => format!("-0.{:09}", 1_000_000_000 - nanoseconds),
        _ => format!("{}.{:09}", seconds + 1, 1_000_000_000 - nanoseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Chunk, Kind, Reader},
        *,
    };

    fn plain<'a>(path: &'a [u8], kind: Type<'static>) -> Entry<'a> {
        Entry {
            path,
            kind,
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: (1_700_000_000, 0),
            xattrs: &[],
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let long = [b"d/".repeat(60), b"name".to_vec()].concat();
        let xattrs = [(b"user.x".to_vec(), vec![0, 1, b'\n', 255])];
        let mut archive = Vec::new();
        let first = Entry {
            uid: 3_000_000,
            mtime: (-5, 250_000_000),
            xattrs: &xattrs,
            ..plain(&long, Type::File(5))
        };
        entry(&mut archive, &first).unwrap();
        archive.extend(b"hello");
        archive.extend(padding(5));
        let pieces = [(4096, 3)];
        entry(
            &mut archive,
            &plain(
                b"sparse",
                Type::Sparse {
                    length: 9000,
                    pieces: &[(4096, 3)],
                },
            ),
        )
        .unwrap();
        archive.extend(sparse_map(&pieces, 9000));
        archive.extend(b"abc");
        archive.extend(padding(sparse_bytes(&pieces, 9000)));
        entry(&mut archive, &plain(b"link", Type::Symlink(b"/target"))).unwrap();
        entry(&mut archive, &plain(b"null", Type::Character(1, 3))).unwrap();
        archive.extend(END);

        let mut reader = Reader::new(&archive[..]);
        let found = reader.next_entry().unwrap().unwrap();
        assert_eq!((found.path.as_slice(), found.uid), (&long[..], 3_000_000));
        let Chunk::Bytes(bytes) = reader.chunk().unwrap() else {
            panic!()
        };
        assert_eq!(bytes, b"hello");
        let found = reader.next_entry().unwrap().unwrap();
        assert_eq!(found.path, b"sparse");
        let mut holes = 0;
        let mut data = Vec::new();
        loop {
            let count = match reader.chunk().unwrap() {
                Chunk::End => break,
                Chunk::Hole(bytes) => {
                    holes += bytes;
                    continue;
                }
                Chunk::Bytes(bytes) => {
                    data.extend(bytes);
                    bytes.len()
                }
            };
            reader.consume(count);
        }
        assert_eq!((data, holes), (b"abc".to_vec(), 9000 - 3));
        let found = reader.next_entry().unwrap().unwrap();
        assert_eq!(
            (found.kind, found.link.as_slice()),
            (Kind::Symlink, &b"/target"[..])
        );
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"null");
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn times_before_1970_have_a_fraction_too() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (1, 5, "1.000000005"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 250_000_000, "-1.750000000"),
        ] {
            assert_eq!(decimal(seconds, nanoseconds), text);
        }
    }
}
