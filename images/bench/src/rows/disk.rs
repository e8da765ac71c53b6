//! Files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Instant,
};

use super::{Measured, measure, measure_batches};
use crate::{
    options::Options,
    sampler::repeat,
    sys::{self, Memory, PAGE},
};

/// Of sequential reads and writes.
pub(super) const BLOCK: usize = 1 << 20;

/// A directory of the measurement's own, which goes when this is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn make(parent: &Path) -> io::Result<Self> {
        for number in 0.. {
            let path = parent.join(format!("bench-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let message = format!(
                        "cannot write to {}: {error}: choose a --directory",
                        parent.display()
                    );
                    return Err(io::Error::new(error.kind(), message));
                }
                Ok(()) => return Ok(Self(path)),
            }
        }
        unreachable!("numbers do not end")
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file of blocks that have been written, as far as the time went, and a block to read and write with, which is aligned
/// as O_DIRECT wants it.
struct Blocks {
    file: File,
    block: Memory,
    count: u64,
    direct: bool,
    _scratch: Scratch,
}

impl Blocks {
    fn make(options: &Options) -> io::Result<Self> {
        let scratch = Scratch::make(&options.directory)?;
        let path = scratch.path().join("blocks");
        let open = |flags| {
            let mut how = OpenOptions::new();
            how.read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(flags);
            how.open(&path)
        };
        let opened = if options.buffered {
            None
        } else {
            open(libc::O_DIRECT).ok()
        };
        let direct = opened.is_some();
        let file = opened.map_or_else(|| open(0), Ok)?;

        let mut block = Memory::map(BLOCK)?;
        // Not zeroes: there are layers that do not write them.
        block
            .bytes()
            .iter_mut()
            .enumerate()
            .for_each(|(at, byte)| *byte = (at * 7 + 1) as u8);
        let start = Instant::now();
        let mut blocks = 0;
        while blocks == 0 || (blocks < options.size_mib && start.elapsed() < options.seconds) {
            file.write_all_at(block.bytes(), blocks * BLOCK as u64)?;
            blocks += 1;
        }
        file.sync_all()?;
        sys::drop_cache(&file)?;
        Ok(Self {
            file,
            block,
            count: blocks,
            direct,
            _scratch: scratch,
        })
    }

    /// Where the block after `at` begins: around, when it was the last one.
    fn after(&self, at: u64) -> u64 {
        (at + BLOCK as u64) % (self.count * BLOCK as u64)
    }

    fn note(&self, measured: Measured) -> Measured {
        measured.note("direct", self.direct).note("file_mib", self.count)
    }
}

pub(super) fn sequential_write(options: &Options) -> io::Result<Measured> {
    let mut blocks = Blocks::make(options)?;
    let mut at = 0;
    let measured = measure_batches(options, blocks.count, |count| {
        let start = Instant::now();
        for _ in 0..count {
            blocks.file.write_all_at(blocks.block.bytes(), at)?;
            at = blocks.after(at);
        }
        blocks.file.sync_data()?;
        Ok(start.elapsed())
    })?;
    Ok(blocks.note(measured))
}

pub(super) fn sequential_read(options: &Options) -> io::Result<Measured> {
    let mut blocks = Blocks::make(options)?;
    let mut at = 0;
    let measured = measure_batches(options, blocks.count, |count| {
        if at + count * BLOCK as u64 > blocks.count * BLOCK as u64 {
            at = 0;
        }
        if at == 0 {
            sys::drop_cache(&blocks.file)?;
        }
        repeat(count, || {
            blocks.file.read_exact_at(blocks.block.bytes(), at)?;
            at += BLOCK as u64;
            Ok(())
        })
    })?;
    Ok(blocks.note(measured))
}

/// Places of a file's pages in an order that nobody foresees and that is the same each time.
struct Places {
    state: u64,
    pages: u64,
}

impl Places {
    fn of(blocks: &Blocks) -> Self {
        let pages = blocks.count * (BLOCK / PAGE) as u64;
        Self { state: 1, pages }
    }

    /// By Knuth's MMIX generator, whose upper bits are the random ones.
    fn next(&mut self) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.state >> 33) % self.pages * PAGE as u64
    }
}

