//! What a start costs the host: the system calls and page faults of this process and of all that it starts from then on, as
//! the kernel counts them (perf_event_open(2)).

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{FromRawFd, OwnedFd},
};

/// Where the number of the tracepoint stands (Documentation/trace/events.rst), in the file system of today and of old.
const SYS_ENTER: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];

/// Kinds of events, and one of the second kind (include/uapi/linux/perf_event.h).
const TYPE_SOFTWARE: u32 = 1;
const TYPE_TRACEPOINT: u32 = 2;
const SOFTWARE_PAGE_FAULTS: u64 = 2;

/// Bit of the flags: processes and threads that are made later are counted, too.
const INHERIT: u64 = 1 << 1;

/// Flag of the call: the descriptor closes at an exec.
const FLAG_CLOEXEC: libc::c_ulong = 1 << 3;

/// `struct perf_event_attr` in its first version, which all kernels take.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

/// Counters that run.
#[derive(Debug)]
pub struct HostCounters {
    system_calls: File,
    page_faults: File,
}

/// What they have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCost {
    /// System calls.
    pub system_calls: u64,
    /// Page faults, minor and major.
    pub page_faults: u64,
}

impl HostCounters {
    /// Begins to count. For a process that has one thread yet: others are not seen.
    ///
    /// # Errors
    /// Why that cannot be had, in words that follow "not counted:".
    pub fn start() -> Result<Self, String> {
        let sys_enter = SYS_ENTER
            .iter()
            .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
            .ok_or("no tracepoints for this user (as root: mount -t tracefs tracefs /sys/kernel/tracing)")?;
        let open = |kind, config| {
            open(kind, config).map_err(|e| match e.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => {
                    "no perf events for this user (sysctl kernel.perf_event_paranoid)".to_owned()
                }
                _ => format!("no perf events: {e}"),
            })
        };
        Ok(Self {
            system_calls: open(TYPE_TRACEPOINT, sys_enter)?,
            page_faults: open(TYPE_SOFTWARE, SOFTWARE_PAGE_FAULTS)?,
        })
    }

    /// What has been counted so far.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read(&self) -> io::Result<HostCost> {
        let value = |mut counter: &File| {
            let mut bytes = [0; 8];
            counter.read_exact(&mut bytes)?;
            Ok::<_, io::Error>(u64::from_ne_bytes(bytes))
        };
        Ok(HostCost {
            system_calls: value(&self.system_calls)?,
            page_faults: value(&self.page_faults)?,
        })
    }
}

/// A counter of this process, on all CPUs.
fn open(kind: u32, config: u64) -> io::Result<File> {
    let attributes = Attributes {
        kind,
        size: size_of::<Attributes>() as u32,
        config,
        flags: INHERIT,
        ..Attributes::default()
    };
    let (this, every_cpu, no_group): (libc::pid_t, libc::c_int, libc::c_int) = (0, -1, -1);
    // SAFETY: the call reads as many bytes of `attributes` as their `size` says, which is theirs, and writes none.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            this,
            every_cpu,
            no_group,
            FLAG_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just given the descriptor to this process.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_does_is_counted_or_the_reason_is_told() {
        let counters = match HostCounters::start() {
            Ok(counters) => counters,
            Err(reason) => {
                assert!(reason.starts_with("no "), "{reason}");
                return eprintln!("skipped: {reason}");
            }
        };
        let before = counters.read().unwrap();
        assert!(
            std::process::Command::new("/bin/true")
                .status()
                .unwrap()
                .success()
        );
        let after = counters.read().unwrap();
        // What executes a program calls the kernel and touches pages; a few calls are this test's own.
        assert!(
            after.system_calls > before.system_calls + 10,
            "{before:?} {after:?}"
        );
        assert!(
            after.page_faults > before.page_faults + 10,
            "{before:?} {after:?}"
        );
    }
}
