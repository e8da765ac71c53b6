//! Decides where everything goes that is written after the data: first the sizes, then the places.

use super::{
    FileData, Tree,
    directory::{self, entries},
    format::{INODE_BYTES, SLOT_BYTES, XATTR_HEADER_BYTES},
    xattr,
};
use crate::unpack::{
    BLOCK_BYTES, UnpackError,
    blocks::BlockWriter,
    tree::{Content, NodeId, ROOT},
};

/// The first inode's distance from the start of the metadata: a root whose number is 0 or 1 would be taken for none.
const FIRST_OFFSET: u64 = 4 * SLOT_BYTES;

/// Zeros behind the last inode. `fsck.erofs` 1.5 reads a header of extended attributes behind every inode, and takes it
/// for damage when the image ends before.
pub const END_BYTES: u64 = XATTR_HEADER_BYTES as u64;

/// The sizes of a node's parts.
pub struct Body {
    /// Bytes of content, as `stat` shows them.
    pub size: u64,
    /// Blocks of content that are written apart from the inode, after the data.
    pub blocks: u32,
    /// Bytes of content that are written behind the inode.
    pub inline_bytes: usize,
    /// Bytes of extended attributes, header included.
    pub xattr_bytes: usize,
}

impl Body {
    /// Measures a node.
    pub fn of(tree: &Tree, id: NodeId) -> Self {
        let node = tree.node(id);
        let xattr_bytes = node
            .attributes
            .xattrs
            .as_ref()
            .map_or(0, |xattrs| xattr::encoded_bytes(xattrs));
        let size = match &node.content {
            Content::Directory(_) => return Self::directory(tree, id, xattr_bytes),
            Content::File(FileData::Blocks { size, .. }) => {
                return Self {
                    size: *size,
                    blocks: 0,
                    inline_bytes: 0,
                    xattr_bytes,
                };
            }
            Content::File(FileData::Inline(data)) => data.len(),
            Content::Symlink(target) => target.len(),
            Content::CharDevice(_) | Content::BlockDevice(_) | Content::Fifo => 0,
        };
        Self::with_tail(0, size, xattr_bytes)
    }

    fn directory(tree: &Tree, id: NodeId, xattr_bytes: usize) -> Self {
        // Which node the parent is does not change the size.
        let entries = entries(tree, id, id);
        let (mut count, mut last) = (0, 0);
        for block in directory::blocks(&entries) {
            count += 1;
            last = directory::block_bytes(block);
        }
        Self::with_tail(count - 1, last, xattr_bytes)
    }

    /// Content of `full` blocks and `tail` more bytes. The kernel wants a tail that stands behind its inode in one
    /// block with it (`fs/erofs/data.c`, `erofs_map_blocks`).
    fn with_tail(full: u32, tail: usize, xattr_bytes: usize) -> Self {
        let inline = INODE_BYTES + xattr_bytes + tail <= BLOCK_BYTES;
        Self {
            size: u64::from(full) * BLOCK_BYTES as u64 + tail as u64,
            blocks: full
                + if inline {
                    0
                } else {
                    tail.div_ceil(BLOCK_BYTES) as u32
                },
            inline_bytes: if inline { tail } else { 0 },
            xattr_bytes,
        }
    }

    /// Bytes from the inode's first to the last that must stand behind it.
    fn metadata_bytes(&self) -> usize {
        INODE_BYTES + self.xattr_bytes + self.inline_bytes
    }
}

/// A node in the order in which inodes are written.
pub struct Placed {
    pub node: NodeId,
    /// The directory that it was found in, for `..`.
    pub parent: NodeId,
    /// Its number in the order, the root being 1.
    pub number: u32,
}

/// The places of everything.
pub struct Layout {
    order: Vec<Placed>,
    places: Vec<Place>,
    metadata_block: u32,
    total_bytes: u64,
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// Distance of the inode from the start of the metadata, in slots: the nid. 0 before it is known.
    slot: u32,
    /// First block of the content.
    block: u32,
}

