//! The way from a fresh child in new namespaces to the image's program.

use std::{
    convert::Infallible,
    ffi::CString,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use brig_protocol::spec::{CapabilitySet, ProcessSpec, SandboxSpec, Seccomp, WindowSize};
use rustix::{
    fs::{FileType, Gid, Mode, Uid, fchown, fstat},
    io::Errno,
    process::{chdir, setsid, umask},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    system::sethostname,
    thread::{UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::{
    Kernel, Stdio, capabilities,
    cgroup::Cgroup,
    channel,
    devices::{self, Nodes},
    error::{Context, LaunchError},
    exec::{self, Program},
    extras::Ready,
    files::{self, Prepared},
    filter::{self, Filter},
    init, masked, mounts,
    namespaces::Kept,
    rlimits,
    rootfs::{self, Devices, Root},
    signals, sysctls,
    terminal::Terminal,
    trees::Trees,
    user::{self, Identity},
};

/// What the child needs.
pub(crate) struct Plan<'a> {
    pub spec: &'a SandboxSpec,
    pub root: &'a Root,
    pub files: &'a Path,
    pub filter: Option<Filter>,
    pub streams: Streams<'a>,
}

/// The three streams of a process.
pub(crate) enum Streams<'a> {
    /// What the caller has made.
    Given(&'a [OwnedFd; 3]),
    /// A terminal, whose master is sent through the channel.
    Terminal {
        size: WindowSize,
        channel: &'a UnixStream,
    },
}

impl<'a> Streams<'a> {
    /// Those that `stdio` stands for in a process whose terminal, if it has one, is of this size.
    pub(crate) fn new(
        stdio: &'a Stdio,
        size: Option<WindowSize>,
        channel: Option<&'a UnixStream>,
    ) -> Result<Self, LaunchError> {
        match (stdio, channel) {
            (Stdio::Given(streams), _) => Ok(Self::Given(streams)),
            (Stdio::Terminal, Some(channel)) => Ok(Self::Terminal {
                size: size.unwrap_or_default(),
                channel,
            }),
            (Stdio::Terminal, None) => Err(LaunchError::BadSpec {
                what: "terminal",
                value: String::new(),
                problem: "has nobody who takes it",
            }),
        }
    }
}

/// The last part of the way, which is that of every process of a sandbox.
pub(crate) struct Execution<'a> {
    pub process: &'a ProcessSpec,
    pub streams: Streams<'a>,
    /// The bounding set at present.
    pub bounding: CapabilitySet,
    /// What it may ask of the kernel; `None` for everything.
    pub filter: Option<Filter>,
    /// The program that is the init, when the process wants one.
    pub init: Option<BorrowedFd<'a>>,
    /// The first process gets a working directory that is missing, and its terminal as `/dev/console`.
    pub is_first: bool,
}

/// Sets the sandbox up around the calling process, then executes the spec's program in its place.
pub(crate) fn become_process(
    plan: Plan<'_>,
    cgroup: Option<&Cgroup>,
    kernel: Kernel,
    kept: &mut Kept,
) -> Result<Infallible, LaunchError> {
    let capabilities = plan.spec.process.capabilities;
    begin(capabilities, cgroup)?;
    let trees = match kernel {
        Kernel::Own => None,
        Kernel::Shared => Some(Trees::build(plan.spec, &Nodes::borrow()?)?),
    };
    complete(plan, capabilities, trees, Vec::new(), kept)
}

/// What depends neither on the image nor on who the sandbox is. The bounding set is that of `capabilities` then.
pub(crate) fn begin(capabilities: CapabilitySet, cgroup: Option<&Cgroup>) -> Result<(), LaunchError> {
    umask(Mode::from_raw_mode(0o022));
    setsid().step("start a session")?;
    signals::reset().step("reset the signals")?;
    capabilities::bound(CapabilitySet(u64::MAX), capabilities)?;
    capabilities::clear_ambient()?;
    enter_cgroup(cgroup)?;
    rootfs::make_private()
}

/// The rest of the way, after [`begin`]. `trees` are the spec's mounts when they have been made in advance, and `files` those of
/// the engine's files that have been.
pub(crate) fn complete(
    plan: Plan<'_>,
    bounding: CapabilitySet,
    trees: Option<Trees>,
    files: Vec<Prepared>,
    kept: &mut Kept,
) -> Result<Infallible, LaunchError> {
    let spec = plan.spec;
    sethostname(spec.hostname.as_bytes()).step_on("set the hostname", &spec.hostname)?;
    // What is the caller's is taken while its root is still the process's.
    let init = spec.process.init.then(init::open_self).transpose()?;
    let extras = Ready::take(&spec.extras)?;
    fill_root(&plan, trees, files)?;
    make_directories(&spec.directories)?;
    extras.finish(&spec.extras, &spec.process.cwd)?;
    let execution = Execution {
        process: &spec.process,
        streams: plan.streams,
        bounding,
        filter: plan.filter,
        init: init.as_ref().map(AsFd::as_fd),
        is_first: true,
    };
    execute(&execution, kept)
}

/// Becomes the user's program. The calling process is in the sandbox already.
pub(crate) fn execute(execution: &Execution<'_>, kept: &mut Kept) -> Result<Infallible, LaunchError> {
    let Execution {
        process, bounding, ..
    } = execution;
    let identity = user::resolve(&process.user, &process.groups)?;
    let environment = environment(process, &identity)?;
    let program = match execution.init {
        Some(init) => Program::of_init(init, &process.args, environment)?,
        None => Program::new(&process.args, environment)?,
    };
    if let Seccomp::Program(instructions) = &process.seccomp {
        kept.filter = filter::program(instructions);
    }
    let Kept {
        program: place,
        filter: own,
        ..
    } = kept;
    let program = place.insert(program);
    let filter = match &process.seccomp {
        Seccomp::Default => execution.filter,
        Seccomp::Unconfined => None,
        Seccomp::Program(_) => Some(&own[..]),
    };
    enter_working_directory(&process.cwd, execution.is_first)?;
    match &execution.streams {
        Streams::Given(stdio) => take_stdio(stdio, &identity)?,
        Streams::Terminal { size, channel } => {
            let terminal = Terminal::open(*size)?;
            if execution.is_first {
                terminal.bind_console()?;
            }
            terminal.take(&identity)?;
            channel::send_terminal(channel, &terminal.master).step("hand the terminal over")?;
        }
    }
    capabilities::bound(*bounding, process.capabilities)?;
    // From here on nothing large is allocated: the limits hold for this process, and its memory may be the caller's.
    rlimits::apply(&process.rlimits)?;
    if let Some(filter) = filter
        && !process.no_new_privileges
    {
        // What follows is allowed by any filter that a process can live with.
        filter::set(filter)?;
    }
    assume(&identity, !process.groups.is_empty())?;
    capabilities::limit(process.capabilities)?;
    exec::close_other_descriptors().step("close the other file descriptors")?;
    if process.no_new_privileges {
        set_no_new_privs(true).step("set no_new_privs")?;
        if let Some(filter) = filter {
            filter::set(filter)?;
        }
    }
    Err(program.execute())
}

/// Joins the cgroup, which then is the root of the cgroup namespace (cgroup_namespaces(7)).
fn enter_cgroup(cgroup: Option<&Cgroup>) -> Result<(), LaunchError> {
    if let Some(cgroup) = cgroup {
        cgroup.join()?;
    }
    // SAFETY: CLONE_NEWCGROUP changes how cgroup paths are shown to this process; no file descriptor is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }.step("create a cgroup namespace")
}

/// Enters the root filesystem and mounts over it what the spec wants.
fn fill_root(plan: &Plan<'_>, trees: Option<Trees>, files: Vec<Prepared>) -> Result<(), LaunchError> {
    let spec = plan.spec;
    let root = plan.root.mount()?;
    // Between the two: the root comes first in /proc/mounts, as everybody expects, and the files still have a name.
    let files = files::prepare_for(plan.root.image(), &spec.files, plan.files, files)?;
    let read_only = spec.extras.read_only;
    rootfs::enter(root, devices_of(spec))?;
    let Some(trees) = trees else {
        furnish(spec, &Nodes::Make)?;
        files::bind(&files, read_only)?;
        return cover(spec, |_| true);
    };
    trees.attach()?;
    files::bind(&files, read_only)?;
    cover(spec, |path| !trees.hold(path))
}

/// Makes the directories that are missing. What the image has in the place of one stays as it is.
pub(crate) fn make_directories(paths: &[String]) -> Result<(), LaunchError> {
    for path in paths.iter().filter(|path| path.starts_with('/')) {
        match std::fs::create_dir_all(path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.step_on("create the directory", path)?,
        }
    }
    Ok(())
}

/// Mounts the spec's filesystems below the root of the calling process and fills them.
pub(crate) fn furnish(spec: &SandboxSpec, nodes: &Nodes) -> Result<(), LaunchError> {
    for mount in &spec.mounts {
        mounts::mount(mount)?;
    }
    if mounts::any_on(&spec.mounts, "/dev") {
        devices::populate(nodes, devices_of(spec))?;
    }
    if mounts::any_on(&spec.mounts, "/proc") {
        sysctls::apply()?;
    }
    Ok(())
}

fn devices_of(spec: &SandboxSpec) -> Devices {
    if spec.extras.all_devices {
        Devices::All
    } else {
        Devices::Few
    }
}

/// Makes those of the spec's paths read-only or hides them that `which` says.
pub(crate) fn cover(spec: &SandboxSpec, which: impl Fn(&str) -> bool) -> Result<(), LaunchError> {
    masked::make_read_only(spec.readonly_paths.iter().filter(|path| which(path)))?;
    masked::hide(spec.masked_paths.iter().filter(|path| which(path)))
}

/// The spec's environment, with `HOME` from the image when the spec has none.
fn environment(process: &ProcessSpec, identity: &Identity) -> Result<Vec<CString>, LaunchError> {
    let home = format!("HOME={}", identity.home);
    let has_home = process
        .env
        .iter()
        .any(|entry| entry.starts_with("HOME=") && entry != "HOME=");
    let entries = process.env.iter().filter(|entry| has_home || *entry != "HOME=");
    entries
        .chain((!has_home).then_some(&home))
        .map(|entry| exec::c_string("environment entry", entry))
        .collect()
}

/// Changes to the working directory; with `make` it is made when it is missing, for root, as with Docker.
fn enter_working_directory(cwd: &str, make: bool) -> Result<(), LaunchError> {
    if !cwd.starts_with('/') {
        return Err(LaunchError::BadSpec {
            what: "working directory",
            value: cwd.to_owned(),
            problem: "is not an absolute path",
        });
    }
    match chdir(cwd) {
        Err(rustix::io::Errno::NOENT) if make => {
            std::fs::create_dir_all(cwd).step_on("create the working directory", cwd)?;
            chdir(cwd).step_on("enter the working directory", cwd)?;
        }
        result => result.step_on("enter the working directory", cwd)?,
    }
    // A link of the image's through `/proc` could lead to a directory that the launcher has open (CVE-2024-21626).
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        _ => Err(LaunchError::BadSpec {
            what: "working directory",
            value: cwd.to_owned(),
            problem: "is not in the root filesystem",
        }),
    }
}

