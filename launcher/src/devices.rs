//! The device nodes and links of `/dev` that every image may count on (OCI runtime specification, "Default Devices"
//! and "Dev symbolic links"), and that they are the only devices of the sandbox.
//!
//! Root may make device nodes, and an image may have some. Docker lets nobody open them, by a BPF program in the container's
//! cgroup. Here the sandbox's filesystems are mounted `nodev`, and the nodes that may be opened are mounts of their own, which
//! are not: the process may neither mount nor change mounts.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, lstat, makedev, mknodat, open, symlink},
    io::Errno,
    mount::{OpenTreeFlags, mount_bind, open_tree},
    process::umask,
};

use crate::{
    error::{Context, LaunchError},
    mounts::{self, Reach},
    rootfs::Devices,
};

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

/// Where the device nodes of a sandbox come from.
#[derive(Debug)]
pub(crate) enum Nodes {
    /// They are made.
    Make,
    /// They are the caller's own, each a mount that is attached nowhere yet, in the order of [`NODES`].
    Borrowed(Vec<OwnedFd>),
}

impl Nodes {
    /// Those of the calling process's `/dev`.
    pub(crate) fn borrow() -> Result<Self, LaunchError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let borrow = |&(path, major, minor): &(&str, u32, u32)| {
            let tree = open_tree(CWD, path, flags).step_on("bind the device", path)?;
            let stat = fstat(&tree).step_on("look at the device", path)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
                || stat.st_rdev != makedev(major, minor)
            {
                return Err(Errno::NODEV).step_on("find the device", path);
            }
            Ok(tree)
        };
        NODES
            .iter()
            .map(borrow)
            .collect::<Result<_, _>>()
            .map(Self::Borrowed)
    }
}

/// Fills a new `/dev`.
pub(crate) fn populate(nodes: &Nodes, which: Devices) -> Result<(), LaunchError> {
    match nodes {
        Nodes::Make => {
            let before = umask(Mode::empty());
            let made = create_nodes();
            umask(before);
            made?;
            for (path, ..) in NODES {
                mount_bind(path, path).step_on("bind the device", path)?;
            }
        }
        Nodes::Borrowed(trees) => attach_nodes(trees)?,
    }
    if which == Devices::Few {
        allow_nodes_only()?;
    }
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

/// Attaches nodes to empty files.
fn attach_nodes(trees: &[OwnedFd]) -> Result<(), LaunchError> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    for ((path, ..), tree) in NODES.iter().zip(trees) {
        let file = open(*path, flags, Mode::from_raw_mode(0o600)).step_on("create", path)?;
        mounts::attach(tree, &file).step_on("bind the device", path)?;
    }
    Ok(())
}

/// Forbids device nodes in what is no node's mount of `/dev`.
fn allow_nodes_only() -> Result<(), LaunchError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open("/dev", flags, Mode::empty()).step("open /dev")?;
    mounts::set_attributes(&directory, libc::MOUNT_ATTR_NODEV, Reach::Itself)
        .step("forbid other device nodes in /dev")
}

/// Whether `/dev/null` is the null device, and not something that an image put in its place.
pub(crate) fn null_is_null() -> Result<bool, Errno> {
    let stat = lstat("/dev/null")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3))
}
