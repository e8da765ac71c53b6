//! What a disk consists of on the host: files one after the other, read and written by vectored I/O.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use crate::devices::virtio::chain::Buffers;

/// Unit of a disk's size and of requests (virtio 1.2, 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Each segment starts at a multiple of this.
pub const SEGMENT_ALIGNMENT: u64 = 4096;

/// A whole file as a part of a disk.
#[derive(Debug)]
struct Segment {
    /// First byte on the disk.
    start: u64,
    /// Bytes of the file.
    bytes: u64,
    file: File,
}

/// A disk of a fixed size.
#[derive(Debug)]
pub struct Disk {
    segments: Vec<Segment>,
    bytes: u64,
    writable: bool,
}

impl Disk {
    /// A read-only disk of `files` with their lengths in bytes. What lies between the end of a file and the next multiple
    /// of [`SEGMENT_ALIGNMENT`] reads as zeros. `None` when it would be longer than a file can be.
    pub fn read_only(files: Vec<(File, u64)>) -> Option<Self> {
        let mut segments = Vec::with_capacity(files.len());
        let mut end = 0u64;
        for (file, bytes) in files {
            segments.push(Segment {
                start: end,
                bytes,
                file,
            });
            end = end
                .checked_add(bytes)?
                .checked_next_multiple_of(SEGMENT_ALIGNMENT)?;
        }
        i64::try_from(end).ok()?;
        Some(Self {
            segments,
            bytes: end,
            writable: false,
        })
    }

    /// A writable slot without a disk: every request for data fails.
    pub fn empty_slot() -> Self {
        Self {
            segments: Vec::new(),
            bytes: 0,
            writable: true,
        }
    }

    /// A writable disk: the first `bytes` of `file`, whole sectors.
    pub fn writable(file: File, bytes: u64) -> Self {
        Self {
            segments: vec![Segment {
                start: 0,
                bytes,
                file,
            }],
            bytes: bytes / SECTOR_BYTES * SECTOR_BYTES,
            writable: true,
        }
    }

    /// Size in bytes, a multiple of [`SECTOR_BYTES`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it may be written to.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Fills `buffers` from `offset` on.
    ///
    /// # Errors
    /// Those of preadv(2); `UnexpectedEof` past the end of the disk or when a file has become shorter.
    pub fn read(&self, offset: u64, mut buffers: Buffers<'_>) -> io::Result<()> {
        self.check_range(offset, buffers.len() as u64)?;
        let mut offset = offset;
        let mut segment = self.segments.partition_point(|segment| segment.start <= offset);
        while !buffers.is_empty() {
            // The first segment starts at 0, and the offset lies within the disk: there is one before.
            let current = &self.segments[segment - 1];
            let next_start = self.segments.get(segment).map_or(self.bytes, |next| next.start);
            let data_end = current.start + current.bytes;
            let part_end = if offset < data_end { data_end } else { next_start };
            let part = (part_end - offset).min(buffers.len() as u64);
            let front = buffers.split_off_front(part as usize).map_err(io::Error::other)?;
            if offset < data_end {
                read_all(&current.file, offset - current.start, front)?;
            } else {
                front.zero();
            }
            offset += part;
            if offset == next_start {
                segment += 1;
            }
        }
        Ok(())
    }

    /// Writes `buffers` from `offset` on.
    ///
    /// # Errors
    /// Those of pwritev(2); `PermissionDenied` on a read-only disk; `UnexpectedEof` past the end of the disk.
    pub fn write(&self, offset: u64, mut buffers: Buffers<'_>) -> io::Result<()> {
        self.check_range(offset, buffers.len() as u64)?;
        let file = self.writable_file()?;
        let mut offset = offset;
        while !buffers.is_empty() {
            let vectors = buffers.io_vectors();
            // SAFETY: each vector lies in guest memory, which `buffers` borrows; the kernel only reads from it.
            let written = unsafe {
                libc::pwritev(
                    file.as_raw_fd(),
                    vectors.as_ptr(),
                    vectors.len() as i32,
                    offset as i64,
                )
            };
            offset += advance(&mut buffers, written, io::ErrorKind::WriteZero)?;
        }
        Ok(())
    }

    /// Waits until everything written is on the host's disk.
    ///
    /// # Errors
    /// Those of fdatasync(2).
    pub fn flush(&self) -> io::Result<()> {
        match &*self.segments {
            [segment] if self.writable => Ok(fdatasync(&segment.file)?),
            _ => Ok(()),
        }
    }

