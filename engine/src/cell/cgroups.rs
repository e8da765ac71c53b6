//! The cgroups that keep the processes of a sandbox to their limits: version 2, or where a host has the older hierarchies
//! (cgroups(7)) one in each of those that a limit needs. Of a container they hold what the user limits, and without limits there
//! is none; of a sandbox with a guest they hold its brig-vmm to what such a guest can need.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    Error, SandboxId,
    device_rate::{Kind, Number},
    options::Swap,
    resources::{Cpus, MemoryMib},
    sandbox::{Config, config::Limits},
};

/// Microseconds of a period in which CPU time is counted, the kernel's default.
const PERIOD_US: u64 = 100_000;

/// The directory of all of brig's cgroups below the one that they are made in.
const PARENT: &str = "brig";

/// Where the hierarchies are.
const ROOT: &str = "/sys/fs/cgroup";

/// The cgroups of this process.
const OWN: &str = "/proc/self/cgroup";

/// How often, and after what rests, it is looked whether the cgroups of a sandbox that has ended are empty.
const EMPTY_ROUNDS: usize = 50;
const EMPTY_REST: Duration = Duration::from_millis(10);

/// Threads of this process that make cgroups.
static PREPARING: AtomicUsize = AtomicUsize::new(0);

/// Gives the cgroups that a process has been put into.
pub type Preparing = oneshot::Receiver<Result<Option<Cgroups>, Error>>;

/// The controllers that limits need, by the names of the older hierarchies …
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "blkio"];

/// … and those of version 2 which sandboxes' cgroups have anyway, and which they have when they need it.
const UNIFIED: [&str; 3] = ["memory", "cpu", "pids"];
const UNIFIED_IO: &str = "io";

/// Processes of a cell beside those of the sandbox.
const OWN_PROCESSES: u64 = 1;

/// Threads that a brig-vmm can have at most (`brig_vmm::jail`); KVM's own, which is counted too, takes the place of the cell's.
const VMM_THREADS: u64 = 40;

/// MiB that a brig-vmm can need beside its guest's memory: what waits for slow readers of 1024 connections (128), its own few,
/// and pages of its files, which the kernel can drop.
const VMM_MIB: u32 = 256;

/// Page tables of the guest's memory, in the process and in KVM: 8 bytes of each for 4 KiB, and room for a kernel that keeps more.
const PAGE_TABLES_PART: u32 = 64;

/// From here on a number of an older hierarchy says that there is no limit.
const NO_LIMIT: u64 = 1 << 62;

/// A limit of what is read from or written to a device of the host.
pub type IoLimit = (Number, Kind, u64);

/// What the brig-vmm of a sandbox is held to: what a guest of this size can need, and no more. Its vCPUs are as many as they are; the
/// threads of its devices have one CPU more between them.
pub fn limits_of_vmm(config: &Config) -> Limits {
    let mib = config.memory.get();
    Limits {
        memory: Some(MemoryMib::sum([mib, mib / PAGE_TABLES_PART, VMM_MIB])),
        cpus: Some(Cpus::whole(u32::from(config.cpus.vcpus()) + 1)),
        pids: Some(VMM_THREADS),
        ..Limits::default()
    }
}

