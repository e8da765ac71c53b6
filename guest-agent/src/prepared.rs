//! What is done before it is asked for, so that a guest saved after that starts its sandbox in little time: the network
//! namespace, the writable disk and a process that waits ([`brig_launcher::zygote`]).

use std::path::Path;

use brig_launcher::{Root, Zygote, cgroup::Cgroup, network};
use brig_protocol::spec::{CgroupSpec, RootSpec, SandboxSpec};
use rustix::{
    io::Errno,
    mm::{MlockAllFlags, mlockall, munlockall},
    mount::{MountFlags, mount},
    process::Pid,
};

use crate::{
    disks::{self, Disks},
    error::{AgentError, Context},
    process::Places,
};

/// The name of the sandbox's cgroup.
const SANDBOX: &str = "sandbox";

/// What is ready.
#[derive(Debug, Default)]
pub struct Prepared {
    is_in_network: bool,
    zygote: Option<Zygote>,
}

impl Prepared {
    /// Of an agent that is in the sandbox's network namespace.
    pub fn in_network() -> Self {
        Self {
            is_in_network: true,
            zygote: None,
        }
    }

    /// Makes ready what `spec` needs and what does not depend on the image. Nothing is in motion when it returns: what was
    /// written to the disk is on it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn make(&mut self, spec: &SandboxSpec, places: &Places, disks: &mut Disks) -> Result<(), AgentError> {
        // Another one's, whose place is needed.
        self.zygote = None;
        disks::ensure_devices(&places.devices())?;
        self.enter_network()?;
        let root = match &spec.root {
            RootSpec::Disks { writable, .. } => disks.make_root_without_image(*writable, places)?,
            RootSpec::Directory { path } => Root::Directory(path.into()),
            RootSpec::Cell => return Err(AgentError::NotHere("prepare a sandbox")),
        };
        let cgroup = make_cgroup(&spec.cgroup, &places.cgroups())?;
        let zygote = Zygote::make(spec, &root, &places.files(), cgroup.as_ref())?;
        disks.mark_prepared();
        disks.sync();
        self.zygote = Some(zygote);
        make_memory_present();
        Ok(())
    }

    /// Moves the agent into the sandbox's network namespace unless it is there.
    ///
    /// # Errors
    /// [`AgentError::Launch`].
    pub fn enter_network(&mut self) -> Result<(), AgentError> {
        if !self.is_in_network {
            network::enter_new()?;
            self.is_in_network = true;
        }
        Ok(())
    }

    /// The process that waits, once, when it can become what `spec` says. One that cannot is ended.
    pub fn take_zygote(&mut self, spec: &SandboxSpec) -> Option<Zygote> {
        self.zygote.take().filter(|zygote| zygote.suits(spec))
    }

    /// Notes that a child has ended, whichever it was.
    pub fn child_ended(&mut self, pid: Pid) {
        if let Some(zygote) = self.zygote.take_if(|zygote| zygote.pid() == pid) {
            zygote.has_ended();
        }
    }
}

/// Maps every page of the agent's program, heap and stack, so that none costs a page fault after a restore. What cannot be had
/// is done without.
fn make_memory_present() {
    if mlockall(MlockAllFlags::CURRENT).is_ok() {
        let _ = munlockall();
    }
}

/// A cgroup for the limits, when there are any: without, the root of the guest's only hierarchy does, and the filesystem
/// need not be mounted.
pub(crate) fn make_cgroup(limits: &CgroupSpec, parent: &Path) -> Result<Option<Cgroup>, AgentError> {
    if *limits == CgroupSpec::default() {
        return Ok(None);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("cgroup", parent, "cgroup2", flags, None) {
        // It is mounted there already.
        Err(Errno::BUSY) => {}
        result => result.step("mount the cgroup filesystem")?,
    }
    Ok(Some(Cgroup::create(parent, SANDBOX, limits)?))
}

/// The cgroup that [`make_cgroup`] has made for these limits, when there are any.
pub(crate) fn find_cgroup(limits: &CgroupSpec, parent: &Path) -> Option<Cgroup> {
    (*limits != CgroupSpec::default()).then(|| Cgroup::existing(parent, SANDBOX))
}
