//! Threads: each under its filter of system calls before it does anything, and the memory that each costs.

use std::{
    io,
    process::exit,
    sync::{Arc, Barrier},
    thread::{Builder, JoinHandle},
};

use brig_jail::{WallError, seccomp::Filter};

use crate::jail::{EXIT_JAIL, filters::Kind};

/// Bytes of a thread's stack. Enough many times over, and too little for the kernel to make one huge page of it, which at the
/// 2 MiB of the standard library's stacks is more than everything else in this process.
const STACK_BYTES: usize = 256 << 10;

/// The threads of a machine, which begin together: none does anything before all of them, and the one that makes them, are
/// under their filters.
#[derive(Debug)]
pub struct Crew {
    begin: Arc<Barrier>,
    missing: usize,
}

impl Crew {
    /// A crew that will have `threads` threads.
    pub fn of(threads: usize) -> Self {
        Self {
            begin: Arc::new(Barrier::new(threads + 1)),
            missing: threads,
        }
    }

    /// Makes one of the threads.
    ///
    /// # Errors
    /// Those of creating a thread, and when it would be one too many; the process is to end then.
    pub fn spawn(
        &mut self,
        name: &str,
        kind: Kind,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        self.missing = self.missing.checked_sub(1).ok_or(io::ErrorKind::InvalidInput)?;
        let filter = kind.filter().map_err(io::Error::other)?;
        let begin = Arc::clone(&self.begin);
        Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                if let Err(e) = filter.install() {
                    give_up(&e);
                }
                drop(filter);
                begin.wait();
                work();
            })
    }

    /// Puts the calling thread under the filter of the main thread, and lets all of them begin.
    ///
    /// # Errors
    /// When a thread is missing; when the filter cannot be installed.
    pub fn begin(self) -> io::Result<()> {
        if self.missing > 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let filter: Filter = Kind::Main.filter().map_err(io::Error::other)?;
        filter.install().map_err(io::Error::other)?;
        drop(filter);
        self.begin.wait();
        Ok(())
    }
}

/// The other threads wait for one that will not come, and the guest has not begun: there is nothing to save.
fn give_up(error: &WallError) -> ! {
    eprintln!("brig-vmm: {}", crate::control::chain(error));
    exit(EXIT_JAIL)
}

/// Has all threads share one heap: each would get one of its own, and they allocate next to nothing. To be called before there
/// is more than one.
pub fn share_heap() {
    // SAFETY: the option takes an integer, and nothing of the heap moves.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives back what the heap has and does not need any more, once a guest runs.
pub fn trim_heap() {
    // SAFETY: only pages go that no allocation is in.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a filter would do to this process ends the process: `vmm/tests/start.rs` and the tests that boot a kernel show
    /// that crews work.
    #[test]
    fn a_crew_has_as_many_threads_as_were_announced() {
        assert!(Crew::of(1).begin().is_err());
        assert!(Crew::of(0).spawn("more", Kind::Disks, || {}).is_err());
    }

    #[test]
    fn what_is_allocated_survives_a_trim() {
        share_heap();
        let kept = vec![7u8; 1 << 16];
        drop(vec![1u8; 1 << 16]);
        trim_heap();
        assert!(kept.iter().all(|&byte| byte == 7));
    }
}
