//! Directories on the disk: in each block first the entries, then their names, both in the names' byte order.

use super::{
    Tree,
    format::{self, DIRENT_BYTES},
};
use crate::unpack::{
    BLOCK_BYTES,
    tree::{Content, NodeId},
};

/// An entry of a directory.
pub struct Dirent<'a> {
    pub name: &'a [u8],
    pub node: NodeId,
}

/// The entries of a directory in order, `.` and `..` among them.
pub fn entries(tree: &Tree, id: NodeId, parent: NodeId) -> Vec<Dirent<'_>> {
    let mut entries = Vec::new();
    if let Content::Directory(children) = &tree.node(id).content {
        entries.reserve(children.len() + 2);
        entries.extend(children.iter().map(|(name, child)| Dirent {
            name,
            node: child.node,
        }));
    }
    for (name, node) in [(&b"."[..], id), (&b".."[..], parent)] {
        let at = entries.partition_point(|entry| entry.name < name);
        entries.insert(at, Dirent { name, node });
    }
    entries
}

/// Splits entries into those of each block.
pub fn blocks<'e, 'a>(entries: &'e [Dirent<'a>]) -> impl Iterator<Item = &'e [Dirent<'a>]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|entry| {
            bytes += DIRENT_BYTES + entry.name.len();
            bytes <= BLOCK_BYTES
        });
        let (block, after) = rest.split_at(fitting.count());
        rest = after;
        (!block.is_empty()).then_some(block)
    })
}

/// Bytes of one block's entries.
pub fn block_bytes(entries: &[Dirent<'_>]) -> usize {
    entries.iter().map(|entry| DIRENT_BYTES + entry.name.len()).sum()
}

/// Appends one block's entries to `out`, without padding.
pub fn encode(tree: &Tree, entries: &[Dirent<'_>], nid: impl Fn(NodeId) -> u64, out: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT_BYTES;
    for entry in entries {
        out.extend_from_slice(&nid(entry.node).to_le_bytes());
        out.extend_from_slice(&(name_offset as u16).to_le_bytes());
        out.push(format::file_type(tree.node(entry.node)));
        out.push(0);
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend_from_slice(entry.name);
    }
}

/// The link count that `stat` shows: a directory has its name, its `.` and the `..` of those in it.
pub fn links(tree: &Tree, id: NodeId) -> u32 {
    let node = tree.node(id);
    match &node.content {
        Content::Directory(children) => {
            let inner = children
                .values()
                .filter(|child| tree.is_directory(child.node))
                .count();
            2 + inner as u32
        }
        _ => node.links,
    }
}
