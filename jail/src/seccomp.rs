//! Filters of system calls (seccomp(2)), compiled from lists that people read.
//!
//! Whatever is not on its list kills the process: nothing that a process of brig's own does is off its list, so whoever
//! tries it has taken the process over.

use std::{collections::BTreeMap, ffi::c_long, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use crate::{Step, WallError};

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: c_long,
    /// With which arguments.
    pub arguments: Arguments,
    /// What it is needed for.
    pub reason: &'static str,
}

/// The arguments with which a call is allowed. Arguments are numbered from 0. Of those that are compared the kernel itself
/// looks at 32 bits.
#[derive(Clone, Copy, Debug)]
pub enum Arguments {
    /// Any.
    Any,
    /// The argument of this number has one of these values.
    OneOf(u8, &'static [u32]),
    /// The argument of this number has none of these bits.
    Without(u8, u32),
    /// The argument of this number has none of these values.
    NoneOf(u8, &'static [u32]),
    /// The two arguments are one of these pairs.
    Pairs(u8, u8, &'static [(u32, u32)]),
}

/// A call with any arguments.
pub const fn any(number: c_long, reason: &'static str) -> Call {
    Call {
        number,
        arguments: Arguments::Any,
        reason,
    }
}

/// A call whose arguments are looked at.
pub const fn checked(number: c_long, arguments: Arguments, reason: &'static str) -> Call {
    Call {
        number,
        arguments,
        reason,
    }
}

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Filter(Vec<BpfProgram>);

impl Filter {
    /// Compiles a list. Of a call that is on it twice each entry allows what it allows.
    ///
    /// # Errors
    /// [`WallError`] for lists that the kernel would not take: too long, or on a processor that is not known.
    pub fn allowing(calls: &[Call]) -> Result<Self, WallError> {
        let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
        let mut unchecked = Vec::new();
        for call in calls {
            let some = rules.entry(call.number).or_default();
            match conditions(call.arguments) {
                None => unchecked.push(call.number),
                Some(conditions) => {
                    for one in conditions {
                        some.push(
                            one.and_then(SeccompRule::new)
                                .map_err(io::Error::other)
                                .step("compile a filter")?,
                        );
                    }
                }
            }
        }
        for number in unchecked {
            rules.insert(number, Vec::new());
        }
        let main = compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)?;
        Ok(Self(vec![main]))
    }

    /// Compiles a list of what kills; everything else is allowed. For a process whose children need what it does not. On a kernel with
    /// the x32 interface its numbers are on the list too.
    ///
    /// # Errors
    /// As [`Filter::allowing`].
    pub fn killing(calls: &[Call]) -> Result<Self, WallError> {
        let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
        for call in calls {
            let mut some = Vec::new();
            for one in conditions(call.arguments).unwrap_or_default() {
                some.push(
                    one.and_then(SeccompRule::new)
                        .map_err(io::Error::other)
                        .step("compile a filter")?,
                );
            }
            for number in numbers(call.number) {
                rules.insert(number, some.clone());
            }
        }
        let main = compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)?;
        Ok(Self(vec![main]))
    }

    /// Has a call that is on the list fail as on a kernel that does not have it, so that the C library takes an older one,
    /// whose arguments can be looked at.
    ///
    /// # Errors
    /// As [`Filter::allowing`].
    pub fn denying(mut self, number: c_long) -> Result<Self, WallError> {
        let rules = BTreeMap::from([(number, Vec::new())]);
        self.0.push(compile(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        )?);
        Ok(self)
    }

    /// Puts this thread, and all that it makes from now on, under the filter, for good and in addition to those that it is under
    /// already.
    ///
    /// # Errors
    /// [`WallError`] where the kernel has no seccomp.
    pub fn install(&self) -> Result<(), WallError> {
        for program in self.0.iter().rev() {
            apply_filter(program)
                .map_err(io::Error::other)
                .step("install a filter of system calls")?;
        }
        Ok(())
    }
}

type Conditions = Vec<Result<Vec<SeccompCondition>, seccompiler::BackendError>>;

/// The alternatives of a call, each of which is a list of conditions that must all hold; `None` when there are none to meet.
fn conditions(arguments: Arguments) -> Option<Conditions> {
    let is = |index, value: u32| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
    };
    let without = |index, bits: u32| {
        SeccompCondition::new(
            index,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(bits.into()),
            0,
        )
    };
    Some(match arguments {
        Arguments::Any => return None,
        Arguments::OneOf(index, values) => values.iter().map(|&value| Ok(vec![is(index, value)?])).collect(),
        Arguments::NoneOf(index, values) => {
            let differs = |&value: &u32| {
                SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value.into())
            };
            vec![values.iter().map(differs).collect()]
        }
        Arguments::Without(index, bits) => vec![without(index, bits).map(|one| vec![one])],
        Arguments::Pairs(first, second, pairs) => pairs
            .iter()
            .map(|&(one, other)| Ok(vec![is(first, one)?, is(second, other)?]))
            .collect(),
    })
}

