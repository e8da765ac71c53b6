//! Landlock (Documentation/userspace-api/landlock.rst): a domain in which nothing is allowed that a kernel knows how to
//! forbid, but for what is said: to open, make, rename or remove a file, to bind or connect a TCP port, to connect to an abstract
//! socket or to signal a process outside. Descriptors that are handed over keep what they were opened with.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use crate::{Step, WallError};

const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
const LANDLOCK_RULE_PATH_BENEATH: libc::c_int = 1;

/// Access rights to files by the version of the interface that knows them first (linux/landlock.h).
const FILE_RIGHTS: [(i64, u64); 4] = [
    (1, (1 << 13) - 1),
    // LANDLOCK_ACCESS_FS_REFER, _TRUNCATE, _IOCTL_DEV
    (2, 1 << 13),
    (3, 1 << 14),
    (5, IOCTL_DEV),
];

/// Those among them that a file has which is no directory: LANDLOCK_ACCESS_FS_EXECUTE, _WRITE_FILE, _READ_FILE, _TRUNCATE, _IOCTL_DEV.
const OF_FILES: u64 = 0b111 | 1 << 14 | IOCTL_DEV;

const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

/// LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP.
const NET_RIGHTS: (i64, u64) = (4, 0b11);
const CONNECT_TCP: (i64, u64) = (4, 0b10);

/// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and _SIGNAL.
const SCOPES: (i64, u64) = (6, 0b11);
const ABSTRACT_UNIX_SOCKET: (i64, u64) = (6, 0b01);

/// What may be done with a path and all that is beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Files are read and directories listed.
    Read,
    /// They are changed too, made and removed. Nothing but files and directories is made.
    Change,
}

impl Access {
    fn rights(self) -> u64 {
        let read = READ_FILE | READ_DIR;
        match self {
            Self::Read => read,
            Self::Change => {
                let made = MAKE_DIR | MAKE_REG | REMOVE_DIR | REMOVE_FILE;
                read | WRITE_FILE | TRUNCATE | IOCTL_DEV | made
            }
        }
    }
}

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Forbids all of it to this thread and those that it makes. False on a kernel without landlock. The process must have
/// no_new_privs.
///
/// # Errors
/// [`WallError`] when the kernel has it and does not do it.
pub fn deny_all() -> Result<bool, WallError> {
    match Ruleset::new(NET_RIGHTS, SCOPES)? {
        Some(ruleset) => ruleset.enter().map(|()| true),
        None => Ok(false),
    }
}

/// Leaves this thread and those that it makes no files but those beneath some paths, and forbids it to execute any, to connect to TCP
/// ports and to abstract sockets. A path that is not there is left out. False on a kernel without landlock. The process must
/// have no_new_privs.
///
/// # Errors
/// As [`deny_all`]; for a path that cannot be opened.
pub fn leave<'a>(paths: impl IntoIterator<Item = (&'a Path, Access)>) -> Result<bool, WallError> {
    let Some(ruleset) = Ruleset::new(CONNECT_TCP, ABSTRACT_UNIX_SOCKET)? else {
        return Ok(false);
    };
    for (path, access) in paths {
        ruleset.allow(path, access.rights())?;
    }
    ruleset.enter().map(|()| true)
}

struct Ruleset {
    descriptor: OwnedFd,
    files: u64,
}

