//! A snapshot as one tar: `snapshot.json`, then `memory`, `state`, `disk` and the volumes as sparse files (GNU tar's pax format 1.0,
//! which GNU tar and bsdtar extract). The image is not in it.
//!
//! An archive is untrusted. Its entries are known by name, each comes once, what they may be long is checked before they
//! are written, and what was written is hashed and compared. The reader keeps bounded amounts in memory.

use std::{
    fs::File,
    io::{self, BufRead, Read, Write},
    os::unix::fs::FileExt,
};

use brig_image_store::tar::{
    Chunk, Entry, Kind, Reader, TarError,
    write::{self, Type},
};

use super::{
    FileRecord, RECORD_BYTES, Record, Snapshots, sparse,
    store::{RECORD, parse_record},
};
use crate::{Error, files};

/// Most pieces of one file: what the reader takes.
const PIECES_MAX: usize = 1 << 15;

/// Writes the snapshot `name` to `output`.
///
/// # Errors
/// [`Error::NoSuchSnapshot`], [`Error::Snapshot`], [`Error::Runtime`] when `output` cannot be written to.
pub fn export(snapshots: &Snapshots, name: &str, output: &mut impl Write) -> Result<(), Error> {
    let snapshot = snapshots.open(name)?;
    let record = Record {
        imported: false,
        ..snapshot.record
    };
    let all = |output: &mut dyn Write| -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&record)?;
        begin(output, RECORD, Type::File(text.len() as u64))?;
        output.write_all(&text)?;
        output.write_all(write::padding(text.len() as u64))?;
        let files = [&snapshot.saved.memory, &snapshot.saved.state, &snapshot.disk];
        for ((part, _), file) in record.files().zip(files.into_iter().chain(&snapshot.volumes)) {
            write_sparse(output, &part.name(), file)?;
        }
        output.write_all(&write::END)?;
        output.flush()
    };
    all(output).map_err(Error::Runtime)
}

/// The header of a file of ours.
fn begin(output: &mut dyn Write, name: &str, kind: Type<'_>) -> io::Result<()> {
    let entry = write::Entry {
        path: name.as_bytes(),
        kind,
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: &[],
    };
    write::entry(output, &entry)
}

fn write_sparse(output: &mut dyn Write, name: &str, file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let pieces: Vec<(u64, u64)> = sparse::pieces(file, PIECES_MAX)?
        .iter()
        .map(|piece| (piece.offset, piece.length))
        .collect();
    let kind = Type::Sparse {
        length,
        pieces: &pieces,
    };
    begin(output, name, kind)?;
    output.write_all(&write::sparse_map(&pieces, length))?;
    let mut buffer = vec![0; 1 << 20];
    for &(start, count) in &pieces {
        let (mut offset, end) = (start, start + count);
        while offset < end {
            let want = (end - offset).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..want], offset)?;
            output.write_all(&buffer[..want])?;
            offset += want as u64;
        }
    }
    output.write_all(write::padding(write::sparse_bytes(&pieces, length)))
}

/// Takes a snapshot from an archive, checks it, and gives it `name`.
///
/// # Errors
/// [`Error::SnapshotExists`], [`Error::InvalidName`], [`Error::Import`]; nothing is left then.
pub fn import(snapshots: &Snapshots, name: &str, input: impl BufRead) -> Result<(), Error> {
    snapshots.check_free(name)?;
    let workspace = snapshots.workspace()?;
    let mut reader = Reader::new(input);
    let mut record = read_record(&mut reader)?;
    for (part, wanted) in record.files() {
        let path = workspace.path().join(part.name());
        let file = files::make(&path)?;
        read_file(&mut reader, &part.name(), wanted, &file)?;
        drop(file);
        files::seal(&path)?;
    }
    if let Some(entry) = next(&mut reader)? {
        return Err(unexpected(&entry, "nothing more"));
    }
    record.imported = true;
    workspace.finish(&record)?;
    snapshots.publish(workspace, name)
}

fn read_record(reader: &mut Reader<impl BufRead>) -> Result<Record, Error> {
    expect(reader, RECORD, |size| size <= RECORD_BYTES)?;
    let mut text = Vec::new();
    copy(reader, |_, bytes| {
        text.extend_from_slice(bytes);
        Ok(())
    })?;
    parse_record(&text).map_err(|reason| Error::Import(format!("the snapshot {reason}")))
}

fn read_file(
    reader: &mut Reader<impl BufRead>,
    name: &str,
    wanted: &FileRecord,
    file: &File,
) -> Result<(), Error> {
    expect(reader, name, |size| size == wanted.bytes)?;
    file.set_len(wanted.bytes).map_err(Error::Runtime)?;
    copy(reader, |offset, bytes| file.write_all_at(bytes, offset))?;
    let digest = sparse::digest(file).map_err(Error::Runtime)?;
    match &wanted.digest {
        Some(wanted) if *wanted == digest => Ok(()),
        _ => Err(Error::Import(format!(
            "{name} is not what {RECORD} says: its digest differs"
        ))),
    }
}

/// The next entry has this name and a size that fits.
fn expect(
    reader: &mut Reader<impl BufRead>,
    name: &str,
    fits: impl FnOnce(u64) -> bool,
) -> Result<(), Error> {
    match next(reader)? {
        Some(entry) if entry.path != name.as_bytes() || entry.kind != Kind::File => {
            Err(unexpected(&entry, name))
        }
        Some(entry) if !fits(entry.size) => Err(Error::Import(format!("{name} has {} bytes", entry.size))),
        Some(_) => Ok(()),
        None => Err(Error::Import(format!("{name} is missing"))),
    }
}

/// Gives each piece of the current entry that is no hole to `take`, with its place in the file.
fn copy(
    reader: &mut Reader<impl BufRead>,
    mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<(), Error> {
    let mut position = 0;
    loop {
        let count = match reader.chunk().map_err(|e| damaged(&e))? {
            Chunk::End => return Ok(()),
            Chunk::Hole(zeros) => {
                position += zeros;
                continue;
            }
            Chunk::Bytes(bytes) => {
                take(position, bytes).map_err(Error::Runtime)?;
                bytes.len()
            }
        };
        reader.consume(count);
        position += count as u64;
    }
}

fn next(reader: &mut Reader<impl BufRead>) -> Result<Option<Entry>, Error> {
    reader.next_entry().map_err(|e| damaged(&e))
}

fn damaged(error: &TarError) -> Error {
    Error::Import(crate::error::chain(error))
}

fn unexpected(entry: &Entry, wanted: &str) -> Error {
    let path = String::from_utf8_lossy(&entry.path);
    Error::Import(format!(
        "it has {:?} in the place of {wanted}",
        crate::error::one_line(&path, 100)
    ))
}

/// A reader for [`import`].
pub fn buffered(input: impl Read) -> impl BufRead {
    io::BufReader::with_capacity(1 << 20, input)
}
