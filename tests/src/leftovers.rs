//! What of a brig is still on the host: processes, mounts, sockets, directories.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

use crate::brig::Brig;

/// How long a process may take to end after the command that ended it has returned.
const GRACE: Duration = Duration::from_secs(60);

/// A process that belongs to a brig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// What `/proc/PID/comm` says.
    pub name: String,
}

/// Everything that is left, a line each. Processes have [`GRACE`] to end.
pub fn find(brig: &Brig) -> Vec<String> {
    let deadline = Instant::now() + GRACE;
    for process in processes(brig) {
        wait_for_end(process.pid, deadline);
    }
    let mut left: Vec<String> = processes(brig)
        .into_iter()
        .map(|process| format!("process {} ({})", process.pid, process.name))
        .collect();
    left.extend(lines_about("/proc/self/mountinfo", brig).map(|line| format!("mount {line}")));
    left.extend(lines_about("/proc/net/unix", brig).map(|line| format!("socket {line}")));
    left.extend(entries(&brig.root().join("sandboxes")).map(|path| format!("sandbox {}", path.display())));
    left.extend(sockets(brig.runtime()).map(|path| format!("in the runtime directory: {}", path.display())));
    left
}

/// The processes of a brig: they have its directories in their environment, arguments or open files.
pub fn processes(brig: &Brig) -> Vec<Process> {
    let own = std::process::id();
    entries(Path::new("/proc"))
        .filter_map(|path| {
            let pid: u32 = path.file_name()?.to_str()?.parse().ok()?;
            (pid != own && belongs(&path, brig)).then(|| Process {
                pid,
                name: fs::read_to_string(path.join("comm"))
                    .unwrap_or_default()
                    .trim()
                    .into(),
            })
        })
        .collect()
}

/// The processes of one sandbox: those that have its directory open or in their arguments.
pub fn processes_of_sandbox(brig: &Brig, id: &str) -> Vec<Process> {
    let needle = id.as_bytes();
    let mut found = processes(brig);
    found.retain(|process| mentions(&Path::new("/proc").join(process.pid.to_string()), &[needle]));
    found
}

/// What a sandbox that does not answer is doing, for a test that fails of it: the processor time that each of its threads took in
/// a while, its state, and the end of its guest kernel's log.
pub fn describe(brig: &Brig, id: &str) -> String {
    let threads = || -> Vec<(String, u64)> {
        let tasks = processes_of_sandbox(brig, id)
            .into_iter()
            .flat_map(|process| entries(&PathBuf::from(format!("/proc/{}/task", process.pid))));
        tasks
            .filter_map(|task| {
                let stat = fs::read_to_string(task.join("stat")).ok()?;
                let (head, tail) = stat.rsplit_once(')')?;
                let fields: Vec<_> = tail.split_whitespace().collect();
                // proc(5): state is field 3, utime and stime are 14 and 15.
                let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
                let name = format!("{head}) {}", fields.first()?);
                Some((name, ticks(11)? + ticks(12)?))
            })
            .collect()
    };
    let before = threads();
    thread::sleep(WHILE);
    let took = threads().into_iter().map(|(name, ticks)| {
        let before = before.iter().find(|(known, _)| number(known) == number(&name));
        format!("{name}: {} ticks", ticks - before.map_or(0, |(_, ticks)| *ticks))
    });
    let mut lines: Vec<_> = took.collect();
    lines.push(brig.run(&["inspect", "--format", "{{json .State}}", id]).stdout);
    let log = brig.root().join("sandboxes").join(id).join("console.log");
    let log = fs::read_to_string(log).unwrap_or_default();
    let log: Vec<_> = log.lines().collect();
    lines.extend(
        log[log.len().saturating_sub(20)..]
            .iter()
            .map(ToString::to_string),
    );
    lines.join("\n")
}

/// How long threads are watched.
const WHILE: Duration = Duration::from_secs(3);

/// The thread's number at the start of its line.
fn number(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

/// Ends all processes of a brig, for a test that failed.
pub fn kill_processes(brig: &Brig) {
    for process in processes(brig) {
        if let Some(pid) = Pid::from_raw(process.pid as i32) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Waits for the end of a process that need not be a child.
pub fn wait_for_end(pid: u32, deadline: Instant) -> bool {
    let Some(pid) = Pid::from_raw(pid as i32) else {
        return true;
    };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready == 1)
}

/// Every path under a directory, sorted.
///
/// # Errors
/// Those of reading directories.
pub fn listing(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut rest = vec![directory.to_owned()];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                rest.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn belongs(process: &Path, brig: &Brig) -> bool {
    let needles = [brig.root(), brig.runtime()].map(|path| path.as_os_str().as_encoded_bytes());
    mentions(process, &needles)
}

/// Whether a process has one of `needles` in its environment, its arguments or the names of its open files. A zombie
/// has none of these: it is gone but for its parent's attention.
fn mentions(process: &Path, needles: &[&[u8]]) -> bool {
    let found = |bytes: &[u8]| needles.iter().any(|needle| contains(bytes, needle));
    let in_files = ["environ", "cmdline"]
        .iter()
        .any(|file| fs::read(process.join(file)).is_ok_and(|bytes| found(&bytes)));
    in_files
        || entries(&process.join("fd"))
            .any(|fd| fs::read_link(fd).is_ok_and(|target| found(target.as_os_str().as_encoded_bytes())))
}

fn lines_about(file: &str, brig: &Brig) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let needles = [brig.root(), brig.runtime()].map(|path| path.display().to_string());
    text.lines()
        .filter(|line| needles.iter().any(|needle| line.contains(needle.as_str())))
        .map(Into::into)
        .collect::<Vec<_>>()
        .into_iter()
}

fn sockets(directory: &Path) -> impl Iterator<Item = PathBuf> {
    listing(directory).unwrap_or_default().into_iter()
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
