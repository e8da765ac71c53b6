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
    files,
    guest::{Failure, Guest},
    sandbox::Directory,
    snapshot::{
        Layout, Snapshots,
        store::{DISK, MEMORY, STATE},
    },
};

/// Most characters of an agent's message that a user sees.
const GUEST_TEXT: usize = 1000;

/// How long a guest may take to write everything to its disk.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(300);

/// Copies the disk in `directory` to the workspace of this name, while nothing writes to it. What is wrong with that is the
/// inner error; the guest goes on then too. Beside it stands how the process ended, if it did meanwhile. What the agent says
/// about others is for `others`.
pub(super) async fn copy_frozen(
    paths: &Paths,
    directory: &Directory,
    workspace: &str,
    guest: &mut Guest,
    others: &mut dyn FnMut(FromAgent),
) -> Result<(Result<(), String>, Option<ExitStatus>), Failure> {
    let to = match Snapshots::new(paths).workspace_named(workspace) {
        Ok(at) => at.join(DISK),
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

/// Saves `guest` and the disk in `directory` to the workspace of this name, and lets the guest go on. What is wrong with
/// the files is the inner error; the guest goes on then too.
pub(super) async fn save(
    paths: &Paths,
    directory: &Directory,
    workspace: &str,
    guest: &mut Guest,
    known: (Layout, u64),
) -> Result<Result<SavedSandbox, String>, Failure> {
    let (memory, state, to) = match prepare(paths, workspace) {
        Ok(files) => files,
        Err(e) => return Ok(Err(chain(&e))),
    };
    let copied = match guest.save(&memory, &state).await? {
        Ok(()) => copy_disk(directory.disk(), to).await.map_err(|e| chain(&e)),
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

fn prepare(paths: &Paths, workspace: &str) -> Result<(File, File, PathBuf), Error> {
    let at = Snapshots::new(paths).workspace_named(workspace)?;
    let make = |name| files::make(&at.join(name));
    Ok((make(MEMORY)?, make(STATE)?, at.join(DISK)))
}

/// In a thread of its own: other connections are served meanwhile.
async fn copy_disk(from: PathBuf, to: PathBuf) -> Result<(), Error> {
    spawn_blocking(move || disk::copy_sparse(&from, &to))
        .await
        .unwrap_or_else(|e| Err(Error::Runtime(std::io::Error::other(e))))
}
