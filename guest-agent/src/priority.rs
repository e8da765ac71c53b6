//! The agent's place in the line for the CPU (sched(7)).
//!
//! When a saved guest is restored, the kernel finds a dozen delayed works due at once, which take longer than everything
//! that the agent has to do before a process of the user's can start. So the agent sleeps through the snapshot with a
//! real-time priority, and gives it up once it is awake. What it has started meanwhile, or starts later, is not affected.

use std::ptr;

/// Before everything else that wants to run.
pub fn raise() {
    set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
}

/// Like everybody else.
pub fn normal() {
    set(libc::SCHED_OTHER, 0);
}

fn set(policy: libc::c_int, priority: libc::c_int) {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the kernel reads a sched_param, which outlives the call. It fails where the caller may not do this, outside of
    // a guest, and then nothing is lost but time.
    unsafe { libc::sched_setscheduler(0, policy, ptr::from_ref(&parameters)) };
}
