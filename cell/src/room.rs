//! The root filesystem of the cell itself: a tmpfs with the image and the writable layer of the sandbox, the few devices that
//! it passes on, and `proc` and `sysfs` of its own namespaces. The host's files are out of reach from then on.

use std::os::fd::{AsFd, OwnedFd};

use brig_launcher::mounts::{Reach, attach, new_tree, set_attributes};
use brig_protocol::cell::{IdMap, RunJob};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, open, openat},
    io::Errno,
    mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount},
    process::{chdir, chroot, fchdir, pivot_root, umask},
};

use crate::{
    error::{CellError, Context},
    ids,
};

/// Devices that a sandbox gets.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Directories of the agent's own, see `brig_agent::process::Places`.
const DIRECTORIES: [&str; 8] = ["dev", "disk", "files", "image", "proc", "root", "sys", "volumes"];

/// What of the host's files a cell needs: mounts that are attached nowhere. Made while the process is still who it was outside, as
/// the ways there are for that user alone.
pub struct Parts {
    image: OwnedFd,
    layer: OwnedFd,
    devices: Vec<OwnedFd>,
    /// The host's that this sandbox gets.
    host_devices: Vec<OwnedFd>,
    volumes: Vec<OwnedFd>,
}

impl Parts {
    /// Takes the directories and the devices.
    pub fn take(job: &RunJob) -> Result<Self, CellError> {
        let devices = DEVICES.iter().map(|name| clone(&format!("/dev/{name}")));
        let host_devices = job.devices.iter().map(|path| clone(path));
        let volumes = job.volumes.iter().map(|path| clone(path));
        Ok(Self {
            image: clone(&job.image)?,
            layer: clone(&job.layer)?,
            devices: devices.collect::<Result<_, _>>()?,
            host_devices: host_devices.collect::<Result<_, _>>()?,
            volumes: volumes.collect::<Result<_, _>>()?,
        })
    }
}

fn clone(path: &str) -> Result<OwnedFd, CellError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).step(format!("bind {path}"))
}

/// Becomes root of the namespace and enters the room. The network namespace is the sandbox's by now.
pub fn enter(
    parts: &Parts,
    map: &IdMap,
    network: impl FnOnce() -> Result<(), CellError>,
) -> Result<(), CellError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step("make the mount namespace private")?;
    ids::become_root(map)?;
    network()?;
    umask(Mode::from_raw_mode(0o022));
    let top = tmpfs()?;
    build(parts, &top)?;
    leave_host()?;
    set_attributes(
        &top,
        libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        Reach::Itself,
    )
    .step("forbid devices in the cell's root filesystem")
}

/// Makes the mount that is the working directory, and lies over the root, the root; nothing of the old one is left.
pub fn leave_host() -> Result<(), CellError> {
    // The old root is stacked over the new one and is what "." then means: pivot_root(2), "pivot_root(".", ".")".
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).step("let go of the host's root filesystem")?,
        // A host that runs from its initial ramfs: the kernel does not let go of that. It stays below, where no path of a
        // sandbox leads, which has a root of its own by pivot_root.
        Err(Errno::INVAL) => chroot(".").step("enter the new root filesystem")?,
        Err(e) => return Err(e).step("pivot to the new root filesystem"),
    }
    chdir("/").step("enter the new root filesystem")
}

/// A tmpfs over the root, entered as the working directory.
fn tmpfs() -> Result<OwnedFd, CellError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let before = open("/", flags, Mode::empty()).step("open the root")?;
    let top = new_tree("tmpfs", "cell", &["mode=755".into(), "size=16m".into()])
        .and_then(|top| attach(&top, &before).map(|()| top))
        .step("mount the cell's root filesystem")?;
    fchdir(&top).step("enter the cell's root filesystem")?;
    Ok(top)
}

fn build(parts: &Parts, top: &OwnedFd) -> Result<(), CellError> {
    for directory in DIRECTORIES {
        mkdirat(top, directory, Mode::from_raw_mode(0o755)).step(format!("create /{directory}"))?;
    }
    let at = |name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(top, name, flags, Mode::empty()).step(format!("open /{name}"))
    };
    set_attributes(
        &parts.image,
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
        Reach::Itself,
    )
    .step("make the image read-only")?;
    attach(&parts.image, &at("image")?).step("mount the image")?;
    set_attributes(&parts.layer, libc::MOUNT_ATTR_NODEV, Reach::Itself)
        .step("forbid devices in the writable layer")?;
    attach(&parts.layer, &at("disk")?).step("mount the writable layer")?;
    let dev = at("dev")?;
    let attach_device = |name: &str, tree| {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(dev.as_fd(), name, flags, Mode::from_raw_mode(0o600)).step("create a device")?;
        attach(tree, &file).step(format!("bind /dev/{name}"))
    };
    for (name, tree) in DEVICES.iter().zip(&parts.devices) {
        attach_device(name, tree)?;
    }
    if !parts.host_devices.is_empty() {
        // HOST_DEVICES of the launcher's spec.
        mkdirat(&dev, "host", Mode::from_raw_mode(0o755)).step("create /dev/host")?;
    }
    for (index, tree) in parts.host_devices.iter().enumerate() {
        attach_device(&format!("host/{index}"), tree)?;
    }
    for (index, tree) in parts.volumes.iter().enumerate() {
        let name = format!("volumes/{index}");
        let kind = fstat(tree).step("look at a volume")?.st_mode;
        let target = if FileType::from_raw_mode(kind) == FileType::Directory {
            mkdirat(top, &name, Mode::from_raw_mode(0o755)).step("create a volume")?;
            at(&name)?
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(top, &name, flags, Mode::from_raw_mode(0o600)).step("create a volume")?
        };
        set_attributes(tree, libc::MOUNT_ATTR_NODEV, Reach::Itself).step("forbid devices in a volume")?;
        attach(tree, &target).step("mount a volume")?;
    }
    // The kernel shows a user namespace no more of these than it sees already: while the host's are still there.
    for (kind, name) in [("proc", "proc"), ("sysfs", "sys")] {
        let options = ["nosuid", "noexec", "nodev"].map(String::from);
        let tree = new_tree(kind, kind, &options).step(format!("mount {kind}"))?;
        attach(&tree, &at(name)?).step(format!("mount {kind}"))?;
    }
    Ok(())
}
