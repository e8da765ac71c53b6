//! What a user wants beside what every sandbox has: filesystems of its own, kernel settings, devices, a root filesystem that
//! can only be read.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use brig_protocol::spec::{Extras, HOST_DEVICES, MountSpec, UserMount};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mknodat, open, openat, openat2},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::umask,
};

use crate::{
    child::make_directories,
    error::{Context, LaunchError},
    mounts::{self, Reach},
    volume,
};

/// Where the devices of a kernel are before the root filesystem is entered.
const DEVICES: &str = "/dev";

/// Directories in [`DEVICES`] that are mounts of the sandbox's own.
const MOUNTS: [&str; 3] = ["pts", "shm", "mqueue"];

/// What has been taken from the caller's root, where it is out of reach once the sandbox's has been entered.
#[derive(Debug)]
pub(crate) struct Ready {
    nodes: Vec<Node>,
    devices: Vec<OwnedFd>,
    /// In the order of the spec's.
    volumes: Vec<OwnedFd>,
}

/// A device node.
#[derive(Debug)]
struct Node {
    path: PathBuf,
    kind: FileType,
    mode: u32,
    device: u64,
}

impl Ready {
    /// Sets the kernel's settings, which are those of the namespaces that the calling process is in, and takes what is the caller's.
    pub(crate) fn take(extras: &Extras) -> Result<Self, LaunchError> {
        set_sysctls(&extras.sysctls)?;
        let mut nodes = Vec::new();
        if extras.all_devices {
            find_nodes(Path::new(DEVICES), &mut nodes).step("list the devices")?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let borrow = |(index, target): (usize, &String)| {
            let path = format!("{HOST_DEVICES}/{index}");
            open_tree(CWD, path, flags).step_on("bind the device", target)
        };
        let volumes = extras.mounts.iter().filter_map(|mount| match mount {
            UserMount::Volume(volume) => Some(volume::open(volume)),
            UserMount::New(_) => None,
        });
        Ok(Self {
            nodes,
            volumes: volumes.collect::<Result<_, _>>()?,
            devices: extras
                .devices
                .iter()
                .enumerate()
                .map(borrow)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Does what is to be done in the sandbox's root filesystem, which is the calling process's.
    pub(crate) fn finish(&self, extras: &Extras, cwd: &str) -> Result<(), LaunchError> {
        self.make_nodes()?;
        for (target, tree) in extras.devices.iter().zip(&self.devices) {
            let file = target_file(target).step_on("create", target)?;
            mounts::attach(tree, &file).step_on("bind the device", target)?;
        }
        let mut volumes = self.volumes.iter();
        for mount in &extras.mounts {
            match mount {
                UserMount::New(spec) => mounts::mount(&with_mode(spec)?)?,
                UserMount::Volume(spec) => {
                    if let Some(tree) = volumes.next() {
                        volume::mount(spec, tree)?;
                    }
                }
            }
        }
        if extras.read_only {
            // It could not be made any more.
            make_directories(&[cwd.to_owned()])?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let top = open("/", flags, Mode::empty()).step("open the root filesystem")?;
            mounts::set_attributes(&top, libc::MOUNT_ATTR_RDONLY, Reach::Itself)
                .step("make the root filesystem read-only")?;
        }
        Ok(())
    }

    fn make_nodes(&self) -> Result<(), LaunchError> {
        let before = umask(Mode::empty());
        let made = self.nodes.iter().try_for_each(|node| {
            if let Some(parent) = node.path.parent() {
                fs::create_dir_all(parent).step_on("create", parent.display())?;
            }
            let mode = Mode::from_raw_mode(node.mode & 0o777);
            match mknodat(CWD, &node.path, node.kind, mode, node.device) {
                // One of those that every sandbox has.
                Err(Errno::EXIST) => Ok(()),
                made => made.step_on("create the device", node.path.display()),
            }
        });
        umask(before);
        made
    }
}

/// Writes settings. By a `proc` that is attached nowhere: in the sandbox's own they may be read-only by now.
fn set_sysctls(settings: &[(String, String)]) -> Result<(), LaunchError> {
    if settings.is_empty() {
        return Ok(());
    }
    let proc = mounts::new_tree("proc", "proc", &[]).step("mount proc")?;
    for (file, value) in settings {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        openat2(&proc, format!("sys/{file}"), flags, Mode::empty(), resolve)
            .and_then(|opened| rustix::io::write(&opened, value.as_bytes()))
            .step_on(
                "set the kernel setting",
                format_args!("{} to {value:?}", file.replace('/', ".")),
            )?;
    }
    Ok(())
}

/// The device nodes in `directory` and in the directories in it.
fn find_nodes(directory: &Path, found: &mut Vec<Node>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let kind = metadata.file_type();
        let kind = if kind.is_char_device() {
            FileType::CharacterDevice
        } else if kind.is_block_device() {
            FileType::BlockDevice
        } else {
            let is_mount = MOUNTS.iter().any(|name| entry.file_name() == *name);
            if kind.is_dir() && !is_mount {
                find_nodes(&entry.path(), found)?;
            }
            continue;
        };
        found.push(Node {
            path: entry.path(),
            kind,
            mode: metadata.mode(),
            device: metadata.rdev(),
        });
    }
    Ok(())
}

/// Opens the file that a device is bound over; made when it is missing.
pub(crate) fn target_file(path: &str) -> io::Result<OwnedFd> {
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent)?;
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Err(Errno::NOENT) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            Ok(openat(CWD, path, flags, Mode::from_raw_mode(0o600))?)
        }
        opened => Ok(opened?),
    }
}

/// A tmpfs has the mode of the directory that it covers (runc), otherwise it is everybody's.
fn with_mode(spec: &MountSpec) -> Result<MountSpec, LaunchError> {
    let mut spec = spec.clone();
    if spec.kind == "tmpfs" && !spec.options.iter().any(|option| option.starts_with("mode=")) {
        let there = Path::new(&spec.target).exists();
        let target = mounts::target_directory(&spec)?;
        let mode = if there {
            fstat(&target).step_on("look at", &spec.target)?.st_mode & 0o7777
        } else {
            0o1777
        };
        spec.options.push(format!("mode={mode:o}"));
    }
    Ok(spec)
}