pub(super) fn random_write(options: &Options) -> io::Result<Measured> {
    let mut blocks = Blocks::make(options)?;
    let mut places = Places::of(&blocks);
    let measured = measure_batches(options, places.pages, |count| {
        let start = Instant::now();
        for _ in 0..count {
            blocks
                .file
                .write_all_at(&blocks.block.bytes()[..PAGE], places.next())?;
        }
        blocks.file.sync_data()?;
        Ok(start.elapsed())
    })?;
    Ok(blocks.note(measured))
}

pub(super) fn random_read(options: &Options) -> io::Result<Measured> {
    let mut blocks = Blocks::make(options)?;
    let mut places = Places::of(&blocks);
    let measured = measure_batches(options, places.pages, |count| {
        repeat(count, || {
            blocks
                .file
                .read_exact_at(&mut blocks.block.bytes()[..PAGE], places.next())
        })
    })?;
    Ok(blocks.note(measured))
}

pub(super) fn fsync(options: &Options) -> io::Result<Measured> {
    let mut blocks = Blocks::make(options)?;
    let measured = measure(options, |count| {
        repeat(count, || {
            blocks.file.write_all_at(&blocks.block.bytes()[..PAGE], 0)?;
            blocks.file.sync_all()
        })
    })?;
    Ok(blocks.note(measured))
}

pub(super) fn create(options: &Options) -> io::Result<Measured> {
    files(options, |scratch, content, count| {
        let took = make_files(scratch, content, count)?;
        remove_files(scratch, count)?;
        Ok(took)
    })
}

pub(super) fn unlink(options: &Options) -> io::Result<Measured> {
    files(options, |scratch, content, count| {
        make_files(scratch, content, count)?;
        remove_files(scratch, count)
    })
}

fn files(
    options: &Options,
    operation: impl Fn(&Scratch, &[u8], u64) -> io::Result<std::time::Duration>,
) -> io::Result<Measured> {
    let scratch = Scratch::make(&options.directory)?;
    let content = vec![1; options.file_bytes];
    let measured = measure_batches(options, options.files, |count| {
        operation(&scratch, &content, count)
    })?;
    Ok(measured.note("file_bytes", options.file_bytes))
}

fn make_files(scratch: &Scratch, content: &[u8], count: u64) -> io::Result<std::time::Duration> {
    let mut number = 0;
    repeat(count, || {
        number += 1;
        File::create_new(scratch.path().join(number.to_string()))?.write_all(content)
    })
}

fn remove_files(scratch: &Scratch, count: u64) -> io::Result<std::time::Duration> {
    let mut number = 0;
    repeat(count, || {
        number += 1;
        fs::remove_file(scratch.path().join(number.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::quick;

    #[test]
    fn disk_rows_take_some_time_and_leave_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let mut options = quick(scratch.path());
        for buffered in [false, true] {
            options.buffered = buffered;
            for row in [
                sequential_write,
                sequential_read,
                random_write,
                random_read,
                fsync,
                create,
                unlink,
            ] {
                let times = row(&options).unwrap().times;
                assert!(times.samples.iter().all(|time| *time > 0.0));
            }
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_file_is_no_larger_than_wanted_and_says_how_it_was_used() {
        let scratch = tempfile::tempdir().unwrap();
        let mut options = quick(scratch.path());
        options.seconds = std::time::Duration::from_secs(60);
        options.samples = 1;
        options.buffered = true;
        let notes = sequential_read(&options).unwrap().notes;
        assert_eq!(notes, [("direct", "false".into()), ("file_mib", "2".into())]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let mut options = quick(Path::new("/nowhere"));
        options.size_mib = 1;
        let error = fsync(&options).unwrap_err().to_string();
        assert!(
            error.contains("/nowhere") && error.contains("--directory"),
            "{error}"
        );
    }

    #[test]
    fn places_are_pages_of_the_file() {
        let mut places = Places { state: 1, pages: 512 };
        let all: Vec<_> = (0..4000).map(|_| places.next()).collect();
        assert!(
            all.iter()
                .all(|place| place % PAGE as u64 == 0 && *place < 512 * PAGE as u64)
        );
        let mut seen = all.clone();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 500, "{} places of 512", seen.len());
    }
}
