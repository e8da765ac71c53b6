//! Capabilities (capabilities(7)): the few that a process gets to build its walls, and how it gives them up.
//!
//! They are capabilities over the process's own user namespace and what was made in it: they allow nothing on the host.

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

use crate::{Step, WallError};

/// What a process needs to build its walls: namespaces and mounts, chroot(2), and to give up the rest.
pub const BUILDING: [CapabilitySet; 3] = [
    CapabilitySet::SYS_ADMIN,
    CapabilitySet::SYS_CHROOT,
    CapabilitySet::SETPCAP,
];

/// Number of the highest capability that a kernel may have: the sets have 64 bits.
const HIGHEST: u32 = 63;

/// Lets the program that is executed next have [`BUILDING`]. Allocates nothing. False when it fails; errno says why.
pub(crate) fn keep_over_exec() -> bool {
    let kept = BUILDING
        .iter()
        .fold(CapabilitySet::empty(), |all, &one| all | one);
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: kept,
    };
    let result = set_capabilities(None, sets).and_then(|()| {
        BUILDING
            .iter()
            .try_for_each(|&one| configure_capability_in_ambient_set(one, true))
    });
    if let Err(e) = result {
        // SAFETY: it is this thread's own.
        unsafe { *libc::__errno_location() = e.raw_os_error() };
        return false;
    }
    true
}

/// Gives up all capabilities, in every set, and every way to get one back: no user has any because of its number, and the
/// switches for that are locked.
///
/// # Errors
/// [`WallError`].
pub fn drop_all() -> Result<(), WallError> {
    for number in 0..=HIGHEST {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel has no such capability, and none with a higher number.
            Err(rustix::io::Errno::INVAL) => break,
            result => result.step("give up a capability for good")?,
        }
    }
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(locked).step("lock the way back to capabilities")?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // What is neither permitted nor inheritable leaves the ambient set too.
    set_capabilities(None, none).step("give up all capabilities")
}

/// Gives up all capabilities but these, in every set. A process that has none has nothing to give up.
///
/// # Errors
/// [`WallError`].
pub fn keep(wanted: &[CapabilitySet]) -> Result<(), WallError> {
    let now = capabilities(None).step("read the capabilities")?;
    let wanted = wanted.iter().fold(CapabilitySet::empty(), |all, &one| all | one);
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..=HIGHEST {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if wanted.contains(one) {
                continue;
            }
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // The kernel has no such capability, and none with a higher number.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.step("give up a capability for good")?,
            }
        }
    }
    let kept = CapabilitySets {
        effective: now.effective & wanted,
        permitted: now.permitted & wanted,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).step("give up capabilities")
}

/// Whether this process has any capability.
///
/// # Errors
/// [`WallError`].
pub fn has_any() -> Result<bool, WallError> {
    let sets = capabilities(None).step("read the capabilities")?;
    Ok(!(sets.effective | sets.permitted | sets.inheritable).is_empty())
}
