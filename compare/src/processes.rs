//! Processes of the host, and what memory is theirs (proc(5)).

use std::{collections::BTreeMap, fs, path::Path};

use crate::Error;

/// A process and all that it has started.
pub fn tree(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in pids() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        // A process that takes another's number meanwhile must not make this go round in circles.
        let below = children.remove(pid).unwrap_or_default();
        found.extend(below);
        at += 1;
    }
    found
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may have anything in it.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(1)?.parse().ok()
}

/// The name of a process's program, as far as this user may know it.
pub fn program(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.to_string_lossy().into_owned();
    Some(name.trim_end_matches(" (deleted)").to_owned())
}

/// Memory of a process, in KiB: its proportional set size, in which pages that several share count in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pss {
    /// All of it.
    pub all: f64,
    /// What of it is a guest's memory: the file of its template, or a memfd.
    pub guest: f64,
}

/// The memory of a process; `None` when it has ended.
///
/// # Errors
/// [`Error::System`] when this user may not know.
pub fn pss(pid: u32) -> Result<Option<Pss>, Error> {
    let path = format!("/proc/{pid}/smaps");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(parse(&text))),
        Err(_) if !Path::new(&format!("/proc/{pid}")).exists() => Ok(None),
        Err(e) => Err(Error::file("read", Path::new(&path))(e)),
    }
}

fn parse(text: &str) -> Pss {
    let (mut pss, mut is_guest) = (Pss::default(), false);
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("Pss:") {
            let kib: f64 = value
                .split_whitespace()
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0.0);
            pss.all += kib;
            pss.guest += if is_guest { kib } else { 0.0 };
        } else if line
            .split_whitespace()
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            // The head of a mapping: its addresses first, its file last.
            is_guest = line.contains("/templates/") || line.contains("memfd:");
        }
    }
    pss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_memory_is_told_from_the_rest() {
        let text = "\
7f00-7f10 r--p 0 00:01 5 /usr/lib/brig/brig-vmm
Pss:                  10 kB
Pss_Dirty:             3 kB
7f20-7f30 rw-p 0 00:01 6 /var/lib/brig/templates/abc/memory
Rss:                 900 kB
Pss:                 400 kB
7f40-7f50 rw-s 0 00:01 7 /memfd:guest (deleted)
Pss:                   7 kB
7f60-7f70 rw-p 0 00:00 0 [heap]
Pss:                   2 kB
";
        assert_eq!(
            parse(text),
            Pss {
                all: 419.0,
                guest: 407.0
            }
        );
    }

    #[test]
    fn this_process_has_memory_and_a_child_is_in_its_tree() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = std::process::id();
        assert!(tree(own).contains(&child.id()));
        assert_eq!(tree(child.id()), [child.id()]);
        assert!(pss(own).unwrap().unwrap().all > 100.0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(pss(child.id()).unwrap(), None);
        assert!(program(own).unwrap().starts_with("brig_compare"));
    }
}
