//! A read-only image with a writable layer over it (Documentation/filesystems/overlayfs.rst).

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, mount};

use crate::error::{Context, LaunchError};

/// The parts of an overlay. No path may hold a comma, colon or backslash, which mean something in overlayfs's options.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// The image, mounted read-only.
    pub image: PathBuf,
    /// A mounted filesystem that holds the writable layer in `upper` and overlayfs's own `work`; both are made when they
    /// are missing.
    pub writable: PathBuf,
    /// An existing, empty directory that the result is mounted on.
    pub at: PathBuf,
}

impl Overlay {
    /// Mounts it and returns where.
    pub(super) fn mount(&self) -> Result<&Path, LaunchError> {
        let upper = self.writable.join("upper");
        let work = self.writable.join("work");
        self.create_layer(&upper)
            .step_on("create the writable layer", upper.display())?;
        create_directory(&work).step_on("create", work.display())?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.image.display(),
            upper.display(),
            work.display()
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

    /// Makes the upper directory, which lends its owner and mode to the sandbox's `/`: those of the image's.
    fn create_layer(&self, upper: &Path) -> io::Result<()> {
        if !create_directory(upper)? {
            return Ok(());
        }
        let image = fs::metadata(&self.image)?;
        chown(upper, Some(image.uid()), Some(image.gid()))?;
        fs::set_permissions(upper, fs::Permissions::from_mode(image.mode() & 0o7777))
    }
}

/// Makes a directory and says whether it was missing.
fn create_directory(path: &Path) -> io::Result<bool> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}
