//! The guest's block devices: the image and the writable disk of a sandbox.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use brig_launcher::{Root, rootfs::Overlay};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    error::{AgentError, Context},
    process::Places,
};

/// Options of the writable disk. Without `noinit_itable` a kernel thread would write zeros to a new filesystem's inode
/// tables for minutes, each byte of them work and space of the host's.
const EXT4_OPTIONS: &CStr = c"noinit_itable";

/// What is mounted from the disks. The writable one stays mounted when the sandbox's process has ended, so that unmounting
/// it holds up nobody who waits for the exit status.
#[derive(Debug, Default)]
pub struct Disks {
    writable: Option<PathBuf>,
}

impl Disks {
    /// Mounts the image on one disk and the writable layer on another.
    pub(crate) fn mount_root(
        &mut self,
        image: u8,
        writable: u8,
        places: &Places,
    ) -> Result<Root, AgentError> {
        ensure_devices(&places.devices())?;
        let quiet = MountFlags::NOATIME;
        mount_disk(
            "the image",
            image,
            places,
            &places.image(),
            "erofs",
            quiet | MountFlags::RDONLY,
            None,
        )?;
        mount_disk(
            "the writable layer",
            writable,
            places,
            &places.disk(),
            "ext4",
            quiet,
            Some(EXT4_OPTIONS),
        )?;
        self.writable = Some(places.disk());
        Ok(Root::Overlay(Overlay {
            image: places.image(),
            writable: places.disk(),
            at: places.root(),
        }))
    }

    /// Writes everything to the writable disk and lets go of it. Nothing may use it any more; if something does, it is
    /// written all the same.
    pub fn release(&mut self) {
        if let Some(path) = self.writable.take()
            && unmount(&path, UnmountFlags::empty()).is_err()
        {
            rustix::fs::sync();
        }
    }
}

fn mount_disk(
    what: &'static str,
    number: u8,
    places: &Places,
    target: &Path,
    kind: &str,
    flags: MountFlags,
    options: Option<&CStr>,
) -> Result<(), AgentError> {
    let device = disk_path(places, number);
    mount(&device, target, kind, flags, options).map_err(|e| AgentError::Disk {
        what,
        device: device.display().to_string(),
        source: e.into(),
    })
}

/// Opens a disk for direct I/O (open(2), `O_DIRECT`).
///
/// # Errors
/// [`AgentError::Disk`].
pub fn open_direct(places: &Places, number: u8, write: bool) -> Result<File, AgentError> {
    ensure_devices(&places.devices())?;
    let device = disk_path(places, number);
    File::options()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(&device)
        .map_err(|e| AgentError::Disk {
            what: "a disk",
            device: device.display().to_string(),
            source: e,
        })
}

/// The device of a disk by its position among the virtio block devices (drivers/block/virtio_blk.c,
/// `virtblk_name_format`).
fn disk_path(places: &Places, number: u8) -> PathBuf {
    places.devices().join(format!("vd{}", disk_letters(number)))
}

fn disk_letters(number: u8) -> String {
    let letter = |index: u8| char::from(b'a' + index);
    match number {
        0..26 => letter(number).to_string(),
        _ => [letter(number / 26 - 1), letter(number % 26)].iter().collect(),
    }
}

/// Mounts the kernel's own device filesystem on `devices` unless there are nodes already.
///
/// # Errors
/// Those of mount(2).
pub(crate) fn ensure_devices(devices: &Path) -> Result<(), AgentError> {
    if devices.join("null").exists() {
        return Ok(());
    }
    mount(
        "dev",
        devices,
        "devtmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        None,
    )
    .map_err(io::Error::from)
    .step("mount devtmpfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_the_kernel_names_them() {
        assert_eq!(disk_letters(0), "a");
        assert_eq!(disk_letters(25), "z");
        assert_eq!(disk_letters(26), "aa");
        assert_eq!(disk_letters(52), "ba");
        assert_eq!(disk_letters(255), "iv");
    }
}
