//! A file or a tree becomes a tar stream. Others may change it meanwhile: links are never followed below its top, and what is
//! no regular file is never opened.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{BufWriter, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, major, minor, openat,
        readlinkat, statat,
    },
    io::Errno,
};

use super::{CopyError, DEPTH_MAX};
use crate::tar::write::{self, Entry, Type};

/// Bytes that are read and written at a time.
const COPY_BYTES: usize = 128 << 10;

/// Most names that are remembered of files with several.
const LINKS_MAX: usize = 1 << 20;

/// Most bytes of a file's attributes' names, and of one value (limits.h, `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 64 << 10;

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The path; links in it are followed but for the last component.
    pub path: &'a OsStr,
    /// Whether that is followed too.
    pub follow: bool,
}

/// Writes what is at a path to `output`, under the last component of the path.
///
/// # Errors
/// [`CopyError`].
pub fn tree(wanted: &Wanted<'_>, output: impl Write) -> Result<(), CopyError> {
    let (parent, name, shown) = split(wanted)?;
    let mut reader = Reader {
        output: BufWriter::with_capacity(COPY_BYTES, output),
        links: HashMap::new(),
    };
    reader.add(parent.as_fd(), &name, shown.as_bytes(), 0)?;
    reader.output.write_all(&write::END).map_err(CopyError::Stream)?;
    reader.output.flush().map_err(CopyError::Stream)
}

/// The directory of what is wanted, its name there, and the one that it gets in the stream.
fn split(wanted: &Wanted<'_>) -> Result<(OwnedFd, OsString, OsString), CopyError> {
    let trimmed = super::trim(wanted.path.as_bytes());
    let directory = |path: &[u8]| super::open_directory(OsStr::from_bytes(path));
    let name = trimmed.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if matches!(name, b"" | b"." | b"..") {
        let shown: &[u8] = if name.is_empty() { b"root" } else { b"copy" };
        return Ok((
            directory(trimmed)?,
            ".".into(),
            OsStr::from_bytes(shown).to_owned(),
        ));
    }
    let shown = OsStr::from_bytes(name).to_owned();
    // A slash behind a link means what it leads to.
    if wanted.follow || trimmed.len() < wanted.path.len() {
        let target = std::fs::canonicalize(wanted.path).map_err(|source| CopyError::Path {
            path: wanted.path.to_string_lossy().into_owned(),
            source,
        })?;
        let name = target.file_name().unwrap_or(OsStr::new(".")).to_owned();
        let parent = target.parent().unwrap_or(&target).as_os_str().to_owned();
        return Ok((super::open_directory(&parent)?, name, shown));
    }
    let parent = &trimmed[..trimmed.len() - name.len()];
    let parent = directory(if parent.is_empty() { b"." } else { parent })?;
    statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(CopyError::at(wanted.path))?;
    Ok((parent, shown.clone(), shown))
}

