//! The guest's memory: one memfd, mapped once, shown to KVM as one or two slots around the hole for devices.

use std::{fs::File, io, os::fd::AsFd, sync::Arc};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap, MmapRegion, mmap::MmapRegionError,
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
    /// The regions do not fit together.
    #[error("Cannot lay out the guest's memory")]
    Layout(#[source] GuestRegionCollectionError),
}

/// Makes `bytes` of zeroed guest memory, a multiple of the page size. Nothing is allocated before it is touched.
///
/// # Errors
/// [`MemoryError`] when the memfd cannot be made or mapped.
pub fn create(bytes: u64) -> Result<Arc<Memory>, MemoryError> {
    let file = Arc::new(backing_file(bytes).map_err(MemoryError::File)?);
    let low = bytes.min(DEVICE_HOLE_START);
    let mut regions = vec![map(&file, 0, low, GuestAddress(0))?];
    if bytes > low {
        regions.push(map(&file, low, bytes - low, GuestAddress(DEVICE_HOLE_END))?);
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
) -> Result<GuestRegionMmap, MemoryError> {
    // A restored guest will map its snapshot MAP_PRIVATE in place of this.
    let region = MmapRegion::build(
        Some(FileOffset::from_arc(Arc::clone(file), offset)),
        bytes as usize,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_NORESERVE,
    )
    .map_err(MemoryError::Map)?;
    // `base + bytes` cannot overflow: the sizes are bounded by `MEMORY_MIB_MAX`.
    GuestRegionMmap::new(region, base).ok_or(MemoryError::Layout(GuestRegionCollectionError::NoMemoryRegion))
}

/// The memory file and the offset in it at which the mapped byte at `address` lies.
pub fn backing(memory: &Memory, address: *const u8) -> Option<(&File, u64)> {
    memory.iter().find_map(|region| {
        let offset = (address as usize).checked_sub(region.as_ptr() as usize)?;
        let file = region.file_offset()?;
        (offset < region.size()).then(|| (file.file(), file.start() + offset as u64))
    })
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