impl Ruleset {
    /// One that forbids all that can be done with files, and of ports and of what is outside what is said.
    fn new(ports: (i64, u64), scopes: (i64, u64)) -> Result<Option<Self>, WallError> {
        // SAFETY: with this flag no attribute is read.
        let version = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                0,
                0,
                LANDLOCK_CREATE_RULESET_VERSION,
            )
        };
        if version <= 0 {
            return Ok(None);
        }
        let known = |(since, rights): (i64, u64)| if version >= since { rights } else { 0 };
        let files = FILE_RIGHTS.into_iter().map(known).fold(0, |all, some| all | some);
        let attributes = Attributes {
            handled_access_fs: files,
            handled_access_net: known(ports),
            scoped: known(scopes),
        };
        // SAFETY: `attributes` is as large as is said; a kernel that knows less of it demands that the rest is 0, which it is.
        let made = check(unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attributes,
                size_of::<Attributes>(),
                0,
            )
        });
        let made = made.step("make a landlock ruleset")?;
        // SAFETY: the kernel has just made this descriptor, and nothing else has it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(made as libc::c_int) };
        Ok(Some(Self { descriptor, files }))
    }

    fn allow(&self, path: &Path, rights: u64) -> Result<(), WallError> {
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(path);
        let opened = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.step("open what a landlock domain leaves")?,
        };
        let is_directory = opened
            .metadata()
            .step("look at what a landlock domain leaves")?
            .is_dir();
        let fitting = if is_directory {
            self.files
        } else {
            self.files & OF_FILES
        };
        let rule = PathBeneath {
            allowed_access: rights & fitting,
            parent_fd: opened.as_raw_fd(),
        };
        // SAFETY: a rule of this kind is a `PathBeneath`, which lives over the call, as does the descriptor in it.
        let added = check(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.descriptor.as_raw_fd(),
                LANDLOCK_RULE_PATH_BENEATH,
                &raw const rule,
                0,
            )
        });
        added.step("add to a landlock ruleset").map(drop)
    }

    fn enter(self) -> Result<(), WallError> {
        // SAFETY: takes numbers.
        let entered =
            check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.descriptor.as_raw_fd(), 0) });
        entered.step("enter the landlock domain").map(drop)
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, create_dir, read, write},
        net::{TcpListener, TcpStream},
        os::unix::fs::symlink,
        process::Command,
        thread,
    };

    use super::*;

    /// What is left of these attempts in a domain, which a thread of its own enters.
    fn attempts(directory: &Path, port: u16) -> Option<Vec<(&'static str, bool)>> {
        let (own, shown) = (directory.join("own"), directory.join("shown"));
        let paths = [
            (own.as_path(), Access::Change),
            (shown.as_path(), Access::Read),
            (Path::new("/nonexistent"), Access::Change),
        ];
        rustix::thread::set_no_new_privs(true).unwrap();
        if !leave(paths).unwrap() {
            return None;
        }
        let make = |name: &str| write(own.join(name), "x").is_ok();
        Some(vec![
            ("make a file", make("new")),
            ("move it", fs::rename(own.join("new"), own.join("moved")).is_ok()),
            ("remove it", fs::remove_file(own.join("moved")).is_ok()),
            ("make a file without a name", tempfile::tempfile_in(&own).is_ok()),
            ("read a file", read(shown.join("file")).is_ok()),
            ("listen", TcpListener::bind("127.0.0.1:0").is_ok()),
            ("-", true),
            ("write what is shown", write(shown.join("file"), "x").is_ok()),
            ("make a file there", write(shown.join("new"), "x").is_ok()),
            ("remove there", fs::remove_file(shown.join("file")).is_ok()),
            ("read another's file", read(directory.join("other/file")).is_ok()),
            ("read it by a link", read(own.join("link")).is_ok()),
            ("list the host", fs::read_dir("/").is_ok()),
            ("make a link", symlink("/", own.join("root")).is_ok()),
            ("execute", Command::new("/bin/true").status().is_ok()),
            ("connect", TcpStream::connect(("127.0.0.1", port)).is_ok()),
        ])
    }

    #[test]
    fn a_domain_leaves_what_is_said_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["own", "shown", "other"] {
            create_dir(directory.path().join(name)).unwrap();
            write(directory.path().join(name).join("file"), "x").unwrap();
        }
        symlink("../other/file", directory.path().join("own/link")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, port) = (directory.path().to_owned(), listener.local_addr().unwrap().port());
        let Some(found) = thread::spawn(move || attempts(&at, port)).join().unwrap() else {
            eprintln!("skipped: this kernel has no landlock");
            return;
        };
        let mut allowed = true;
        for (what, done) in found {
            allowed &= what != "-";
            assert!(what == "-" || done == allowed, "{what}: {done}");
        }
        assert!(
            read(directory.path().join("other/file")).is_ok(),
            "other threads are free"
        );
    }
}
