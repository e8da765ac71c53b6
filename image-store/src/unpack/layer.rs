//! Applies the entries of one layer to the tree.

use std::{collections::BTreeMap, io::BufRead};

use super::{
    LayerError, Sink, UnpackError, erofs,
    error::shown,
    tree::{Attributes, Content, NodeId, ROOT, Tree},
};
use crate::tar::{Chunk, Entry, Kind, Reader};

/// Longest name of a file (limits.h, `NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// Longest chain of symbolic links in a path, as of Linux (namei.h, `MAXSYMLINKS`).
const SYMLINKS_MAX: usize = 40;

/// Longest target of a symbolic link, as of Linux: `PATH_MAX` without its NUL byte.
const SYMLINK_BYTES_MAX: usize = 4095;

/// What the name of a whiteout starts with (image-spec, `layer.md#whiteouts`).
const WHITEOUT: &[u8] = b".wh.";

/// Hides what lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Bookkeeping of aufs, which older Dockers left in layers; everybody passes over it.
const AUFS: &[u8] = b".wh..wh.";

/// Applies every entry of an archive, as layer number `layer`, the lowest being 0.
///
/// # Errors
/// [`UnpackError::Unplaced`] for what is wrong with the layer, and those of the tree and the writer.
pub fn apply<R: BufRead, S: Sink>(
    reader: &mut Reader<R>,
    layer: u16,
    tree: &mut Tree<S::Data>,
    sink: &mut S,
) -> Result<(), UnpackError> {
    let mut applier = Applier { tree, layer };
    while let Some(entry) = reader.next_entry()? {
        applier.entry(entry, reader, sink)?;
    }
    Ok(())
}

struct Applier<'a, D> {
    tree: &'a mut Tree<D>,
    layer: u16,
}

