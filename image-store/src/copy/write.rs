//! A tar stream becomes files below a directory.
//!
//! Each component of each path is opened from the directory above it. Where the stream is nobody's that is trusted no link is
//! followed on the way, be it one that the stream itself has made or one that was there; a file that is there is replaced and never written
//! into; set-id bits and owners are not taken over, and devices are left out.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{
        AtFlags, Dev, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
        fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
        utimensat,
    },
    io::Errno,
};

use super::{CopyError, DEPTH_MAX, Top};
use crate::tar::{Chunk, Entry, Kind, Reader, Timestamp};

/// Most directories whose times and modes are set at the end.
const DIRECTORIES_MAX: usize = 1 << 20;

/// Whose the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Somebody's who may do here whatever the stream says: links on the way are followed, owners, set-id bits, devices and attributes
    /// are taken over as far as the kernel lets.
    Owner,
    /// Nobody's: see above. `owners` says whether the numbers of users and groups are taken over.
    Nobody {
        /// Whether they are.
        owners: bool,
    },
}

/// What came of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of files.
    pub bytes: u64,
    /// Entries that were left out: devices.
    pub left_out: u64,
}

/// Writes the files of `stream` into `directory`. `first` is told of the first entry before anything is done, and says where
/// everything goes.
///
/// # Errors
/// [`CopyError`]; what has been written until then stays.
pub fn tree(
    stream: impl BufRead,
    trust: Trust,
    first: impl FnOnce(&Entry) -> Result<(OwnedFd, Top), CopyError>,
) -> Result<Written, CopyError> {
    let mut reader = Reader::new(stream);
    let Some(entry) = reader.next_entry()? else {
        return Ok(Written::default());
    };
    let (directory, top) = first(&entry)?;
    let mut writer = Writer {
        directory,
        top,
        trust,
        written: Written::default(),
        parent: None,
        directories: Vec::new(),
    };
    let mut next = Some(entry);
    while let Some(entry) = next {
        writer.entry(&mut reader, &entry)?;
        next = reader.next_entry()?;
    }
    writer.finish()
}

struct Writer {
    directory: OwnedFd,
    top: Top,
    trust: Trust,
    written: Written,
    /// The directory that the last entry was in: the next one is likely to be there too.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Those that were made, whose modes and times come at the end: a mode may keep everybody out.
    directories: Vec<(Vec<u8>, Attributes)>,
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
}

impl Attributes {
    fn of(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
        }
    }

    fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.mtime.seconds,
            tv_nsec: self.mtime.nanoseconds as _,
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