impl Layout {
    /// Places a tree, from the block `start` on.
    pub fn new(tree: &Tree, start: u32) -> Result<Self, UnpackError> {
        let mut layout = Self {
            order: Vec::with_capacity(tree.len()),
            places: vec![Place::default(); tree.id_limit()],
            metadata_block: start,
            total_bytes: 0,
        };
        let mut offset = FIRST_OFFSET;
        layout.place(tree, ROOT, ROOT, &mut offset)?;
        let mut next = 0;
        while next < layout.order.len() {
            let parent = layout.order[next].node;
            if let Content::Directory(children) = &tree.node(parent).content {
                for child in children.values() {
                    layout.place(tree, child.node, parent, &mut offset)?;
                }
            }
            next += 1;
        }
        let body_blocks = u64::from(layout.metadata_block - start);
        offset += END_BYTES;
        layout.total_bytes = body_blocks * BLOCK_BYTES as u64 + offset.next_multiple_of(BLOCK_BYTES as u64);
        Ok(layout)
    }

    /// Places a node that has no place yet, its content behind all content so far, its inode at `offset` or a little
    /// after.
    fn place(
        &mut self,
        tree: &Tree,
        node: NodeId,
        parent: NodeId,
        offset: &mut u64,
    ) -> Result<(), UnpackError> {
        if self.places[node as usize].slot != 0 {
            return Ok(());
        }
        let body = Body::of(tree, node);
        let block = match tree.node(node).content {
            Content::File(FileData::Blocks { start, .. }) => start,
            _ => self.metadata_block,
        };
        self.metadata_block = self
            .metadata_block
            .checked_add(body.blocks)
            .ok_or(UnpackError::TooLarge("blocks"))?;

        *offset = inode_offset(*offset, &body);
        let slot = u32::try_from(*offset / SLOT_BYTES).map_err(|_| UnpackError::TooLarge("files"))?;
        *offset += body.metadata_bytes() as u64;
        self.places[node as usize] = Place { slot, block };
        self.order.push(Placed {
            node,
            parent,
            number: self.order.len() as u32 + 1,
        });
        Ok(())
    }

    /// All nodes, in the order of their inodes.
    pub fn order(&self) -> &[Placed] {
        &self.order
    }

    /// First block of a node's content.
    pub fn block(&self, node: NodeId) -> u32 {
        self.places[node as usize].block
    }

    /// Bytes from the start of the metadata to a node's inode.
    pub fn offset(&self, node: NodeId) -> u64 {
        u64::from(self.places[node as usize].slot) * SLOT_BYTES
    }

    /// The root's number. It is placed first, so that it fits.
    pub fn root_nid(&self) -> u16 {
        self.places[ROOT as usize].slot as u16
    }

    /// The block that numbers of inodes count from.
    pub fn metadata_block(&self) -> u32 {
        self.metadata_block
    }

    /// Bytes of content and metadata together, in whole blocks.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Writes a node's content from the byte `from` on, at most `count` bytes of it. Both ends are at blocks or
    /// at the content's end. What lies in blocks before the last of a directory is padded to whole ones.
    pub fn write_content(
        &self,
        tree: &Tree,
        placed: &Placed,
        from: u64,
        count: u64,
        out: &mut BlockWriter<'_>,
    ) -> Result<(), UnpackError> {
        match &tree.node(placed.node).content {
            Content::Directory(_) => self.write_entries(tree, placed, from, count, out),
            Content::File(FileData::Inline(data)) => out.write(data),
            Content::Symlink(target) => out.write(target),
            _ => Ok(()),
        }
    }

    fn write_entries(
        &self,
        tree: &Tree,
        placed: &Placed,
        from: u64,
        count: u64,
        out: &mut BlockWriter<'_>,
    ) -> Result<(), UnpackError> {
        let entries = entries(tree, placed.node, placed.parent);
        let nid = |node: NodeId| u64::from(self.places[node as usize].slot);
        let mut encoded = Vec::with_capacity(BLOCK_BYTES);
        let mut position = 0;
        for block in directory::blocks(&entries) {
            if position >= from && position < from + count {
                if position > from {
                    out.pad()?;
                }
                encoded.clear();
                directory::encode(tree, block, nid, &mut encoded);
                out.write(&encoded)?;
            }
            position += BLOCK_BYTES as u64;
        }
        Ok(())
    }
}

/// The next place for an inode: at a slot, its fixed part in one block, and all of it when content stands behind it.
fn inode_offset(offset: u64, body: &Body) -> u64 {
    let offset = offset.next_multiple_of(SLOT_BYTES);
    let together = if body.inline_bytes > 0 {
        body.metadata_bytes()
    } else {
        INODE_BYTES
    };
    if offset % BLOCK_BYTES as u64 + together as u64 > BLOCK_BYTES as u64 {
        return offset.next_multiple_of(BLOCK_BYTES as u64);
    }
    offset
}
