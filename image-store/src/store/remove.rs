//! Names and images go, and with them whatever nothing refers to any more.
//!
//! Nothing counts references: under the store's lock the records say what is needed, and everything else is removed. The order
//! is such that a crash at any moment leaves files that nothing needs, for the next removal, and never a record without
//! its blobs.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Names, Store, StoreError, directories, files, files::Workspace};
use crate::{
    digest::Digest,
    image::{Image, ImageId},
    journal::Kind,
    reference::{ImageName, Reference},
    removal::remove_tree,
};

/// Who needs an image. The engine knows them, and is asked while the store's lock is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The image.
    pub image: ImageId,
    /// How it is called in messages: `running sandbox 0f3c6f0ad2b1 (web)`.
    pub description: String,
    /// Whether it runs, so that not even force removes the image by its id.
    pub running: bool,
}

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that went.
    pub untagged: Vec<ImageName>,
    /// Images and blobs that went.
    pub deleted: Vec<Digest>,
    /// Bytes of the disk that are free now.
    pub bytes: u64,
}

/// Which images [`Store::prune`] removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    /// Those without a name.
    Dangling,
    /// All that nobody uses.
    Unused,
}

/// Kinds of files that [`Store::usage`] tells apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of blobs.
    pub blobs: u64,
    /// Bytes of unpacked images.
    pub unpacked: u64,
    /// Bytes of what is not whole yet, or was left by a process that died.
    pub temporary: u64,
}

impl Store {
    /// Removes what `text` means, as `docker rmi` does: a name, and with the last name the image; or an image, by its id or a
    /// start of it, when it has one name at most or `force` is given. An image that somebody uses stays: its removal is
    /// refused, or with `force` it only loses its names.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], [`StoreError::InUse`], [`StoreError::SeveralNames`], those of `users`.
    pub fn remove<E: From<StoreError>>(
        &self,
        text: &str,
        force: bool,
        users: impl FnOnce() -> Result<Vec<User>, E>,
    ) -> Result<Removed, E> {
        let _lock = self.lock()?;
        let missing = || StoreError::NoSuchImage(text.to_owned());
        let image = self.resolve(text)?.ok_or_else(missing)?;
        let name = name_in(text, &image);
        let users: Vec<User> = users()?
            .into_iter()
            .filter(|user| user.image == image.id)
            .collect();
        // With another name left, nothing but the name goes.
        if let Some(name) = name.filter(|_| image.names.len() > 1) {
            return Ok(self.untag(vec![(&image, name)])?);
        }
        let by_id = name_in(text, &image).is_none();
        if by_id && image.names.len() > 1 && !force {
            return Err(StoreError::SeveralNames {
                image: image.id.short(),
                names: list(image.names.iter().map(ToString::to_string)),
            }
            .into());
        }
        if !users.is_empty() && (!force || by_id && users.iter().any(|user| user.running)) {
            return Err(in_use(text, &image, &users, by_id, force).into());
        }
        let names = image.names.iter().map(|name| (&image, name.clone()));
        let mut removed = self.untag(names.collect())?;
        if users.is_empty() {
            self.delete(&[image], &mut removed)?;
        }
        Ok(removed)
    }

    /// Removes images that nobody uses and that `wanted` agrees to, and everything that no image needs.
    ///
    /// # Errors
    /// Those of `users`, of files, [`StoreError::Record`] when a record cannot be read: what it needs is not known then.
    pub fn prune<E: From<StoreError>>(
        &self,
        which: Prune,
        wanted: impl Fn(&Image) -> bool,
        users: impl FnOnce() -> Result<Vec<User>, E>,
    ) -> Result<Removed, E> {
        let _lock = self.lock()?;
        files::sweep(&self.tmp())?;
        let parts = self.sweep_downloads(Duration::ZERO);
        let used: BTreeSet<ImageId> = users()?.into_iter().map(|user| user.image).collect();
        let unused = |image: &Image| which == Prune::Unused || image.names.is_empty();
        let mut images = self.list()?;
        images.retain(|image| unused(image) && !used.contains(&image.id) && wanted(image));
        let named = images
            .iter()
            .flat_map(|image| image.names.iter().map(move |name| (image, name.clone())));
        let mut removed = self.untag(named.collect())?;
        self.delete(&images, &mut removed)?;
        removed.bytes += parts;
        if let Some(journal) = &self.journal {
            let reclaimed = removed.bytes.to_string();
            journal.note(Kind::Image, "prune", "", [("reclaimed", reclaimed.as_str())]);
        }
        Ok(removed)
    }

