//! The filesystems of a spec, mounted inside of the root filesystem by the file-descriptor-based calls (fsopen(2),
//! fsmount(2), move_mount(2)): the target is resolved once, and the descriptor that was checked is what is mounted on.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use brig_protocol::spec::MountSpec;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};

use crate::error::{Context, LaunchError};

/// Mounts what `spec` says.
///
/// # Errors
/// [`LaunchError::Step`] with what the filesystem itself says where it says something.
pub fn mount(spec: &MountSpec) -> Result<(), LaunchError> {
    let target = target_directory(spec)?;
    let tree = new_tree(&spec.kind, &spec.source, &spec.options)
        .step_on(&format!("mount {} on", spec.kind), &spec.target)?;
    attach(&tree, &target).step_on(&format!("mount {} on", spec.kind), &spec.target)
}

/// The directory that a mount goes to, made when it is missing.
pub(crate) fn target_directory(spec: &MountSpec) -> Result<OwnedFd, LaunchError> {
    if !spec.target.starts_with('/') {
        return Err(LaunchError::BadSpec {
            what: "mount target",
            value: spec.target.clone(),
            problem: "is not absolute",
        });
    }
    // The hidden and read-only paths are those of `/proc` and `/sys`: an image that moves these away by a link is
    // refused, as runc does.
    let resolve = match spec.kind.as_str() {
        "proc" | "sysfs" => ResolveFlags::NO_SYMLINKS,
        _ => ResolveFlags::NO_MAGICLINKS,
    };
    let open = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(CWD, spec.target.as_str(), flags, Mode::empty(), resolve)
    };
    let directory = match open() {
        Err(Errno::NOENT) => {
            std::fs::create_dir_all(&spec.target).step_on("create", &spec.target)?;
            open()
        }
        opened => opened,
    };
    if matches!(directory, Err(Errno::LOOP)) {
        return Err(LaunchError::BadSpec {
            what: "mount target",
            value: spec.target.clone(),
            problem: "is a symbolic link in the image",
        });
    }
    directory.step_on("mount on", &spec.target)
}

/// A new filesystem that is attached nowhere yet.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2) and fsmount(2), in the filesystem's own words where it has some.
pub fn new_tree(kind: &str, source: &str, options: &[String]) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    configure(&context, kind, source, options).map_err(|e| said_by(&context, e))
}

fn configure(context: &OwnedFd, kind: &str, source: &str, options: &[String]) -> Result<OwnedFd, Errno> {
    fsconfig_set_string(context, "source", source)?;
    let mut attributes = MountAttrFlags::empty();
    for option in options {
        match attribute(option) {
            Some(attribute) => attributes |= attribute,
            None => match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(context, key, value)?,
                None => fsconfig_set_flag(context, option.as_str())?,
            },
        }
    }
    // A read-only tmpfs that is not empty makes no sense, and a disk that can only be read cannot be opened otherwise. For the
    // others the attribute of the mount is what counts: their superblocks may be shared.
    if matches!(kind, "tmpfs" | "ext4") && attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
        fsconfig_set_flag(context, "ro")?;
    }
    fsconfig_create(context)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The attribute of a mount that a mount(8) option stands for; `None` when it is the filesystem's own.
fn attribute(option: &str) -> Option<MountAttrFlags> {
    Some(match option {
        "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
        "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
        "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
        "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
        "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        "strictatime" => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        // The kernel's defaults.
        "rw" | "suid" | "dev" | "exec" | "relatime" | "defaults" => MountAttrFlags::empty(),
        _ => return None,
    })
}

/// The first error in the message log of a filesystem context (fsopen(2)), where the errno alone is `EINVAL` for
/// everything.
fn said_by(context: &OwnedFd, error: Errno) -> io::Error {
    let mut text = [0; 256];
    match rustix::io::read(context, &mut text) {
        Ok(length) if length > 2 && text.starts_with(b"e ") => {
            io::Error::other(String::from_utf8_lossy(&text[2..length]).trim_end().to_owned())
        }
        _ => error.into(),
    }
}

/// Attaches a detached tree over `target`.
///
/// # Errors
/// Those of move_mount(2).
pub fn attach(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// Which mounts an attribute is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The one alone.
    Itself,
    /// It and those that are mounted on directories below it.
    Below,
}

/// Gives the mount whose root is `tree` attributes, `MOUNT_ATTR_…`; the others stay (mount_setattr(2)).
///
/// # Errors
/// Those of mount_setattr(2).
pub fn set_attributes(tree: &OwnedFd, attributes: u64, reach: Reach) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let recursive = match reach {
        Reach::Itself => 0,
        Reach::Below => libc::AT_RECURSIVE as u32,
    };
    let flags = AtFlags::EMPTY_PATH.bits() | recursive;
    // SAFETY: the path is a NUL-terminated string, and the attributes are read, as many bytes as their size says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether one of `mounts` goes to `target`.
pub(crate) fn any_on(mounts: &[MountSpec], target: &str) -> bool {
    mounts
        .iter()
        .any(|mount| Path::new(&mount.target) == Path::new(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_mount_are_told_from_those_of_the_filesystem() {
        assert_eq!(attribute("nosuid"), Some(MountAttrFlags::MOUNT_ATTR_NOSUID));
        assert_eq!(attribute("rw"), Some(MountAttrFlags::empty()));
        assert_eq!(attribute("size=64m"), None);
        assert_eq!(attribute("newinstance"), None);
    }

    #[test]
    fn what_a_filesystem_says_about_an_option_is_in_the_error() {
        let error = new_tree("tmpfs", "tmpfs", &["nonsense=1".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }

    #[test]
    fn a_relative_target_is_refused() {
        let spec = MountSpec {
            target: "proc".into(),
            kind: "proc".into(),
            source: "proc".into(),
            options: vec![],
        };
        assert!(matches!(mount(&spec), Err(LaunchError::BadSpec { .. })));
    }
}
