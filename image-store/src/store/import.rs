//! From an archive of files to an image of one layer. The archive becomes the layer as it is; nothing of it is unpacked here.

use std::{
    cell::RefCell,
    io::{self, BufRead, BufReader, Read},
};

use sha2::{Digest as _, Sha256};

use super::{BlobWriter, Incoming, Store, StoreError};
use crate::{
    compose::{Change, Composition, NewLayer},
    compression::{self, Decoder},
    digest::Digest,
    image::Image,
    limits::MaxImageSize,
    packed::{Packing, Unpacker},
    reference::ImageName,
    tar::{Reader, TarError},
};

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 << 10;

/// What a user says of the image.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Applied to an empty configuration.
    pub changes: Vec<Change>,
    /// For the history.
    pub message: String,
    /// Its name.
    pub name: Option<ImageName>,
    /// Now, RFC 3339.
    pub created: String,
}

impl Store {
    /// Makes an image of a tar archive of files, plain or compressed with gzip, zstd, xz or bzip2. `progress` gets the bytes
    /// read so far.
    ///
    /// # Errors
    /// [`StoreError::NotAnArchive`]; [`StoreError::Archive`] when it is damaged; [`StoreError::TooLarge`],
    /// [`StoreError::NoSpace`]. Nothing stays then.
    pub fn import(
        &self,
        archive: &mut dyn Read,
        options: &ImportOptions,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Image, StoreError> {
        let incoming = self.incoming()?;
        let archive = Counted {
            source: archive,
            bytes: 0,
            progress,
        };
        let mut archive = BufReader::with_capacity(READ_BYTES, archive);
        let packing = Packing::of(archive.fill_buf().map_err(super::load::read_error)?);
        let layer = match packing {
            Packing::Layer(_) => receive_layer(&incoming, &mut archive, self.max_image_size),
            // No layer can be packed so: it becomes one that is not packed.
            _ => receive_layer(
                &incoming,
                &mut Unpacker::new(packing, archive),
                self.max_image_size,
            ),
        }?;
        let composition = Composition {
            changes: &options.changes,
            message: &options.message,
            created: options.created.clone(),
            names: options.name.iter().cloned().collect(),
            ..Composition::default()
        };
        let found = composition.assemble(&incoming, layer)?;
        let image = found.image.clone();
        let image = incoming.publish(&[found])?.pop().unwrap_or(image);
        let id = image.id.to_string();
        self.note("import", Some(&image), &id, &id);
        if let Some(name) = &options.name {
            self.note("tag", Some(&image), &id, &name.to_string());
        }
        Ok(image)
    }
}

/// Keeps a layer as it comes, and finds its diff id. Headers are looked at, so that what is no archive is refused now and not
/// when it is unpacked.
fn receive_layer(
    incoming: &Incoming,
    archive: &mut dyn Read,
    limit: MaxImageSize,
) -> Result<NewLayer, StoreError> {
    // Shared by the reader at the bottom, which fills it, and this function, which closes it.
    let kept = RefCell::new(Kept {
        writer: incoming.begin_blob(None)?,
        failure: None,
    });
    let source = Tee {
        source: archive,
        kept: &kept,
        limit,
    };
    let mut source = BufReader::with_capacity(READ_BYTES, source);
    let read = || -> Result<Digest, StoreError> {
        let head = source.fill_buf().map_err(super::load::read_error)?;
        if head.is_empty() {
            return Err(StoreError::NotAnArchive(TarError::Truncated));
        }
        let hashing = Hashing {
            source: Decoder::new(compression::detect(head), source),
            hasher: Sha256::new(),
            bytes: 0,
            kept: &kept,
            limit,
        };
        let mut tar = BufReader::with_capacity(READ_BYTES, hashing);
        let mut reader = Reader::new(&mut tar);
        let mut first = true;
        while reader
            .next_entry()
            .map_err(|e| not_an_archive(e, first))?
            .is_some()
        {
            first = false;
        }
        // What follows the archive's end is part of the stream.
        io::copy(&mut tar, &mut io::sink()).map_err(super::load::read_error)?;
        Ok(Digest::finish(tar.into_inner().hasher))
    };
    let read = read();
    let Kept { writer, failure } = kept.into_inner();
    // The cause of an error that came up through the decoder.
    if let Some(failure) = failure {
        return Err(failure);
    }
    let diff_id = read?;
    let blob = writer.finish()?;
    Ok(NewLayer { blob, diff_id })
}

fn not_an_archive(error: TarError, first: bool) -> StoreError {
    match error {
        TarError::Checksum | TarError::Truncated if first => StoreError::NotAnArchive(error),
        error => StoreError::Archive(error.into()),
    }
}

struct Kept {
    writer: BlobWriter,
    failure: Option<StoreError>,
}

impl Kept {
    /// Takes note of why reading ends, which the reader above is not told.
    fn fail(&mut self, why: StoreError) -> io::Error {
        self.failure = Some(why);
        io::ErrorKind::Other.into()
    }
}

/// Tells how much has been read.
struct Counted<'a> {
    source: &'a mut dyn Read,
    bytes: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.bytes += count as u64;
        (self.progress)(self.bytes);
        Ok(count)
    }
}

/// Writes down what is read.
struct Tee<'a> {
    source: &'a mut dyn Read,
    kept: &'a RefCell<Kept>,
    limit: MaxImageSize,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        let mut kept = self.kept.borrow_mut();
        let bytes = kept.writer.size() + count as u64;
        let within = self.limit.check("the archive has", bytes);
        if let Err(e) = within.and_then(|()| kept.writer.write(&buffer[..count])) {
            return Err(kept.fail(e));
        }
        Ok(count)
    }
}

/// Hashes what is in the layer, and counts it.
struct Hashing<'a, R> {
    source: R,
    hasher: Sha256,
    bytes: u64,
    kept: &'a RefCell<Kept>,
    limit: MaxImageSize,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        match self.limit.check("the files of the archive have", self.bytes) {
            Ok(()) => Ok(count),
            Err(e) => Err(self.kept.borrow_mut().fail(e)),
        }
    }
}
