//! Reads a tar archive once, from its start to its end, and keeps its files aside: which of them matter is only known
//! at the end, where `docker save` and most others write the documents.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, Read},
};

use super::{ArchiveError, Source};
use crate::{
    digest::Digest,
    limits::MaxImageSize,
    store::{Blob, Incoming, StoreError},
    tar::{Chunk, Entry, Kind, Reader, TarError},
};

/// Most entries of an archive: some hundred images with as many layers as an image can have would need more.
pub const ENTRIES_MAX: usize = 1 << 16;

/// Most bytes of a file's path in an archive; a document cannot mean a file with a longer one.
const PATH_BYTES_MAX: usize = 512;

/// Longest chain of links from a name to a file.
const LINKS_MAX: usize = 8;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// Copies blobs into a directory and computes their digests.
pub(crate) struct Keeper<'a> {
    incoming: &'a Incoming,
    progress: &'a mut dyn FnMut(u64),
    /// Bytes of all of them so far, and how many there may be.
    bytes: u64,
    limit: MaxImageSize,
}

impl<'a> Keeper<'a> {
    /// Keeps files as `incoming`, of `limit` bytes together. `progress` gets the bytes of each step.
    pub fn new(incoming: &'a Incoming, progress: &'a mut dyn FnMut(u64), limit: MaxImageSize) -> Self {
        Self {
            incoming,
            progress,
            bytes: 0,
            limit,
        }
    }

    /// Counts bytes that are about to be kept.
    fn count(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.bytes += bytes as u64;
        self.limit.check("the files of the archive have", self.bytes)?;
        (self.progress)(bytes as u64);
        Ok(())
    }

    /// Copies what `read` gives, to its end.
    pub fn keep(
        &mut self,
        expected: Option<Digest>,
        read: &mut dyn FnMut(&mut [u8]) -> Result<usize, StoreError>,
    ) -> Result<Blob, StoreError> {
        let mut copy = self.incoming.begin_blob(expected)?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match read(&mut buffer)? {
                0 => return copy.finish(),
                count => {
                    self.count(count)?;
                    copy.write(&buffer[..count])?;
                }
            }
        }
    }
}

/// The files of a tar archive, kept aside.
pub(crate) struct Spooled {
    files: HashMap<String, Member>,
}

enum Member {
    File(Blob),
    Link(String),
}

impl Spooled {
    /// Reads the whole of `archive` and keeps its files with `keeper`.
    pub fn read(archive: impl BufRead, mut keeper: Keeper<'_>) -> Result<Self, StoreError> {
        let mut reader = Reader::new(archive);
        let mut files = HashMap::new();
        let mut entries = 0;
        while let Some(entry) = next(&mut reader, entries == 0)? {
            // Counted whether or not it has a name of its own: each takes a file on the disk.
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(ArchiveError::TooManyEntries(ENTRIES_MAX).into());
            }
            let Some(path) = join("", &entry.path).filter(|path| path.len() <= PATH_BYTES_MAX) else {
                continue;
            };
            let member = match entry.kind {
                Kind::File => Member::File(keeper.keep_entry(&mut reader, &path)?),
                Kind::HardLink => link(join("", &entry.link)),
                Kind::Symlink => link(join(parent(&path), &entry.link)),
                _ => continue,
            };
            files.insert(path, member);
        }
        Ok(Self { files })
    }
}

impl Keeper<'_> {
    fn keep_entry<R: BufRead>(&mut self, reader: &mut Reader<R>, path: &str) -> Result<Blob, StoreError> {
        let expected = path.strip_prefix("blobs/sha256/").and_then(Digest::from_hex);
        let mut copy = self.incoming.begin_blob(expected)?;
        loop {
            let count = match reader.chunk().map_err(ArchiveError::Tar)? {
                Chunk::End => return copy.finish(),
                // No program saves an image so, and a hole can be of any length.
                Chunk::Hole(_) => return Err(ArchiveError::Tar(TarError::Sparse).into()),
                Chunk::Bytes(bytes) => {
                    let bytes = &bytes[..bytes.len().min(COPY_BYTES)];
                    self.count(bytes.len())?;
                    copy.write(bytes)?;
                    bytes.len()
                }
            };
            reader.consume(count);
        }
    }
}

/// The next entry. What is wrong from its first header on is no tar archive at all.
fn next<R: BufRead>(reader: &mut Reader<R>, first: bool) -> Result<Option<Entry>, ArchiveError> {
    match reader.next_entry() {
        Err(TarError::Checksum | TarError::Truncated) if first => Err(ArchiveError::NotAnImage),
        other => Ok(other?),
    }
}

fn link(target: Option<String>) -> Member {
    Member::Link(target.unwrap_or_default())
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `path` as seen from the directory `base`, without `.` and `..`; `None` when it leads out of the archive or is no
/// text.
fn join(base: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = if path.starts_with('/') {
        Vec::new()
    } else {
        base.split('/').filter(|part| !part.is_empty()).collect()
    };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl Spooled {
    fn find(&self, path: &str) -> Option<&Blob> {
        let mut path = join("", path.as_bytes())?;
        for _ in 0..LINKS_MAX {
            match self.files.get(&path)? {
                Member::File(blob) => return Some(blob),
                Member::Link(target) => path.clone_from(target),
            }
        }
        None
    }
}

impl Source for Spooled {
    fn document(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(blob) = self.find(path) else {
            return Ok(None);
        };
        if blob.size > limit {
            let path = path.to_string();
            return Err(ArchiveError::TooLong { path, limit }.into());
        }
        let mut content = Vec::new();
        File::open(&blob.file)
            .and_then(|file| file.take(limit).read_to_end(&mut content))
            .map_err(StoreError::io("read", &blob.file))?;
        Ok(Some(content))
    }

    fn blob(&mut self, path: &str, expected: Option<Digest>) -> Result<Option<Blob>, StoreError> {
        let Some(blob) = self.find(path) else {
            return Ok(None);
        };
        match expected.filter(|&expected| expected != blob.digest) {
            Some(expected) => Err(ArchiveError::Digest {
                expected,
                found: blob.digest,
            }
            .into()),
            None => Ok(Some(blob.clone())),
        }
    }
}