    /// Gives the image that `text` means another name, which another image may lose by that.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], and those of [`Store::resolve`].
    pub fn tag(&self, text: &str, name: ImageName) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let image = self
            .resolve(text)?
            .ok_or_else(|| StoreError::NoSuchImage(text.to_owned()))?;
        let mut names = self.names()?;
        let shown = name.to_string();
        names.insert(name, image.id);
        self.write_names(&names)?;
        self.note("tag", Some(&image), &image.id.to_string(), &shown);
        Ok(())
    }

    /// Does `make` while `image` cannot be removed: what it makes is what keeps the image afterwards. `None` when the image has
    /// been removed already.
    ///
    /// # Errors
    /// Those of `make`, and of the lock.
    pub fn keeping<T, E: From<StoreError>>(
        &self,
        image: &ImageId,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let _lock = self.lock()?;
        if !self.record_path(image).exists() {
            return Ok(None);
        }
        make().map(Some)
    }

    /// What the store takes from the disk.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let bytes = |directory: PathBuf| -> Result<u64, StoreError> {
            Ok(files::entries(&directory)?
                .iter()
                .map(|path| allocated(path))
                .sum())
        };
        let mut temporary = bytes(self.downloads()).unwrap_or(0);
        for directory in files::entries(&self.tmp())? {
            // One that is dropped just now takes nothing any more.
            temporary += bytes(directory).unwrap_or(0);
        }
        Ok(Usage {
            blobs: bytes(self.blobs())?,
            unpacked: bytes(self.erofs())? + directories::allocated(&self.directories()),
            temporary,
        })
    }

    /// Bytes of the disk that these images take with their blobs, EROFS files and directories; what several of them share
    /// counts once.
    pub fn disk_usage<'a>(&self, images: impl IntoIterator<Item = &'a Image>) -> u64 {
        let directories = directories::entries(self).unwrap_or_default();
        let mut files = BTreeSet::new();
        let mut own = BTreeSet::new();
        for image in images {
            files.extend(image.blobs().into_iter().map(|digest| self.blob_path(&digest)));
            files.insert(self.erofs_path(image));
            let of_image =
                |path: &&PathBuf| Self::is_directory_of(path, image) && !directories::is_lock(path);
            own.extend(directories.iter().filter(of_image));
        }
        files.iter().map(|path| allocated(path)).sum::<u64>()
            + own
                .into_iter()
                .map(|path| directories::allocated(path))
                .sum::<u64>()
    }

    /// Takes names away from the images that have them.
    fn untag(&self, gone: Vec<(&Image, ImageName)>) -> Result<Removed, StoreError> {
        let mut names = self.names()?;
        // A crash in between leaves a name of no image.
        names.retain(|name, id| gone.iter().all(|(_, gone)| gone != name) && self.record_path(id).exists());
        if !gone.is_empty() {
            self.write_names(&names)?;
        }
        for (image, name) in &gone {
            self.note("untag", Some(image), &image.id.to_string(), &name.to_string());
        }
        Ok(Removed {
            untagged: gone.into_iter().map(|(_, name)| name).collect(),
            ..Removed::default()
        })
    }

    /// Removes the records of images without names, then everything that no record needs.
    fn delete(&self, images: &[Image], removed: &mut Removed) -> Result<(), StoreError> {
        // A record that cannot be read stops this before anything is gone.
        let mut kept = self.list_with(&Names::new())?;
        kept.retain(|image| images.iter().all(|gone| gone.id != image.id));
        for image in images {
            let path = self.record_path(&image.id);
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            removed.deleted.push(image.id.0);
            let id = image.id.to_string();
            self.note("delete", Some(image), &id, &id);
        }
        // A record must not come back after a crash when its blobs do not.
        files::sync_directory(&self.images())?;
        self.collect(&kept, removed)
    }

    /// Removes the blobs and EROFS files that none of these images needs. The caller holds the lock.
    fn collect(&self, kept: &[Image], removed: &mut Removed) -> Result<(), StoreError> {
        let blobs: BTreeSet<PathBuf> = kept
            .iter()
            .flat_map(Image::blobs)
            .map(|digest| self.blob_path(&digest))
            .collect();
        for path in files::entries(&self.blobs())? {
            if blobs.contains(&path) {
                continue;
            }
            removed.bytes += unlink(&path)?;
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(digest) = name.and_then(Digest::from_hex)
                && !removed.deleted.contains(&digest)
            {
                removed.deleted.push(digest);
            }
        }
        let unpacked: BTreeSet<PathBuf> = kept.iter().map(|image| self.erofs_path(image)).collect();
        for path in files::entries(&self.erofs())? {
            if unpacked.contains(&path.with_extension("erofs")) {
                continue;
            }
            if path.extension().is_some_and(|extension| extension == "lock") {
                // Whoever holds it unpacks the image just now, and finds out that it is gone.
                if let Some(_held) = files::try_lock(&path)? {
                    unlink(&path)?;
                }
            } else {
                removed.bytes += unlink(&path)?;
            }
        }
        self.collect_directories(kept, removed)?;
        // What a killed process was writing.
        for directory in [self.images(), self.root.clone()] {
            for path in files::entries(&directory)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if name.is_some_and(|name| name.starts_with(files::UNFINISHED)) {
                    removed.bytes += unlink(&path)?;
                }
            }
        }
        Ok(())
    }
}

