//! The end of the guest: whoever sees it first says why, and wakes the thread that owns the process.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Mutex, PoisonError},
};

use brig_protocol::vmm::StopReason;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A one-time message from any vCPU to the main thread.
#[derive(Debug)]
pub struct Stop {
    reason: Mutex<Option<StopReason>>,
    event: EventFd,
}

impl Stop {
    /// Nothing has stopped yet.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            reason: Mutex::new(None),
            event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    /// Says that the guest has stopped. Only the first reason counts.
    pub fn request(&self, reason: StopReason) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(reason);
            // The counter cannot overflow: it is written once.
            let _ = self.event.write(1);
        }
    }

    /// Why the guest stopped, when it has.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Becomes readable when the guest has stopped.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self.event`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_reason_counts() {
        let stop = Stop::new().unwrap();
        assert_eq!(stop.reason(), None);
        stop.request(StopReason::Reset);
        stop.request(StopReason::VcpuFailed("late".to_owned()));
        assert_eq!(stop.reason(), Some(StopReason::Reset));
        assert_eq!(stop.event.read().unwrap(), 1);
    }
}
