//! What PID 1 does to the machine itself.

use brig_protocol::spec;
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
    process::{Resource, Rlimit, chroot, fchdir, setrlimit},
    system::{RebootCommand, reboot, sysinfo},
    thread::sched_getaffinity,
};

use crate::{
    error::{AgentError, Context},
    switches,
};

/// File descriptors that the agent may have: a forwarded connection takes up to eight, and
/// [`crate::streams::STREAMS_MAX`] streams are allowed.
const OPEN_FILES: u64 = 65_536;

/// `RLIMIT_NOFILE` of a process whose spec has none: what systemd gives to Docker, and Docker to its containers.
pub const PROCESS_OPEN_FILES: spec::Rlimit = spec::Rlimit {
    resource: libc::RLIMIT_NOFILE as u8,
    soft: 1024,
    hard: 524_288,
};

/// Prepares the agent's own surroundings: as little as it takes.
///
/// # Errors
/// [`AgentError::System`].
pub fn prepare() -> Result<(), AgentError> {
    leave_initial_ramfs()?;
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(1 << 20),
    };
    setrlimit(Resource::Nofile, limit).step("raise the limit of open files")?;
    // It is for the host's good; a kernel that lacks a switch runs as well.
    let _ = switches::set("proc", &REST);
    let cpus = sched_getaffinity(None).map_or(1, |cpus| cpus.count());
    let fraction = free_list_fraction(sysinfo().totalram, cpus).to_string();
    let _ = switches::set("proc", &[("sys/vm/percpu_pagelist_high_fraction", &fraction)]);
    Ok(())
}

/// Switches of the kernel, below `/proc/sys/vm`, and what keeps an idle guest asleep.
///
/// `kcompactd` looks twice a second whether free memory should be put together before somebody asks for large pieces
/// (mm/compaction.c). Each time that anything runs, the scheduler sets a timer for a second later, at whose end the
/// statistics are gathered, which is something that runs (mm/vmstat.c, `vmstat_shepherd`). Where KVM interprets the guest's
/// kernel both together cost 4 % of a processor.
const REST: [(&str, &str); 2] = [
    ("sys/vm/compaction_proactiveness", "0"),
    ("sys/vm/stat_interval", "120"),
];

/// Most bytes of free pages that a CPU keeps in a list of its own: a few times what an exec takes and its end gives back. The kernel's own
/// limit grows up to an eighth of all memory with what a program frees at once, and what is in there it does not report to the host.
const FREE_LIST_BYTES: u64 = 4 << 20;

/// The least that the kernel takes for `percpu_pagelist_high_fraction`.
const FREE_LIST_FRACTION_MIN: u64 = 8;

/// The part of `memory` that the lists of all `cpus` have together is one by this.
fn free_list_fraction(memory: u64, cpus: u32) -> u64 {
    (memory / (FREE_LIST_BYTES * u64::from(cpus.max(1)))).max(FREE_LIST_FRACTION_MIN)
}

/// Binds the initial ramfs over itself and makes the copy the root. The kernel's first mount has no parent, so it could
/// not be pivoted away from when a sandbox enters its own root (pivot_root(2), `EINVAL`).
fn leave_initial_ramfs() -> Result<(), AgentError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, "/", flags).step("copy the initial mount")?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("mount over the root")?;
    fchdir(&root).step("enter the new root")?;
    chroot(".").step("change the root")
}

/// Resets the machine; the VMM takes that for the guest's end. Does not return: where a reset is refused, the end of PID 1
/// is a kernel panic, which resets as well.
pub fn reset() -> ! {
    let error = reboot(RebootCommand::Restart);
    panic!("the machine cannot be reset: {error:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_keeps_four_mebibytes_of_free_pages_or_less_in_a_small_guest() {
        assert_eq!(free_list_fraction(512 << 20, 1), 128);
        assert_eq!(free_list_fraction(4 << 30, 4), 256);
        assert_eq!(free_list_fraction(64 << 20, 1), 16);
        assert_eq!(free_list_fraction(64 << 20, 32), 8);
        assert_eq!(free_list_fraction(0, 0), 8);
    }
}
