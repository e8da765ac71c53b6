//! The guest's memory: one file, mapped once, shown to KVM as one or two slots around the hole for devices. The file is a
//! memfd, or the saved memory of a guest, of which each restored guest has a private copy-on-write mapping.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::Arc,
};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap, MemoryRegionAddress, MmapRegion, VolatileSlice,
    mmap::MmapRegionError,
};

use crate::layout::{DEVICE_HOLE_END, DEVICE_HOLE_START};

/// The guest's memory as the devices see it. Every access is checked against its bounds.
pub type Memory = GuestMemoryMmap<()>;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd failed.
    #[error("Cannot create the memory file")]
    File(#[source] io::Error),
    /// mmap(2) failed.
    #[error("Cannot map the guest's memory")]
    Map(#[source] MmapRegionError),
    /// The saved memory has another size than the guest.
    #[error("The file of the saved memory has {file} bytes, not {memory}")]
    Length {
        /// Bytes of the file.
        file: u64,
        /// Bytes of the guest's memory.
        memory: u64,
    },
    /// Saving failed.
    #[error("Cannot write the guest's memory")]
    Save(#[source] io::Error),
    /// The regions do not fit together.
    #[error("Cannot lay out the guest's memory")]
    Layout(#[source] GuestRegionCollectionError),
}

/// Makes `bytes` of zeroed guest memory, a multiple of the page size. Nothing is allocated before it is touched.
///
/// # Errors
/// [`MemoryError`] when the memfd cannot be made or mapped.
pub fn create(bytes: u64) -> Result<Arc<Memory>, MemoryError> {
    let file = backing_file(bytes).map_err(MemoryError::File)?;
    lay_out(file, bytes, libc::MAP_SHARED)
}

/// Memory with the content of `saved`, which [`save`] wrote from a guest with `bytes` of memory. Pages are shared with all
/// others who use the file until they are written to; the file itself is never changed.
///
/// # Errors
/// [`MemoryError::Length`] for a file of another size, [`MemoryError::Map`].
pub fn restore(saved: File, bytes: u64) -> Result<Arc<Memory>, MemoryError> {
    let file = saved.metadata().map_err(MemoryError::File)?.len();
    if file != bytes {
        return Err(MemoryError::Length { file, memory: bytes });
    }
    lay_out(saved, bytes, libc::MAP_PRIVATE)
}

fn lay_out(file: File, bytes: u64, sharing: i32) -> Result<Arc<Memory>, MemoryError> {
    let file = Arc::new(file);
    let low = bytes.min(DEVICE_HOLE_START);
    let mut regions = vec![map(&file, 0, low, GuestAddress(0), sharing)?];
    if bytes > low {
        regions.push(map(
            &file,
            low,
            bytes - low,
            GuestAddress(DEVICE_HOLE_END),
            sharing,
        )?);
    }
    Ok(Arc::new(
        Memory::from_regions(regions).map_err(MemoryError::Layout)?,
    ))
}

/// A memfd of `bytes`, sealed so that no later truncation can turn an access into SIGBUS.
fn backing_file(bytes: u64) -> io::Result<File> {
    let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, bytes)?;
    fcntl_add_seals(
        file.as_fd(),
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(File::from(file))
}

fn map(
    file: &Arc<File>,
    offset: u64,
    bytes: u64,
    base: GuestAddress,
    sharing: i32,
) -> Result<GuestRegionMmap, MemoryError> {
    let region = MmapRegion::build(
        Some(FileOffset::from_arc(Arc::clone(file), offset)),
        bytes as usize,
        libc::PROT_READ | libc::PROT_WRITE,
        sharing | libc::MAP_NORESERVE,
    )
    .map_err(MemoryError::Map)?;
    // `base + bytes` cannot overflow: the sizes are bounded by `MEMORY_MIB_MAX`.
    GuestRegionMmap::new(region, base).ok_or(MemoryError::Layout(GuestRegionCollectionError::NoMemoryRegion))
}

/// Bytes that are looked at together when memory is saved.
const SAVE_BYTES: usize = 64 * PAGE_BYTES;

const PAGE_BYTES: usize = 4096;

/// Writes the memory of a guest that stands still to `file`, which is empty: a hole for each page of zeros, so that the file
/// is as long as the memory and takes no more space than is used. Returns the bytes that are not holes.
///
/// # Errors
/// [`MemoryError::Save`].
pub fn save(memory: &Memory, file: &File) -> Result<u64, MemoryError> {
    let mut written = 0;
    let mut offset = 0;
    for region in memory.iter() {
        written += save_region(region, file, offset).map_err(MemoryError::Save)?;
        offset += region.len();
    }
    ftruncate(file, offset).map_err(|e| MemoryError::Save(e.into()))?;
    Ok(written)
}

fn save_region(region: &GuestRegionMmap, file: &File, start: u64) -> io::Result<u64> {
    let bytes = region.size();
    let mut buffer = vec![0; SAVE_BYTES];
    let mut resident = [0; SAVE_BYTES / PAGE_BYTES];
    let mut written = 0;
    for offset in (0..bytes).step_by(SAVE_BYTES) {
        let length = SAVE_BYTES.min(bytes - offset);
        let pages = length / PAGE_BYTES;
        find_resident(region, offset, length, &mut resident[..pages])?;
        if resident[..pages].iter().all(|&page| page & 1 == 0) {
            continue;
        }
        let buffer = &mut buffer[..length];
        region
            .read_slice(buffer, MemoryRegionAddress(offset as u64))
            .map_err(io::Error::other)?;
        for run in used_runs(buffer) {
            file.write_all_at(&buffer[run.clone()], start + (offset + run.start) as u64)?;
            written += run.len() as u64;
        }
    }
    Ok(written)
}

/// Marks the pages that may hold something in bit 0 of `pages`: what is neither mapped, nor in the page cache of the file
/// behind the mapping, nor data of that file on disk has never been written.
fn find_resident(region: &GuestRegionMmap, offset: usize, length: usize, pages: &mut [u8]) -> io::Result<()> {
    if let Some(file) = region.file_offset()
        && region.flags() & libc::MAP_PRIVATE != 0
        && has_data(file.file(), file.start() + offset as u64, length as u64)?
    {
        pages.fill(1);
        return Ok(());
    }
    // SAFETY: the range lies in the region's live mapping, and `pages` has a byte for each of its pages.
    let result = unsafe {
        libc::mincore(
            region.as_ptr().wrapping_add(offset).cast(),
            length,
            pages.as_mut_ptr(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a part of a file is not all hole (lseek(2), `SEEK_DATA`).
fn has_data(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(data < offset + length),
        Err(rustix::io::Errno::NXIO) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The stretches of `bytes` that consist of pages with something other than zeros.
fn used_runs(bytes: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let is_zero = |at: usize| bytes[at..at + PAGE_BYTES].iter().all(|&byte| byte == 0);
        while next < bytes.len() && is_zero(next) {
            next += PAGE_BYTES;
        }
        let start = next;
        while next < bytes.len() && !is_zero(next) {
            next += PAGE_BYTES;
        }
        (start < next).then_some(start..next)
    })
}

/// Gives pages of the guest's back to the host: they are not in memory any more, and the guest finds zeros there, or what the saved
/// memory has, when it touches them again. `part` is whole pages of `memory`.
///
/// # Errors
/// `InvalidInput` for anything else; those of madvise(2).
pub fn give_back(memory: &Memory, part: &VolatileSlice<'_>) -> io::Result<()> {
    let pages = part.ptr_guard_mut();
    let (start, bytes) = (pages.as_ptr() as usize, part.len());
    let region = memory.iter().find(|region| {
        let offset = start.checked_sub(region.as_ptr() as usize);
        offset.is_some_and(|offset| offset < region.size() && bytes <= region.size() - offset)
    });
    let Some(region) = region.filter(|_| start % PAGE_BYTES == 0 && bytes % PAGE_BYTES == 0) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let advice = if region.flags() & libc::MAP_PRIVATE == 0 {
        // Out of the file, not out of the mapping alone: the memfd would keep them.
        libc::MADV_REMOVE
    } else {
        // The copies go, of which nobody else knows.
        libc::MADV_DONTNEED
    };
    // SAFETY: the pages lie in the region's live mapping, which stays; their content changes as the guest itself may change it at any
    // time, and no Rust reference points there.
    if unsafe { libc::madvise(pages.as_ptr().cast(), bytes, advice) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The memory file and the offset in it at which the mapped byte at `address` lies.
pub fn backing(memory: &Memory, address: *const u8) -> Option<(&File, u64)> {
    memory.iter().find_map(|region| {
        let offset = (address as usize).checked_sub(region.as_ptr() as usize)?;
        let file = region.file_offset()?;
        (offset < region.size()).then(|| (file.file(), file.start() + offset as u64))
    })
}

/// Bytes of the guest's memory.
pub fn total(memory: &Memory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// First byte after the RAM below the hole for devices.
pub fn low_end(memory: &Memory) -> u64 {
    // The first region starts at 0, so its length is its end.
    memory.iter().next().map_or(0, GuestMemoryRegion::len)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_that_fits_below_the_hole_is_one_region() {
        let memory = create(64 << 20).unwrap();
        assert_eq!(memory.num_regions(), 1);
        assert_eq!(low_end(&memory), 64 << 20);
        assert!(memory.write_obj(1u8, GuestAddress(64 << 20)).is_err());
    }

    #[test]
    fn each_byte_is_found_in_the_file() {
        let memory = create(DEVICE_HOLE_START + (1 << 20)).unwrap();
        for (guest, offset) in [(0, 0), (5000, 5000), (DEVICE_HOLE_END + 7, DEVICE_HOLE_START + 7)] {
            let address = memory.get_host_address(GuestAddress(guest)).unwrap();
            assert_eq!(backing(&memory, address).unwrap().1, offset);
        }
        assert!(backing(&memory, std::ptr::null()).is_none());
    }

    #[test]
    fn memory_over_the_hole_continues_at_4_gib() {
        let memory = create(DEVICE_HOLE_START + (1 << 20)).unwrap();
        assert_eq!(memory.num_regions(), 2);
        assert_eq!(low_end(&memory), DEVICE_HOLE_START);
        memory
            .write_obj(7u8, GuestAddress(DEVICE_HOLE_END + (1 << 20) - 1))
            .unwrap();
        assert!(memory.write_obj(7u8, GuestAddress(DEVICE_HOLE_START)).is_err());
        assert!(
            memory
                .write_obj(7u8, GuestAddress(DEVICE_HOLE_END + (1 << 20)))
                .is_err()
        );
    }
}
