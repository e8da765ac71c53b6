//! What everything takes from the disk, and removing what is not needed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use brig_image_store::{Image, store::Usage};

use super::Engine;
use crate::{
    Error, sandbox::Sandbox, snapshot::store::Listed as Snapshot, template::cache::Listed as Template,
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
        let sandboxes = self.list()?.into_iter().map(|sandbox| {
            let bytes = allocated(self.registry.directory(sandbox.id()).path());
            (sandbox, bytes)
        });
        let templates = self.templates().list()?;
        let listed: u64 = templates.iter().map(|template| template.allocated).sum();
        Ok(DiskUsage {
            images: images.collect(),
            used_images,
            store: self.store.usage()?,
            sandboxes: sandboxes.collect(),
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
}

/// Bytes of a directory's files, all the way down. What goes meanwhile does not count.
fn allocated(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => allocated(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
