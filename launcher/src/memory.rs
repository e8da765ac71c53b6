//! Memory that is there before it is needed.

use std::fs;

use rustix::mm::{Advice, MlockAllFlags, madvise, mlockall, munlockall};

/// Makes every page of the calling process present, and its own where it may write: after a fork or a restore no page fault
/// is left to pay for. What cannot be had is done without.
pub fn make_present() {
    if mlockall(MlockAllFlags::CURRENT).is_ok() {
        let _ = munlockall();
    }
}

/// Makes the pages present that the calling process may write, and its own; nothing of its program: each page of that would
/// have to be unmapped at the exec. `/proc` must be mounted.
pub(crate) fn make_writable_present() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, end) in maps.lines().filter_map(writable) {
        // SAFETY: the advice changes no byte of the pages, and an address that is not mapped any more is refused.
        let _ = unsafe {
            madvise(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                Advice::LinuxPopulateWrite,
            )
        };
    }
}

/// The addresses of a private, writable mapping in a line of `/proc/PID/maps` (proc_pid_maps(5)).
fn writable(line: &str) -> Option<(usize, usize)> {
    let (addresses, rest) = line.split_once(' ')?;
    let (start, end) = addresses.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    rest.starts_with("rw-p")
        .then_some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_writable_mappings_are_found() {
        assert_eq!(
            writable("00e24000-011f7000 rw-p 00000000 00:00 0           [heap]"),
            Some((0xe24000, 0x11f7000))
        );
        assert_eq!(
            writable("00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/x"),
            None
        );
        assert_eq!(writable("7f00-7f10 rw-s 00000000 00:05 1 /dev/zero"), None);
        assert_eq!(writable(""), None);
    }
}
