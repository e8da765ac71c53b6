//! A cell that unpacks an image into a directory: it has that directory for its root, the layers as descriptors, and
//! nothing else.

use std::{
    fs::File,
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use brig_agent::error::one_line;
use brig_image_store::unpack::{directory::Owners, unpack_to_directory};
use brig_launcher::mounts::{Reach, attach, set_attributes};
use brig_protocol::{
    agent::{FROM_AGENT_BYTES, FromAgent},
    cell::{IdMap, UnpackJob},
    frame,
};
use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree},
    process::{fchdir, umask},
    thread::UnshareFlags,
};

use crate::{
    error::{CellError, Context},
    filter, ids,
    keeper::{die_with_parent, take},
    room::leave_host,
};

/// Least time between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Unpacks, and says how that went.
pub fn run(map: &IdMap, job: &UnpackJob, mut fds: Vec<Option<OwnedFd>>) -> Result<(), CellError> {
    let control = take(&mut fds, job.control)?;
    rustix::io::ioctl_fionbio(&control, false).step("set the connection up")?;
    let mut control = UnixStream::from(control);
    let blobs = job
        .blobs
        .iter()
        .map(|&index| Ok(File::from(take(&mut fds, index)?)));
    let blobs = blobs.collect::<Result<Vec<_>, CellError>>()?;
    drop(fds);
    let root = enter(&job.directory, map)?;
    brig_launcher::filter::set(&filter::UNPACK)?;
    let mut last = Instant::now();
    let mut lost = false;
    let mut progress = |bytes| {
        if last.elapsed() >= REPORT_EVERY {
            last = Instant::now();
            lost |= say(&mut &control, &FromAgent::Unpacking { bytes }).is_err();
        }
        if lost {
            // Nobody wants the image any more.
            std::process::exit(1);
        }
    };
    let answer = match unpack_to_directory(&job.spec, blobs, root, owners(map), &mut progress) {
        Ok(unpacked) => FromAgent::Unpacked {
            bytes: unpacked.bytes,
            inodes: unpacked.inodes,
            costs: unpacked.costs,
        },
        Err(error) => FromAgent::UnpackFailed {
            kind: error.failure(),
            message: one_line(&error),
        },
    };
    say(&mut control, &answer).step("answer")
}

/// Empties a directory.
pub fn empty(directory: &str, map: &IdMap) -> Result<(), CellError> {
    let root = enter(directory, map)?;
    brig_launcher::filter::set(&filter::UNPACK)?;
    brig_image_store::removal::empty_tree(&root).step(format!("empty {directory}"))
}

fn say(control: &mut impl Write, message: &FromAgent) -> Result<(), std::io::Error> {
    let bytes = frame::encode(message, FROM_AGENT_BYTES).map_err(std::io::Error::other)?;
    control.write_all(&bytes)
}

fn owners(map: &IdMap) -> Owners {
    match map {
        IdMap::Single => Owners::Caller,
        IdMap::Range { count, .. } => Owners::Kept { count: *count },
        // Root is not of the range.
        IdMap::Subordinate { uids, gids, .. } => Owners::Kept {
            count: uids.1.min(gids.1).saturating_add(1),
        },
    }
}

/// Makes a directory the root of the calling process, which has no network either, and opens it.
fn enter(directory: &str, map: &IdMap) -> Result<OwnedFd, CellError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, directory, flags).step(format!("bind {directory}"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step("make the mount namespace private")?;
    let others = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: these change what later calls of this process see; no file descriptor is unshared.
    unsafe { rustix::thread::unshare_unsafe(others) }.step("create the namespaces")?;
    ids::become_root(map)?;
    die_with_parent()?;
    umask(Mode::empty());
    set_attributes(
        &tree,
        libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        Reach::Itself,
    )
    .step("set the directory up")?;
    let top = open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step("open the root")?;
    attach(&tree, &top).step("mount the directory")?;
    fchdir(&tree).step("enter the directory")?;
    leave_host()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open("/", flags, Mode::empty()).step("open the directory")?;
    Ok(root)
}
