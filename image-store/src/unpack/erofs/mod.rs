//! Writes an uncompressed EROFS image (kernel: `fs/erofs/erofs_fs.h`, `Documentation/filesystems/erofs.rst`).
//!
//! ```text
//! block 0            superblock
//! block 1 …          data of files, in the order of the layers
//! then               blocks of directories, and of what else did not fit beside its inode
//! meta_blkaddr …     inodes, each followed by its extended attributes and a small file's, symbolic link's or
//!                    directory's content
//! ```
//! So everything but the superblock is written once, from front to back. All inodes are of the extended form, the one
//! that has a time of its own and 32-bit owners. They are in breadth-first order: what one directory names lies
//! together, and the way down from the root is short. Data of files that a higher layer replaced stays in the
//! image, unreachable: at most what the layers hold.
//!
//! There is no checksum over the superblock: a guest would compute it with every mount, and a damaged disk would
//! seldom show there.

mod data;
mod directory;
mod format;
mod layout;
mod xattr;

pub use self::{
    data::{FileData, INLINE_FILE_BYTES_MAX, INLINE_TOTAL_BYTES_MAX, ImageWriter},
    format::encode_device,
    xattr::storable_xattrs,
};
use self::{
    format::{Inode, Superblock},
    layout::{Body, Layout, Placed},
};
use super::{BLOCK_BYTES, UnpackError, blocks::BlockWriter};

/// The tree of an image whose files' data is on the output, or waits in memory to be written beside their inodes.
type Tree = super::tree::Tree<FileData>;

/// The block where data may start: the superblock is in the one before.
pub const FIRST_DATA_BLOCK: u32 = 1;

/// Writes directories, inodes and the superblock behind the data of the files, which is written.
fn write_tree(tree: &Tree, mut blocks: BlockWriter<'_>, uuid: [u8; 16]) -> Result<u64, UnpackError> {
    let layout = Layout::new(tree, blocks.block()?)?;
    blocks.check_room(layout.total_bytes())?;
    write_bodies(tree, &layout, &mut blocks)?;
    write_inodes(tree, &layout, &mut blocks)?;
    blocks.zeros(layout::END_BYTES)?;
    blocks.pad()?;
    let superblock = Superblock {
        root_nid: layout.root_nid(),
        inodes: tree.len() as u64,
        blocks: blocks.block()?,
        metadata_block: layout.metadata_block(),
        uuid,
    };
    blocks.finish(&superblock.encode())
}

/// Writes the content that does not stand beside its inode.
fn write_bodies(tree: &Tree, layout: &Layout, blocks: &mut BlockWriter<'_>) -> Result<(), UnpackError> {
    for placed in layout.order() {
        let body = Body::of(tree, placed.node);
        if body.blocks == 0 {
            continue;
        }
        debug_assert_eq!(blocks.block()?, layout.block(placed.node));
        let outside = u64::from(body.blocks) * BLOCK_BYTES as u64;
        layout.write_content(tree, placed, 0, outside, blocks)?;
        blocks.pad()?;
    }
    Ok(())
}

/// Writes the inodes, and what stands beside them.
fn write_inodes(tree: &Tree, layout: &Layout, blocks: &mut BlockWriter<'_>) -> Result<(), UnpackError> {
    let start = blocks.position();
    for placed in layout.order() {
        let offset = start + layout.offset(placed.node);
        blocks.zeros(offset - blocks.position())?;
        let body = Body::of(tree, placed.node);
        blocks.write(&inode(tree, layout, placed, &body).encode())?;
        if let Some(xattrs) = &tree.node(placed.node).attributes.xattrs {
            blocks.write(&xattr::encode(xattrs))?;
        }
        if body.inline_bytes > 0 {
            let outside = u64::from(body.blocks) * BLOCK_BYTES as u64;
            layout.write_content(tree, placed, outside, body.inline_bytes as u64, blocks)?;
        }
    }
    Ok(())
}

fn inode(tree: &Tree, layout: &Layout, placed: &Placed, body: &Body) -> Inode {
    let node = tree.node(placed.node);
    Inode {
        inline: body.inline_bytes > 0,
        xattr_bytes: body.xattr_bytes,
        mode: format::mode(node),
        size: body.size,
        block_or_device: format::device(node).unwrap_or_else(|| layout.block(placed.node)),
        number: placed.number,
        uid: node.attributes.uid,
        gid: node.attributes.gid,
        mtime: node.attributes.mtime,
        links: directory::links(tree, placed.node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::{Sink, costs::Stopwatch};

    #[test]
    fn an_empty_image_has_a_root_and_two_blocks() {
        let output = tempfile::tempfile().unwrap();
        let mut buffer = vec![0; 2 * BLOCK_BYTES];
        let watch = Stopwatch::start();
        let writer = ImageWriter::new(&output, &mut buffer, 1 << 20, &watch);
        assert_eq!(writer.finish(&Tree::new(10), [1; 16]).unwrap(), 8192);
    }

    #[test]
    fn metadata_that_does_not_fit_is_told_before_it_is_written() {
        let output = tempfile::tempfile().unwrap();
        let mut buffer = vec![0; 2 * BLOCK_BYTES];
        let watch = Stopwatch::start();
        let writer = ImageWriter::new(&output, &mut buffer, BLOCK_BYTES as u64, &watch);
        assert!(matches!(
            writer.finish(&Tree::new(10), [0; 16]),
            Err(UnpackError::NoSpace(4096))
        ));
    }
}
