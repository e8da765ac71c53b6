//! The guest's block devices: the image and the writable disk of a sandbox.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use brig_launcher::{
    Kernel, Root,
    rootfs::{Content, Disk, Overlay},
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    error::{AgentError, Context},
    process::Places,
};

/// include/uapi/linux/fs.h: `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// What is mounted from the disks. The writable one stays mounted when the sandbox's process has ended, so that unmounting
/// it holds up nobody who waits for the exit status.
#[derive(Debug, Default)]
pub struct Disks {
    /// The number and place of the writable disk that is mounted last.
    writable: Option<(u8, PathBuf)>,
    /// The number of the one that the process that waits has in its mount namespace.
    prepared: Option<u8>,
}

impl Disks {
    /// Mounts a writable disk in the agent's mount namespace unless it is there. One that was mounted before is covered and
    /// never touched again: after a restore it may be another disk than the one that the kernel knows.
    fn mount_writable(&mut self, number: u8, places: &Places) -> Result<(), AgentError> {
        if self
            .writable
            .as_ref()
            .is_some_and(|(mounted, _)| *mounted == number)
        {
            return Ok(());
        }
        ensure_devices(&places.devices())?;
        disk(places, number, Content::Writable).mount()?;
        self.writable = Some((number, places.disk()));
        Ok(())
    }

    /// Notes that the mount namespace of a process that waits is a copy of the agent's as it is now.
    pub(crate) fn mark_prepared(&mut self) {
        self.prepared = self.writable.as_ref().map(|(number, _)| *number);
    }

    /// Mounts the writable layer on one disk; the image on the other is mounted by the sandbox's process, where the agent's
    /// mount namespace has no copy of it.
    pub(crate) fn make_root(&mut self, image: u8, writable: u8, places: &Places) -> Result<Root, AgentError> {
        self.mount_writable(writable, places)?;
        let mut disks = vec![disk(places, image, Content::Image)];
        if self.prepared.is_some_and(|prepared| prepared != writable) {
            disks.push(disk(places, writable, Content::Writable));
        }
        Ok(overlay(disks, places))
    }

    /// Mounts the writable layer of a root filesystem whose image is not there yet.
    pub(crate) fn make_root_without_image(
        &mut self,
        writable: u8,
        places: &Places,
    ) -> Result<Root, AgentError> {
        self.mount_writable(writable, places)?;
        Ok(overlay(Vec::new(), places))
    }

    /// Mounts image and writable disk in the agent's own mount namespace, for a guest that packs and does nothing else.
    pub(crate) fn mount_for_packing(
        &mut self,
        image: u8,
        writable: u8,
        places: &Places,
    ) -> Result<(), AgentError> {
        self.mount_writable(writable, places)?;
        disk(places, image, Content::Image).mount()?;
        Ok(())
    }

    /// Writes everything to the writable disk and stops whoever writes to it (ioctl_fifreeze(2)).
    ///
    /// # Errors
    /// When there is no disk, or it is frozen already.
    pub fn freeze(&self) -> Result<(), AgentError> {
        self.freezer(FIFREEZE).step("freeze the writable disk")
    }

    /// Lets them go on. A disk that is not frozen is no error.
    pub fn thaw(&self) {
        let _ = self.freezer(FITHAW);
    }

    fn freezer(&self, request: libc::Ioctl) -> io::Result<()> {
        let Some((_, path)) = &self.writable else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let directory = File::open(path)?;
        // SAFETY: both requests take no argument that the kernel would read or write through: the third word is ignored
        // (fs/ioctl.c, ioctl_fsfreeze and ioctl_fsthaw). The descriptor is open for as long as the call lasts.
        let result = unsafe { libc::ioctl(directory.as_raw_fd(), request, 0) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Writes everything to the writable disk. As sync(2) this reports nothing.
    pub fn sync(&self) {
        // Not sync(2): it would write to a covered disk as well.
        if let Some((_, path)) = &self.writable
            && let Ok(directory) = File::open(path)
        {
            let _ = rustix::fs::syncfs(&directory);
        }
    }

    /// Writes everything to the writable disk and lets go of it. Nothing may use it any more; if something does, it is
    /// written all the same.
    pub fn release(&mut self) {
        self.sync();
        if let Some((_, path)) = self.writable.take() {
            let _ = unmount(&path, UnmountFlags::empty());
        }
    }
}

fn overlay(disks: Vec<Disk>, places: &Places) -> Root {
    Root::Overlay(Overlay {
        disks,
        image: places.image(),
        writable: places.disk(),
        at: places.root(),
        kernel: Kernel::Own,
    })
}

/// The root filesystem of directories that are mounted in their places.
pub(crate) fn mounted_root(places: &Places) -> Root {
    Root::Overlay(Overlay {
        disks: Vec::new(),
        image: places.image(),
        writable: places.disk(),
        at: places.root(),
        kernel: Kernel::Shared,
    })
}

fn disk(places: &Places, number: u8, content: Content) -> Disk {
    let at = match content {
        Content::Image => places.image(),
        Content::Writable => places.disk(),
    };
    Disk {
        content,
        device: disk_path(places, number),
        at,
    }
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
