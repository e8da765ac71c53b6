//! A running sandbox, written down: its guest by the VMM, its disk by a copy while the guest stands still.

use std::{fs::File, path::PathBuf};

use brig_protocol::vmm::Command;
use tokio::task::spawn_blocking;

use crate::{
    Error, Paths,
    control::SavedSandbox,
    disk,
    error::chain,
    files,
    guest::{Failure, Guest},
    sandbox::Directory,
    snapshot::{
        Layout, Snapshots,
        store::{DISK, MEMORY, STATE},
    },
};

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