impl Writer {
    fn entry<R: BufRead>(&mut self, reader: &mut Reader<R>, entry: &Entry) -> Result<(), CopyError> {
        let Some(path) = self.path(&entry.path)? else {
            return Ok(());
        };
        let (above, name) = split(&path);
        let parent = self.enter(above)?;
        let shown = OsStr::from_bytes(&path);
        let at = |errno: Errno| CopyError::at(shown)(errno);
        let attributes = Attributes::of(entry);
        match entry.kind {
            Kind::Directory => {
                self.directory(parent.as_fd(), name, shown)?;
                if self.directories.len() >= DIRECTORIES_MAX {
                    return Err(CopyError::TooMany("directories"));
                }
                self.directories.push((path.clone(), attributes));
                return Ok(());
            }
            Kind::CharDevice | Kind::BlockDevice if self.trust != Trust::Owner => {
                self.written.left_out += 1;
                return Ok(());
            }
            _ => make_room(parent.as_fd(), name).map_err(at)?,
        }
        match entry.kind {
            Kind::Directory => {}
            Kind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(at)?;
                let file = self.fill(reader, file.into(), shown)?;
                self.set_attributes(&file, entry, attributes).map_err(at)?;
            }
            Kind::HardLink => {
                let Some(target) = self.path(&entry.link)? else {
                    return Err(refused(&entry.link, "a link to the top"));
                };
                let (above, target) = split(&target);
                let from = self.enter(above)?;
                let stat = statat(&from, target, AtFlags::SYMLINK_NOFOLLOW).map_err(at)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(refused(&entry.path, "a link to what is no file"));
                }
                linkat(&from, target, &parent, name, AtFlags::empty()).map_err(at)?;
            }
            Kind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), &parent, name).map_err(at)?;
                self.own_at(parent.as_fd(), name, &attributes).map_err(at)?;
                let _ = utimensat(&parent, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW);
            }
            Kind::Fifo => {
                let mode = Mode::from_raw_mode(u32::from(attributes.mode & 0o777));
                mknodat(&parent, name, FileType::Fifo, mode, 0).map_err(at)?;
                self.own_at(parent.as_fd(), name, &attributes).map_err(at)?;
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let kind = if entry.kind == Kind::CharDevice {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                let device: Dev = makedev(entry.device.0, entry.device.1);
                let mode = Mode::from_raw_mode(u32::from(attributes.mode & 0o7777));
                match mknodat(&parent, name, kind, mode, device) {
                    // Nobody makes nodes on a shared kernel.
                    Err(Errno::PERM) => self.written.left_out += 1,
                    made => {
                        made.map_err(at)?;
                        self.own_at(parent.as_fd(), name, &attributes).map_err(at)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Where an entry goes, its components joined by slashes; `None` for the directory itself.
    fn path(&self, path: &[u8]) -> Result<Option<Vec<u8>>, CopyError> {
        let mut components = Vec::new();
        for component in path.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(refused(path, "it has .. in it")),
                component if component.contains(&0) => return Err(refused(path, "it has a NUL in it")),
                component => components.push(component),
            }
        }
        if components.len() > DEPTH_MAX {
            return Err(CopyError::TooMany("directories in each other"));
        }
        match &self.top {
            Top::Kept => {}
            Top::Renamed(name) => match components.first_mut() {
                Some(first) => *first = name.as_bytes(),
                None => return Err(refused(path, "it has no name")),
            },
            Top::Dropped if components.is_empty() => return Err(refused(path, "it has no name")),
            Top::Dropped => drop(components.remove(0)),
        }
        Ok((!components.is_empty()).then(|| components.join(&b'/')))
    }

    /// Opens a directory below the top, and makes what is missing of it.
    fn enter(&mut self, path: &[u8]) -> Result<OwnedFd, CopyError> {
        let at = |errno: Errno| CopyError::at(OsStr::from_bytes(path))(errno);
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(CopyError::Stream);
        if let Some((known, directory)) = &self.parent
            && known == path
        {
            return copy(directory);
        }
        let mut directory = copy(&self.directory)?;
        for component in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            let name = OsStr::from_bytes(component);
            directory = match self.open(directory.as_fd(), name) {
                Err(Errno::NOENT) => {
                    mkdirat(&directory, name, Mode::from_raw_mode(0o755)).map_err(at)?;
                    self.open(directory.as_fd(), name).map_err(at)?
                }
                // With O_NOFOLLOW and O_DIRECTORY a link is ENOTDIR or ELOOP.
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(refused(path, "a part of it is no directory"));
                }
                opened => opened.map_err(at)?,
            };
        }
        self.parent = Some((path.to_vec(), copy(&directory)?));
        Ok(directory)
    }

    fn open(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, self.trust != Trust::Owner);
        openat(parent, name, flags, Mode::empty())
    }

    fn directory(&self, parent: BorrowedFd<'_>, name: &OsStr, shown: &OsStr) -> Result<(), CopyError> {
        match mkdirat(parent, name, Mode::RWXU) {
            Err(Errno::EXIST) => match self.open(parent, name) {
                Ok(_) => Ok(()),
                Err(Errno::LOOP | Errno::NOTDIR) => Err(refused(
                    shown.as_bytes(),
                    "something else is there than a directory",
                )),
                Err(errno) => Err(CopyError::at(shown)(errno)),
            },
            made => made.map_err(CopyError::at(shown)),
        }
    }

    fn fill<R: BufRead>(
        &mut self,
        reader: &mut Reader<R>,
        mut file: File,
        shown: &OsStr,
    ) -> Result<File, CopyError> {
        let failed = |source| CopyError::Path {
            path: shown.to_string_lossy().into_owned(),
            source,
        };
        loop {
            let count = match reader.chunk()? {
                Chunk::Bytes(bytes) => {
                    file.write_all(bytes).map_err(failed)?;
                    bytes.len()
                }
                Chunk::Hole(count) => {
                    let count = i64::try_from(count).map_err(|_| CopyError::TooMany("bytes"))?;
                    file.seek(SeekFrom::Current(count)).map_err(failed)?;
                    continue;
                }
                Chunk::End => break,
            };
            reader.consume(count);
            self.written.bytes += count as u64;
        }
        // A hole at the end is only a position so far.
        let length = file.stream_position().map_err(failed)?;
        file.set_len(length).map_err(failed)?;
        Ok(file)
    }

    fn set_attributes(&self, file: &File, entry: &Entry, attributes: Attributes) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owners(&attributes) {
            allowed(fchown(file, Some(uid), Some(gid)))?;
        }
        fchmod(file, self.mode(attributes.mode))?;
        if self.trust == Trust::Owner {
            for (name, value) in &entry.xattrs {
                // Some filesystems have none.
                let _ = fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            }
        }
        let _ = futimens(file, &attributes.times());
        Ok(())
    }

    fn own_at(&self, parent: BorrowedFd<'_>, name: &OsStr, attributes: &Attributes) -> Result<(), Errno> {
        match self.owners(attributes) {
            Some((uid, gid)) => allowed(chownat(
                parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )),
            None => Ok(()),
        }
    }

    fn owners(&self, attributes: &Attributes) -> Option<(Uid, Gid)> {
        let wanted = match self.trust {
            Trust::Owner => true,
            Trust::Nobody { owners } => owners,
        };
        // The last number means none (chown(2)).
        (wanted && attributes.uid != u32::MAX && attributes.gid != u32::MAX)
            .then(|| (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid)))
    }

    fn mode(&self, mode: u16) -> Mode {
        let kept = match self.trust {
            Trust::Owner => 0o7777,
            Trust::Nobody { .. } => 0o777,
        };
        Mode::from_raw_mode(u32::from(mode & kept))
    }

    /// The deepest first: a time changes with what is made inside.
    fn finish(mut self) -> Result<Written, CopyError> {
        for (path, attributes) in std::mem::take(&mut self.directories).into_iter().rev() {
            let directory = File::from(self.enter(&path)?);
            let shown = OsStr::from_bytes(&path);
            if let Some((uid, gid)) = self.owners(&attributes) {
                allowed(fchown(&directory, Some(uid), Some(gid))).map_err(CopyError::at(shown))?;
            }
            fchmod(&directory, self.mode(attributes.mode)).map_err(CopyError::at(shown))?;
            let _ = futimens(&directory, &attributes.times());
            // Another one may be there by now that has the same name.
            self.parent = None;
        }
        Ok(self.written)
    }
}

