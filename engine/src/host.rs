//! What the supervisor and the unpacker take from the host; a test gives them something else.

use std::{
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};

use brig_image_store::{Image, ImageId, Store};
use brig_protocol::vmm::KvmKind;

use crate::{
    Error, Paths, SandboxId,
    cell::{BrigCell, HostIds},
    control,
    sandbox::{Config, Registry, lock::Lock},
    snapshot::{Snapshots, store::Part},
    supervisor::Needs,
    template::{Cache, Key},
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

    /// What the kernel tells of the pages of a VMM that has just been started, if it does.
    fn page_map(&self, vmm: &Vmm) -> Option<File> {
        page_map(vmm.pid()?)
    }

    /// Keeps in mind that a sandbox has started from a template.
    fn template_worked(&self, cache: &Cache, key: &Key) {
        cache.worked(key);
    }

    /// Drops a template that could not be used.
    fn drop_template(&self, cache: &Cache, key: &Key) {
        cache.drop_broken(key);
    }

    /// Keeps with a template which pages a start touches. What goes wrong here costs later starts a little time and nothing else.
    fn keep_pages(&self, cache: &Cache, key: &Key, pages: File) {
        let _ = cache.keep_pages(key, pages);
    }

    /// Makes a file of a snapshot that is being made.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`], [`Error::File`], [`Error::Steward`].
    fn make_snapshot_file(&self, snapshots: &Snapshots, workspace: &str, part: Part) -> Result<File, Error> {
        snapshots.make_file(workspace, part)
    }

    /// Removes the control socket of the sandbox `id`.
    fn remove_socket(&self, paths: &Paths, id: &SandboxId) {
        let _ = fs::remove_file(control::socket_path(&paths.runtime, id));
    }

    /// Removes the sandbox `id`, whose lock the caller holds, with its volumes that have no names.
    ///
    /// # Errors
    /// Those of [`Registry::remove`]; [`Error::Steward`].
    fn remove_sandbox(&self, paths: &Paths, id: &SandboxId, lock: &Lock) -> Result<(), Error> {
        Registry::new(paths.sandboxes()).remove(id, lock, true)
    }

    /// Gives up what a supervisor does not need once its guest is about to start, for good: of files it is left these.
    ///
    /// # Errors
    /// [`Error::Walls`].
    fn wall_in(&self, needs: &Needs) -> Result<(), Error> {
        let _ = needs;
        Ok(())
    }

    /// How long a restored guest may take from the start of its VMM to its agent's word that it is awake.
    fn wake_timeout(&self, kvm: KvmKind) -> Duration {
        match kvm {
            KvmKind::Standard => WAKE_TIMEOUT,
            KvmKind::Emulated => WAKE_TIMEOUT_EMULATED,
        }
    }
}

pub(crate) fn page_map(pid: u32) -> Option<File> {
    File::open(format!("/proc/{pid}/pagemap")).ok()
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