impl Store {
    /// Removes the directories that none of these images needs.
    fn collect_directories(&self, kept: &[Image], removed: &mut Removed) -> Result<(), StoreError> {
        for path in directories::entries(self)? {
            if kept.iter().any(|image| Self::is_directory_of(&path, image)) {
                continue;
            }
            if directories::is_lock(&path) {
                if let Some(_held) = files::try_lock(&path)? {
                    unlink(&path)?;
                }
                continue;
            }
            let bytes = directories::allocated(&path);
            // First out of everybody's sight.
            let workspace = Workspace::new(&self.tmp())?;
            let gone = workspace.path().join("image");
            fs::rename(&path, &gone).map_err(StoreError::io("remove", &path))?;
            remove_tree(&gone).map_err(StoreError::io("remove", &path))?;
            removed.bytes += bytes;
        }
        Ok(())
    }
}

/// The name of the image that `text` is, if it is not its id.
fn name_in(text: &str, image: &Image) -> Option<ImageName> {
    let reference: Reference = text.parse().ok()?;
    let name = reference.name();
    (reference.digest.is_none() && image.names.contains(&name)).then_some(name)
}

/// Removes a file and gives the bytes of the disk that are free by that. One that is gone already is no error.
fn unlink(path: &Path) -> Result<u64, StoreError> {
    let bytes = fs::metadata(path)
        .ok()
        .filter(|found| found.nlink() == 1)
        .map_or(0, |found| found.blocks() * 512);
    match fs::remove_file(path) {
        Ok(()) => Ok(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(StoreError::io("remove", path)(e)),
    }
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.blocks() * 512)
}

fn in_use(text: &str, image: &Image, users: &[User], by_id: bool, force: bool) -> StoreError {
    let users = list(users.iter().map(|user| user.description.clone()));
    let id = image.id.short();
    StoreError::InUse(if by_id {
        let forced = if force {
            "cannot be forced"
        } else {
            "must be forced"
        };
        format!("unable to delete {text} ({forced}) - image is being used by {users}")
    } else {
        format!(
            "unable to remove repository reference \"{text}\" (must force) - its image {id} is being used by {users}"
        )
    })
}

/// The first few of a list, and how many more there are.
fn list(all: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 5;
    let all: Vec<String> = all.collect();
    let text = all[..all.len().min(SHOWN)].join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}
