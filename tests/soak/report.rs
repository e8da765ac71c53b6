//! What was done, and what is left on the host: the table at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::PathBuf,
    time::Duration,
};

use brig_tests::{brig::Brig, leftovers};

/// What was done of one kind.
#[derive(Default)]
struct Row {
    failed: usize,
    times: Vec<Duration>,
}

/// All of it.
#[derive(Default)]
pub struct Report {
    rows: BTreeMap<&'static str, Row>,
    left: Vec<String>,
}

/// What there is on a host that sandboxes could leave something of.
pub struct Host {
    files: BTreeSet<PathBuf>,
    mounts: usize,
    cgroups: BTreeSet<PathBuf>,
    /// Descriptors of this process, which has started and awaited everything.
    descriptors: usize,
}

impl Host {
    /// Looks at it.
    pub fn look(brig: &Brig) -> Self {
        let mut files: BTreeSet<_> = leftovers::listing(brig.root())
            .unwrap_or_default()
            .into_iter()
            .collect();
        // Locks stay, empty, for those who come next.
        files.retain(|path| path.extension().is_none_or(|extension| extension != "lock"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut cgroups = BTreeSet::new();
        let mut bases = vec![PathBuf::from("/sys/fs/cgroup/brig")];
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for line in own.lines() {
            // `number:controllers:path` (cgroups(7)).
            if let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] {
                let mount = PathBuf::from("/sys/fs/cgroup").join(controllers);
                bases.push(mount.join(path.trim_start_matches('/')).join("brig"));
            }
        }
        for base in bases {
            let children = fs::read_dir(base).into_iter().flatten().flatten();
            // One with a process in it is that of a sandbox that runs: another brig's, or found as a process.
            let is_left = |path: &PathBuf| {
                let inside = fs::read_to_string(path.join("cgroup.procs"));
                inside.is_ok_and(|pids| pids.is_empty())
            };
            cgroups.extend(children.map(|entry| entry.path()).filter(is_left));
        }
        Self {
            files,
            mounts: mounts.lines().count(),
            cgroups,
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        }
    }
}

impl Report {
    /// Counts something that was done.
    pub fn count(&mut self, name: &'static str, took: Duration, passed: bool) {
        let row = self.rows.entry(name).or_default();
        row.failed += usize::from(!passed);
        row.times.push(took);
    }

    /// Compares the host with what it was `before`, after the last sandbox has been removed.
    pub fn left(&mut self, before: &Host, brig: &Brig) {
        self.left = leftovers::find(brig);
        let after = Host::look(brig);
        let new = |what: &str, before: &BTreeSet<PathBuf>, after: &BTreeSet<PathBuf>| {
            let new = after
                .difference(before)
                .map(|path| format!("{what} {}", path.display()));
            new.collect::<Vec<_>>()
        };
        self.left.extend(new("file", &before.files, &after.files));
        self.left.extend(new("cgroup", &before.cgroups, &after.cgroups));
        for (what, before, after) in [
            ("mounts", before.mounts, after.mounts),
            (
                "descriptors of this process",
                before.descriptors,
                after.descriptors,
            ),
        ] {
            if after > before {
                self.left.push(format!("{after} {what}, not {before}"));
            }
        }
    }

    /// Whether everything was as it must be, and something was done at all.
    pub fn passed(&self) -> bool {
        !self.rows.is_empty() && self.left.is_empty() && self.rows.values().all(|row| row.failed == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| what | times | wrong | median s | longest s |\n|---|---|---|---|---|"
        )?;
        let (mut times, mut failed) = (0, 0);
        for (name, row) in &self.rows {
            let mut took = row.times.clone();
            took.sort_unstable();
            let seconds = |at: usize| took.get(at).map_or(0.0, Duration::as_secs_f64);
            writeln!(
                f,
                "| {name} | {} | {} | {:.1} | {:.1} |",
                took.len(),
                row.failed,
                seconds(took.len() / 2),
                seconds(took.len().saturating_sub(1))
            )?;
            times += took.len();
            failed += row.failed;
        }
        writeln!(f, "| all | {times} | {failed} | | |")?;
        for left in &self.left {
            writeln!(f, "left over: {left}")?;
        }
        writeln!(f, "{} left over", self.left.len())
    }
}
