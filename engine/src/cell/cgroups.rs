//! The cgroups that keep a sandbox on the host's kernel to its limits: version 2, or where a host has the older hierarchies
//! (cgroups(7)) one in each of those that a limit needs. Without limits there is none.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{Error, SandboxId, sandbox::config::Limits};

/// Microseconds of a period in which CPU time is counted, the kernel's default.
const PERIOD_US: u64 = 100_000;

/// The directory of all of brig's cgroups below the one that they are made in.
const PARENT: &str = "brig";

/// Where the hierarchies are.
const ROOT: &str = "/sys/fs/cgroup";

/// Processes of a cell beside those of the sandbox.
const OWN_PROCESSES: u64 = 1;

/// The cgroups of one sandbox. They are removed when this is dropped, if nothing is in them.
#[derive(Debug)]
pub struct Cgroups {
    directories: Vec<PathBuf>,
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in &self.directories {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// A file and what is written to it.
type Setting = (&'static str, String);

impl Cgroups {
    /// Makes them, with these limits set. `None` when there are none.
    ///
    /// # Errors
    /// [`Error::Isolation`] with what the host does not let this user limit; nothing is left then.
    pub fn create(id: &SandboxId, limits: &Limits) -> Result<Option<Self>, Error> {
        if *limits == Limits::default() {
            return Ok(None);
        }
        let mut made = Self {
            directories: Vec::new(),
        };
        if is_unified() {
            let base = unified_base().map_err(|e| cannot(&e))?;
            made.make(base.join(id.as_str()), &settings(limits, Version::Two))?;
        } else {
            for controller in ["memory", "cpu", "pids"] {
                let wanted: Vec<Setting> = settings(limits, Version::One)
                    .into_iter()
                    .filter(|(file, _)| file.starts_with(controller))
                    .collect();
                if wanted.is_empty() {
                    continue;
                }
                let base = legacy_base(controller).map_err(|e| cannot(&e))?;
                made.make(base.join(id.as_str()), &wanted)?;
            }
        }
        Ok(Some(made))
    }

    fn make(&mut self, directory: PathBuf, settings: &[Setting]) -> Result<(), Error> {
        let make = || {
            match fs::create_dir(&directory) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            settings
                .iter()
                .try_for_each(|(file, value)| set(&directory, file, value))
        };
        let made = make().map_err(|e| cannot(&named(&directory, e)));
        self.directories.push(directory);
        made
    }

    /// The files that a process enters them by.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn procs(&self) -> Result<Vec<File>, Error> {
        let open = |directory: &PathBuf| {
            let path = directory.join("cgroup.procs");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .map_err(Error::file("open", &path))
        };
        self.directories.iter().map(open).collect()
    }
}

/// Removes what a killed supervisor has left of a sandbox's cgroups.
pub fn forget(id: &SandboxId) {
    let bases = if is_unified() {
        vec![unified_base()]
    } else {
        ["memory", "cpu", "pids"].map(legacy_base).into()
    };
    for base in bases.into_iter().flatten() {
        let _ = fs::remove_dir(base.join(id.as_str()));
    }
}

/// What a cgroup has counted, as far as it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes of memory, but for what the kernel can drop at once.
    pub memory: Option<u64>,
    /// CPU time in nanoseconds.
    pub cpu_ns: Option<u64>,
}

/// What the cgroups of a sandbox have counted; `None` when it has none.
pub fn memory_and_cpu(id: &SandboxId) -> Option<Counted> {
    let read = |directory: &Path, file: &str| fs::read_to_string(directory.join(file)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let line = |text: &str, name: &str| -> Option<u64> {
        let mut words = text
            .lines()
            .find_map(|line| line.strip_prefix(name))?
            .split_whitespace();
        words.next()?.parse().ok()
    };
    if is_unified() {
        let directory = unified_base().ok()?.join(id.as_str());
        if !directory.exists() {
            return None;
        }
        let cached = read(&directory, "memory.stat").and_then(|text| line(&text, "inactive_file "));
        let memory = read(&directory, "memory.current").and_then(number);
        let cpu = read(&directory, "cpu.stat").and_then(|text| line(&text, "usage_usec "));
        return Some(Counted {
            memory: memory.map(|bytes| bytes.saturating_sub(cached.unwrap_or(0))),
            cpu_ns: cpu.map(|us| us * 1000),
        });
    }
    let directory = |controller| {
        let directory = legacy_base(controller).ok()?.join(id.as_str());
        directory.exists().then_some(directory)
    };
    let counted = directory("memory").and_then(|directory| {
        let cached = read(&directory, "memory.stat").and_then(|text| line(&text, "total_inactive_file "));
        let memory = read(&directory, "memory.usage_in_bytes").and_then(number)?;
        Some(memory.saturating_sub(cached.unwrap_or(0)))
    });
    counted.map(|memory| Counted {
        memory: Some(memory),
        cpu_ns: None,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// What has to be written for these limits. Files that some kernels do not have start with `?`.
fn settings(limits: &Limits, version: Version) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(memory) = limits.memory {
        let bytes = memory.bytes();
        // As Docker: as much swap as memory.
        match version {
            Version::Two => settings.extend([
                ("memory.max", bytes.to_string()),
                ("memory.swap.max", bytes.to_string()),
            ]),
            Version::One => settings.extend([
                ("memory.limit_in_bytes", bytes.to_string()),
                ("memory.memsw.limit_in_bytes", (bytes * 2).to_string()),
            ]),
        }
    }
    if let Some(cpus) = limits.cpus {
        let quota = cpus.nano() / 1000 * PERIOD_US / 1_000_000;
        match version {
            Version::Two => settings.push(("cpu.max", format!("{quota} {PERIOD_US}"))),
            Version::One => settings.extend([
                ("cpu.cfs_period_us", PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ]),
        }
    }
    if let Some(pids) = limits.pids {
        settings.push(("pids.max", pids.saturating_add(OWN_PROCESSES).to_string()));
    }
    settings
}

/// Kernels without swap accounting do not have the files of it.
fn set(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = directory.join(file);
    match OpenOptions::new().write(true).open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && file.contains("sw") => Ok(()),
        Err(e) => Err(named(&path, e)),
        Ok(mut opened) => opened.write_all(value.as_bytes()).map_err(|e| named(&path, e)),
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn cannot(error: &io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            " (a user's cgroup has to be delegated: systemd-run --user --scope -p Delegate=yes brig ...)"
        }
        _ => "",
    };
    Error::Isolation(format!(
        "limits need a cgroup that can be written: {error}{advice}"
    ))
}

/// Whether there is version 2 alone: its root has this file, and no directory of hierarchies has.
fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The directory for sandboxes' cgroups of version 2, whose controllers are on.
fn unified_base() -> io::Result<PathBuf> {
    let parent = if rustix::process::geteuid().is_root() {
        PathBuf::from(ROOT)
    } else {
        // Whoever moves a process must be able to write to the first ancestor that both cgroups have.
        delegated(&own_path("")?)?
    };
    let base = parent.join(PARENT);
    enable(&parent)?;
    match fs::create_dir(&base) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(|e| named(&base, e))?,
    }
    enable(&base)?;
    Ok(base)
}

fn enable(directory: &Path) -> io::Result<()> {
    let path = directory.join("cgroup.subtree_control");
    let there = fs::read_to_string(&path)?;
    for controller in ["memory", "cpu", "pids"] {
        if !there.split_whitespace().any(|present| present == controller) {
            fs::write(&path, format!("+{controller}")).map_err(|e| named(&path, e))?;
        }
    }
    Ok(())
}

/// The highest ancestor of a cgroup that this user may write to.
fn delegated(own: &Path) -> io::Result<PathBuf> {
    let root = Path::new(ROOT);
    let own = root.join(own.strip_prefix("/").unwrap_or(own));
    let writable = |directory: &&Path| {
        let file = directory.join("cgroup.procs");
        OpenOptions::new().write(true).open(file).is_ok()
    };
    own.ancestors()
        .take_while(|directory| directory.starts_with(root))
        .filter(writable)
        .last()
        .map(Path::to_owned)
        .ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, "no cgroup is this user's"))
}

/// The directory for sandboxes' cgroups in one of the older hierarchies: below this process's own, whose limits hold too.
fn legacy_base(controller: &str) -> io::Result<PathBuf> {
    let mount = Path::new(ROOT).join(controller);
    if !mount.is_dir() {
        let text = format!("this host has no cgroup controller {controller}");
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let own = own_path(controller)?;
    let base = mount.join(own.strip_prefix("/").unwrap_or(&own)).join(PARENT);
    match fs::create_dir(&base) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(|e| named(&base, e))?,
    }
    Ok(base)
}

/// The path of this process's cgroup in the hierarchy of a controller; without one, of version 2.
fn own_path(controller: &str) -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    path_of(&text, controller).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no cgroup of the controller {controller:?}"),
        )
    })
}

