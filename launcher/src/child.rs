//! The way from a fresh child in new namespaces to the image's program.

use std::{
    convert::Infallible,
    ffi::CString,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use brig_protocol::spec::{CapabilitySet, ProcessSpec, SandboxSpec};
use rustix::{
    fs::{FileType, Gid, Mode, Uid, fchown, fstat},
    process::{chdir, setsid, umask},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    system::sethostname,
    thread::{UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::{
    capabilities,
    cgroup::Cgroup,
    devices,
    error::{Context, LaunchError},
    exec::{self, Program},
    files::{self, Prepared},
    masked, mounts, rlimits,
    rootfs::{self, Root},
    signals, sysctls,
    trees::Trees,
    user::{self, Identity},
};

/// What the child needs.
pub(crate) struct Plan<'a> {
    pub spec: &'a SandboxSpec,
    pub root: &'a Root,
    pub files: &'a Path,
    pub stdio: &'a [OwnedFd; 3],
}

/// Sets the sandbox up around the calling process, then executes the spec's program in its place.
pub(crate) fn become_process(plan: &Plan<'_>, cgroup: Option<&Cgroup>) -> Result<Infallible, LaunchError> {
    let capabilities = plan.spec.process.capabilities;
    begin(capabilities, cgroup)?;
    complete(plan, capabilities, None, Vec::new())
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
    plan: &Plan<'_>,
    bounding: CapabilitySet,
    trees: Option<Trees>,
    files: Vec<Prepared>,
) -> Result<Infallible, LaunchError> {
    let process = &plan.spec.process;
    sethostname(plan.spec.hostname.as_bytes()).step_on("set the hostname", &plan.spec.hostname)?;
    fill_root(plan, trees, files)?;

    let identity = user::resolve(&process.user)?;
    let program = Program::new(&process.args, &environment(process, &identity)?)?;
    enter_working_directory(&process.cwd)?;
    take_stdio(plan.stdio, &identity)?;
    capabilities::bound(bounding, process.capabilities)?;
    // From here on nothing large is allocated: the limits hold for this process, and its memory may be the caller's.
    rlimits::apply(&process.rlimits)?;
    assume(&identity)?;
    capabilities::limit(process.capabilities)?;
    if process.no_new_privileges {
        set_no_new_privs(true).step("set no_new_privs")?;
    }
    exec::close_other_descriptors().step("close the other file descriptors")?;
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
    let files = files::prepare(&spec.files, plan.files, files)?;
    rootfs::enter(root)?;
    let Some(trees) = trees else {
        furnish(spec)?;
        files::bind(&files)?;
        return cover(spec, |_| true);
    };
    trees.attach()?;
    files::bind(&files)?;
    cover(spec, |path| !trees.hold(path))
}

/// Mounts the spec's filesystems below the root of the calling process and fills them.
pub(crate) fn furnish(spec: &SandboxSpec) -> Result<(), LaunchError> {
    for mount in &spec.mounts {
        mounts::mount(mount)?;
    }
    if mounts::any_on(&spec.mounts, "/dev") {
        devices::populate()?;
    }
    if mounts::any_on(&spec.mounts, "/proc") {
        sysctls::apply()?;
    }
    Ok(())
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

/// Changes to the working directory; it is made when it is missing, for root, as with Docker.
fn enter_working_directory(cwd: &str) -> Result<(), LaunchError> {
    if !cwd.starts_with('/') {
        return Err(LaunchError::BadSpec {
            what: "working directory",
            value: cwd.to_owned(),
            problem: "is not an absolute path",
        });
    }
    match chdir(cwd) {
        Err(rustix::io::Errno::NOENT) => {
            std::fs::create_dir_all(cwd).step_on("create the working directory", cwd)?;
            chdir(cwd).step_on("enter the working directory", cwd)
        }
        result => result.step_on("enter the working directory", cwd),
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
            fchown(stream(index), Some(uid), None).step("give the standard streams to the user")?;
        }
    }
    dup2_stdin(stream(0)).step("set standard input")?;
    dup2_stdout(stream(1)).step("set standard output")?;
    dup2_stderr(stream(2)).step("set standard error")
}

/// Becomes the user: groups first, as only root may set them (credentials(7)).
fn assume(identity: &Identity) -> Result<(), LaunchError> {
    let groups: Vec<Gid> = identity.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    set_thread_groups(&groups).step("set the supplementary groups")?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_res_gid(gid, gid, gid).step_on("become the group", identity.gid)?;
    set_thread_res_uid(uid, uid, uid).step_on("become the user", identity.uid)
}
