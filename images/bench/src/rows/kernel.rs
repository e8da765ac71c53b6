//! System calls and processes.

use std::{fs::File, io};

use super::{Measured, disk::Scratch, measure};
use crate::{options::Options, sampler::repeat, sys};

pub(super) fn getppid(options: &Options) -> io::Result<Measured> {
    measure(options, |count| {
        repeat(count, || {
            sys::getppid();
            Ok(())
        })
    })
}

pub(super) fn open_close(options: &Options) -> io::Result<Measured> {
    let scratch = Scratch::make(&options.directory)?;
    let path = scratch.path().join("file");
    File::create(&path)?;
    measure(options, |count| repeat(count, || File::open(&path).map(drop)))
}

pub(super) fn fork_exec(options: &Options) -> io::Result<Measured> {
    let program = sys::c_path(&std::env::current_exe()?)?;
    measure(options, |count| {
        repeat(count, || {
            // SAFETY: the program starts no thread before its rows are measured, but for those of `requests`, which have
            // ended when that row has.
            unsafe { sys::fork_exec_wait(&program, c"exit") }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::quick;

    #[test]
    fn calls_take_some_time() {
        let scratch = tempfile::tempdir().unwrap();
        for row in [getppid, open_close] {
            let times = row(&quick(scratch.path())).unwrap().times;
            assert!(times.samples.iter().chain(&times.warm_up).all(|time| *time > 0.0));
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
