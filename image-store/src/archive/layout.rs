//! An OCI image layout as a directory.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{ArchiveError, Source, spool::Keeper};
use crate::{
    digest::Digest,
    store::{Blob, StoreError},
};

/// The directory, and where its blobs are copied to.
pub(crate) struct Layout<'a> {
    directory: &'a Path,
    keeper: Keeper<'a>,
}

impl<'a> Layout<'a> {
    /// The layout in `directory`.
    pub fn new(directory: &'a Path, keeper: Keeper<'a>) -> Self {
        Self { directory, keeper }
    }

    /// Opens a file of the layout. Its path comes from a document and must lead nowhere else.
    fn open(&self, path: &str) -> Result<Option<(PathBuf, File)>, StoreError> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !path.split('/').all(plain) {
            return Err(ArchiveError::Missing(super::shown(path)).into());
        }
        let path = self.directory.join(path);
        match File::open(&path) {
            Ok(file) => Ok(Some((path, file))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("open", &path)(e)),
        }
    }
}

impl Source for Layout<'_> {
    fn document(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((full, file)) = self.open(path)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut content)
            .map_err(StoreError::io("read", &full))?;
        if content.len() as u64 > limit {
            let path = path.to_string();
            return Err(ArchiveError::TooLong { path, limit }.into());
        }
        Ok(Some(content))
    }

    fn blob(&mut self, path: &str, expected: Option<Digest>) -> Result<Option<Blob>, StoreError> {
        let Some((full, mut file)) = self.open(path)? else {
            return Ok(None);
        };
        let mut read = |buffer: &mut [u8]| file.read(buffer).map_err(StoreError::io("read", &full));
        self.keeper.keep(expected, &mut read).map(Some)
    }
}