    /// Makes `bytes` from `offset` on read as zeros; gives their space back to the host when `unmap` says so.
    ///
    /// # Errors
    /// Those of fallocate(2); see [`Disk::write`] for the others.
    pub fn zero(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        self.check_range(offset, bytes)?;
        let how = if unmap {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        if bytes > 0 {
            fallocate(
                self.writable_file()?.as_fd(),
                how | FallocateFlags::KEEP_SIZE,
                offset,
                bytes,
            )?;
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn writable_file(&self) -> io::Result<&File> {
        match &*self.segments {
            [segment] if self.writable => Ok(&segment.file),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

fn read_all(file: &File, offset: u64, mut buffers: Buffers<'_>) -> io::Result<()> {
    let mut offset = offset;
    while !buffers.is_empty() {
        let vectors = buffers.io_vectors();
        // SAFETY: each vector lies in guest memory, which `buffers` borrows and which only the guest shares: any bytes may
        // be written there.
        let read = unsafe {
            libc::preadv(
                file.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as i32,
                offset as i64,
            )
        };
        offset += advance(&mut buffers, read, io::ErrorKind::UnexpectedEof)?;
    }
    Ok(())
}

/// Takes what a system call has `done` off the front of `buffers`; `at_end` is the error for nothing.
fn advance(buffers: &mut Buffers<'_>, done: isize, at_end: io::ErrorKind) -> io::Result<u64> {
    match usize::try_from(done) {
        Ok(0) => Err(at_end.into()),
        Ok(done) => {
            buffers.split_off_front(done).map_err(io::Error::other)?;
            Ok(done as u64)
        }
        Err(_) => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            e => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{devices::virtio::chain::tests::buffers, memory};

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn segments_are_read_one_after_the_other_with_zeros_between() {
        let disk = Disk::read_only(vec![
            (file(&[1; 5000]), 5000),
            (file(&[2; 4096]), 4096),
            (file(&[3; 1]), 1),
        ])
        .unwrap();
        assert_eq!(disk.bytes(), 8192 + 4096 + 4096);
        let memory = memory::create(1 << 20).unwrap();
        let target = || buffers(&memory, &[(0, 1), (4096, 16383)]);
        target().write(&[0xee; 16384]);
        disk.read(0, target()).unwrap();
        let mut content = vec![0; 16384];
        target().read(&mut content);
        let expected: Vec<u8> = [(1, 5000), (0, 3192), (2, 4096), (3, 1), (0, 4095)]
            .into_iter()
            .flat_map(|(byte, count)| std::iter::repeat_n(byte, count))
            .collect();
        assert!(content == expected);
    }

    #[test]
    fn a_read_may_start_in_a_gap_and_end_at_the_end() {
        let disk = Disk::read_only(vec![(file(&[1; 10]), 10), (file(&[]), 0), (file(&[2; 10]), 10)]).unwrap();
        let memory = memory::create(1 << 20).unwrap();
        disk.read(4095, buffers(&memory, &[(0, 2)])).unwrap();
        let mut read = [9; 2];
        buffers(&memory, &[(0, 2)]).read(&mut read);
        assert_eq!(read, [0, 2]);
        disk.read(8192, buffers(&memory, &[])).unwrap();
        assert!(disk.read(8191, buffers(&memory, &[(0, 2)])).is_err());
        assert!(disk.read(u64::MAX, buffers(&memory, &[(0, 2)])).is_err());
    }

    #[test]
    fn a_file_that_has_become_shorter_is_an_error() {
        let file = file(&[1; 4096]);
        file.set_len(100).unwrap();
        let disk = Disk::read_only(vec![(file, 4096)]).unwrap();
        let memory = memory::create(1 << 20).unwrap();
        let error = disk.read(0, buffers(&memory, &[(0, 4096)])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_written_is_read_back_and_zeroed() {
        let disk = Disk::writable(file(&[7; 8192]), 8192);
        let memory = memory::create(1 << 20).unwrap();
        buffers(&memory, &[(0, 4096)]).write(&[9; 4096]);
        disk.write(4096, buffers(&memory, &[(0, 4000), (4000, 96)]))
            .unwrap();
        disk.flush().unwrap();
        disk.zero(0, 512, true).unwrap();
        disk.read(0, buffers(&memory, &[(8192, 8192)])).unwrap();
        let mut content = vec![0; 8192];
        buffers(&memory, &[(8192, 8192)]).read(&mut content);
        assert!(content[..512].iter().all(|&byte| byte == 0));
        assert!(content[512..4096].iter().all(|&byte| byte == 7));
        assert!(content[4096..].iter().all(|&byte| byte == 9));
        assert!(disk.write(8191, buffers(&memory, &[(0, 2)])).is_err());
        assert!(disk.zero(8192, 1, true).is_err());
    }

    /// GHSA-jmr4-g2hv-mjj6, the format of an image guessed from what its guest has written: a disk is what it is said to be. One that
    /// begins as an image of QEMU's whose backing file is the host's is the same bytes as any other, as long as before.
    #[test]
    fn a_disk_that_begins_like_another_format_is_the_bytes_that_it_is() {
        let mut content = vec![0; 4096];
        content[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        content[8..16].copy_from_slice(&512u64.to_be_bytes()); // backing_file_offset
        content[16..20].copy_from_slice(&11u32.to_be_bytes()); // backing_file_size
        content[24..32].copy_from_slice(&(1u64 << 40).to_be_bytes()); // size
        content[512..523].copy_from_slice(b"/etc/passwd");
        let memory = memory::create(1 << 20).unwrap();
        for disk in [
            Disk::writable(file(&content), 4096),
            Disk::read_only(vec![(file(&content), 4096)]).unwrap(),
        ] {
            assert_eq!(disk.bytes(), 4096);
            disk.read(0, buffers(&memory, &[(0, 4096)])).unwrap();
            let mut read = vec![0; 4096];
            buffers(&memory, &[(0, 4096)]).read(&mut read);
            assert!(read == content);
        }
    }

    #[test]
    fn a_read_only_disk_is_not_written_to() {
        let disk = Disk::read_only(vec![(file(&[1; 4096]), 4096)]).unwrap();
        let memory = memory::create(1 << 20).unwrap();
        let error = disk.write(0, buffers(&memory, &[(0, 512)])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(disk.zero(0, 512, true).is_err());
        disk.flush().unwrap();
    }
}
