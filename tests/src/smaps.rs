//! What a process has in memory, mapping by mapping (proc(5), `/proc/pid/smaps`).

use std::fs;

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mapping {
    /// Whether it is a guest's memory: a template's or a snapshot's file, or a memfd.
    pub is_guest: bool,
    /// Proportional set size in KiB.
    pub pss_kib: u64,
    /// Pages of no file, or that were written to where a file is mapped privately, in KiB.
    pub anonymous_kib: u64,
}

/// All mappings of a process; none when it has ended or is not ours to see.
pub fn of_process(pid: u32) -> Option<Vec<Mapping>> {
    fs::read_to_string(format!("/proc/{pid}/smaps"))
        .ok()
        .map(|text| parse(&text))
}

fn parse(text: &str) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), value) = (words.next(), words.next()) else {
            continue;
        };
        let kib = || value.and_then(|value| value.parse().ok()).unwrap_or(0);
        match (name, all.last_mut()) {
            ("Pss:", Some(mapping)) => mapping.pss_kib = kib(),
            ("Anonymous:", Some(mapping)) => mapping.anonymous_kib = kib(),
            // The head of a mapping: its addresses first, its file last.
            _ if !name.ends_with(':') => all.push(Mapping {
                is_guest: ["/templates/", "/snapshots/", "memfd:"]
                    .iter()
                    .any(|part| line.contains(part)),
                ..Mapping::default()
            }),
            _ => {}
        }
    }
    all
}
