//! A VMM that is started before anyone knows what for: it takes as long to come up as everything that has to be looked up
//! for it, and on another CPU.

use std::{
    cell::RefCell,
    ffi::{OsStr, OsString},
    fs::File,
    os::fd::AsFd,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use brig_protocol::vmm::{Command, KvmKind};

use super::needs::Needs;
use crate::{
    Error, Paths, SandboxId,
    cell::{HostIds, cgroups::limits_of_vmm},
    guest::Saved,
    host::Host,
    kvm,
    sandbox::{Config, config::Limits, lock::Lock},
    snapshot::{Snapshots, store::Part},
    template::{Cache, Found, Ingredients, Key, Shape},
    vmm::{Spawn, Vmm, VmmError},
};

/// What a supervisor is likely to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likely {
    /// A guest, from a template of this shape when there is one.
    Vm(Option<Shape>),
    /// A cell.
    Cell,
}

/// Stands for [`Likely::Cell`] on the supervisor's command line.
const CELL: &str = "container";

impl Likely {
    /// As it stands on the supervisor's command line.
    pub fn words(self) -> Vec<String> {
        match self {
            Self::Vm(None) => Vec::new(),
            Self::Vm(Some(shape)) => vec![shape.vcpus.to_string(), format!("{}m", shape.memory.get())],
            Self::Cell => vec![CELL.to_owned()],
        }
    }

    /// What the words of a command line say. A size that makes no sense is none: nothing is prepared then.
    pub fn from_words(words: &[OsString]) -> Option<Self> {
        match words {
            [] => Some(Self::Vm(None)),
            [word] => (word == CELL).then_some(Self::Cell),
            [vcpus, memory] => Some(Self::Vm(shape(vcpus, memory))),
            _ => None,
        }
    }
}

fn shape(vcpus: &OsStr, memory: &OsStr) -> Option<Shape> {
    Some(Shape {
        vcpus: vcpus.to_str()?.parse().ok()?,
        memory: memory.to_str()?.parse().ok()?,
    })
}

/// A host with a VMM in stock. That ends with this, when nobody has taken it.
pub(super) struct Ahead<'a> {
    host: &'a dyn Host,
    vmm: RefCell<Option<Vmm>>,
    cell: RefCell<Option<Vmm>>,
    /// What each VMM is held to, once that is known.
    limits: RefCell<Option<(SandboxId, Limits)>>,
}

impl<'a> Ahead<'a> {
    /// Starts a VMM. When that fails, the one who needs it tries again and is told why.
    pub fn new(host: &'a dyn Host) -> Self {
        Self {
            host,
            vmm: RefCell::new(host.spawn().ok()),
            cell: RefCell::new(None),
            limits: RefCell::new(None),
        }
    }

    /// The same with a cell in stock.
    pub fn with_cell(host: &'a dyn Host) -> Self {
        Self {
            host,
            vmm: RefCell::new(None),
            cell: RefCell::new(host.spawn_cell().ok()),
            limits: RefCell::new(None),
        }
    }
}

impl Ahead<'_> {
    /// Holds the VMM in stock, and each that is started from now on, to what the guest of this sandbox can need.
    pub fn confine(&self, config: &Config) {
        let limits = limits_of_vmm(config);
        if let Some(vmm) = &mut *self.vmm.borrow_mut() {
            vmm.confine(&config.id, limits);
        }
        *self.limits.borrow_mut() = Some((config.id.clone(), limits));
    }

    /// What was in stock and has not been used.
    pub fn unused(&self) -> Option<Vmm> {
        self.vmm.take().or_else(|| self.cell.take())
    }

    /// Has the VMM map the memory of the template for `shape`, which its guest is likely to be restored from. Whatever goes
    /// wrong is left for the start.
    pub async fn map(&self, paths: &Paths, shape: Shape) {
        let Some(channel) = self.vmm.borrow().as_ref().map(|vmm| Rc::clone(&vmm.channel)) else {
            return;
        };
        let ingredients = kvm::remembered(paths).map(|kind| Ingredients::gather(paths, kind, shape));
        let Some(Ok(ingredients)) = ingredients else {
            return;
        };
        if let Found::Template(template) = Cache::new(paths).find(&ingredients)
            && let Saved {
                memory,
                pages: Some(pages),
                ..
            } = &template.saved
        {
            let _ = channel
                .send(&Command::MapAhead, &[memory.as_fd(), pages.as_fd()])
                .await;
        }
    }
}

impl Spawn for Ahead<'_> {
    fn spawn(&self) -> Result<Vmm, VmmError> {
        if let Some(vmm) = self.vmm.take() {
            return Ok(vmm);
        }
        let mut vmm = self.host.spawn()?;
        if let Some((id, limits)) = &*self.limits.borrow() {
            vmm.confine(id, *limits);
        }
        Ok(vmm)
    }
}

impl Host for Ahead<'_> {
    fn kvm(&self) -> Result<File, Error> {
        self.host.kvm()
    }

    fn image(&self, config: &Config) -> Result<File, Error> {
        self.host.image(config)
    }

    fn spawn_cell(&self) -> Result<Vmm, VmmError> {
        match self.cell.take() {
            Some(cell) => Ok(cell),
            None => self.host.spawn_cell(),
        }
    }

    fn image_directory(&self, config: &Config, ids: &HostIds) -> Result<PathBuf, Error> {
        self.host.image_directory(config, ids)
    }

    fn complain_to(&self, log: File) -> Result<(), Error> {
        self.host.complain_to(log)
    }

    fn page_map(&self, vmm: &Vmm) -> Option<File> {
        self.host.page_map(vmm)
    }

    fn template_worked(&self, cache: &Cache, key: &Key) {
        self.host.template_worked(cache, key);
    }

    fn drop_template(&self, cache: &Cache, key: &Key) {
        self.host.drop_template(cache, key);
    }

    fn keep_pages(&self, cache: &Cache, key: &Key, pages: File) {
        self.host.keep_pages(cache, key, pages);
    }

    fn make_snapshot_file(&self, snapshots: &Snapshots, workspace: &str, part: Part) -> Result<File, Error> {
        self.host.make_snapshot_file(snapshots, workspace, part)
    }

    fn remove_socket(&self, paths: &Paths, id: &SandboxId) {
        self.host.remove_socket(paths, id);
    }

    fn remove_sandbox(&self, paths: &Paths, id: &SandboxId, lock: &Lock) -> Result<(), Error> {
        self.host.remove_sandbox(paths, id, lock)
    }

    fn wall_in(&self, needs: &Needs) -> Result<(), Error> {
        self.host.wall_in(needs)
    }

    fn wake_timeout(&self, kvm: KvmKind) -> Duration {
        self.host.wake_timeout(kvm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::FakeVmm;

    #[tokio::test]
    async fn the_vmm_in_stock_is_used_once() {
        let fake = FakeVmm::new(drop);
        let ahead = Ahead::new(&fake);
        assert_eq!(fake.spawned(), 1);
        let first = ahead.spawn().unwrap();
        assert_eq!(fake.spawned(), 1);
        let second = ahead.spawn().unwrap();
        assert_eq!(fake.spawned(), 2);
        drop((first, second));
    }
}
