//! What can be set of this kernel: files of filesystems that are mounted nowhere where the agent is.

use rustix::{
    fs::{Mode, OFlags, openat},
    io,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// Writes to files, each with what is written, of a new mount of a filesystem (`proc`, `sysfs`) that goes at once.
///
/// # Errors
/// Those of the system calls.
pub fn set(filesystem: &str, values: &[(&str, &str)]) -> io::Result<()> {
    let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    for (path, value) in values {
        let file = openat(&mount, *path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        io::write(&file, value.as_bytes())?;
    }
    Ok(())
}
