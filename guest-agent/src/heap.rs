//! Huge pages, for the one task of the agent's that needs much memory.
//!
//! The names and attributes of an image are many small pieces. A page fault for each 4 KiB of them would be most of an
//! unpack's time where KVM interprets the guest's kernel; one for each 2 MiB costs a quarter of that. A transfer of
//! 1 MiB from or to a disk takes 104,000 to 176,000 instructions when its pages are small, 17,000 to 34,000 when they are one.

use libc::{M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD};
use rustix::{
    io,
    mm::{Advice, madvise},
};

use crate::switches;

/// What a huge page's address is a multiple of (x86-64).
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes that the heap grows by at once. Only what is touched takes memory;
/// less than the smallest guest has, which the kernel would refuse (Documentation/mm/overcommit-accounting.rst).
const STEP_BYTES: usize = 128 << 20;

/// The largest piece that is taken from the heap in place of a mapping of its own (malloc.c,
/// `DEFAULT_MMAP_THRESHOLD_MAX`).
const PIECE_BYTES_MAX: libc::c_int = 32 << 20;

/// Lets this kernel give huge pages to who asks for them: it does not by itself when it has less than 512 MiB
/// (mm/huge_memory.c, `hugepage_init`).
///
/// # Errors
/// Those of the system calls. Nothing but speed is lost then.
pub fn allow_huge_pages() -> io::Result<()> {
    switches::set("sysfs", &[("kernel/mm/transparent_hugepage/enabled", "madvise")])
}

/// Makes the heap grow by huge pages from now on. Where that cannot be, it grows as before.
pub fn use_huge_pages() {
    let Some(start) = align_break() else { return };
    // SAFETY: mallopt(3) changes where glibc takes memory from, nothing that was allocated.
    unsafe {
        libc::mallopt(M_TOP_PAD, STEP_BYTES as libc::c_int);
        libc::mallopt(M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(M_MMAP_THRESHOLD, PIECE_BYTES_MAX);
    }
    // More than is left of the heap that there was: this makes it grow.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(
        HUGE_PAGE_BYTES / 2,
    )));
    let end = program_break();
    if end > start {
        // SAFETY: the range lies in the heap, and the advice changes nothing of its content. A kernel without huge pages
        // refuses it.
        let _ = unsafe {
            madvise(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                Advice::LinuxHugepage,
            )
        };
    }
}

/// Moves the program break to the start of a huge page, and returns it.
fn align_break() -> Option<usize> {
    let here = program_break();
    let gap = here.next_multiple_of(HUGE_PAGE_BYTES) - here;
    // SAFETY: glibc's allocator allows others to move the break upwards (malloc.c, `sysmalloc`, "foreign sbrk"). The agent
    // has one thread, so that nothing allocates meanwhile.
    let before = unsafe { libc::sbrk(gap as libc::intptr_t) };
    (before.addr() == here).then_some(here + gap)
}

fn program_break() -> usize {
    // SAFETY: an increment of zero only asks.
    unsafe { libc::sbrk(0) }.addr()
}
