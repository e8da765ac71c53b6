//! What the supervisor and the unpacker take from the host; a test gives them something else.

use std::{fs::File, os::fd::OwnedFd};

use brig_image_store::Store;

use crate::{
    Error, Paths,
    sandbox::Config,
    vmm::{BrigVmm, Spawn, Vmm, VmmError},
};

/// A host that can run guests.
pub trait Host: Spawn {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// Those of [`crate::kvm::open`].
    fn kvm(&self) -> Result<File, Error>;

    /// Opens the EROFS file of a sandbox's image.
    ///
    /// # Errors
    /// [`Error::Image`] when it is not in the store.
    fn image(&self, config: &Config) -> Result<File, Error>;
}

/// This machine.
#[derive(Debug)]
pub struct Machine {
    paths: Paths,
    vmm: BrigVmm,
}

impl Machine {
    /// With brig's files at `paths`.
    pub fn new(paths: &Paths) -> Self {
        Self {
            paths: paths.clone(),
            vmm: BrigVmm { program: paths.vmm() },
        }
    }
}

impl Spawn for Machine {
    fn spawn(&self, stderr: OwnedFd) -> Result<Vmm, VmmError> {
        self.vmm.spawn(stderr)
    }
}

impl Host for Machine {
    fn kvm(&self) -> Result<File, Error> {
        crate::kvm::open()
    }

    fn image(&self, config: &Config) -> Result<File, Error> {
        let store = Store::open(&self.paths.images())?;
        let gone = || Error::ImageGone(config.image.clone());
        let image = store.resolve(&config.image_id)?.ok_or_else(gone)?;
        store.unpacked(&image)?.ok_or_else(gone)
    }
}