impl<D> Applier<'_, D> {
    fn entry<R: BufRead>(
        &mut self,
        entry: Entry,
        reader: &mut Reader<R>,
        sink: &mut impl Sink<Data = D>,
    ) -> Result<(), UnpackError> {
        let parts = components(&entry.path)?;
        let Some((&name, parents)) = parts.split_last() else {
            return self.root(entry);
        };
        let first = parts[0];
        if first.starts_with(AUFS) && (parts.len() > 1 || first != OPAQUE) {
            return Ok(());
        }
        if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(LayerError::Path(shown(&entry.path)).into());
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&entry, parents, name);
        }
        let directory = self.make_directories(&entry, parents)?;
        match entry.kind {
            Kind::HardLink => self.hard_link(&entry, directory, name),
            kind => {
                let attributes = self.attributes(&entry)?;
                match self.tree.child(directory, name) {
                    Some(child) if kind == Kind::Directory && self.tree.is_directory(child.node) => {
                        self.tree.set_attributes(child.node, attributes);
                        self.tree.touch(directory, name, self.layer);
                        Ok(())
                    }
                    _ => {
                        let content = content(&entry, reader, sink)?;
                        let node = self.tree.add(attributes, content)?;
                        self.tree.link(directory, name, node, self.layer)
                    }
                }
            }
        }
    }

    /// An entry for the root itself.
    fn root(&mut self, entry: Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(LayerError::Root.into());
        }
        let attributes = self.attributes(&entry)?;
        self.tree.set_attributes(ROOT, attributes);
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, directory: NodeId, name: &[u8]) -> Result<(), UnpackError> {
        let wrong = || LayerError::HardLink {
            path: shown(&entry.path),
            target: shown(&entry.link),
        };
        let parts = components(&entry.link)?;
        let (&target_name, parents) = parts.split_last().ok_or_else(wrong)?;
        let target = match self.walk(&entry.link, parents, Missing::Stop)? {
            Some(parent) => self.tree.child(parent, target_name),
            None => None,
        };
        let target = target.map(|child| child.node).ok_or_else(wrong)?;
        if self.tree.is_directory(target) {
            return Err(wrong().into());
        }
        if self
            .tree
            .child(directory, name)
            .is_some_and(|child| child.node == target)
        {
            self.tree.touch(directory, name, self.layer);
            return Ok(());
        }
        self.tree.link(directory, name, target, self.layer)
    }

    /// Hides what lower layers have. Where they have nothing there is nothing to hide.
    fn whiteout(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<(), UnpackError> {
        let Some(directory) = self.walk(&entry.path, parents, Missing::Stop)? else {
            return Ok(());
        };
        if name == OPAQUE {
            self.tree.hide_children(directory, self.layer);
            return Ok(());
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        match &name[WHITEOUT.len()..] {
            b"" | b"." | b".." => Err(LayerError::Path(shown(&entry.path)).into()),
            hidden => {
                self.tree.hide(directory, hidden, self.layer);
                Ok(())
            }
        }
    }

    /// The directory that an entry stands in, made when it is missing.
    fn make_directories(&mut self, entry: &Entry, parents: &[&[u8]]) -> Result<NodeId, UnpackError> {
        let implicit = Missing::Make(Attributes::implicit_directory(entry.mtime));
        let found = self.walk(&entry.path, parents, implicit)?;
        found.ok_or_else(|| LayerError::NotADirectory(shown(&entry.path)).into())
    }

    /// Goes from the root through directories. Symbolic links of this layer are followed, `..` in them does not lead
    /// above the root; those of lower layers are in the way, as everything that is no directory.
    fn walk(
        &mut self,
        path: &[u8],
        parts: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<NodeId>, UnpackError> {
        let mut way = vec![ROOT];
        let mut pending: Vec<Box<[u8]>> = Vec::new();
        let mut plain = parts.iter();
        let mut symlinks = 0;
        loop {
            // What a link pointed to comes before the rest of the path.
            let from_link = pending.pop();
            let name: &[u8] = match &from_link {
                Some(name) => name,
                None => match plain.next() {
                    Some(name) => name,
                    None => return Ok(way.last().copied()),
                },
            };
            let here = way.last().copied().unwrap_or(ROOT);
            if name == b".." {
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            let child = self.tree.child(here, name);
            match child {
                Some(child) if self.tree.is_directory(child.node) => {
                    if matches!(missing, Missing::Make(_)) && child.layer != self.layer {
                        self.tree.touch(here, name, self.layer);
                    }
                    way.push(child.node);
                    continue;
                }
                Some(child) if child.layer == self.layer => {
                    let Content::Symlink(target) = &self.tree.node(child.node).content else {
                        return match missing {
                            Missing::Stop => Ok(None),
                            Missing::Make(_) => Err(LayerError::NotADirectory(shown(path)).into()),
                        };
                    };
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX {
                        return Err(LayerError::Loop(shown(path)).into());
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    let steps = target.split(|&b| b == b'/').rev();
                    pending.extend(
                        steps
                            .filter(|part| !part.is_empty() && *part != b".")
                            .map(Box::from),
                    );
                    continue;
                }
                _ => {}
            }
            let Missing::Make(attributes) = &missing else {
                return Ok(None);
            };
            if name.len() > NAME_BYTES_MAX {
                return Err(LayerError::Path(shown(path)).into());
            }
            let content = Content::Directory(BTreeMap::new());
            let node = self.tree.add(attributes.clone(), content)?;
            self.tree.link(here, name, node, self.layer)?;
            way.push(node);
        }
    }

    fn attributes(&mut self, entry: &Entry) -> Result<Attributes, UnpackError> {
        let xattrs =
            erofs::storable_xattrs(&entry.xattrs).ok_or_else(|| LayerError::Xattrs(shown(&entry.path)))?;
        Ok(Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: self.tree.share_xattrs(xattrs)?,
        })
    }
}

/// What to do where a directory is missing.
enum Missing {
    /// Make it, with these attributes.
    Make(Attributes),
    /// Report that it is.
    Stop,
}

/// What an entry is; a file's data is written on the way.
fn content<R: BufRead, S: Sink>(
    entry: &Entry,
    reader: &mut Reader<R>,
    sink: &mut S,
) -> Result<Content<S::Data>, UnpackError> {
    let device = || {
        erofs::encode_device(entry.device)
            .ok_or_else(|| UnpackError::from(LayerError::Device(shown(&entry.path))))
    };
    Ok(match entry.kind {
        Kind::File => Content::File(write_data(entry.size, reader, sink)?),
        Kind::Symlink if entry.link.is_empty() || entry.link.len() > SYMLINK_BYTES_MAX => {
            return Err(LayerError::Path(shown(&entry.path)).into());
        }
        Kind::Symlink => Content::Symlink(entry.link.as_slice().into()),
        Kind::CharDevice => Content::CharDevice(device()?),
        Kind::BlockDevice => Content::BlockDevice(device()?),
        Kind::Directory => Content::Directory(BTreeMap::new()),
        // A hard link is no node of its own: it never comes here.
        Kind::Fifo | Kind::HardLink => Content::Fifo,
    })
}

fn write_data<R: BufRead, S: Sink>(
    size: u64,
    reader: &mut Reader<R>,
    sink: &mut S,
) -> Result<S::Data, UnpackError> {
    sink.begin(size)?;
    loop {
        let taken = match reader.chunk()? {
            Chunk::End => return sink.end(),
            Chunk::Hole(zeros) => {
                sink.zeros(zeros)?;
                0
            }
            Chunk::Bytes(bytes) => {
                sink.write(bytes)?;
                bytes.len()
            }
        };
        reader.consume(taken);
    }
}

/// The names that a path consists of. `..` is refused: no layer needs it.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let parts: Vec<&[u8]> = path
        .split(|&b| b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    if parts
        .iter()
        .any(|part| *part == b".." || part.len() > NAME_BYTES_MAX)
    {
        return Err(LayerError::Path(shown(path)));
    }
    Ok(parts)
}
