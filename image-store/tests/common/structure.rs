//! A check of the EROFS images that the unpacker writes, apart from its own code: everything that is reachable from the root
//! lies where it may, and nothing contradicts anything else (kernel: `fs/erofs/erofs_fs.h`).

use std::collections::{HashMap, HashSet};

const BLOCK: u64 = 4096;
const SUPERBLOCK: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const SLOT: u64 = 32;
const INODE: u64 = 64;
const DIRENT: usize = 12;
const DIRECTORY: u16 = 0o040_000;

/// What is wrong with an image.
type Wrong = String;

struct Image<'a> {
    bytes: &'a [u8],
    metadata: u64,
}

struct Inode {
    at: u64,
    mode: u16,
    size: u64,
    links: u32,
    inline: bool,
    block: u32,
    xattr_bytes: u64,
}

/// Looks at everything of an image. Returns the number of its inodes.
pub fn check(bytes: &[u8]) -> Result<u64, Wrong> {
    if bytes.is_empty() || !(bytes.len() as u64).is_multiple_of(BLOCK) {
        return Err(format!("{} bytes are no whole blocks", bytes.len()));
    }
    let mut image = Image { bytes, metadata: 0 };
    let at = |offset: usize| (SUPERBLOCK + offset) as u64;
    if image.u32(at(0))? != MAGIC {
        return Err("no EROFS".into());
    }
    let blocks = u64::from(image.u32(at(36))?);
    if blocks * BLOCK != bytes.len() as u64 {
        return Err(format!("{blocks} blocks in {} bytes", bytes.len()));
    }
    image.metadata = u64::from(image.u32(at(40))?) * BLOCK;
    let root = u64::from(image.u16(at(14))?);
    let inodes = image.u64(at(16))?;
    let found = image.walk(root)?;
    if found != inodes {
        return Err(format!("{found} inodes in place of {inodes}"));
    }
    Ok(inodes)
}

