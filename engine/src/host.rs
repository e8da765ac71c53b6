//! What the supervisor and the unpacker take from the host; a test gives them something else.

use std::{fs::File, path::PathBuf, time::Duration};

use brig_image_store::{Image, ImageId, Store};
use brig_protocol::vmm::KvmKind;

use crate::{
    Error, Paths, SandboxId,
    cell::{BrigCell, HostIds},
    sandbox::Config,
    vmm::{BrigVmm, Spawn, Vmm, VmmError},
};

/// How long a restored guest may take to wake up. It takes milliseconds where nothing else runs; the rest is for hosts on which
/// hundreds start at once.
const WAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// The same where KVM interprets the guest's kernel.
const WAKE_TIMEOUT_EMULATED: Duration = Duration::from_secs(120);

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

    /// Starts a brig-cell for the sandbox that this is about.
    ///
    /// # Errors
    /// [`VmmError::Spawn`] or [`VmmError::Channel`].
    fn spawn_cell(&self) -> Result<Vmm, VmmError> {
        self.spawn()
    }

    /// The directory of a sandbox's image for these ids.
    ///
    /// # Errors
    /// [`Error::Image`] when it is not in the store.
    fn image_directory(&self, config: &Config, ids: &HostIds) -> Result<PathBuf, Error> {
        let _ = ids;
        Err(Error::ImageGone(config.image.clone()))
    }

    /// Makes `log` the standard error of this process.
    ///
    /// # Errors
    /// [`Error::Runtime`].
    fn complain_to(&self, log: File) -> Result<(), Error>;

    /// How long a restored guest may take from the start of its VMM to its agent's word that it is awake.
    fn wake_timeout(&self, kvm: KvmKind) -> Duration {
        match kvm {
            KvmKind::Standard => WAKE_TIMEOUT,
            KvmKind::Emulated => WAKE_TIMEOUT_EMULATED,
        }
    }
}

/// This machine.
#[derive(Debug)]
pub struct Machine {
    paths: Paths,
    vmm: BrigVmm,
    cell: BrigCell,
    /// What its cells are for.
    cell_of: PathBuf,
}

impl Machine {
    /// With brig's files at `paths`.
    pub fn new(paths: &Paths) -> Self {
        Self {
            paths: paths.clone(),
            vmm: BrigVmm { program: paths.vmm() },
            cell: BrigCell {
                program: paths.cell(),
            },
            cell_of: paths.images(),
        }
    }

    /// The same for one sandbox.
    #[must_use]
    pub fn of_sandbox(self, id: &SandboxId) -> Self {
        Self {
            cell_of: self.paths.sandbox(id),
            ..self
        }
    }

    fn image_of(&self, config: &Config) -> Result<(Store, Image), Error> {
        let store = Store::at(&self.paths.images());
        let gone = || Error::ImageGone(config.image.clone());
        let id = ImageId(config.image_id.parse().map_err(|_| gone())?);
        let image = store.image(&id)?.ok_or_else(gone)?;
        Ok((store, image))
    }
}

impl Spawn for Machine {
    fn spawn(&self) -> Result<Vmm, VmmError> {
        self.vmm.spawn()
    }
}

impl Host for Machine {
    fn kvm(&self) -> Result<File, Error> {
        crate::kvm::open()
    }

    fn image(&self, config: &Config) -> Result<File, Error> {
        let (store, image) = self.image_of(config)?;
        let gone = || Error::ImageGone(config.image.clone());
        store.unpacked(&image)?.ok_or_else(gone)
    }

    fn spawn_cell(&self) -> Result<Vmm, VmmError> {
        self.cell.spawn(&self.cell_of)
    }

    fn image_directory(&self, config: &Config, ids: &HostIds) -> Result<PathBuf, Error> {
        let (store, image) = self.image_of(config)?;
        let gone = || Error::ImageGone(config.image.clone());
        store.unpacked_directory(&image, &ids.key()).ok_or_else(gone)
    }

    fn complain_to(&self, log: File) -> Result<(), Error> {
        rustix::stdio::dup2_stderr(log).map_err(|e| Error::Runtime(e.into()))
    }
}
