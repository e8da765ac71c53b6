//! `CLOCK_MONOTONIC`, which all processes of a host share, and the times of one start by it.

pub use brig_protocol::vmm::Counters;
use brig_protocol::vmm::KvmKind;
use serde::{Deserialize, Serialize};

use crate::guest::Origin;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// When the stages of a sandbox's life were reached, in nanoseconds of the host's `CLOCK_MONOTONIC`; `None` when a
/// stage was not reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// What kind of KVM runs the guest.
    pub kvm: Option<KvmKind>,
    /// Whether workarounds for an emulated KVM are active.
    pub workarounds: bool,
    /// Whether the guest booted or was restored.
    pub origin: Option<Origin>,
    /// A template was made for this start, and was ready then.
    pub template_ns: Option<u64>,
    /// The supervisor began.
    pub supervisor_ns: Option<u64>,
    /// brig-vmm's `main` began.
    pub vmm_ns: Option<u64>,
    /// The first vCPU was about to enter the guest.
    pub entry_ns: Option<u64>,
    /// The agent's first instruction: computed back from `ready_ns` by the guest's clock. `None` after a restore.
    pub init_ns: Option<u64>,
    /// The agent's hello arrived, or after a restore its word that it is awake.
    pub ready_ns: Option<u64>,
    /// The word that the exec succeeded arrived.
    pub exec_ns: Option<u64>,
    /// The first byte of output arrived.
    pub output_ns: Option<u64>,
    /// The word that the process ended arrived.
    pub exit_ns: Option<u64>,
    /// What the guest had cost at some of the stages, when that was asked for.
    pub costs: Vec<(Stage, Counters)>,
}

/// A stage at which a guest's cost is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The agent is ready.
    Ready,
    /// The process has executed its program.
    Exec,
    /// The process has ended.
    Exit,
}

impl Timing {
    /// Enters the agent's hello: `init_us` and `ready_us` are of the guest's clock, and untrusted.
    pub fn hello(&mut self, now_ns: u64, init_us: u64, ready_us: u64) {
        let before_ns = ready_us.saturating_sub(init_us).saturating_mul(1000);
        let earliest = self.entry_ns.unwrap_or(0);
        self.ready_ns = Some(now_ns);
        self.init_ns = Some(now_ns.saturating_sub(before_ns).max(earliest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_does_not_go_back() {
        let before = monotonic_ns();
        assert!(monotonic_ns() >= before);
    }

    #[test]
    fn a_guest_that_lies_about_its_clock_stays_between_entry_and_now() {
        let mut timing = Timing {
            entry_ns: Some(1_000),
            ..Timing::default()
        };
        timing.hello(9_000, 5, 8);
        assert_eq!(timing.init_ns, Some(6_000));
        timing.hello(9_000, 0, u64::MAX);
        assert_eq!(timing.init_ns, Some(1_000));
        timing.hello(9_000, u64::MAX, 0);
        assert_eq!(timing.init_ns, Some(9_000));
    }
}
