//! Translates the guest's linear addresses as its processor does in long mode (Intel SDM, volume 3, chapter 4): the
//! tables lie in guest memory, each level may forbid, and accessed and dirty bits are set.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::{execute::Stop, operands::State};
use crate::memory::Memory;

const PAGE_BITS: u32 = 12;
const INDEX_BITS: u32 = 9;
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

/// Bits of a page fault's error code.
const FAULT_PRESENT: u32 = 1;
const FAULT_WRITE: u32 = 1 << 1;
const FAULT_USER: u32 = 1 << 2;
const FAULT_FETCH: u32 = 1 << 4;

/// What an address is translated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or a load that a store follows.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// The physical address of `linear`.
///
/// # Errors
/// A page fault as [`Stop::Fault`], or [`Stop::OutsideMemory`] when a table lies where no memory is.
pub fn translate(memory: &Memory, state: &State, linear: u64, access: Access) -> Result<u64, Stop> {
    let user = state.is_user();
    let fault = |present: bool| {
        let mut code = if present { FAULT_PRESENT } else { 0 };
        code |= match access {
            Access::Read => 0,
            Access::Write => FAULT_WRITE,
            Access::Fetch => FAULT_FETCH,
        };
        code |= if user { FAULT_USER } else { 0 };
        Stop::page_fault(linear, code)
    };
    let levels = if state.special.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    if !is_canonical(linear, levels) {
        return Err(Stop::general_protection());
    }
    let mut table = state.special.cr3 & ADDRESS_MASK;
    let mut allowed = WRITABLE | USER;
    let mut no_execute = false;
    for level in (0..levels).rev() {
        let shift = PAGE_BITS + INDEX_BITS * level;
        let slot = table + 8 * (linear >> shift & ((1 << INDEX_BITS) - 1));
        let entry = load(memory, slot)?;
        if entry & PRESENT == 0 {
            return Err(fault(false));
        }
        allowed &= entry;
        no_execute |= entry & NO_EXECUTE != 0 && state.special.efer & EFER_NXE != 0;
        let leaf = level == 0 || entry & LARGE != 0 && level <= 2;
        if leaf {
            if !is_allowed(state, allowed, no_execute, access) {
                return Err(fault(true));
            }
            let dirty = if access == Access::Write { DIRTY } else { 0 };
            mark(memory, slot, ACCESSED | dirty)?;
            let offset = (1 << shift) - 1;
            return Ok(entry & ADDRESS_MASK & !offset | linear & offset);
        }
        mark(memory, slot, ACCESSED)?;
        table = entry & ADDRESS_MASK;
    }
    // The last level is always a leaf.
    Err(fault(false))
}

/// `allowed`: the permissions that all levels grant.
fn is_allowed(state: &State, allowed: u64, no_execute: bool, access: Access) -> bool {
    let (user_page, writable) = (allowed & USER != 0, allowed & WRITABLE != 0);
    let special = &state.special;
    if state.is_user() {
        return user_page
            && match access {
                Access::Read => true,
                Access::Write => writable,
                Access::Fetch => !no_execute,
            };
    }
    let data_allowed = !user_page || special.cr4 & CR4_SMAP == 0 || state.general.rflags & RFLAGS_AC != 0;
    match access {
        Access::Read => data_allowed,
        Access::Write => data_allowed && (writable || special.cr0 & CR0_WRITE_PROTECT == 0),
        Access::Fetch => !no_execute && (!user_page || special.cr4 & CR4_SMEP == 0),
    }
}

/// Whether all bits above those that are translated equal the highest of them.
pub fn is_canonical(linear: u64, levels: u32) -> bool {
    let unused = 64 - (PAGE_BITS + INDEX_BITS * levels);
    ((linear << unused) as i64 >> unused) as u64 == linear
}

fn load(memory: &Memory, slot: u64) -> Result<u64, Stop> {
    with_entry(memory, slot, |entry| entry.load(Ordering::Acquire))
}

/// Sets `bits` in an entry, as atomically as a processor.
fn mark(memory: &Memory, slot: u64, bits: u64) -> Result<(), Stop> {
    with_entry(memory, slot, |entry| {
        if entry.load(Ordering::Relaxed) & bits != bits {
            entry.fetch_or(bits, Ordering::AcqRel);
        }
    })
}

