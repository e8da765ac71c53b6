//! Capabilities of the process (capabilities(7)). None is inheritable or ambient, as with Docker since 20.10.14
//! (CVE-2022-24769): a program gets what the bounding set leaves of its file's and no more.

use brig_protocol::spec::CapabilitySet;
use rustix::{
    io::Errno,
    thread::{
        CapabilitySet as KernelSet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
    },
};

use crate::error::{Context, LaunchError};

/// The highest capability number that capset(2) can express.
const LAST: u32 = 63;

/// Takes every capability of `present` that is not in `keep` out of the bounding set. Needs `CAP_SETPCAP`; what the
/// process has at present it keeps until it executes a program.
pub(crate) fn bound(present: CapabilitySet, keep: CapabilitySet) -> Result<(), LaunchError> {
    let drop = present.0 & !keep.0;
    for number in 0..=LAST {
        if drop & 1 << number == 0 {
            continue;
        }
        match remove_capability_from_bounding_set(KernelSet::from_bits_retain(1 << number)) {
            // The first number that the kernel does not know.
            Err(Errno::INVAL) => break,
            result => result.step_on("drop the capability", number)?,
        }
    }
    Ok(())
}

/// Clears the ambient set.
pub(crate) fn clear_ambient() -> Result<(), LaunchError> {
    clear_ambient_capability_set().step("clear the ambient capabilities")
}

/// Leaves `keep` of what the calling process has, permitted and effective. Changing to a user other than root has
/// taken everything before.
pub(crate) fn limit(keep: CapabilitySet) -> Result<(), LaunchError> {
    let present = capabilities(None).step("read the capabilities")?;
    let kept = present.permitted & KernelSet::from_bits_retain(keep.0);
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: KernelSet::empty(),
    };
    set_capabilities(None, sets).step("set the capabilities")
}