/// What the cgroups of a process hold it to, as the kernel tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InForce {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// CPUs' worth of time.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

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
    /// [`Error::Cgroup`] with what the host does not let this user limit; nothing is left then.
    pub fn create(id: &SandboxId, limits: &Limits, io: &[IoLimit]) -> Result<Option<Self>, Error> {
        if *limits == Limits::default() && io.is_empty() {
            return Ok(None);
        }
        let mut made = Self {
            directories: Vec::new(),
        };
        let all_settings = |version| {
            let mut all = settings(limits, version);
            all.extend(io.iter().map(|limit| io_setting(limit, version)));
            all
        };
        if is_unified() {
            let base = unified_base(!io.is_empty()).map_err(|e| cannot(&e))?;
            made.make(base.join(id.as_str()), &all_settings(Version::Two))?;
        } else {
            for controller in CONTROLLERS {
                let wanted: Vec<Setting> = all_settings(Version::One)
                    .into_iter()
                    .filter(|(file, _)| file.starts_with(controller))
                    .collect();
                if wanted.is_empty() {
                    continue;
                }
                let base = legacy_base(controller).map_err(|e| cannot(&e))?;
                make_directory(&base).map_err(|e| cannot(&e))?;
                made.make(base.join(id.as_str()), &wanted)?;
            }
        }
        Ok(Some(made))
    }

    /// Puts a process into them. The kernel may let this wait until every CPU has been elsewhere.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Cgroup`].
    pub fn enter(&self, pid: u32) -> Result<(), Error> {
        for mut file in self.procs()? {
            file.write_all(pid.to_string().as_bytes())
                .map_err(|e| cannot(&e))?;
        }
        Ok(())
    }

    fn make(&mut self, directory: PathBuf, settings: &[Setting]) -> Result<(), Error> {
        let make = || {
            make_directory(&directory)?;
            settings
                .iter()
                .try_for_each(|(file, value)| set(&directory, file, value))
        };
        let made = make().map_err(|e| cannot(&e));
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

/// Sets the limits of a running sandbox, whose cgroups are there.
///
/// # Errors
/// [`Error::Cgroup`].
pub fn change(id: &SandboxId, limits: &Limits) -> Result<(), Error> {
    let (version, bases) = if is_unified() {
        (Version::Two, vec![("", unified_group())])
    } else {
        let base = |controller| (controller, legacy_base(controller));
        (Version::One, UNIFIED.map(base).into())
    };
    for (controller, base) in bases {
        let Ok(base) = base else { continue };
        let directory = base.join(id.as_str());
        if !directory.exists() {
            continue;
        }
        let wanted: Vec<Setting> = settings(limits, version)
            .into_iter()
            .filter(|(file, _)| file.starts_with(controller))
            .collect();
        // Memory must never be above memory and swap together: in one order or in the other one it is not.
        let forward = wanted
            .iter()
            .try_for_each(|(file, value)| set(&directory, file, value));
        if forward.is_err() {
            wanted
                .iter()
                .rev()
                .try_for_each(|(file, value)| set(&directory, file, value))
                .map_err(|e| cannot(&named(&directory, e)))?;
        }
    }
    Ok(())
}

/// Checks what a version of cgroups does not have.
///
/// # Errors
/// [`Error::Option`].
pub fn check(limits: &Limits) -> Result<(), Error> {
    if limits.oom_kill_disable && is_unified() {
        return Err(Error::option(
            "--oom-kill-disable",
            "cgroups of version 2 cannot do that: use --memory",
        ));
    }
    if limits.oom_kill_disable && limits.memory.is_none() {
        return Err(Error::option(
            "--oom-kill-disable",
            "without --memory the whole host would wait for memory: give it too",
        ));
    }
    Ok(())
}

/// The directories that the cgroups of brig-vmms are made in, which are there then, as far as this user may make them.
pub fn lay_out() -> Vec<PathBuf> {
    let bases = if is_unified() {
        unified_base(false).into_iter().collect()
    } else {
        legacy_bases(&UNIFIED)
    };
    let made = |base: &PathBuf| make_directory(base).is_ok();
    bases.into_iter().filter(made).collect()
}

/// Removes what is left of a sandbox's cgroups. False while there is a process in one.
pub fn forget(id: &SandboxId) -> bool {
    let bases = if is_unified() {
        unified_group().into_iter().collect()
    } else {
        legacy_bases(&CONTROLLERS)
    };
    let gone = |base: &PathBuf| match fs::remove_dir(base.join(id.as_str())) {
        Err(e) => e.kind() != io::ErrorKind::ResourceBusy,
        Ok(()) => true,
    };
    let left = bases.into_iter().filter(|base| !gone(base)).count();
    left == 0
}

/// Removes them once what is in them has ended, which whoever calls this has seen to.
pub async fn forget_when_empty(id: &SandboxId) {
    for _ in 0..EMPTY_ROUNDS {
        if PREPARING.load(Ordering::SeqCst) == 0 && forget(id) {
            break;
        }
        tokio::time::sleep(EMPTY_REST).await;
    }
}

/// Makes cgroups for the process `pid` and puts it into them, in a thread of its own: the kernel takes a while for that. `None` where there
/// is no thread.
pub fn prepare(id: SandboxId, limits: Limits, pid: u32) -> Option<Preparing> {
    let (done, preparing) = oneshot::channel();
    PREPARING.fetch_add(1, Ordering::SeqCst);
    let prepare = move || {
        let prepared = Cgroups::create(&id, &limits, &[]).and_then(|cgroups| {
            cgroups.as_ref().map_or(Ok(()), |cgroups| cgroups.enter(pid))?;
            Ok(cgroups)
        });
        // Nobody waits for one that has been given up.
        let _ = done.send(prepared);
        PREPARING.fetch_sub(1, Ordering::SeqCst);
    };
    let begun = thread::Builder::new().name("cgroups".into()).spawn(prepare);
    if begun.is_err() {
        PREPARING.fetch_sub(1, Ordering::SeqCst);
    }
    begun.ok().map(|_| preparing)
}

/// What the cgroups hold a process to whose `/proc/PID/cgroup` this is. Those above may hold it to less.
pub fn in_force(text: &str) -> InForce {
    let unified = is_unified();
    let read = |controller: &str, file: &str| {
        let path = path_of(text, if unified { "" } else { controller })?;
        let mount = Path::new(ROOT).join(if unified { "" } else { controller });
        let directory = mount.join(path.strip_prefix("/").unwrap_or(&path));
        fs::read_to_string(directory.join(file)).ok()
    };
    let number = |text: &str| {
        text.trim()
            .parse::<u64>()
            .ok()
            .filter(|&number| number < NO_LIMIT)
    };
    let time = |quota: u64| quota as f64 / PERIOD_US as f64;
    let pids = read("pids", "pids.max").and_then(|text| number(&text));
    if unified {
        let quota = read("cpu", "cpu.max").and_then(|text| number(text.split(' ').next()?));
        return InForce {
            memory: read("memory", "memory.max").and_then(|text| number(&text)),
            cpus: quota.map(time),
            pids,
        };
    }
    let quota = read("cpu", "cpu.cfs_quota_us").and_then(|text| number(&text));
    InForce {
        memory: read("memory", "memory.limit_in_bytes").and_then(|text| number(&text)),
        cpus: quota.map(time),
        pids,
    }
}

/// How many processes of a sandbox the kernel has killed for want of memory.
pub fn oom_kills(id: &SandboxId) -> u64 {
    let (base, file) = if is_unified() {
        (unified_group(), "memory.events")
    } else {
        (legacy_base("memory"), "memory.oom_control")
    };
    let text = base.and_then(|base| fs::read_to_string(base.join(id.as_str()).join(file)));
    text.ok().and_then(|text| oom_kills_in(&text)).unwrap_or(0)
}

/// Both files have a line `oom_kill NUMBER`.
fn oom_kills_in(text: &str) -> Option<u64> {
    let mut counts = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
    counts.next()?.trim().parse().ok()
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
        let directory = unified_group().ok()?.join(id.as_str());
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
        // As Docker: as much swap as memory, when nobody says otherwise.
        let swap = match limits.swap {
            None => Some(bytes),
            Some(Swap::Total(total)) => Some(total.bytes().saturating_sub(bytes)),
            Some(Swap::Unlimited) => None,
        };
        match version {
            Version::Two => settings.extend([
                ("memory.max", bytes.to_string()),
                (
                    "memory.swap.max",
                    swap.map_or("max".to_owned(), |swap| swap.to_string()),
                ),
            ]),
            Version::One => {
                settings.push(("memory.limit_in_bytes", bytes.to_string()));
                if let Some(swap) = swap {
                    settings.push(("memory.memsw.limit_in_bytes", (bytes + swap).to_string()));
                }
            }
        }
    }
    if limits.oom_kill_disable {
        settings.push(("memory.oom_control", "1".to_owned()));
    }
    if let Some(shares) = limits.cpu_shares {
        match version {
            // As runc and the OCI runtime specification convert one to the other.
            Version::Two => {
                let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
                settings.push(("cpu.weight", weight.to_string()));
            }
            Version::One => settings.push(("cpu.shares", shares.to_string())),
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

fn io_setting((device, kind, rate): &IoLimit, version: Version) -> Setting {
    let (key, file) = match kind {
        Kind::ReadBytes => ("rbps", "blkio.throttle.read_bps_device"),
        Kind::WriteBytes => ("wbps", "blkio.throttle.write_bps_device"),
        Kind::ReadOperations => ("riops", "blkio.throttle.read_iops_device"),
        Kind::WriteOperations => ("wiops", "blkio.throttle.write_iops_device"),
    };
    match version {
        Version::Two => ("io.max", format!("{device} {key}={rate}")),
        Version::One => (file, format!("{device} {rate}")),
    }
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
    Error::Cgroup(format!("{error}{advice}"))
}

/// Whether there is version 2 alone: its root has this file, and no directory of hierarchies has.
fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The directory for sandboxes' cgroups of version 2, whose controllers are on.
fn unified_base(with_io: bool) -> io::Result<PathBuf> {
    let parent = unified_parent()?;
    let base = parent.join(PARENT);
    enable(&parent, with_io)?;
    make_directory(&base)?;
    enable(&base, with_io)?;
    Ok(base)
}

/// Where that is.
fn unified_group() -> io::Result<PathBuf> {
    Ok(unified_parent()?.join(PARENT))
}

/// The cgroup of version 2 that brig's are made in.
fn unified_parent() -> io::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        Ok(PathBuf::from(ROOT))
    } else {
        // Whoever moves a process must be able to write to the first ancestor that both cgroups have.
        delegated(&own_path("")?)
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|e| named(path, e)),
    }
}

