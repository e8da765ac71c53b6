//! Trees of files as tar streams, between a directory here and a sandbox: the two ends of `brig cp`.
//!
//! | module | does |
//! |---|---|
//! | [`read`] | a file or a tree becomes a stream |
//! | [`write`] | a stream becomes files below a directory |
//! | here | which directory, and under which name: Docker's rules |
//!
//! Either end may be hostile. The host's side reads streams that a sandbox has written: nothing in one, neither a path nor a link
//! that it has made before, leads out of the directory ([`write::Trust::Nobody`]).

pub mod read;
pub mod write;

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat},
    io::Errno,
};

/// Most directories in each other.
const DEPTH_MAX: usize = 512;

/// Why something cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A system call failed on a path.
    #[error("{path}")]
    Path {
        /// The path.
        path: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The stream is no archive.
    #[error(transparent)]
    Tar(#[from] crate::tar::TarError),
    /// The stream cannot be written.
    #[error("the stream failed")]
    Stream(#[source] io::Error),
    /// A path in the stream leads out of the directory, or through something that it must not.
    #[error("refused {path:?} in the archive: {problem}")]
    Refused {
        /// The path.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More than is kept in memory, or deeper than descriptors go.
    #[error("too many {0}")]
    TooMany(&'static str),
}

impl CopyError {
    fn at(path: impl AsRef<OsStr>) -> impl FnOnce(Errno) -> Self {
        let path = path.as_ref().to_string_lossy().into_owned();
        move |errno| Self::Path {
            path,
            source: errno.into(),
        }
    }
}

/// What is copied, as far as its place depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its last component.
    pub name: OsString,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Whether only what is in that directory is meant: `directory/.`.
    pub contents: bool,
}

/// What becomes of the first component of each path in a stream, which is the source's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Top {
    /// There is no such: the paths are meant as they are.
    Kept,
    /// It is replaced.
    Renamed(OsString),
    /// It goes: the source's contents are put into the directory itself.
    Dropped,
}

/// Where `source` goes that is to be copied to `destination`, with links followed: a directory, and under which name in it.
/// These are Docker's rules, for both directions.
///
/// # Errors
/// [`CopyError::Path`] with what is missing.
pub fn place(destination: &OsStr, source: &Source) -> Result<(OwnedFd, Top), CopyError> {
    let bytes = destination.as_bytes();
    let wants_directory = bytes.ends_with(b"/") || bytes.ends_with(b"/.");
    let missing = |path: &OsStr, errno: Errno| CopyError::at(path)(errno);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat(CWD, destination, flags, Mode::empty()) {
        Ok(found) => {
            let stat = fstat(&found).map_err(CopyError::at(destination))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let directory = open_directory(destination)?;
                let top = if source.contents {
                    Top::Dropped
                } else {
                    Top::Renamed(source.name.clone())
                };
                return Ok((directory, top));
            }
            if source.is_directory || wants_directory {
                return Err(missing(destination, Errno::NOTDIR));
            }
        }
        // A directory that is to be made may have a slash behind it, and a file not.
        Err(Errno::NOENT) if source.is_directory || !wants_directory => {}
        Err(errno) => return Err(missing(destination, errno)),
    }
    let trimmed = trim(bytes);
    let at = trimmed
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |at| at + 1);
    let (parent, name) = trimmed.split_at(at);
    let parent = OsStr::from_bytes(if parent.is_empty() { b"." } else { parent });
    if matches!(name, b"" | b"." | b"..") {
        return Err(missing(destination, Errno::NOENT));
    }
    let name = OsStr::from_bytes(name).to_owned();
    Ok((open_directory(parent)?, Top::Renamed(name)))
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while bytes.len() > 1 {
        let Some(shorter) = bytes.strip_suffix(b"/").or_else(|| bytes.strip_suffix(b"/.")) else {
            break;
        };
        bytes = shorter;
    }
    bytes
}

/// Opens a directory, with links followed.
///
/// # Errors
/// [`CopyError::Path`].
pub fn open_directory(path: &OsStr) -> Result<OwnedFd, CopyError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(CopyError::at(path))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn source(is_directory: bool, contents: bool) -> Source {
        Source {
            name: "src".into(),
            is_directory,
            contents,
        }
    }

    #[test]
    fn a_place_is_what_docker_says() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name).into_os_string();
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        let top = |to: &str, source: &Source| place(&at(to), source).map(|(_, top)| top);
        let renamed = |name: &str| Top::Renamed(name.into());
        for is_directory in [false, true] {
            let source = source(is_directory, false);
            assert_eq!(top("dir", &source).unwrap(), renamed("src"));
            assert_eq!(top("dir/", &source).unwrap(), renamed("src"));
            assert_eq!(top("new", &source).unwrap(), renamed("new"));
            assert!(top("none/new", &source).is_err());
            assert_eq!(top("file", &source).is_ok(), !is_directory);
            assert_eq!(top("new/", &source).is_ok(), is_directory);
        }
        assert_eq!(top("dir", &source(true, true)).unwrap(), Top::Dropped);
        assert_eq!(top("new", &source(true, true)).unwrap(), renamed("new"));
        assert_eq!(trim(b"/a/b/./"), b"/a/b");
        assert_eq!(trim(b"/"), b"/");
        assert!(Path::new(&at("dir")).exists());
    }
}