impl Image<'_> {
    /// Visits every directory once, iteratively: an image may be deep.
    fn walk(&self, root: u64) -> Result<u64, Wrong> {
        let mut names: HashMap<u64, u32> = HashMap::new();
        let mut subdirectories: HashMap<u64, u32> = HashMap::new();
        let mut visited = HashSet::new();
        let mut pending = vec![(root, root)];
        names.insert(root, 1);
        while let Some((nid, parent)) = pending.pop() {
            if !visited.insert(nid) {
                return Err(format!("directory {nid} has two parents"));
            }
            for (name, child) in self.entries(nid)? {
                match name.as_slice() {
                    b"." if child == nid => continue,
                    b".." if child == parent => continue,
                    b"." | b".." => return Err(format!("{} of {nid} is {child}", name.escape_ascii())),
                    _ => {}
                }
                *names.entry(child).or_default() += 1;
                if self.inode(child)?.mode & 0o170_000 == DIRECTORY {
                    *subdirectories.entry(nid).or_default() += 1;
                    pending.push((child, nid));
                }
            }
        }
        for (&nid, &count) in &names {
            let inode = self.inode(nid)?;
            let links = match inode.mode & 0o170_000 {
                DIRECTORY => 2 + subdirectories.get(&nid).copied().unwrap_or(0),
                _ => count,
            };
            if inode.links != links {
                return Err(format!("inode {nid} says {} links and has {links}", inode.links));
            }
            self.content(&inode)?;
            self.xattrs(&inode)?;
        }
        Ok(names.len() as u64)
    }

    fn inode(&self, nid: u64) -> Result<Inode, Wrong> {
        let at = self.metadata + nid * SLOT;
        if at / BLOCK != (at + INODE - 1) / BLOCK {
            return Err(format!("inode {nid} crosses a block"));
        }
        let format = self.u16(at)?;
        let words = self.u16(at + 2)?;
        if format & 1 != 1 || !matches!(format >> 1, 0 | 2) {
            return Err(format!("inode {nid} has the format {format}"));
        }
        Ok(Inode {
            at,
            mode: self.u16(at + 4)?,
            size: self.u64(at + 8)?,
            links: self.u32(at + 44)?,
            inline: format >> 1 == 2,
            block: self.u32(at + 16)?,
            xattr_bytes: if words == 0 {
                0
            } else {
                12 + (u64::from(words) - 1) * 4
            },
        })
    }

    /// The pieces of a node's content, all of which must be there.
    fn content(&self, inode: &Inode) -> Result<Vec<&[u8]>, Wrong> {
        if !matches!(inode.mode & 0o170_000, 0o040_000 | 0o100_000 | 0o120_000) {
            return if inode.size == 0 {
                Ok(Vec::new())
            } else {
                Err("a device has content".into())
            };
        }
        let tail = if inode.inline { inode.size % BLOCK } else { 0 };
        let outside = inode.size - tail;
        let mut pieces = Vec::new();
        if outside > 0 {
            let start = u64::from(inode.block) * BLOCK;
            if start == 0 {
                return Err("content in the superblock".into());
            }
            pieces.push(self.slice(start, outside)?);
        }
        if tail > 0 {
            let start = inode.at + INODE + inode.xattr_bytes;
            if start / BLOCK != (start + tail - 1) / BLOCK {
                return Err(format!("the end of the inode at {} crosses a block", inode.at));
            }
            pieces.push(self.slice(start, tail)?);
        }
        Ok(pieces)
    }

    /// The entries of a directory, which must be in order and have names that a file can have.
    fn entries(&self, nid: u64) -> Result<Vec<(Vec<u8>, u64)>, Wrong> {
        let inode = self.inode(nid)?;
        let mut entries: Vec<(Vec<u8>, u64)> = Vec::new();
        let pieces = self.content(&inode)?;
        for block in pieces.into_iter().flat_map(|piece| piece.chunks(BLOCK as usize)) {
            let field = |at: usize| -> Result<u16, Wrong> {
                let bytes = block.get(at..at + 2).ok_or("a directory is cut off")?;
                Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
            };
            let first = usize::from(field(8)?);
            if first == 0 || !first.is_multiple_of(DIRENT) || first > block.len() {
                return Err(format!("directory {nid}: names from {first} on"));
            }
            let count = first / DIRENT;
            for index in 0..count {
                let entry = &block[index * DIRENT..(index + 1) * DIRENT];
                let start = usize::from(field(index * DIRENT + 8)?);
                let end = if index + 1 < count {
                    usize::from(field((index + 1) * DIRENT + 8)?)
                } else {
                    block.len()
                };
                let mut name = block.get(start..end).ok_or("a name is cut off")?;
                if index + 1 == count {
                    name = &name[..name.iter().position(|&byte| byte == 0).unwrap_or(name.len())];
                }
                if name.is_empty() || name.len() > 255 || name.contains(&b'/') || name.contains(&0) {
                    return Err(format!("directory {nid}: bad name {}", name.escape_ascii()));
                }
                if entries
                    .last()
                    .is_some_and(|(before, _)| before.as_slice() >= name)
                {
                    return Err(format!(
                        "directory {nid}: {} is out of order",
                        name.escape_ascii()
                    ));
                }
                let mut number = [0; 8];
                number.copy_from_slice(&entry[..8]);
                let child = u64::from_le_bytes(number);
                let kind = self.inode(child)?.mode & 0o170_000;
                let types = [
                    0, 0o100_000, 0o040_000, 0o020_000, 0o060_000, 0o010_000, 0o140_000, 0o120_000,
                ];
                if types.get(usize::from(entry[10])) != Some(&kind) {
                    return Err(format!(
                        "directory {nid}: {} is of another type",
                        name.escape_ascii()
                    ));
                }
                entries.push((name.to_vec(), child));
            }
        }
        for own in [&b"."[..], b".."] {
            if !entries.iter().any(|(name, _)| name == own) {
                return Err(format!("directory {nid} has no {}", own.escape_ascii()));
            }
        }
        Ok(entries)
    }

    fn xattrs(&self, inode: &Inode) -> Result<(), Wrong> {
        let end = inode.at + INODE + inode.xattr_bytes;
        self.slice(inode.at, end - inode.at)?;
        let mut at = inode.at + INODE + 12;
        while at < end {
            let (name, index, value) = (
                self.slice(at, 1)?[0],
                self.slice(at + 1, 1)?[0],
                self.u16(at + 2)?,
            );
            if !matches!(index, 1..=4 | 6) {
                return Err(format!("an attribute of the namespace {index}"));
            }
            at += (4 + u64::from(name) + u64::from(value)).next_multiple_of(4);
        }
        if inode.xattr_bytes > 0 && at != end {
            return Err("attributes end elsewhere".into());
        }
        Ok(())
    }

    fn slice(&self, at: u64, count: u64) -> Result<&[u8], Wrong> {
        let end = at
            .checked_add(count)
            .filter(|&end| end <= self.bytes.len() as u64);
        let end = end.ok_or_else(|| format!("{count} bytes at {at} lie outside"))?;
        Ok(&self.bytes[at as usize..end as usize])
    }

    fn u16(&self, at: u64) -> Result<u16, Wrong> {
        self.slice(at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&self, at: u64) -> Result<u32, Wrong> {
        self.slice(at, 4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&self, at: u64) -> Result<u64, Wrong> {
        Ok(u64::from(self.u32(at)?) | u64::from(self.u32(at + 4)?) << 32)
    }
}
