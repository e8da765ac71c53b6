//! Packs the files of a sandbox, in a guest of its own that has the image and the writable disk: what a guest wrote to its disk
//! is parsed by no kernel but a guest's.
//!
//! overlayfs keeps what a sandbox changed in `upper` (Documentation/filesystems/overlayfs.rst): a removed name is a character
//! device 0:0, a directory that hides the one below has the attribute `trusted.overlay.opaque`. In a layer these are
//! `.wh.NAME` and `.wh..wh..opq` (image-spec, `layer.md`).

use std::{
    collections::{BTreeSet, HashMap},
    ffi::{CString, OsStr},
    fs::{self, File, Metadata},
    io::{self, BufWriter, Write},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{FileExt, FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

use brig_image_store::tar::write::{self, Entry, Type};
use brig_protocol::{
    agent::{FromAgent, Pack, PackSpec},
    spec::RootSpec,
};
use rustix::{
    fs::{SeekFrom, major, minor, seek},
    mount::{MountFlags, mount},
};

use crate::{
    disks::Disks,
    error::{AgentError, Context, one_line},
    process::Places,
};

/// Bytes that are read and written at a time.
const COPY_BYTES: usize = 256 << 10;

/// Most pieces of a sparse file; one with more is written whole.
const PIECES_MAX: usize = 4096;

/// Most bytes of the names of a file's attributes, and of one value (limits.h, `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 64 << 10;

/// Where overlayfs keeps its notes (Documentation/filesystems/overlayfs.rst, "User xattr").
struct Notes {
    /// How the names of its attributes begin.
    prefix: &'static [u8],
    /// The one of a directory that hides what is below.
    opaque: &'static str,
    /// The option that says so.
    option: &'static str,
}

impl Notes {
    fn of(root: &RootSpec) -> Self {
        match root {
            RootSpec::Cell => Self {
                prefix: b"user.overlay.",
                opaque: "user.overlay.opaque",
                option: ",userxattr",
            },
            _ => Self {
                prefix: b"trusted.overlay.",
                opaque: "trusted.overlay.opaque",
                option: "",
            },
        }
    }
}

/// Packs to `stream`, and returns what the supervisor is to be told.
pub fn run(spec: &PackSpec, places: &Places, disks: &mut Disks, stream: OwnedFd) -> FromAgent {
    let mounted = match &spec.root {
        RootSpec::Disks { image, writable } => disks.mount_for_packing(*image, *writable, places),
        // They are in their places.
        RootSpec::Cell => Ok(()),
        RootSpec::Directory { .. } => Err(AgentError::NotHere("pack a directory")),
    };
    let packed = mounted
        .map_err(PackError::from)
        .and_then(|()| pack(spec, places, stream));
    match packed {
        Ok(bytes) => FromAgent::Packed { bytes },
        Err(error) => FromAgent::PackFailed {
            message: one_line(&error),
        },
    }
}

#[derive(Debug, thiserror::Error)]
enum PackError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("cannot pack {path}")]
    File {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot write")]
    Output(#[from] io::Error),
}

fn pack(spec: &PackSpec, places: &Places, stream: OwnedFd) -> Result<u64, PackError> {
    rustix::io::ioctl_fionbio(&stream, false).step("use the stream")?;
    let counted = Counted {
        output: File::from(stream),
        bytes: 0,
    };
    let upper = places.disk().join("upper");
    let notes = Notes::of(&spec.root);
    let (root, below) = match spec.what {
        Pack::Files => (merge(&upper, places, &notes)?, None),
        Pack::Layer | Pack::Changes => (upper, Some(places.image())),
    };
    let mut packer = Packer {
        output: BufWriter::with_capacity(COPY_BYTES, counted),
        what: spec.what,
        notes,
        hidden: spec
            .hidden
            .iter()
            .map(|path| path.trim_start_matches('/').into())
            .collect(),
        root,
        links: HashMap::new(),
        pending: Vec::new(),
    };
    if packer.root.is_dir() {
        packer.directory(Path::new(""), below.as_deref())?;
    }
    if spec.what != Pack::Changes {
        packer.output.write_all(&write::END)?;
    }
    let counted = packer
        .output
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    Ok(counted.bytes)
}

/// Mounts what the sandbox saw as its root, without a way to write to it.
fn merge(upper: &Path, places: &Places, notes: &Notes) -> Result<PathBuf, PackError> {
    if !upper.is_dir() {
        return Ok(places.image());
    }
    let options = format!(
        "lowerdir={}:{}{}",
        upper.display(),
        places.image().display(),
        notes.option
    );
    let options = CString::new(options).map_err(io::Error::other)?;
    mount(
        "overlay",
        places.root(),
        "overlay",
        MountFlags::RDONLY,
        Some(options.as_c_str()),
    )
    .step("mount an overlay")?;
    Ok(places.root())
}

/// Counts what is written.
struct Counted {
    output: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.output.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

struct Packer {
    output: BufWriter<Counted>,
    what: Pack,
    notes: Notes,
    /// Paths that are the engine's and not the sandbox's.
    hidden: BTreeSet<PathBuf>,
    /// What is walked.
    root: PathBuf,
    /// Where the first name of a file with several is, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// Directories above that are only written when something in them is.
    pending: Vec<(PathBuf, Metadata)>,
}

impl Packer {
    /// Everything in a directory. `below` is the directory of the image at the same place, if it is not hidden.
    fn directory(&mut self, path: &Path, below: Option<&Path>) -> Result<(), PackError> {
        let at = self.root.join(path);
        let mut names: Vec<_> = fs::read_dir(&at)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(failed(path))?;
        // The same files give the same archive.
        names.sort_unstable();
        let is_opaque = is_opaque(&at, &self.notes);
        if below.is_some() && is_opaque {
            self.opaque(path, below, &names)?;
        }
        let below = below.filter(|_| !is_opaque);
        for name in names {
            let child = path.join(&name);
            if !self.hidden.contains(&child) {
                let below = below.map(|below| below.join(&name));
                self.child(&child, below.as_deref())?;
            }
        }
        Ok(())
    }

    fn child(&mut self, path: &Path, below: Option<&Path>) -> Result<(), PackError> {
        let found = fs::symlink_metadata(self.root.join(path)).map_err(failed(path))?;
        let below = below.and_then(|below| Some((below, fs::symlink_metadata(below).ok()?)));
        if self.what != Pack::Files && is_whiteout(&found) {
            return self.whiteout(path);
        }
        if found.is_dir() {
            let merged = below.as_ref().filter(|(_, found)| found.is_dir());
            // One that is not in the image and leads to what the engine puts there is the engine's as well.
            let is_engines = below.is_none() && self.leads_to_hidden(path);
            let is_new = self.what == Pack::Files || merged.is_none() && !is_engines;
            self.pending.push((path.to_owned(), found.clone()));
            if is_new || merged.is_some_and(|(_, below)| differs(&found, below)) {
                self.flush_pending(!is_new || below.is_some())?;
            }
            self.directory(path, merged.map(|(below, _)| *below))?;
            if self.pending.last().is_some_and(|(pending, _)| pending == path) {
                self.pending.pop();
            }
            return Ok(());
        }
        // Nothing can be connected to a socket in an archive.
        if found.file_type().is_socket() {
            return Ok(());
        }
        self.flush_pending(true)?;
        match self.what {
            Pack::Changes => self.change(if below.is_some() { b'C' } else { b'A' }, path),
            _ => self.file(path, &found),
        }
    }

    fn leads_to_hidden(&self, path: &Path) -> bool {
        self.hidden.iter().any(|hidden| hidden.starts_with(path))
    }

    /// A name that was removed.
    fn whiteout(&mut self, path: &Path) -> Result<(), PackError> {
        self.flush_pending(true)?;
        if self.what == Pack::Changes {
            return self.change(b'D', path);
        }
        let mut name = b".wh.".to_vec();
        name.extend(path.file_name().unwrap_or_default().as_bytes());
        self.marker(&path.with_file_name(OsStr::from_bytes(&name)))
    }

    /// A directory that hides what the image has there.
    fn opaque(
        &mut self,
        path: &Path,
        below: Option<&Path>,
        names: &[std::ffi::OsString],
    ) -> Result<(), PackError> {
        self.flush_pending(true)?;
        if self.what != Pack::Changes {
            return self.marker(&path.join(".wh..wh..opq"));
        }
        let Some(entries) = below.and_then(|below| fs::read_dir(below).ok()) else {
            return Ok(());
        };
        let mut gone: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        gone.sort_unstable();
        for name in gone.iter().filter(|name| !names.contains(name)) {
            self.change(b'D', &path.join(name))?;
        }
        Ok(())
    }

    /// An empty file that says something about others.
    fn marker(&mut self, path: &Path) -> Result<(), PackError> {
        let entry = Entry {
            path: path.as_os_str().as_bytes(),
            kind: Type::File(0),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: &[],
        };
        Ok(write::entry(&mut self.output, &entry)?)
    }

    /// A line of the changes: its kind, its path, a NUL.
    fn change(&mut self, kind: u8, path: &Path) -> Result<(), PackError> {
        self.output.write_all(&[kind, b'/'])?;
        self.output.write_all(path.as_os_str().as_bytes())?;
        Ok(self.output.write_all(&[0])?)
    }

    /// Writes the directories above; all but the last one are in the image, too, and so is the last if `changed`.
    fn flush_pending(&mut self, changed: bool) -> Result<(), PackError> {
        let pending = std::mem::take(&mut self.pending);
        let last = pending.len().saturating_sub(1);
        for (n, (path, found)) in pending.iter().enumerate() {
            if self.what == Pack::Changes {
                self.change(if n < last || changed { b'C' } else { b'A' }, path)?;
            } else {
                self.file(path, found)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, found: &Metadata) -> Result<(), PackError> {
        let at = self.root.join(path);
        let mut name = path.as_os_str().as_bytes().to_vec();
        let (pieces, target);
        let device = (major(found.rdev()), minor(found.rdev()));
        let kind = found.file_type();
        let first = if found.nlink() > 1 && !found.is_dir() {
            let key = (found.dev(), found.ino());
            let first = self.links.get(&key).cloned();
            self.links.entry(key).or_insert_with(|| path.to_owned());
            first
        } else {
            None
        };
        let mut data = None;
        let kind = if let Some(first) = first {
            target = first.into_os_string().into_vec();
            Type::HardLink(&target)
        } else if kind.is_symlink() {
            target = fs::read_link(&at)
                .map_err(failed(path))?
                .into_os_string()
                .into_vec();
            Type::Symlink(&target)
        } else if kind.is_dir() {
            name.push(b'/');
            Type::Directory
        } else if kind.is_char_device() {
            Type::Character(device.0, device.1)
        } else if kind.is_block_device() {
            Type::Block(device.0, device.1)
        } else if kind.is_fifo() {
            Type::Fifo
        } else {
            let file = File::open(&at).map_err(failed(path))?;
            let length = found.len();
            let holes = found.blocks() * 512 < length;
            let sparse = if holes {
                find_pieces(&file, length).map_err(failed(path))?
            } else {
                None
            };
            let whole = sparse.is_none();
            pieces = sparse.unwrap_or_else(|| vec![(0, length)]);
            data = Some((file, &pieces, length, whole));
            if whole {
                Type::File(length)
            } else {
                Type::Sparse {
                    length,
                    pieces: &pieces,
                }
            }
        };
        let xattrs = xattrs(&at, &self.notes).map_err(failed(path))?;
        let entry = Entry {
            path: &name,
            kind,
            mode: found.mode(),
            uid: found.uid(),
            gid: found.gid(),
            mtime: (found.mtime(), found.mtime_nsec() as u32),
            xattrs: if matches!(kind, Type::HardLink(_)) {
                &[]
            } else {
                &xattrs
            },
        };
        write::entry(&mut self.output, &entry)?;
        if let Some((file, pieces, length, whole)) = data {
            let bytes = if whole {
                length
            } else {
                self.output.write_all(&write::sparse_map(pieces, length))?;
                write::sparse_bytes(pieces, length)
            };
            for &(offset, length) in pieces {
                copy(&file, offset, length, &mut self.output).map_err(failed(path))?;
            }
            self.output.write_all(write::padding(bytes))?;
        }
        Ok(())
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PackError {
    let path = format!("/{}", path.display());
    move |source| PackError::File { path, source }
}

fn is_whiteout(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

fn is_opaque(directory: &Path, notes: &Notes) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(directory, notes.opaque, &mut value).is_ok() && value == *b"y"
}

/// Whether a directory has another owner or other permissions than the image's: its time changes with what is in it.
fn differs(upper: &Metadata, below: &Metadata) -> bool {
    (upper.mode(), upper.uid(), upper.gid()) != (below.mode(), below.uid(), below.gid())
}

/// Where a file has data; `None` when it is in too many places.
fn find_pieces(file: &File, length: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut pieces = Vec::new();
    let mut position = 0;
    while position < length {
        let start = match seek(file, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(length);
        if pieces.len() == PIECES_MAX {
            return Ok(None);
        }
        pieces.push((start, end - start));
        position = end;
    }
    Ok(Some(pieces))
}

fn copy(file: &File, mut offset: u64, mut length: u64, output: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(length).unwrap_or(COPY_BYTES))];
    while length > 0 {
        let want = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..want], offset)?;
        output.write_all(&buffer[..want])?;
        offset += want as u64;
        length -= want as u64;
    }
    Ok(())
}

/// A file's extended attributes, but those of overlayfs.
fn xattrs(path: &Path, notes: &Notes) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; XATTR_BYTES];
    let count = match rustix::fs::llistxattr(path, &mut names) {
        Ok(count) => count,
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut found = Vec::new();
    for name in names[..count].split(|&byte| byte == 0) {
        if name.is_empty() || name.starts_with(notes.prefix) || name.contains(&b'=') {
            continue;
        }
        let mut value = vec![0; XATTR_BYTES];
        // A name that goes meanwhile would be a surprise, but no harm: nothing writes here.
        let count = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(count);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}
