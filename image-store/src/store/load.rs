//! From an archive into the store.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use brig_protocol::agent::Compression;

use super::{Store, StoreError, files};
use crate::{
    archive::{self, ArchiveError, Blob, Found, Keeper, Layout, Source, Spool},
    compression::{self, Decoder},
    digest::Digest,
    image::Image,
    reference::ImageName,
    tar::TarError,
};

/// Bytes that are read from an archive at a time.
const READ_BYTES: usize = 256 << 10;

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the images' files read so far, after decompression of the archive.
    pub bytes: u64,
    /// Bytes of the archive's file; `None` when it is compressed, not a file, or its length is unknown.
    pub total: Option<u64>,
}

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The image, with all the names that it has now.
    pub image: Image,
    /// The names that the archive gave it, sorted.
    pub names: Vec<ImageName>,
}

impl Store {
    /// Loads the images of an archive, such as standard input: a `docker save` tar or a tar of an OCI layout, plain or
    /// compressed with gzip or zstd. All of them are loaded, or none is named.
    ///
    /// # Errors
    /// [`StoreError::Archive`] when it is no archive of images, is damaged, or an image is not for this platform;
    /// [`StoreError::NoSpace`]. No part of it stays.
    pub fn load(
        &self,
        archive: &mut dyn Read,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Vec<Loaded>, StoreError> {
        self.load_stream(archive, None, progress)
    }

    /// Loads the images of a file, as [`Store::load`], or those of a directory with an OCI layout.
    ///
    /// # Errors
    /// As [`Store::load`], and when the file cannot be opened.
    pub fn load_path(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Vec<Loaded>, StoreError> {
        let mut file = File::open(path).map_err(StoreError::io("open", path))?;
        let metadata = file.metadata().map_err(StoreError::io("open", path))?;
        if !metadata.is_dir() {
            let total = metadata.is_file().then_some(metadata.len());
            return self.load_stream(&mut file, total, progress);
        }
        let workspace = self.workspace()?;
        let have = |digest: &Digest| self.has_blob(digest);
        let mut step = count(None, progress);
        let keeper = Keeper::new(workspace.path(), &have, &mut step);
        self.load_source(&mut Layout::new(path, keeper))
    }

    fn load_stream(
        &self,
        archive: &mut dyn Read,
        total: Option<u64>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Vec<Loaded>, StoreError> {
        let mut archive = BufReader::with_capacity(READ_BYTES, archive);
        let compression = detect(archive.fill_buf().map_err(read_error)?)?;
        let total = total.filter(|_| compression == Compression::None);
        let archive = BufReader::with_capacity(READ_BYTES, Decoder::new(compression, archive));

        let workspace = self.workspace()?;
        let have = |digest: &Digest| self.has_blob(digest);
        let mut step = count(total, progress);
        let store = self.clone();
        let spool = Spool {
            keeper: Keeper::new(workspace.path(), &have, &mut step),
            stored: Box::new(move |digest| store.blob_path(digest)),
        };
        self.load_source(&mut spool.read(archive)?)
    }

    fn load_source(&self, source: &mut dyn Source) -> Result<Vec<Loaded>, StoreError> {
        let found = archive::images(source)?;
        for blob in found.iter().flat_map(|image| &image.blobs) {
            self.publish_blob(blob)?;
        }
        files::sync_directory(&self.blobs())?;
        self.publish_images(&found)?;
        found
            .into_iter()
            .map(|Found { image, names, .. }| {
                // The record was written just now, so only its removal in between leaves none.
                let image = self.image(&image.id)?.unwrap_or(image);
                Ok(Loaded { image, names })
            })
            .collect()
    }

    fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Gives a blob its final name. A blob that is there already stays: it has the same bytes.
    fn publish_blob(&self, blob: &Blob) -> Result<(), StoreError> {
        let target = self.blob_path(&blob.digest);
        let Some(file) = &blob.file else {
            return Ok(());
        };
        if self.has_blob(&blob.digest) {
            return Ok(());
        }
        File::open(file)
            .and_then(|file| file.sync_all())
            .map_err(StoreError::io("write", file))?;
        fs::rename(file, &target).map_err(StoreError::io("make", &target))
    }

    /// Writes the records, then gives the images their names.
    fn publish_images(&self, found: &[Found]) -> Result<(), StoreError> {
        let _lock = files::lock(&self.lock_path())?;
        for Found { image, .. } in found {
            let path = self.record_path(&image.id);
            files::replace(&path, &to_json(image))?;
        }
        let mut names = self.names()?;
        for Found {
            image, names: new, ..
        } in found
        {
            names.extend(new.iter().map(|name| (name.clone(), image.id)));
        }
        files::replace(&self.names_path(), &to_json(&names))
    }
}

/// JSON of a type of ours, which always has one.
fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("records have string keys only, and no type in them can fail")
}

fn count(total: Option<u64>, progress: &mut dyn FnMut(LoadProgress)) -> impl FnMut(u64) + '_ {
    let mut bytes = 0;
    move |step| {
        bytes += step;
        progress(LoadProgress { bytes, total });
    }
}

/// The compression of an archive; those that brig does not read are told apart from what is no archive.
fn detect(head: &[u8]) -> Result<Compression, ArchiveError> {
    let program = match head {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [b'B', b'Z', b'h', ..] => "bzip2",
        _ => return Ok(compression::detect(head)),
    };
    Err(ArchiveError::Compression { program })
}

fn read_error(error: io::Error) -> ArchiveError {
    TarError::from(error).into()
}