/// Puts the three streams in their places. Each belongs to the process's user then, so that `/dev/stdout`, which is
/// a link to a pipe here, can be opened by a user other than root.
fn take_stdio(stdio: &[OwnedFd; 3], identity: &Identity) -> Result<(), LaunchError> {
    // A descriptor that is in another's place would be overwritten before it is used.
    let mut raised = Vec::with_capacity(stdio.len());
    for stream in stdio {
        let least = 3;
        raised.push(if stream.as_raw_fd() < least {
            Some(rustix::io::fcntl_dupfd_cloexec(stream, least).step("duplicate a standard stream")?)
        } else {
            None
        });
    }
    let stream = |index: usize| raised[index].as_ref().unwrap_or(&stdio[index]).as_fd();
    for index in 0..stdio.len() {
        let stat = fstat(stream(index)).step("look at a standard stream")?;
        // A device, the null device say, keeps its owner.
        if identity.uid != 0 && FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
            let uid = Uid::from_raw(identity.uid);
            fchown(stream(index), Some(uid), None).map_err(|e| no_such_id(e, "user", identity.uid))?;
        }
    }
    dup2_stdin(stream(0)).step("set standard input")?;
    dup2_stdout(stream(1)).step("set standard output")?;
    dup2_stderr(stream(2)).step("set standard error")
}

/// Says that a user namespace has not got an id.
fn no_such_id(error: Errno, what: &'static str, id: u32) -> LaunchError {
    match error {
        Errno::INVAL => LaunchError::BadSpec {
            what,
            value: id.to_string(),
            problem: "has no id in this sandbox: give whoever runs brig subordinate ids (/etc/subuid, /etc/subgid)",
        },
        error => LaunchError::Step {
            action: format!("become the {what} {id}"),
            source: error.into(),
        },
    }
}

/// Becomes the user: groups first, as only root may set them (credentials(7)). `chosen` are groups that the image does not say.
fn assume(identity: &Identity, chosen: bool) -> Result<(), LaunchError> {
    let groups: Vec<Gid> = identity.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match set_thread_groups(&groups) {
        // In a user namespace with one id nobody may, and there is no group that could be in the list but the only one.
        Err(Errno::PERM) if identity.gid == 0 && !chosen => {}
        result => result.step("set the supplementary groups")?,
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_res_gid(gid, gid, gid).map_err(|e| no_such_id(e, "group", identity.gid))?;
    set_thread_res_uid(uid, uid, uid).map_err(|e| no_such_id(e, "user", identity.uid))
}
