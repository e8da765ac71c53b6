//! The sandbox: its first process, made through the launcher, and the way in for others.

use std::os::fd::OwnedFd;

use brig_launcher::{Kernel, Launch, cgroup::Cgroup, enter::Entrance, files, filter::Filter, running};
use brig_protocol::{
    agent::Identity,
    spec::{ProcessSpec, RootSpec, SandboxSpec},
    tool::Tool,
};

use crate::{
    disks::{self, Disks},
    error::{AgentError, Context},
    prepared::{Prepared, find_cgroup, make_cgroup},
    process::{Ends, Places, Process},
    tools,
};

/// A sandbox that was started.
#[derive(Debug)]
pub struct Sandbox {
    /// Its first process.
    pub first: Process,
    /// Its mount namespace, which the first process's end would take apart before anybody hears of it.
    _mounts: Option<OwnedFd>,
    /// The paths of the engine's files, in the order of the spec.
    files: Vec<String>,
    cgroup: Option<Cgroup>,
    filter: Option<Filter>,
    /// Made when it is needed first.
    entrance: Option<Entrance>,
}

impl Sandbox {
    /// Builds the sandbox that `spec` describes and starts its process.
    ///
    /// # Errors
    /// [`AgentError`]; its [`start_failure`](AgentError::start_failure) is what the supervisor is told.
    pub fn start(
        spec: &SandboxSpec,
        places: &Places,
        disks: &mut Disks,
        prepared: &mut Prepared,
        filter: Option<Filter>,
    ) -> Result<Self, AgentError> {
        let root = match &spec.root {
            RootSpec::Disks { image, writable } => disks.make_root(*image, *writable, places)?,
            RootSpec::Directory { path } => brig_launcher::Root::Directory(path.into()),
            RootSpec::Cell => disks::mounted_root(places),
        };
        let kernel = match spec.root {
            RootSpec::Cell => Kernel::Shared,
            _ => Kernel::Own,
        };
        prepared.enter_network()?;
        let zygote = prepared.take_zygote(spec);
        let cgroup = match &zygote {
            // It is in its cgroup.
            Some(_) => None,
            None => make_cgroup(&spec.cgroup, &places.cgroups())?,
        };
        let (stdio, ends) = Ends::make(&spec.process, places)?;
        let launch = Launch {
            spec,
            root: &root,
            files: &places.files(),
            cgroup: cgroup.as_ref(),
            kernel,
            filter,
            stdio,
        };
        let started = brig_launcher::start(launch, zygote)?;
        let ends = ends.with_terminal(started.terminal, spec.process.stdin)?;
        Ok(Self {
            first: Process::new(started.pid, true, ends),
            // Without it the end is said later.
            _mounts: started.mounts,
            files: spec.files.iter().map(|file| file.path.clone()).collect(),
            cgroup: cgroup.or_else(|| find_cgroup(&spec.cgroup, &places.cgroups())),
            filter,
            entrance: None,
        })
    }

    /// Starts another process in it, and gives its pid inside too.
    ///
    /// # Errors
    /// [`AgentError::NotRunning`]; those of the launcher.
    pub fn enter(&mut self, spec: &ProcessSpec, places: &Places) -> Result<(Process, u32), AgentError> {
        let entrance = self.entrance()?;
        let (stdio, ends) = Ends::make(spec, places)?;
        let entered = entrance.start(spec, &stdio)?;
        let ends = ends.with_terminal(entered.terminal, spec.stdin)?;
        Ok((Process::new(entered.pid, false, ends), entered.inner_pid))
    }

    /// Starts a process of the agent's own in it, which does what `tool` says. It has no pid that would mean anything inside.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub fn visit(&mut self, tool: &Tool, places: &Places) -> Result<(Process, u32), AgentError> {
        let entrance = self.entrance()?;
        let (stdio, ends) = Ends::pipes(true, places)?;
        let pid = entrance.visit(&stdio, || tools::run(tool))?;
        Ok((Process::new(pid, false, ends), 0))
    }

    fn entrance(&mut self) -> Result<&Entrance, AgentError> {
        if !self.first.is_running() {
            return Err(AgentError::NotRunning);
        }
        if self.entrance.is_none() {
            let entrance = Entrance::new(self.first.pid(), self.cgroup.clone(), self.filter);
            self.entrance = Some(entrance.step("find the sandbox's first process")?);
        }
        self.entrance.as_ref().ok_or(AgentError::NotRunning)
    }

    /// Makes it who `identity` says. A file that is not among those of its spec is passed over, and one that has ended is no
    /// error.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn rename(&self, identity: &Identity, places: &Places) -> Result<(), AgentError> {
        for file in &identity.files {
            if let Some(index) = self.files.iter().position(|path| *path == file.path) {
                files::rewrite(&places.files(), index, file)?;
            }
        }
        if self.first.is_running() {
            let pid = self.first.pid();
            running::set_hostname(pid, &identity.hostname).step("set the sandbox's hostname")?;
        }
        Ok(())
    }
}