fn with_entry<R>(memory: &Memory, slot: u64, work: impl FnOnce(&AtomicU64) -> R) -> Result<R, Stop> {
    let outside = || Stop::OutsideMemory(slot);
    let slice = memory.get_slice(GuestAddress(slot), 8).map_err(|_| outside())?;
    let entry = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| outside())?;
    Ok(work(entry))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::{
        boot::long_mode,
        memory::{self},
    };

    const PML4: u64 = 0x9000;
    const PAGE: u64 = 0x4000_0000;

    /// Long mode with the boot tables, and at 1 GiB one page of 4 KiB with `flags` at 0x5000.
    fn setup(flags: u64) -> (std::sync::Arc<Memory>, State) {
        let memory = memory::create(1 << 20).unwrap();
        long_mode::write_tables(&memory).unwrap();
        for (slot, entry) in [
            (0xa008, 0x1_0007), // PDPT entry 1: a directory
            (0x1_0000, 0x1_1007),
            (0x1_1000, 0x5000 | flags),
        ] {
            memory.write_obj(entry, GuestAddress(slot)).unwrap();
        }
        memory.write_obj(0xa007u64, GuestAddress(PML4)).unwrap();
        let mut state = State::default();
        state.special = long_mode::special_registers(state.special);
        state.special.efer |= EFER_NXE;
        (memory, state)
    }

    fn code(result: Result<u64, Stop>) -> u32 {
        match result {
            Err(Stop::Fault(fault)) => fault.error_code.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn large_and_small_pages_are_found_and_marked() {
        let (memory, state) = setup(PRESENT | WRITABLE);
        assert_eq!(
            translate(&memory, &state, 0x0123_4567, Access::Read),
            Ok(0x0123_4567)
        );
        assert_eq!(translate(&memory, &state, PAGE + 5, Access::Write), Ok(0x5005));
        let entry: u64 = memory.read_obj(GuestAddress(0x1_1000)).unwrap();
        assert_eq!(entry & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    }

    #[test]
    fn what_is_not_present_faults() {
        let (memory, state) = setup(0);
        assert_eq!(code(translate(&memory, &state, PAGE, Access::Read)), 0);
        assert_eq!(code(translate(&memory, &state, PAGE, Access::Write)), 2);
        assert_eq!(
            translate(&memory, &state, 1 << 47, Access::Read),
            Err(Stop::general_protection())
        );
    }

    #[test]
    fn a_read_only_page_faults_unless_write_protection_is_off() {
        let (memory, mut state) = setup(PRESENT);
        assert_eq!(code(translate(&memory, &state, PAGE, Access::Write)), 3);
        state.special.cr0 &= !CR0_WRITE_PROTECT;
        assert_eq!(translate(&memory, &state, PAGE, Access::Write), Ok(0x5000));
    }

    #[test]
    fn user_mode_needs_user_pages_and_supervisor_mode_respects_them() {
        let (memory, mut state) = setup(PRESENT | WRITABLE);
        state.special.cs.dpl = 3;
        state.special.ss.dpl = 3;
        assert_eq!(code(translate(&memory, &state, PAGE, Access::Read)), 5);

        let (memory, mut state) = setup(PRESENT | WRITABLE | USER);
        state.special.cr4 |= CR4_SMAP | CR4_SMEP;
        assert_eq!(code(translate(&memory, &state, PAGE, Access::Read)), 1);
        assert_eq!(code(translate(&memory, &state, PAGE, Access::Fetch)), 0x11);
        state.general.rflags |= RFLAGS_AC;
        assert_eq!(translate(&memory, &state, PAGE, Access::Read), Ok(0x5000));
    }

    #[test]
    fn a_page_may_forbid_execution() {
        let (memory, state) = setup(PRESENT | NO_EXECUTE);
        assert_eq!(code(translate(&memory, &state, PAGE, Access::Fetch)), 0x11);
        assert_eq!(translate(&memory, &state, PAGE, Access::Read), Ok(0x5000));
    }

    #[test]
    fn tables_outside_of_memory_are_no_page_fault() {
        let (memory, mut state) = setup(PRESENT);
        state.special.cr3 = 1 << 40;
        assert_eq!(
            translate(&memory, &state, 0, Access::Read),
            Err(Stop::OutsideMemory(1 << 40))
        );
    }
}
