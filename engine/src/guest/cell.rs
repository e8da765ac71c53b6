//! A cell in the place of a guest: what brig-cell is to a VMM, its agent is to a guest's.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use brig_protocol::{
    cell::{Begin, IdMap, Job, RunJob},
    vmm::FdIndex,
};
use tokio::time::timeout;

use super::{BOOT_TIMEOUT, Failure, Guest, Origin, stream_pair};
use crate::{Error, cell::Cgroups, clock::Timing, console::Console, frames::FrameReader, host::Host};
use brig_protocol::agent::FROM_AGENT_BYTES;

/// A cell to make.
#[derive(Debug)]
pub struct CellPlan {
    /// Whose its ids are.
    pub ids: IdMap,
    /// The directory that its image is unpacked to.
    pub image: PathBuf,
    /// The directory of its writable layer, the namespace's root's own.
    pub layer: PathBuf,
    /// The host's devices that it gets.
    pub devices: Vec<String>,
    /// Volumes, and what the user binds.
    pub volumes: Vec<PathBuf>,
    /// Its cgroups, when it has limits.
    pub cgroups: Option<Cgroups>,
}

impl Guest {
    /// Makes a cell and waits for its agent. Dropping the future kills it.
    ///
    /// # Errors
    /// [`Error::Vmm`] with what brig-cell says.
    pub async fn enter(
        host: &dyn Host,
        plan: CellPlan,
        console: Console,
        timing: &mut Timing,
    ) -> Result<Self, Error> {
        timing.origin = Some(Origin::Container);
        let mut vmm = host.spawn_cell()?;
        let complaints = vmm.complain_to(&console)?;
        let (near, control) = stream_pair()?;
        let cgroups = plan.cgroups.as_ref().map_or(Ok(Vec::new()), Cgroups::procs)?;
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let begin = Begin {
            ids: plan.ids,
            job: Job::Run(RunJob {
                control: 0,
                image: text(&plan.image),
                layer: text(&plan.layer),
                devices: plan.devices,
                volumes: plan.volumes.iter().map(text).collect(),
                cgroups: (1..).take(cgroups.len()).collect::<Vec<FdIndex>>(),
            }),
        };
        let mut files: Vec<BorrowedFd<'_>> = vec![control.as_fd()];
        files.extend(cgroups.iter().map(AsFd::as_fd));
        // One that has just ended says why below.
        let _ = vmm.channel.begin(&begin, &files).await;
        drop(files);
        drop((control, cgroups));
        if let Some(cgroups) = plan.cgroups {
            vmm.keep(cgroups);
        }
        let (from_agent, to_agent) = near.into_split();
        let mut cell = Self {
            vmm,
            from_agent: FrameReader::new(from_agent, FROM_AGENT_BYTES),
            to_agent,
            console,
            kernel: String::new(),
            asleep_until: None,
            page_map: None,
            collecting: vec![complaints],
        };
        match timeout(BOOT_TIMEOUT, cell.wait_for_hello(timing)).await {
            Ok(Ok(())) => Ok(cell),
            Ok(Err(failure)) => Err(cell.explain(failure).await),
            Err(_) => Err(cell
                .explain(Failure::Agent("did not come up in time".into()))
                .await),
        }
    }
}