/// Whether the path names a directory, as [`tree`] takes it.
///
/// # Errors
/// [`CopyError::Path`].
pub fn is_directory(wanted: &Wanted<'_>) -> Result<bool, CopyError> {
    let (parent, name, _) = split(wanted)?;
    let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(CopyError::at(wanted.path))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

struct Reader<W: Write> {
    output: BufWriter<W>,
    /// Where the first name of a file with several is, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Reader<W> {
    fn add(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        depth: usize,
    ) -> Result<(), CopyError> {
        let shown = OsStr::from_bytes(path);
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // It has gone since its directory was read.
            Err(Errno::NOENT) if depth > 0 => return Ok(()),
            stat => stat.map_err(CopyError::at(shown))?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(parent, name, flags, Mode::empty()) {
                    // Another thing is there by now.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if depth > 0 => Ok(()),
                    opened => {
                        let opened = opened.map_err(CopyError::at(shown))?;
                        self.directory(&opened, path, depth)
                    }
                }
            }
            FileType::RegularFile => {
                let flags =
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                match openat(parent, name, flags, Mode::empty()) {
                    Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) if depth > 0 => Ok(()),
                    opened => self.file(opened.map_err(CopyError::at(shown))?, path),
                }
            }
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new()).map_err(CopyError::at(shown))?;
                self.entry(path, Type::Symlink(target.as_bytes()), &stat, &[])
            }
            FileType::Fifo => self.entry(path, Type::Fifo, &stat, &[]),
            FileType::CharacterDevice => {
                let device = Type::Character(major(stat.st_rdev), minor(stat.st_rdev));
                self.entry(path, device, &stat, &[])
            }
            FileType::BlockDevice => {
                let device = Type::Block(major(stat.st_rdev), minor(stat.st_rdev));
                self.entry(path, device, &stat, &[])
            }
            // Nothing can be connected to a socket in an archive.
            _ => Ok(()),
        }
    }

    fn directory(&mut self, directory: &OwnedFd, path: &[u8], depth: usize) -> Result<(), CopyError> {
        if depth >= DEPTH_MAX {
            return Err(CopyError::TooMany("directories in each other"));
        }
        let shown = OsStr::from_bytes(path);
        let stat = fstat(directory).map_err(CopyError::at(shown))?;
        let mut name = path.to_vec();
        name.push(b'/');
        self.entry(&name, Type::Directory, &stat, &xattrs(directory))?;
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(CopyError::at(shown))? {
            let entry = entry.map_err(CopyError::at(shown))?;
            let name: CString = entry.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(OsString::from_vec(name.into_bytes()));
            }
        }
        // The same files give the same stream.
        names.sort_unstable();
        for child in names {
            let mut path = name.clone();
            path.extend(child.as_bytes());
            self.add(directory.as_fd(), &child, &path, depth + 1)?;
        }
        Ok(())
    }

    fn file(&mut self, file: OwnedFd, path: &[u8]) -> Result<(), CopyError> {
        let shown = OsStr::from_bytes(path);
        let stat = fstat(&file).map_err(CopyError::at(shown))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let key = (stat.st_dev as u64, stat.st_ino as u64);
            if let Some(first) = self.links.get(&key).cloned() {
                return self.entry(path, Type::HardLink(&first), &stat, &[]);
            }
            if self.links.len() < LINKS_MAX {
                self.links.insert(key, path.to_vec());
            }
        }
        let length = stat.st_size as u64;
        let xattrs = xattrs(&file);
        self.entry(path, Type::File(length), &stat, &xattrs)?;
        // As many bytes as were promised, whatever becomes of the file meanwhile.
        let mut file = File::from(file);
        let mut left = length;
        let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(length).unwrap_or(COPY_BYTES))];
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = file.read(&mut buffer[..want]).map_err(|source| CopyError::Path {
                path: shown.to_string_lossy().into_owned(),
                source,
            })?;
            if count == 0 {
                buffer.fill(0);
            }
            let count = if count == 0 { want } else { count };
            self.output
                .write_all(&buffer[..count])
                .map_err(CopyError::Stream)?;
            left -= count as u64;
        }
        self.output
            .write_all(write::padding(length))
            .map_err(CopyError::Stream)
    }

    fn entry(
        &mut self,
        path: &[u8],
        kind: Type<'_>,
        stat: &Stat,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), CopyError> {
        let entry = Entry {
            path,
            kind,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            xattrs,
        };
        write::entry(&mut self.output, &entry).map_err(CopyError::Stream)
    }
}

/// What Docker copies of them: a file's capabilities and the user's own. None where they cannot be read.
fn xattrs(file: &OwnedFd) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; XATTR_BYTES];
    let Ok(count) = flistxattr(file, &mut names) else {
        return Vec::new();
    };
    let is_copied = |name: &[u8]| name.starts_with(b"user.") || name == b"security.capability";
    let names = names[..count].split(|&byte| byte == 0);
    names
        .filter(|name| is_copied(name) && !name.contains(&b'='))
        .filter_map(|name| {
            let mut value = vec![0; XATTR_BYTES];
            let count = fgetxattr(file, name, &mut value).ok()?;
            value.truncate(count);
            Some((name.to_vec(), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::tar::{Kind, Reader as TarReader};

    #[test]
    fn links_are_told_and_not_followed_but_for_the_top_when_that_is_asked() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("dir/file"), "bytes").unwrap();
        fs::hard_link(at("dir/file"), at("dir/same")).unwrap();
        symlink("/etc", at("dir/out")).unwrap();
        symlink("dir", at("link")).unwrap();
        let names = |name: &str, follow: bool| {
            let mut bytes = Vec::new();
            let path = at(name);
            let wanted = Wanted {
                path: path.as_os_str(),
                follow,
            };
            tree(&wanted, &mut bytes).unwrap();
            let mut reader = TarReader::new(bytes.as_slice());
            let mut names = Vec::new();
            while let Some(entry) = reader.next_entry().unwrap() {
                names.push((String::from_utf8(entry.path).unwrap(), entry.kind));
            }
            names
        };
        let of = |top: &str| {
            vec![
                (format!("{top}/"), Kind::Directory),
                (format!("{top}/file"), Kind::File),
                (format!("{top}/out"), Kind::Symlink),
                (format!("{top}/same"), Kind::HardLink),
            ]
        };
        assert_eq!(names("dir", false), of("dir"));
        assert_eq!(names("link", false), [("link".to_owned(), Kind::Symlink)]);
        assert_eq!(names("link", true), of("link"));
        assert_eq!(names("link/", false), of("link"));
        let missing = at("none");
        let wanted = Wanted {
            path: missing.as_os_str(),
            follow: false,
        };
        assert!(
            tree(&wanted, std::io::sink())
                .unwrap_err()
                .to_string()
                .contains("none")
        );
    }
}
