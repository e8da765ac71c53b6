//! Removing images: what sandboxes and snapshots need stays.

use brig_image_store::{Image, ImageId, Prune, Removed, User, digest::Digest};

use super::Engine;
use crate::Error;

impl Engine {
    /// Removes an image or one of its names. See [`brig_image_store::Store::remove`].
    ///
    /// # Errors
    /// [`Error::Image`] when there is none, or when it is in use: the message says by whom.
    pub fn remove_image(&self, text: &str, force: bool) -> Result<Removed, Error> {
        self.store.remove(text, force, || self.image_users())
    }

    /// Removes images that neither sandboxes nor snapshots need and that `wanted` agrees to, and what no image needs.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn prune_images(&self, which: Prune, wanted: impl Fn(&Image) -> bool) -> Result<Removed, Error> {
        self.store.prune(which, wanted, || self.image_users())
    }

    /// Who needs which image.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn image_users(&self) -> Result<Vec<User>, Error> {
        let sandboxes = self.list()?.into_iter().filter_map(|sandbox| {
            let (config, running) = (&sandbox.config, sandbox.supervised);
            let state = if running { "running" } else { "stopped" };
            Some(User {
                image: image_id(&config.image_id)?,
                description: format!("{state} sandbox {} ({})", config.id.short(), config.name),
                running,
            })
        });
        let snapshots = self.snapshots().list()?.into_iter().filter_map(|listed| {
            Some(User {
                image: image_id(&listed.record.ok()?.config.image_id)?,
                description: format!("snapshot {}", listed.name),
                running: false,
            })
        });
        Ok(sandboxes.chain(snapshots).collect())
    }
}

fn image_id(text: &str) -> Option<ImageId> {
    text.parse::<Digest>().ok().map(ImageId)
}
