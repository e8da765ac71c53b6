//! The pages that a start touches: recorded once, and mapped ahead of every further restore, so that the guest does not
//! stop for each of them.
//!
//! ```text
//! 0  8  "brig-pg\n"
//! 8  …  ranges: first page (u32 LE), pages (u31 LE) and whether they are written to (top bit), in order, apart
//! ```

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
};

use vm_memory::GuestMemoryBackend;

use crate::{
    jail::filters::Kind,
    memory::{self, Memory, MemoryError},
    threads::Crew,
};

const MAGIC: [u8; 8] = *b"brig-pg\n";

/// Most ranges of a file. A start touches some hundreds.
const RANGES_MAX: usize = 1 << 16;

const RANGE_BYTES: usize = 8;
const WRITTEN: u32 = 1 << 31;
const PAGE_BYTES: usize = 4096;

/// Bits of an entry in /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;
const ENTRY_BYTES: usize = 8;

/// Entries of the page map that are read at once.
const BATCH: usize = 8192;

/// Consecutive pages of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: u32,
    pages: u32,
    written: bool,
}

/// Writes which pages of a restored guest's `memory` are mapped now to `file`, which is empty; returns how many. `pagemap` is
/// this process's `/proc/self/pagemap`, opened by someone who may. A page that is not the saved file's any more has been
/// written to.
///
/// # Errors
/// Those of reading and writing.
pub fn record(memory: &Memory, pagemap: &File, file: &File) -> io::Result<u64> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut entries = vec![0; BATCH * ENTRY_BYTES];
    let mut base = 0;
    for region in memory.iter() {
        let pages = region.size() / PAGE_BYTES;
        for start in (0..pages).step_by(BATCH) {
            let batch = &mut entries[..BATCH.min(pages - start) * ENTRY_BYTES];
            let address = region.as_ptr() as usize + start * PAGE_BYTES;
            pagemap.read_exact_at(batch, (address / PAGE_BYTES * ENTRY_BYTES) as u64)?;
            for (page, entry) in (base + start..).zip(batch.chunks_exact(ENTRY_BYTES)) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                if entry & PRESENT != 0 {
                    add(&mut ranges, page as u32, entry & OF_FILE == 0);
                }
            }
        }
        base += pages;
    }
    ranges.truncate(RANGES_MAX);
    let mut bytes = MAGIC.to_vec();
    for range in &ranges {
        let written = if range.written { WRITTEN } else { 0 };
        bytes.extend(range.first.to_le_bytes());
        bytes.extend((range.pages | written).to_le_bytes());
    }
    file.write_all_at(&bytes, 0)?;
    Ok(ranges.iter().map(|range| u64::from(range.pages)).sum())
}

fn add(ranges: &mut Vec<Range>, page: u32, written: bool) {
    match ranges.last_mut() {
        Some(last) if last.written == written && last.first + last.pages == page => last.pages += 1,
        _ => ranges.push(Range {
            first: page,
            pages: 1,
            written,
        }),
    }
}

/// Reads what [`record`] wrote for a guest with `memory_bytes`.
///
/// # Errors
/// `InvalidData` for anything else, and for ranges that do not lie in that memory.
pub fn read(file: &File, memory_bytes: u64) -> io::Result<Vec<Range>> {
    let length = file.metadata()?.len();
    if length > (MAGIC.len() + RANGES_MAX * RANGE_BYTES) as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    parse(&bytes, memory_bytes).ok_or(io::ErrorKind::InvalidData.into())
}

/// The ranges in the bytes of a file; `None` when they are none.
pub fn parse(bytes: &[u8], memory_bytes: u64) -> Option<Vec<Range>> {
    let ranges = bytes.strip_prefix(&MAGIC)?;
    if ranges.len() % RANGE_BYTES != 0 {
        return None;
    }
    let mut next = 0;
    ranges
        .chunks_exact(RANGE_BYTES)
        .map(|range| {
            let first = u32::from_le_bytes(range[..4].try_into().ok()?);
            let pages = u32::from_le_bytes(range[4..].try_into().ok()?);
            let range = Range {
                first,
                pages: pages & !WRITTEN,
                written: pages & WRITTEN != 0,
            };
            let end = u64::from(first) + u64::from(range.pages);
            if u64::from(first) < next || range.pages == 0 || end > memory_bytes / PAGE_BYTES as u64 {
                return None;
            }
            next = end;
            Some(range)
        })
        .collect()
}

/// The memory of a saved guest, mapped before it is known what the guest is for, with the pages that a start touches.
#[derive(Debug)]
pub struct MappedAhead {
    /// Device and inode of the file.
    file: (u64, u64),
    memory: Arc<Memory>,
}

impl MappedAhead {
    /// Maps `saved` and all of `pages`, which [`record`] wrote. As nothing else runs in this process yet, no other CPU has to
    /// be told of each page, which costs more than the page where CPUs are virtual.
    ///
    /// # Errors
    /// Those of [`memory::restore`] and [`read`].
    pub fn new(saved: File, pages: &File) -> Result<Self, MemoryError> {
        let metadata = saved.metadata().map_err(MemoryError::File)?;
        let ranges = read(pages, metadata.len()).map_err(MemoryError::File)?;
        let memory = memory::restore(saved, metadata.len())?;
        for range in ranges {
            populate(&memory, range);
        }
        Ok(Self {
            file: (metadata.dev(), metadata.ino()),
            memory,
        })
    }

