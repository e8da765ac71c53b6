//! What everything takes from the disk, and removing what is not needed.

use brig_image_store::{Image, store::Usage};

use super::Engine;
use crate::{
    Error,
    files::allocated_below as allocated,
    sandbox::Sandbox,
    snapshot::store::Listed as Snapshot,
    template::cache::Listed as Template,
    volume::{self, Record as Volume},
};

/// What a root takes from the disk, in bytes that are allocated there.
#[derive(Debug)]
pub struct DiskUsage {
    /// Each image with what its files take, those that it shares with others included, and how many use it.
    pub images: Vec<(Image, u64, usize)>,
    /// What images take that somebody uses; what is shared counts once.
    pub used_images: u64,
    /// The image store as a whole: what is shared counts once.
    pub store: Usage,
    /// Each sandbox with what it takes.
    pub sandboxes: Vec<(Sandbox, u64)>,
    /// Each volume with what it takes, and how many sandboxes have it.
    pub volumes: Vec<(Volume, u64, usize)>,
    /// Templates.
    pub templates: Vec<Template>,
    /// Snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Everything else that is made again when it is needed, such as blank disks.
    pub cache: u64,
}

impl Engine {
    /// What everything takes from the disk.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::File`].
    pub fn disk_usage(&self) -> Result<DiskUsage, Error> {
        let users = self.image_users()?;
        let images = self.store.list()?;
        let used = |image: &&Image| users.iter().any(|user| user.image == image.id);
        let used_images = self.store.disk_usage(images.iter().filter(used));
        let images = images.into_iter().map(|image| {
            let bytes = self.store.disk_usage([&image]);
            let count = users.iter().filter(|user| user.image == image.id).count();
            (image, bytes, count)
        });
        let all = self.list()?;
        let volumes = self.volumes().list()?.into_iter().map(|record| {
            let bytes = self.volume_usage(&record.name);
            let count = volume::users(&record.name, &all).count();
            (record, bytes, count)
        });
        let volumes = volumes.collect();
        let sandboxes = all.into_iter().map(|sandbox| {
            let bytes = self.sandbox_usage(&sandbox);
            (sandbox, bytes)
        });
        let templates = self.templates().list()?;
        let listed: u64 = templates.iter().map(|template| template.allocated).sum();
        Ok(DiskUsage {
            images: images.collect(),
            used_images,
            store: self.store.usage()?,
            sandboxes: sandboxes.collect(),
            volumes,
            snapshots: self.snapshots().list()?,
            // Blank disks, and the agent's marks, lie beside the templates.
            cache: allocated(&self.paths.templates()).saturating_sub(listed),
            templates,
        })
    }

    /// What a sandbox takes from the disk.
    pub fn sandbox_usage(&self, sandbox: &Sandbox) -> u64 {
        allocated(self.registry.directory(sandbox.id()).path())
    }

    /// What a volume takes from the disk.
    pub fn volume_usage(&self, name: &str) -> u64 {
        allocated(&self.volumes().path(name))
    }
}