fn compile(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, WallError> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)
        .step("name this processor")?;
    SeccompFilter::new(rules, mismatch, matched, arch)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
        .step("compile a filter of system calls")
}

/// The numbers that a call has: x86 may have another interface, with numbers of its own (arch/x86/entry/syscalls/syscall_64.tbl).
fn numbers(number: c_long) -> Vec<c_long> {
    const X32: c_long = 1 << 30;
    if cfg!(not(target_arch = "x86_64")) {
        return vec![number];
    }
    let other = match number {
        libc::SYS_ptrace => 521,
        libc::SYS_kexec_load => 528,
        libc::SYS_process_vm_readv => 539,
        libc::SYS_process_vm_writev => 540,
        same => same,
    };
    vec![number, other + X32]
}

/// How many system calls a list allows.
pub fn count(calls: &[Call]) -> usize {
    let mut numbers: Vec<_> = calls.iter().map(|call| call.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, WaitOptions, waitpid};

    use super::*;

    /// How a child ends that is under `filter` and does `what`.
    fn ends(filter: &Filter, what: impl Fn() -> i32) -> Result<i32, i32> {
        // SAFETY: the child calls `install`, which allocates nothing, and what a test does with system calls alone; it ends by
        // _exit. No other thread of the tests holds a lock that it needs.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let code = if filter.install().is_ok() { what() } else { 99 };
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) }
        }
        let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty())
            .unwrap()
            .unwrap();
        status
            .exit_status()
            .ok_or_else(|| status.terminating_signal().unwrap())
    }

    const BASE: [Call; 4] = [
        any(libc::SYS_exit_group, "ends"),
        any(libc::SYS_prctl, "install"),
        any(libc::SYS_seccomp, "install"),
        checked(
            libc::SYS_fcntl,
            Arguments::OneOf(1, &[libc::F_GETFD as u32, libc::F_GETFL as u32]),
            "looks",
        ),
    ];

    fn fcntl(command: i32) -> i32 {
        // SAFETY: looks at or sets flags of a descriptor.
        i32::from(unsafe { libc::fcntl(0, command, 0) } < 0)
    }

    #[test]
    fn what_is_on_the_list_works_and_what_is_not_kills() {
        let filter = Filter::allowing(&BASE).unwrap();
        assert_eq!(ends(&filter, || fcntl(libc::F_GETFL)), Ok(0));
        assert_eq!(ends(&filter, || fcntl(libc::F_DUPFD)), Err(libc::SIGSYS));
        // SAFETY: takes nothing.
        assert_eq!(ends(&filter, || unsafe { libc::getppid() }), Err(libc::SIGSYS));
        // SAFETY: a number of the x32 interface: getppid with bit 30.
        let x32 = || unsafe { libc::syscall(libc::SYS_fcntl | 1 << 30, 0, libc::F_GETFL) as i32 };
        assert_eq!(ends(&filter, x32), Err(libc::SIGSYS));
    }

    #[test]
    fn memory_that_can_be_executed_is_told_from_other_memory() {
        let mut calls = BASE.to_vec();
        calls.push(checked(
            libc::SYS_mmap,
            Arguments::Without(2, libc::PROT_EXEC as u32),
            "memory",
        ));
        calls.push(any(libc::SYS_munmap, "memory"));
        let filter = Filter::allowing(&calls).unwrap();
        let map = |protection| {
            // SAFETY: a new mapping, which nothing uses.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    protection,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            i32::from(address == libc::MAP_FAILED)
        };
        assert_eq!(ends(&filter, || map(libc::PROT_READ | libc::PROT_WRITE)), Ok(0));
        assert_eq!(
            ends(&filter, || map(libc::PROT_READ | libc::PROT_EXEC)),
            Err(libc::SIGSYS)
        );
    }

    #[test]
    fn pairs_and_masks_hold_together() {
        let mut calls = BASE.to_vec();
        calls.push(checked(
            libc::SYS_setpriority,
            Arguments::Pairs(0, 1, &[(0, 0)]),
            "test",
        ));
        calls.push(checked(libc::SYS_madvise, Arguments::Without(2, 1), "test"));
        let filter = Filter::allowing(&calls).unwrap();
        // SAFETY: a priority that any process may have.
        let priority =
            |which: i32, who: i32| unsafe { libc::syscall(libc::SYS_setpriority, which, who, 19) as i32 };
        assert_eq!(ends(&filter, || priority(0, 0)), Ok(0));
        assert_eq!(ends(&filter, || priority(0, 1)), Err(libc::SIGSYS));
        assert_eq!(ends(&filter, || priority(1, 0)), Err(libc::SIGSYS));
        // SAFETY: no memory at all is advised about.
        let advise = |length: usize, advice: i32| unsafe {
            libc::syscall(libc::SYS_madvise, 0, length, advice) as i32
        };
        assert_eq!(ends(&filter, || advise(0, 4)), Ok(0));
        assert_eq!(ends(&filter, || advise(0, 5)), Err(libc::SIGSYS));
    }

    #[test]
    fn a_list_of_what_kills_leaves_the_rest() {
        let filter = Filter::killing(&[
            any(libc::SYS_getppid, "test"),
            checked(
                libc::SYS_fcntl,
                Arguments::NoneOf(1, &[libc::F_GETFL as u32, libc::F_GETFD as u32]),
                "test",
            ),
        ])
        .unwrap();
        assert_eq!(ends(&filter, || fcntl(libc::F_GETFL)), Ok(0));
        assert_eq!(ends(&filter, || fcntl(libc::F_GETFD)), Ok(0));
        assert_eq!(ends(&filter, || fcntl(libc::F_DUPFD)), Err(libc::SIGSYS));
        // SAFETY: they take nothing.
        assert_eq!(ends(&filter, || i32::from(unsafe { libc::getpid() } < 1)), Ok(0));
        // SAFETY: as above.
        assert_eq!(ends(&filter, || unsafe { libc::getppid() }), Err(libc::SIGSYS));
        // SAFETY: as above; the number is that of the x32 interface.
        let x32 = || unsafe { libc::syscall(libc::SYS_getppid | 1 << 30) as i32 };
        assert_eq!(ends(&filter, x32), Err(libc::SIGSYS));
    }

    #[test]
    fn a_denied_call_seems_not_to_exist() {
        let mut calls = BASE.to_vec();
        calls.push(any(libc::SYS_getppid, "test"));
        let filter = Filter::allowing(&calls)
            .unwrap()
            .denying(libc::SYS_getppid)
            .unwrap();
        // SAFETY: takes nothing.
        let parent = || i32::from(unsafe { libc::syscall(libc::SYS_getppid) } != -1);
        assert_eq!(ends(&filter, parent), Ok(0));
    }

    #[test]
    fn a_call_that_is_listed_twice_counts_once() {
        let mut calls = BASE.to_vec();
        calls.push(checked(
            libc::SYS_fcntl,
            Arguments::OneOf(1, &[libc::F_SETFL as u32]),
            "sets",
        ));
        assert_eq!(count(&calls), 4);
        let filter = Filter::allowing(&calls).unwrap();
        assert_eq!(ends(&filter, || fcntl(libc::F_GETFL)), Ok(0));
        assert_eq!(ends(&filter, || fcntl(libc::F_SETFD)), Err(libc::SIGSYS));
    }
}