fn enable(directory: &Path, with_io: bool) -> io::Result<()> {
    let path = directory.join("cgroup.subtree_control");
    let there = fs::read_to_string(&path)?;
    for controller in UNIFIED.into_iter().chain(with_io.then_some(UNIFIED_IO)) {
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
    Ok(below(&mount, &own_path(controller)?))
}

/// Those of several, as far as this host has them.
fn legacy_bases(controllers: &[&str]) -> Vec<PathBuf> {
    // The kernel writes the file anew for each who reads it.
    let text = fs::read_to_string(OWN).unwrap_or_default();
    let base = |controller: &&str| {
        Some(below(
            &Path::new(ROOT).join(controller),
            &path_of(&text, controller)?,
        ))
    };
    controllers.iter().filter_map(base).collect()
}

fn below(mount: &Path, own: &Path) -> PathBuf {
    mount.join(own.strip_prefix("/").unwrap_or(own)).join(PARENT)
}

/// The path of this process's cgroup in the hierarchy of a controller; without one, of version 2.
fn own_path(controller: &str) -> io::Result<PathBuf> {
    let text = fs::read_to_string(OWN)?;
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
    use crate::test_support::config;

    fn limits() -> Limits {
        Limits {
            memory: Some("64m".parse().unwrap()),
            cpus: Some("1.5".parse().unwrap()),
            pids: Some(10),
            ..Limits::default()
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
    fn a_limit_of_a_device_names_it_by_its_numbers() {
        let limit = (Number { major: 8, minor: 16 }, Kind::WriteBytes, 1000);
        assert_eq!(
            io_setting(&limit, Version::Two),
            ("io.max", "8:16 wbps=1000".to_owned())
        );
        assert_eq!(
            io_setting(&limit, Version::One),
            ("blkio.throttle.write_bps_device", "8:16 1000".to_owned())
        );
    }

    #[test]
    fn swap_and_shares_are_written_as_each_version_wants_them() {
        let limits = Limits {
            swap: Some("96m".parse().unwrap()),
            cpu_shares: Some(1024),
            oom_kill_disable: true,
            ..limits()
        };
        let one = settings(&limits, Version::One);
        for expected in [
            ("memory.memsw.limit_in_bytes", (96u64 << 20).to_string()),
            ("cpu.shares", "1024".to_owned()),
            ("memory.oom_control", "1".to_owned()),
        ] {
            assert!(one.contains(&expected), "{expected:?}");
        }
        let two = settings(&limits, Version::Two);
        assert!(two.contains(&("memory.swap.max", (32u64 << 20).to_string())));
        assert!(two.contains(&("cpu.weight", "39".to_owned())));
        let unlimited = Limits {
            swap: Some(Swap::Unlimited),
            ..limits
        };
        assert!(settings(&unlimited, Version::Two).contains(&("memory.swap.max", "max".to_owned())));
    }

    #[test]
    fn no_limit_needs_no_cgroup() {
        let id = SandboxId::random().unwrap();
        assert!(Cgroups::create(&id, &Limits::default(), &[]).unwrap().is_none());
        assert!(forget(&id));
    }

    #[test]
    fn a_vmm_may_have_what_its_guest_can_need() {
        let mut config = config(SandboxId::random().unwrap(), "web".into());
        config.memory = "1g".parse().unwrap();
        config.cpus = "1.5".parse().unwrap();
        let limits = limits_of_vmm(&config);
        assert_eq!(limits.memory.unwrap().get(), 1024 + 16 + 256);
        assert_eq!(limits.cpus.unwrap().nano(), 3_000_000_000);
        assert!(settings(&limits, Version::One).contains(&("pids.max", "41".to_owned())));
    }

    #[test]
    fn what_has_been_set_is_read_back_and_gone_afterwards() {
        let id = SandboxId::random().unwrap();
        let limits = limits_of_vmm(&config(id.clone(), "web".into()));
        let Ok(Some(cgroups)) = Cgroups::create(&id, &limits, &[]) else {
            eprintln!("skipped: this host lets this user make no cgroups");
            return;
        };
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        cgroups.enter(child.id()).unwrap();
        let text = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        let expected = InForce {
            memory: Some((512 + 8 + 256) << 20),
            cpus: Some(2.0),
            pids: Some(41),
        };
        assert_eq!(in_force(&text), expected, "{text}");
        assert!(!forget(&id), "a process is in them");
        child.kill().unwrap();
        child.wait().unwrap();
        drop(cgroups);
        assert!(forget(&id));
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_in_both_versions() {
        assert_eq!(
            oom_kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            Some(3)
        );
        assert_eq!(
            oom_kills_in("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"),
            Some(1)
        );
        assert_eq!(oom_kills_in("oom_kill_disable 0\nunder_oom 0\n"), None);
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
