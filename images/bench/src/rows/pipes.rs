//! Pipes, and the processes at their ends.

use std::{
    fs::File,
    io::{self, Read, Write},
};

use super::{Measured, measure};
use crate::{
    options::Options,
    sampler::repeat,
    sys::{self, Child, Pinned},
};

/// What a pipe holds, unless told otherwise (pipe(7)).
pub(super) const BLOCK: usize = 64 << 10;

pub(super) fn latency(options: &Options) -> io::Result<Measured> {
    let (mut read, mut write) = sys::pipe()?;
    measure(options, |count| repeat(count, || exchange(&mut write, &mut read)))
}

pub(super) fn context_switch(options: &Options) -> io::Result<Measured> {
    // A switch is certain where one CPU has to do for both.
    let _pinned = Pinned::here()?;
    ping_pong(options)
}

pub(super) fn wake_up(options: &Options) -> io::Result<Measured> {
    ping_pong(options)
}

fn ping_pong(options: &Options) -> io::Result<Measured> {
    let (mut here, mut there) = (sys::pipe()?, sys::pipe()?);
    // SAFETY: the program has one thread while it measures this row.
    let child = unsafe {
        Child::fork(|| {
            loop {
                let mut byte = [0];
                there.0.read_exact(&mut byte)?;
                here.1.write_all(&byte)?;
            }
        })?
    };
    let measured = measure(options, |count| {
        repeat(count, || exchange(&mut there.1, &mut here.0))
    });
    drop(child);
    measured
}

/// Sends a byte and waits for one.
fn exchange(write: &mut File, read: &mut File) -> io::Result<()> {
    write.write_all(&[1])?;
    read.read_exact(&mut [0])
}

pub(super) fn throughput(options: &Options) -> io::Result<Measured> {
    let (mut read, mut write) = sys::pipe()?;
    // SAFETY: the program has one thread while it measures this row.
    let child = unsafe {
        Child::fork(|| {
            let mut block = vec![0; BLOCK];
            while read.read(&mut block)? > 0 {}
            Ok(())
        })?
    };
    let block = vec![1; BLOCK];
    let measured = measure(options, |count| repeat(count, || write.write_all(&block)));
    drop(child);
    measured
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::quick;

    #[test]
    fn a_pipe_takes_some_time() {
        let times = latency(&quick(std::path::Path::new("."))).unwrap().times;
        assert!(times.samples.iter().all(|time| *time > 0.0));
    }
}