    /// The memory, if it is that of the file `saved` and has so many bytes.
    pub fn into_memory_of(self, saved: &File, bytes: u64) -> Option<Arc<Memory>> {
        let metadata = saved.metadata().ok()?;
        ((metadata.dev(), metadata.ino()) == self.file && memory::total(&self.memory) == bytes)
            .then_some(self.memory)
    }
}

/// Maps `ranges` of `memory` in a thread of `crew`, while the guest runs already: what comes too late is mapped by the guest's
/// own access. The pages that are written to get their copies now.
///
/// # Errors
/// Those of creating a thread.
pub fn start(crew: &mut Crew, memory: Arc<Memory>, ranges: Vec<Range>) -> io::Result<()> {
    crew.spawn("prefetch", Kind::Prefetch, move || {
        for range in ranges {
            populate(&memory, range);
        }
    })?;
    Ok(())
}

fn populate(memory: &Memory, range: Range) {
    let advice = if range.written {
        libc::MADV_POPULATE_WRITE
    } else {
        libc::MADV_POPULATE_READ
    };
    let (mut first, mut pages) = (range.first as usize, range.pages as usize);
    for region in memory.iter() {
        let of_region = region.size() / PAGE_BYTES;
        if first < of_region {
            let here = pages.min(of_region - first);
            let address = region.as_ptr().wrapping_add(first * PAGE_BYTES);
            // SAFETY: the pages lie in the region's live mapping, which `memory` keeps; their content stays as it is. It fails on
            // kernels before 5.14, where the guest's own accesses map them.
            unsafe { libc::madvise(address.cast(), here * PAGE_BYTES, advice) };
            pages -= here;
            first += here;
        }
        if pages == 0 {
            return;
        }
        first -= of_region;
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const BYTES: u64 = 1 << 20;

    #[test]
    fn what_was_touched_is_recorded_and_mapped_again() {
        let saved = tempfile::tempfile().unwrap();
        saved.set_len(BYTES).unwrap();
        let touched = memory::restore(saved.try_clone().unwrap(), BYTES).unwrap();
        let page = |page: u64| GuestAddress(page * PAGE_BYTES as u64);
        for written in [3, 4, 9] {
            touched.write_obj(7u8, page(written)).unwrap();
        }
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let file = tempfile::tempfile().unwrap();
        assert!(record(&touched, &pagemap, &file).unwrap() >= 3);
        let ranges = read(&file, BYTES).unwrap();
        let written: Vec<_> = ranges.iter().filter(|range| range.written).collect();
        assert_eq!(
            written
                .iter()
                .map(|range| (range.first, range.pages))
                .collect::<Vec<_>>(),
            [(3, 2), (9, 1)]
        );
        let again = memory::restore(saved, BYTES).unwrap();
        for range in &ranges {
            populate(&again, *range);
        }
        let second = tempfile::tempfile().unwrap();
        record(&again, &pagemap, &second).unwrap();
        let mapped = read(&second, BYTES).unwrap();
        assert!(written.iter().all(|range| mapped.contains(range)), "{mapped:?}");
        assert_eq!(again.read_obj::<u8>(page(3)).unwrap(), 0);
    }

    #[test]
    fn memory_that_was_mapped_ahead_serves_its_own_file_only() {
        let saved = tempfile::tempfile().unwrap();
        saved.set_len(BYTES).unwrap();
        saved.write_all_at(b"saved", 5 * PAGE_BYTES as u64).unwrap();
        let pages = tempfile::tempfile().unwrap();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(5u32.to_le_bytes());
        bytes.extend((1u32 | WRITTEN).to_le_bytes());
        pages.write_all_at(&bytes, 0).unwrap();
        let map = || MappedAhead::new(saved.try_clone().unwrap(), &pages).unwrap();
        let other = tempfile::tempfile().unwrap();
        other.set_len(BYTES).unwrap();
        assert!(map().into_memory_of(&other, BYTES).is_none());
        assert!(map().into_memory_of(&saved, BYTES * 2).is_none());
        let memory = map().into_memory_of(&saved, BYTES).unwrap();
        let mut found = [0; 5];
        memory
            .read_slice(&mut found, GuestAddress(5 * PAGE_BYTES as u64))
            .unwrap();
        assert_eq!(&found, b"saved");
        assert!(MappedAhead::new(saved.try_clone().unwrap(), &other).is_err());
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        let file = |ranges: &[(u32, u32)]| {
            let mut bytes = MAGIC.to_vec();
            for (first, pages) in ranges {
                bytes.extend(first.to_le_bytes());
                bytes.extend(pages.to_le_bytes());
            }
            bytes
        };
        assert_eq!(parse(&file(&[(0, 1), (1, 255)]), BYTES).unwrap().len(), 2);
        for bad in [
            file(&[(0, 257)]),
            file(&[(256, 1)]),
            file(&[(u32::MAX, u32::MAX)]),
            file(&[(5, 1), (4, 1)]),
            file(&[(5, 2), (6, 1)]),
            file(&[(5, 0)]),
            file(&[(0, 1)])[..12].to_vec(),
            b"brig-vm\n".to_vec(),
            Vec::new(),
        ] {
            assert_eq!(parse(&bad, BYTES), None, "{bad:?}");
        }
    }
}
