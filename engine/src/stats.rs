//! What a running sandbox takes of the host, as proc(5) tells it: of a sandbox with a guest its brig-vmm, the guest's memory
//! included; of a container all of its processes, and its cgroup where it has one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    Error, Isolation,
    cell::cgroups,
    clock::monotonic_ns,
    sandbox::{Sandbox, config::Limits},
};

/// Nanoseconds of a clock tick (`USER_HZ` is 100 on every machine).
const TICK_NS: u64 = 10_000_000;

/// What has been taken up to a moment, and what is held at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The moment, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// CPU time, in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes of memory; what is shared with others counts in proportion where the kernel tells that.
    pub memory: u64,
    /// The most that it may have.
    pub memory_limit: u64,
    /// Bytes read from disks; unknown where the kernel does not tell who asks.
    pub read: Option<u64>,
    /// Bytes written to disks.
    pub written: Option<u64>,
    /// Processes and threads of a container.
    pub threads: Option<u64>,
}

/// Looks at `sandbox`.
///
/// # Errors
/// [`Error::NotRunning`].
pub fn sample(sandbox: &Sandbox) -> Result<Sample, Error> {
    let not_running = || Error::NotRunning(sandbox.config.id.short().to_owned());
    let pid = sandbox.state.vmm_pid.ok_or_else(not_running)?;
    let mut sample = match sandbox.config.isolation {
        Isolation::Vm => of_all(&[Process::read(pid).ok_or_else(not_running)?]),
        Isolation::Container => {
            // The keeper and the cell's init are brig's own.
            let all = tree(pid);
            if all.is_empty() {
                return Err(not_running());
            }
            let own: Vec<_> = all.iter().take(2).map(|process| process.pid).collect();
            let mut sample = of_all(&all);
            let theirs = all.iter().filter(|process| !own.contains(&process.pid));
            sample.threads = Some(theirs.map(|process| process.threads).sum());
            if sandbox.config.limits != Limits::default()
                && let Some(counted) = cgroups::memory_and_cpu(&sandbox.config.id)
            {
                sample.memory = counted.memory.unwrap_or(sample.memory);
                sample.cpu_ns = counted.cpu_ns.unwrap_or(sample.cpu_ns);
            }
            sample
        }
    };
    sample.at_ns = monotonic_ns();
    sample.memory_limit = match (sandbox.config.isolation, sandbox.config.limits.memory) {
        (Isolation::Vm, _) => sandbox.config.memory.bytes(),
        (Isolation::Container, Some(limit)) => limit.bytes(),
        (Isolation::Container, None) => host_memory(),
    };
    Ok(sample)
}

/// The share of one CPU that was used between two samples, in percent.
pub fn cpu_percent(before: &Sample, now: &Sample) -> f64 {
    let passed = now.at_ns.saturating_sub(before.at_ns);
    if passed == 0 {
        return 0.0;
    }
    now.cpu_ns.saturating_sub(before.cpu_ns) as f64 * 100.0 / passed as f64
}

fn of_all(processes: &[Process]) -> Sample {
    let sum = |of: &dyn Fn(&Process) -> u64| processes.iter().map(of).sum::<u64>();
    let io = |name: &str| -> Option<u64> {
        let of = |process: &Process| number(&read(process.pid, "io")?, name);
        processes.iter().map(of).sum()
    };
    Sample {
        cpu_ns: sum(&|process| process.ticks) * TICK_NS,
        memory: sum(&|process| memory(process.pid)),
        read: io("read_bytes:"),
        written: io("write_bytes:"),
        ..Sample::default()
    }
}

/// Of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: u32,
    pub parent: u32,
    /// CPU time, with that of children that have ended and been waited for.
    ticks: u64,
    threads: u64,
    /// `R`, `S`, `T`, `Z`, …
    pub state: char,
}

impl Process {
    pub fn read(pid: u32) -> Option<Self> {
        Self::parse(pid, &read(pid, "stat")?)
    }

    /// `pid (name) state ppid …`: the name may have anything in it.
    fn parse(pid: u32, stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // The state is field 3 of proc_pid_stat(5).
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: number(4)? as u32,
            ticks: number(14)? + number(15)? + number(16)? + number(17)?,
            threads: number(20)?,
            state: fields.first()?.chars().next()?,
        })
    }
}

/// `root` and everything below it, parents before their children.
pub(crate) fn tree(root: u32) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
    let mut found = Vec::new();
    for process in pids.filter_map(Process::read) {
        if process.pid == root {
            found.push(process);
        } else {
            children.entry(process.parent).or_default().push(process);
        }
    }
    let mut next = 0;
    while let Some(process) = found.get(next) {
        // Removed, so that a pid that was given again meanwhile cannot make a circle.
        found.extend(children.remove(&process.pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// Proportional where the kernel tells (smaps), otherwise what is resident.
fn memory(pid: u32) -> u64 {
    let shared = read(pid, "smaps_rollup").and_then(|text| number(&text, "Pss:"));
    let resident = || read(pid, "status").and_then(|text| number(&text, "VmRSS:"));
    shared.or_else(resident).unwrap_or(0) << 10
}

fn host_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    number(&text, "MemTotal:").unwrap_or(0) << 10
}

fn read(pid: u32, name: &str) -> Option<String> {
    let path: PathBuf = Path::new("/proc").join(pid.to_string()).join(name);
    fs::read(path)
        .ok()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The first number of the line that begins with `name`.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_time_between_two_samples() {
        let at = |at_ns, cpu_ns| Sample {
            at_ns,
            cpu_ns,
            ..Sample::default()
        };
        let half = cpu_percent(&at(1_000, 0), &at(3_000, 1_000));
        assert!((half - 50.0).abs() < 0.001, "{half}");
        assert!(cpu_percent(&at(1, 0), &at(1, 5)).abs() < 0.001);
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 6 0 99 0 0";
        let process = Process::parse(7, stat).unwrap();
        assert_eq!((process.parent, process.ticks, process.threads), (3, 100, 6));
        assert_eq!(number("VmSize: 3 kB\nVmRSS:\t 12 kB\n", "VmRSS:"), Some(12));
    }

    #[test]
    fn a_tree_has_those_below_and_no_others() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pids: Vec<u32> = tree(std::process::id())
            .iter()
            .map(|process| process.pid)
            .collect();
        assert_eq!(pids[0], std::process::id());
        assert!(pids.contains(&child.id()));
        assert!(!pids.contains(&std::os::unix::process::parent_id()));
        assert!(memory(std::process::id()) > 1 << 20);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
