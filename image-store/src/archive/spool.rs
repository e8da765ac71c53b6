//! Reads a tar archive once, from its start to its end, and keeps its files aside: which of them matter is only known
//! at the end, where `docker save` and most others write the documents.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{ArchiveError, Blob, Source};
use crate::{
    compression::MAGIC_BYTES,
    digest::Digest,
    store::StoreError,
    tar::{Chunk, Entry, Kind, Reader, TarError},
};

/// Most entries of an archive: some hundred images with as many layers as an image can have would need more.
pub const ENTRIES_MAX: usize = 1 << 16;

/// Longest chain of links from a name to a file.
const LINKS_MAX: usize = 8;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// Copies blobs into a directory and computes their digests.
pub(crate) struct Keeper<'a> {
    directory: &'a Path,
    /// Whether the store has a blob already, so that it need not be written.
    have: &'a dyn Fn(&Digest) -> bool,
    progress: &'a mut dyn FnMut(u64),
    kept: usize,
}

impl<'a> Keeper<'a> {
    /// Keeps files in `directory`. `progress` gets the bytes of each step.
    pub fn new(
        directory: &'a Path,
        have: &'a dyn Fn(&Digest) -> bool,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        Self {
            directory,
            have,
            progress,
            kept: 0,
        }
    }

    /// Copies what `read` gives, to its end.
    pub fn keep(
        &mut self,
        expected: Option<Digest>,
        read: &mut dyn FnMut(&mut [u8]) -> Result<usize, StoreError>,
    ) -> Result<Blob, StoreError> {
        let mut copy = Copy::begin(self, expected)?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match read(&mut buffer)? {
                0 => return copy.finish(),
                count => {
                    copy.write(&buffer[..count])?;
                    (self.progress)(count as u64);
                }
            }
        }
    }
}

/// A blob on its way into a file.
struct Copy {
    expected: Option<Digest>,
    hasher: Sha256,
    size: u64,
    head: [u8; MAGIC_BYTES],
    output: Option<(PathBuf, File)>,
}

impl Copy {
    fn begin(keeper: &mut Keeper<'_>, expected: Option<Digest>) -> Result<Self, StoreError> {
        let output = if expected.is_some_and(|digest| (keeper.have)(&digest)) {
            None
        } else {
            let path = keeper.directory.join(keeper.kept.to_string());
            keeper.kept += 1;
            let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
            Some((path, file))
        };
        Ok(Self {
            expected,
            hasher: Sha256::new(),
            size: 0,
            head: [0; MAGIC_BYTES],
            output,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let missing =
            &mut self.head[usize::try_from(self.size).map_or(MAGIC_BYTES, |n| n.min(MAGIC_BYTES))..];
        let count = missing.len().min(bytes.len());
        missing[..count].copy_from_slice(&bytes[..count]);
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        match &mut self.output {
            Some((path, file)) => file.write_all(bytes).map_err(StoreError::io("write", path)),
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<Blob, StoreError> {
        let digest = Digest::finish(self.hasher);
        if let Some(expected) = self.expected.filter(|&expected| expected != digest) {
            return Err(ArchiveError::Digest {
                expected,
                found: digest,
            }
            .into());
        }
        Ok(Blob {
            digest,
            size: self.size,
            head: self.head,
            file: self.output.map(|(path, _)| path),
        })
    }
}

/// The files of a tar archive, kept aside.
pub(crate) struct Spooled {
    files: HashMap<String, Member>,
    /// The store's path of a blob, for documents that it has already.
    stored: Box<dyn Fn(&Digest) -> PathBuf>,
}

enum Member {
    File(Blob),
    Link(String),
}

/// Reads archives into [`Spooled`].
pub(crate) struct Spool<'a> {
    pub keeper: Keeper<'a>,
    pub stored: Box<dyn Fn(&Digest) -> PathBuf>,
}

impl Spool<'_> {
    /// Reads the whole of `archive`.
    pub fn read(mut self, archive: impl BufRead) -> Result<Spooled, StoreError> {
        let mut reader = Reader::new(archive);
        let mut files = HashMap::new();
        while let Some(entry) = next(&mut reader, files.is_empty())? {
            if files.len() == ENTRIES_MAX {
                return Err(ArchiveError::TooManyEntries(ENTRIES_MAX).into());
            }
            let Some(path) = join("", &entry.path) else {
                continue;
            };
            let member = match entry.kind {
                Kind::File => Member::File(self.keep(&mut reader, &path)?),
                Kind::HardLink => link(join("", &entry.link)),
                Kind::Symlink => link(join(parent(&path), &entry.link)),
                _ => continue,
            };
            files.insert(path, member);
        }
        Ok(Spooled {
            files,
            stored: self.stored,
        })
    }

    fn keep<R: BufRead>(&mut self, reader: &mut Reader<R>, path: &str) -> Result<Blob, StoreError> {
        let expected = path.strip_prefix("blobs/sha256/").and_then(Digest::from_hex);
        let mut copy = Copy::begin(&mut self.keeper, expected)?;
        loop {
            let count = match reader.chunk().map_err(ArchiveError::Tar)? {
                Chunk::End => return copy.finish(),
                // No program saves an image so, and a hole can be of any length.
                Chunk::Hole(_) => return Err(ArchiveError::Tar(TarError::Sparse).into()),
                Chunk::Bytes(bytes) => {
                    let bytes = &bytes[..bytes.len().min(COPY_BYTES)];
                    copy.write(bytes)?;
                    bytes.len()
                }
            };
            reader.consume(count);
            (self.keeper.progress)(count as u64);
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
        let file = blob.file.clone().unwrap_or_else(|| (self.stored)(&blob.digest));
        let mut content = Vec::new();
        File::open(&file)
            .and_then(|file| file.take(limit).read_to_end(&mut content))
            .map_err(StoreError::io("read", &file))?;
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
