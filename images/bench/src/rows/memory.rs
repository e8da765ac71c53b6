//! Memory and its mappings.

use std::{hint::black_box, io, time::Instant};

use super::{Measured, measure, measure_batches};
use crate::{
    options::Options,
    sampler::repeat,
    sys::{Memory, PAGE},
};

/// More than a core's caches have place for.
pub(super) const COPY_BYTES: u64 = 16 << 20;

/// Most pages that are touched between two readings of the clock: 16 MiB.
const PAGES_MAX: u64 = 4096;

pub(super) fn page_fault(options: &Options) -> io::Result<Measured> {
    measure_batches(options, PAGES_MAX, |count| {
        let mut memory = Memory::map(count as usize * PAGE)?.without_huge_pages();
        let start = Instant::now();
        memory.touch();
        Ok(start.elapsed())
    })
}

pub(super) fn mmap_munmap(options: &Options) -> io::Result<Measured> {
    measure(options, |count| repeat(count, || Memory::map(1 << 20).map(drop)))
}

pub(super) fn copy(options: &Options) -> io::Result<Measured> {
    let (mut from, mut to) = (filled()?, filled()?);
    measure(options, |count| {
        repeat(count, || {
            to.bytes().copy_from_slice(from.bytes());
            black_box(to.bytes());
            Ok(())
        })
    })
}

pub(super) fn read(options: &Options) -> io::Result<Measured> {
    let mut memory = filled()?;
    measure(options, |count| {
        repeat(count, || {
            let words = memory.bytes().chunks_exact(8);
            let sum = words
                .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
                .fold(0, u64::wrapping_add);
            black_box(sum);
            Ok(())
        })
    })
}

fn filled() -> io::Result<Memory> {
    let mut memory = Memory::map(COPY_BYTES as usize)?;
    memory.touch();
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::quick;

    #[test]
    fn memory_takes_some_time() {
        let options = quick(std::path::Path::new("."));
        for row in [page_fault, mmap_munmap, copy, read] {
            assert!(
                row(&options)
                    .unwrap()
                    .times
                    .samples
                    .iter()
                    .all(|time| *time > 0.0)
            );
        }
    }

    #[test]
    fn a_batch_of_faults_has_a_bound() {
        let mut options = quick(std::path::Path::new("."));
        options.seconds = std::time::Duration::from_millis(200);
        assert!(page_fault(&options).unwrap().times.batch <= PAGES_MAX);
    }
}
