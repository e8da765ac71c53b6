//! From an archive into the store.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use brig_protocol::agent::Compression;

use super::{Found, Incoming, Store, StoreError};
use crate::{
    archive::{self, ArchiveError, Keeper, Layout, Spooled},
    image::Image,
    packed::{Packing, Unpacker},
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
    /// compressed with gzip, zstd, xz or bzip2. All of them are loaded, or none is named.
    ///
    /// # Errors
    /// [`StoreError::Archive`] when it is no archive of images, is damaged, or an image is not for this platform;
    /// [`StoreError::TooLarge`], [`StoreError::NoSpace`]. No part of it stays.
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
        let incoming = self.incoming()?;
        let mut step = count(None, progress);
        let keeper = Keeper::new(&incoming, &mut step, self.max_image_size);
        let found = archive::images(&mut Layout::new(path, keeper))?;
        self.publish(&incoming, found)
    }

    fn load_stream(
        &self,
        archive: &mut dyn Read,
        total: Option<u64>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Vec<Loaded>, StoreError> {
        let mut archive = BufReader::with_capacity(READ_BYTES, archive);
        let packing = Packing::of(archive.fill_buf().map_err(read_error)?);
        let total = total.filter(|_| packing == Packing::Layer(Compression::None));
        let archive = BufReader::with_capacity(READ_BYTES, Unpacker::new(packing, archive));

        let incoming = self.incoming()?;
        let mut step = count(total, progress);
        let keeper = Keeper::new(&incoming, &mut step, self.max_image_size);
        let mut spooled = Spooled::read(archive, keeper)?;
        let found = archive::images(&mut spooled)?;
        self.publish(&incoming, found)
    }

    fn publish(&self, incoming: &Incoming, found: Vec<Found>) -> Result<Vec<Loaded>, StoreError> {
        let images = incoming.publish(&found)?;
        let names = found.into_iter().map(|found| found.names);
        let loaded: Vec<Loaded> = images
            .into_iter()
            .zip(names)
            .map(|(image, names)| Loaded { image, names })
            .collect();
        for Loaded { image, names } in &loaded {
            let id = image.id.to_string();
            let name = names.first().map_or_else(|| id.clone(), ToString::to_string);
            self.note("load", Some(image), &id, &name);
        }
        Ok(loaded)
    }
}

fn count(total: Option<u64>, progress: &mut dyn FnMut(LoadProgress)) -> impl FnMut(u64) + '_ {
    let mut bytes = 0;
    move |step| {
        bytes += step;
        progress(LoadProgress { bytes, total });
    }
}

pub(super) fn read_error(error: io::Error) -> ArchiveError {
    TarError::from(error).into()
}