/// Lines are `number:controllers:path`.
fn path_of(text: &str, controller: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        controllers
            .split(',')
            .any(|one| one == controller)
            .then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            memory: Some("64m".parse().unwrap()),
            cpus: Some("1.5".parse().unwrap()),
            pids: Some(10),
        }
    }

    #[test]
    fn each_version_has_its_own_files() {
        let names = |version| -> Vec<&str> {
            settings(&limits(), version)
                .iter()
                .map(|(file, _)| *file)
                .collect()
        };
        assert_eq!(
            names(Version::Two),
            ["memory.max", "memory.swap.max", "cpu.max", "pids.max"]
        );
        assert_eq!(
            names(Version::One),
            [
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                "cpu.cfs_period_us",
                "cpu.cfs_quota_us",
                "pids.max"
            ]
        );
        assert!(settings(&limits(), Version::Two).contains(&("cpu.max", "150000 100000".to_owned())));
        assert!(settings(&limits(), Version::One).contains(&("pids.max", "11".to_owned())));
    }

    #[test]
    fn no_limit_needs_no_cgroup() {
        let id = SandboxId::random().unwrap();
        assert!(Cgroups::create(&id, &Limits::default()).unwrap().is_none());
    }

    #[test]
    fn a_hierarchy_is_found_by_its_controller() {
        let text = "8:pids:/a\n2:cpu,cpuacct:/b:c\n0::/d\n";
        assert_eq!(path_of(text, "cpu"), Some("/b:c".into()));
        assert_eq!(path_of(text, "pids"), Some("/a".into()));
        assert_eq!(path_of(text, ""), Some("/d".into()));
        assert_eq!(path_of(text, "memory"), None);
    }
}
