//! A running sandbox, written down: its guest by the VMM, its disk by a copy while the guest stands still; or its disk alone,
//! while nothing in the guest writes to it.

use std::{fs::File, path::PathBuf, time::Duration};

use brig_protocol::{
    agent::{ExitStatus, FromAgent, ToAgent},
    vmm::Command,
};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    Error, Paths,
    control::SavedSandbox,
    disk,
    error::{chain, one_line},
    guest::{Failure, Guest},
    host::Host,
    sandbox::{Config, Directory},
    snapshot::{Layout, Part, Snapshots},
    volume::{VolumeMount, Volumes},
};

/// Most characters of an agent's message that a user sees.
const GUEST_TEXT: usize = 1000;

/// How long a guest may take to write everything to its disk.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(300);

/// Where the files of a snapshot are made: in the workspace of this name.
#[derive(Clone, Copy)]
pub(super) struct Workspace<'a> {
    pub paths: &'a Paths,
    pub host: &'a dyn Host,
    pub name: &'a str,
}

impl Workspace<'_> {
    fn make(self, part: Part) -> Result<File, Error> {
        self.host
            .make_snapshot_file(&Snapshots::new(self.paths), self.name, part)
    }
}

/// Copies the disk in `directory` to a workspace, while nothing writes to it. What is wrong with that is the
/// inner error; the guest goes on then too. Beside it stands how the process ended, if it did meanwhile. What the agent says
/// about others is for `others`.
pub(super) async fn copy_frozen(
    directory: &Directory,
    workspace: Workspace<'_>,
    guest: &mut Guest,
    others: &mut dyn FnMut(FromAgent),
) -> Result<(Result<(), String>, Option<ExitStatus>), Failure> {
    let to = match workspace.make(Part::Disk) {
        Ok(to) => to,
        Err(e) => return Ok((Err(chain(&e)), None)),
    };
    if guest.tell(&ToAgent::Freeze).await.is_err() {
        return Err(guest.last_event().await);
    }
    let mut exit = None;
    let frozen = async {
        loop {
            match guest.from_agent.next().await {
                Ok(FromAgent::Frozen { failure }) => return Ok(failure),
                Ok(FromAgent::Exited { process: 0, status }) => exit = Some(status),
                Ok(message) => others(message),
                Err(_) => return Err(()),
            }
        }
    };
    match timeout(FREEZE_TIMEOUT, frozen).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(failure))) => return Ok((Err(one_line(&failure, GUEST_TEXT)), exit)),
        Ok(Err(())) => return Err(guest.last_event().await),
        Err(_) => return Err(Failure::Silent(FREEZE_TIMEOUT.as_secs())),
    }
    let copied = copy_disk(directory.disk(), to).await.map_err(|e| chain(&e));
    if guest.tell(&ToAgent::Thaw).await.is_err() {
        return Err(guest.last_event().await);
    }
    Ok((copied, exit))
}

/// Saves `guest`, the disk in `directory` and the volumes of `config` to a workspace, and lets the guest go on. What is wrong
/// with the files is the inner error; the guest goes on then too.
pub(super) async fn save(
    config: &Config,
    directory: &Directory,
    workspace: Workspace<'_>,
    guest: &mut Guest,
    known: (Layout, u64),
) -> Result<Result<SavedSandbox, String>, Failure> {
    let files = match prepare(config, directory, workspace) {
        Ok(files) => files,
        Err(e) => return Ok(Err(chain(&e))),
    };
    let copied = match guest.save(&files.memory, &files.state).await? {
        Ok(()) => copy_disks(files.disks).await.map_err(|e| chain(&e)),
        Err(message) => Err(message),
    };
    if guest.vmm.channel.send(&Command::Resume, &[]).await.is_err() {
        return Err(guest.last_event().await);
    }
    let (layout, image_bytes) = known;
    Ok(copied.map(|()| SavedSandbox {
        layout,
        kernel: guest.kernel.clone(),
        image_bytes,
    }))
}

/// What a guest is saved to.
struct Files {
    memory: File,
    state: File,
    /// Each disk, and the file for its copy.
    disks: Vec<(PathBuf, File)>,
}

fn prepare(config: &Config, directory: &Directory, workspace: Workspace<'_>) -> Result<Files, Error> {
    let mut disks = vec![(directory.disk(), workspace.make(Part::Disk)?)];
    let volumes = Volumes::new(&workspace.paths.root);
    for (index, name) in (0..).zip(config.mounts.iter().filter_map(VolumeMount::volume)) {
        disks.push((volumes.disk(name), workspace.make(Part::Volume(index))?));
    }
    Ok(Files {
        memory: workspace.make(Part::Memory)?,
        state: workspace.make(Part::State)?,
        disks,
    })
}

async fn copy_disks(disks: Vec<(PathBuf, File)>) -> Result<(), Error> {
    for (from, to) in disks {
        copy_disk(from, to).await?;
    }
    Ok(())
}

/// In a thread of its own: other connections are served meanwhile.
async fn copy_disk(from: PathBuf, to: File) -> Result<(), Error> {
    let copy = move || {
        let source = File::open(&from).map_err(Error::file("open", &from))?;
        disk::copy_file(&source, &to).map_err(Error::file("copy", &from))
    };
    spawn_blocking(copy)
        .await
        .unwrap_or_else(|e| Err(Error::Runtime(std::io::Error::other(e))))
}
