//! The processes of the sandbox, as its own `/proc` tells (proc(5)). One that ends meanwhile is left out.

use std::{
    fs::{self, File},
    io::{self, Read},
};

use brig_protocol::tool::{ARGUMENTS_BYTES, PROCESSES_MAX, Process};

/// Most bytes that are read of a file: more than any that is not made of arguments has.
const FILE_BYTES: u64 = 16 << 10;

/// Every process but this one.
///
/// # Errors
/// Those of reading `/proc`.
pub fn all() -> io::Result<Vec<Process>> {
    let now_ticks = uptime_ticks();
    let own = own_pid();
    let read = |pid: u32| {
        let mut process = parse_stat(&read(pid, "stat").ok()?)?;
        let status = read(pid, "status").ok()?;
        process.pid = pid;
        process.now_ticks = now_ticks;
        process.uid = field(&status, "Uid:", 1)?;
        process.virtual_kib = field(&status, "VmSize:", 0).unwrap_or(0);
        process.resident_kib = field(&status, "VmRSS:", 0).unwrap_or(0);
        process.arguments = arguments(pid);
        Some(process)
    };
    Ok(pids()?
        .into_iter()
        .filter(|pid| Some(*pid) != own)
        .filter_map(read)
        .collect())
}

/// How many processes and threads there are, this one not counted.
///
/// # Errors
/// Those of reading `/proc`.
pub fn threads() -> io::Result<u64> {
    let own = own_pid();
    let of = |pid: u32| Some(u64::from(parse_stat(&read(pid, "stat").ok()?)?.threads));
    Ok(pids()?
        .into_iter()
        .filter(|pid| Some(*pid) != own)
        .filter_map(of)
        .sum())
}

/// The pid of this process in the `/proc` that is looked at; none, when it is of another pid namespace.
fn own_pid() -> Option<u32> {
    fs::read_link("/proc/self").ok()?.to_str()?.parse().ok()
}

fn pids() -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(PROCESSES_MAX)
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

fn read(pid: u32, name: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_bytes(pid, name, FILE_BYTES)?).into_owned())
}

fn read_bytes(pid: u32, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{name}"))?
        .take(limit)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn arguments(pid: u32) -> String {
    let bytes = read_bytes(pid, "cmdline", ARGUMENTS_BYTES as u64).unwrap_or_default();
    let words: Vec<_> = bytes
        .split(|&byte| byte == 0)
        .map(String::from_utf8_lossy)
        .collect();
    words.join(" ").trim_end().to_owned()
}

/// `pid (name) state ppid pgrp session tty …`: the name may have spaces and parentheses in it.
fn parse_stat(text: &str) -> Option<Process> {
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    // The state is field 3 of proc_pid_stat(5).
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Process {
        ppid: number(4)? as u32,
        state: (*fields.first()?).to_owned(),
        tty: fields.get(4)?.parse::<i32>().ok()? as u32,
        cpu_ticks: number(14)? + number(15)?,
        threads: number(20)? as u32,
        start_ticks: number(22)?,
        name: name.to_owned(),
        ..Process::default()
    })
}

/// A number of a line of `/proc/PID/status`.
fn field<T: std::str::FromStr>(status: &str, name: &str, position: usize) -> Option<T> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().nth(position)?.parse().ok()
}

/// By the clock that the starts of processes are told by.
fn uptime_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 100 + now.tv_nsec as u64 / 10_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let text = "7 (a) R 9 (b) S 1 7 7 34816 7 4194560 100 0 0 0 3 4 0 0 20 0 5 0 1234 0 0\n";
        let process = parse_stat(text).unwrap();
        assert_eq!(process.name, "a) R 9 (b");
        assert_eq!(
            (process.ppid, process.state.as_str(), process.tty),
            (1, "S", 34816)
        );
        assert_eq!(
            (process.cpu_ticks, process.threads, process.start_ticks),
            (7, 5, 1234)
        );
        for text in [
            "",
            "7 (a",
            "7 (a) R",
            "7 (a) R x x x x x x x x x x x x x x x x x x x x x",
        ] {
            assert_eq!(parse_stat(text), None, "{text}");
        }
    }

    #[test]
    fn the_calling_process_is_left_out_and_its_parent_is_not() {
        let found = all().unwrap();
        assert!(found.iter().all(|process| process.pid != std::process::id()));
        let parent = std::os::unix::process::parent_id();
        let parent = found.iter().find(|process| process.pid == parent).unwrap();
        assert!(!parent.arguments.is_empty() && parent.resident_kib > 0);
        assert!(threads().unwrap() >= 1);
    }
}
