//! The device nodes and links of `/dev` that every image may count on (OCI runtime specification, "Default Devices"
//! and "Dev symbolic links").

use rustix::{
    fs::{CWD, FileType, Mode, lstat, makedev, mknodat, symlink},
    io::Errno,
    process::umask,
};

use crate::error::{Context, LaunchError};

/// Path, major and minor number (Documentation/admin-guide/devices.txt).
const NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Path and target.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Fills a new `/dev`.
pub(crate) fn populate() -> Result<(), LaunchError> {
    let before = umask(Mode::empty());
    let made = create_nodes();
    umask(before);
    made?;
    for (path, target) in LINKS {
        symlink(target, path).step_on("create the link", path)?;
    }
    Ok(())
}

/// Makes the nodes, for everybody to use as far as the umask lets through.
fn create_nodes() -> Result<(), LaunchError> {
    let mode = Mode::from_raw_mode(0o666);
    for (path, major, minor) in NODES {
        mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(major, minor))
            .step_on("create the device", path)?;
    }
    Ok(())
}

/// Whether `/dev/null` is the null device, and not something that an image put in its place.
pub(crate) fn null_is_null() -> Result<bool, Errno> {
    let stat = lstat("/dev/null")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3))
}