/// Who is not root, or is in a namespace that has not got the id, keeps what they have.
fn allowed(changed: Result<(), Errno>) -> Result<(), Errno> {
    match changed {
        Err(Errno::PERM | Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Takes away what is in the place of a file that is to come.
fn make_room(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

fn split(path: &[u8]) -> (&[u8], &OsStr) {
    let at = path.iter().rposition(|&byte| byte == b'/');
    let (above, name) = at.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
    (above, OsStr::from_bytes(name))
}

fn refused(path: &[u8], problem: &'static str) -> CopyError {
    CopyError::Refused {
        path: String::from_utf8_lossy(path).into_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
        path::Path,
    };

    use super::*;
    use crate::tar::write::{self, Entry as New, Type};

    fn archive(entries: &[(&str, Type<'_>, u32, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, kind, mode, content) in entries {
            let entry = New {
                path: path.as_bytes(),
                kind: *kind,
                mode: *mode,
                uid: 0,
                gid: 0,
                mtime: (1, 0),
                xattrs: &[],
            };
            write::entry(&mut bytes, &entry).unwrap();
            bytes.extend(content.as_bytes());
            bytes.extend(write::padding(content.len() as u64));
        }
        bytes.extend(write::END);
        bytes
    }

    fn extract(to: &Path, top: Top, entries: &[(&str, Type<'_>, u32, &str)]) -> Result<Written, CopyError> {
        let directory = super::super::open_directory(to.as_os_str())?;
        tree(
            archive(entries).as_slice(),
            Trust::Nobody { owners: false },
            |_| Ok((directory, top)),
        )
    }

    fn file(path: &str) -> (&str, Type<'_>, u32, &str) {
        (path, Type::File(1), 0o644, "x")
    }

    #[test]
    fn a_tree_is_written_with_its_modes_and_without_set_id_bits() {
        let temporary = tempfile::tempdir().unwrap();
        let top = Top::Renamed("new".into());
        let written = extract(
            temporary.path(),
            top,
            &[
                ("dir/", Type::Directory, 0o500, ""),
                ("dir/run", Type::File(2), 0o4755, "ab"),
                ("dir/same", Type::HardLink(b"dir/run"), 0o755, ""),
                ("dir/link", Type::Symlink(b"/etc/passwd"), 0o777, ""),
                ("dir/sda", Type::Block(8, 0), 0o666, ""),
            ],
        )
        .unwrap();
        assert_eq!((written.bytes, written.left_out), (2, 1));
        let at = |name: &str| temporary.path().join("new").join(name);
        let mode = |name: &str| fs::symlink_metadata(at(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(""), mode("run")), (0o500, 0o755));
        assert_eq!(fs::read(at("same")).unwrap(), b"ab");
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(!at("sda").exists());
        fs::set_permissions(at(""), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn no_path_and_no_link_leads_out_of_the_directory() {
        let temporary = tempfile::tempdir().unwrap();
        let (inside, outside) = (temporary.path().join("in"), temporary.path().join("out"));
        fs::create_dir(&outside).unwrap();
        let secret = outside.join("secret");
        let absolute = secret.to_str().unwrap().to_owned();
        let out = outside.to_str().unwrap().to_owned();
        let attempts: Vec<Vec<(&str, Type<'_>, u32, &str)>> = vec![
            vec![file("top/../../out/secret")],
            vec![file("../out/secret")],
            // Its own link on the way, or in the place of a file, a directory or a hard link's target.
            vec![
                ("top/l", Type::Symlink(out.as_bytes()), 0o777, ""),
                file("top/l/secret"),
            ],
            vec![
                ("top/l", Type::Symlink(b"../../out"), 0o777, ""),
                ("top/l/", Type::Directory, 0o777, ""),
                file("top/l/secret"),
            ],
            vec![
                ("top/l", Type::Symlink(absolute.as_bytes()), 0o777, ""),
                file("top/l"),
            ],
            vec![
                ("top/l", Type::Symlink(absolute.as_bytes()), 0o777, ""),
                ("top/h", Type::HardLink(b"top/l"), 0o644, ""),
                file("top/h"),
            ],
            vec![
                ("top/h", Type::HardLink(absolute.as_bytes()), 0o644, ""),
                file("top/h"),
            ],
            vec![
                ("top", Type::Symlink(out.as_bytes()), 0o777, ""),
                file("top/secret"),
            ],
            // One that was there.
            vec![file("top/there/secret")],
        ];
        for entries in &attempts {
            for top in [Top::Kept, Top::Dropped, Top::Renamed("name".into())] {
                let _ = fs::remove_dir_all(&inside);
                fs::create_dir_all(inside.join("top")).unwrap();
                fs::create_dir_all(inside.join("name")).unwrap();
                for parent in ["top", "name", "."] {
                    symlink(&outside, inside.join(parent).join("there")).unwrap();
                }
                fs::write(&secret, "untouched").unwrap();
                let _ = extract(&inside, top, entries);
                assert_eq!(fs::read_to_string(&secret).unwrap(), "untouched", "{entries:?}");
                assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
            }
        }
    }

    #[test]
    fn a_file_that_is_there_is_replaced_and_not_written_into() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::write(at("other"), "kept").unwrap();
        fs::hard_link(at("other"), at("file")).unwrap();
        extract(temporary.path(), Top::Kept, &[file("file")]).unwrap();
        assert_eq!(fs::read_to_string(at("other")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "x");
        fs::create_dir(at("dir")).unwrap();
        assert!(extract(temporary.path(), Top::Kept, &[file("dir")]).is_err());
        assert!(
            extract(
                temporary.path(),
                Top::Kept,
                &[("file/", Type::Directory, 0o755, "")]
            )
            .is_err()
        );
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let bytes = vec![7; 4096];
        let first = |_: &Entry| panic!("there is no entry");
        assert!(tree(bytes.as_slice(), Trust::Nobody { owners: false }, first).is_err());
        let empty = tree(&b""[..], Trust::Nobody { owners: false }, first).unwrap();
        assert_eq!(empty, Written::default());
    }
}
