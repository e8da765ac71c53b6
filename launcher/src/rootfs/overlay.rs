//! A read-only image with a writable layer over it (Documentation/filesystems/overlayfs.rst).

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::{Deserialize, Serialize};

use super::Disk;
use crate::{
    Kernel,
    error::{Context, LaunchError},
};

/// The parts of an overlay. No path may hold a comma, colon or backslash, which mean something in overlayfs's options.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Overlay {
    /// What is mounted first, in this order, because the caller has not mounted it.
    pub disks: Vec<Disk>,
    /// The image, mounted read-only.
    pub image: PathBuf,
    /// A mounted filesystem that holds the writable layer in `upper` and overlayfs's own `work`; both are made when they
    /// are missing. Whoever makes the filesystem does well to put them in: the first directory of a new ext4 costs its
    /// kernel 0.4 million instructions.
    pub writable: PathBuf,
    /// An existing, empty directory that the result is mounted on.
    pub at: PathBuf,
    /// On a kernel that is shared overlayfs keeps its notes in extended attributes that the root of a user namespace may
    /// write, `user.overlay.…`.
    pub kernel: Kernel,
}

impl Overlay {
    /// Mounts it and returns where.
    pub(super) fn mount(&self) -> Result<&Path, LaunchError> {
        for disk in &self.disks {
            disk.mount()?;
        }
        let upper = self.writable.join("upper");
        let work = self.writable.join("work");
        // overlayfs makes this one at its first mount.
        let is_new = !work.join("work").exists();
        for directory in [&upper, &work] {
            create_directory(directory).step_on("create", directory.display())?;
        }
        if is_new {
            self.adopt_root(&upper)
                .step_on("prepare the writable layer", upper.display())?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}{}",
            self.image.display(),
            upper.display(),
            work.display(),
            match self.kernel {
                Kernel::Own => "",
                Kernel::Shared => ",userxattr",
            }
        );
        let options = std::ffi::CString::new(options).map_err(|_| LaunchError::BadSpec {
            what: "path",
            value: self.at.display().to_string(),
            problem: "holds a NUL",
        })?;
        mount(
            "overlay",
            &self.at,
            "overlay",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .step_on("mount an overlay on", self.at.display())?;
        Ok(&self.at)
    }

    /// Mounts it over an image with one empty directory, makes a file there, and takes all of that away again: what the kernel
    /// reads and builds for the first directory, file and whiteout of a filesystem the next ones find in memory. Nothing is done
    /// to a writable layer that something is in. `image` is an empty directory that can be written.
    pub(crate) fn rehearse(&self) -> Result<(), LaunchError> {
        let upper = self.writable.join("upper");
        let is_empty = |directory: &Path| fs::read_dir(directory).is_ok_and(|mut all| all.next().is_none());
        if !is_empty(&upper) || !is_empty(&self.image) {
            return Ok(());
        }
        let lower = self.image.join("rehearsal");
        create_directory(&lower).step_on("create", lower.display())?;
        self.mount()?;
        let directory = self.at.join("rehearsal");
        let result = fs::write(directory.join("file"), "")
            .and_then(|()| fs::remove_file(directory.join("file")))
            .step("write to the writable layer");
        unmount(&self.at, UnmountFlags::DETACH).step_on("unmount", self.at.display())?;
        result?;
        for left in [upper.join("rehearsal"), self.writable.join("work/work"), lower] {
            fs::remove_dir(&left).step_on("remove", left.display())?;
        }
        Ok(())
    }

    /// Gives the upper directory the owner and mode of the image's root: it is what the sandbox sees as its `/`.
    fn adopt_root(&self, upper: &Path) -> io::Result<()> {
        let (image, present) = (fs::metadata(&self.image)?, fs::metadata(upper)?);
        if (image.uid(), image.gid()) != (present.uid(), present.gid()) {
            chown(upper, Some(image.uid()), Some(image.gid()))?;
        }
        if image.mode() != present.mode() {
            fs::set_permissions(upper, fs::Permissions::from_mode(image.mode() & 0o7777))?;
        }
        Ok(())
    }
}

/// Makes a directory that may exist already.
fn create_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
