//! Memory that is there before it is needed.

use rustix::mm::{MlockAllFlags, mlockall, munlockall};

/// Makes every page of the calling process present, and its own where it may write: after a fork or a restore no page fault
/// is left to pay for. What cannot be had is done without.
pub fn make_present() {
    if mlockall(MlockAllFlags::CURRENT).is_ok() {
        let _ = munlockall();
    }
}
