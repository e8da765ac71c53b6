//! The structures on the disk, all little-endian (`fs/erofs/erofs_fs.h`).

use super::FileData;
use crate::{
    tar::Timestamp,
    unpack::{
        BLOCK_BYTES,
        tree::{self, Content},
    },
};

type Node = tree::Node<FileData>;

/// Bytes of `struct erofs_inode_extended`.
pub const INODE_BYTES: usize = 64;

/// Inodes start at multiples of this; a nid counts them (`EROFS_ISLOTBITS`).
pub const SLOT_BYTES: u64 = 32;

/// Bytes of `struct erofs_dirent`, without its name.
pub const DIRENT_BYTES: usize = 12;

/// Bytes of `struct erofs_xattr_ibody_header`.
pub const XATTR_HEADER_BYTES: usize = 12;

/// Where the superblock starts in its block (`EROFS_SUPER_OFFSET`).
const SUPERBLOCK_OFFSET: usize = 1024;

/// `EROFS_SUPER_MAGIC_V1` (linux/magic.h).
const MAGIC: u32 = 0xe0f5_e1e2;

/// `EROFS_FEATURE_COMPAT_MTIME`: inodes have times of modification.
const FEATURE_COMPAT_MTIME: u32 = 2;

/// `EROFS_INODE_LAYOUT_EXTENDED`.
const EXTENDED: u16 = 1;

/// `EROFS_I_DATALAYOUT_BIT`.
const DATA_LAYOUT_SHIFT: u16 = 1;

/// `EROFS_INODE_FLAT_PLAIN`: all data is in blocks.
const FLAT_PLAIN: u16 = 0;

/// `EROFS_INODE_FLAT_INLINE`: the last, incomplete block stands behind the inode.
const FLAT_INLINE: u16 = 2;

/// `struct erofs_super_block`, the fields that an uncompressed image needs.
pub struct Superblock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub metadata_block: u32,
    pub uuid: [u8; 16],
}

impl Superblock {
    /// The image's first block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            block[SUPERBLOCK_OFFSET + at..SUPERBLOCK_OFFSET + at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &FEATURE_COMPAT_MTIME.to_le_bytes());
        put(12, &[BLOCK_BYTES.trailing_zeros() as u8]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.metadata_block.to_le_bytes());
        put(48, &self.uuid);
        block
    }
}

/// `struct erofs_inode_extended`.
pub struct Inode {
    /// Whether the end of the data stands behind the inode.
    pub inline: bool,
    /// Bytes of extended attributes behind the inode, header included.
    pub xattr_bytes: usize,
    /// Type and permissions.
    pub mode: u16,
    /// Bytes of content.
    pub size: u64,
    /// First block of the content, or the device.
    pub block_or_device: u32,
    /// For 32-bit `stat` only.
    pub number: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub links: u32,
}

impl Inode {
    /// The inode as it is on the disk.
    pub fn encode(&self) -> [u8; INODE_BYTES] {
        let layout = if self.inline { FLAT_INLINE } else { FLAT_PLAIN };
        let format = EXTENDED | layout << DATA_LAYOUT_SHIFT;
        let mut inode = [0; INODE_BYTES];
        let mut put = |at: usize, bytes: &[u8]| inode[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &format.to_le_bytes());
        put(2, &xattr_count(self.xattr_bytes).to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.block_or_device.to_le_bytes());
        put(20, &self.number.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.mtime.seconds.to_le_bytes());
        put(40, &self.mtime.nanoseconds.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        inode
    }
}

/// `i_xattr_icount`: one for the header, one for each four bytes after it.
fn xattr_count(bytes: usize) -> u16 {
    match bytes.checked_sub(XATTR_HEADER_BYTES) {
        Some(entries) => (entries / 4 + 1) as u16,
        None => 0,
    }
}

/// Type and permissions as `stat` gives them (inode(7)).
pub fn mode(node: &Node) -> u16 {
    let permissions = node.attributes.mode;
    match &node.content {
        Content::Fifo => 0o010_000 | permissions,
        Content::CharDevice(_) => 0o020_000 | permissions,
        Content::Directory(_) => 0o040_000 | permissions,
        Content::BlockDevice(_) => 0o060_000 | permissions,
        Content::File(_) => 0o100_000 | permissions,
        // A symbolic link has no permissions of its own on Linux (symlink(7)).
        Content::Symlink(_) => 0o120_777,
    }
}

/// The type of a node in a directory (`fs_types.h`, `FT_*`).
pub fn file_type(node: &Node) -> u8 {
    match &node.content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::CharDevice(_) => 3,
        Content::BlockDevice(_) => 4,
        Content::Fifo => 5,
        Content::Symlink(_) => 7,
    }
}

/// The number of a device node.
pub fn device(node: &Node) -> Option<u32> {
    match node.content {
        Content::CharDevice(device) | Content::BlockDevice(device) => Some(device),
        _ => None,
    }
}

/// Major and minor number in 32 bits, as the kernel's `new_encode_dev` packs them (linux/kdev_t.h). `None` when the
/// kernel has no such device: a major number has 12 bits, a minor 20.
pub fn encode_device((major, minor): (u32, u32)) -> Option<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    Some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_packed_as_the_kernel_does() {
        assert_eq!(encode_device((1, 3)), Some(0x0103));
        assert_eq!(encode_device((8, 0x12345)), Some(0x1230_0845));
        assert_eq!(encode_device((0xfff, 0xf_ffff)), Some(u32::MAX));
        assert_eq!(encode_device((0x1000, 0)), None);
        assert_eq!(encode_device((0, 0x10_0000)), None);
    }

    #[test]
    fn attributes_are_counted_in_words_after_the_header() {
        assert_eq!(xattr_count(0), 0);
        assert_eq!(xattr_count(12), 1);
        assert_eq!(xattr_count(12 + 28), 8);
    }
}
