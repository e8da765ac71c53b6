//! The spec's mounts made in advance, before there is a root filesystem to attach them to: built by the same steps as
//! always in an empty staging root, then held as detached copies (open_tree(2)), one for each mount that lies in no other.

use std::{
    os::fd::OwnedFd,
    path::{Component, Path},
};

use brig_protocol::spec::{MountSpec, SandboxSpec};
use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{OpenTreeFlags, UnmountFlags, unmount},
    process::{chroot, fchdir},
};

use crate::{
    child,
    devices::Nodes,
    error::{Context, LaunchError},
    masked::clone_tree,
    mounts,
};

/// Mounts that wait for their root filesystem.
#[derive(Debug)]
pub(crate) struct Trees {
    all: Vec<(MountSpec, OwnedFd)>,
}

impl Trees {
    /// Makes what `spec` mounts, hidden and read-only paths included. The calling process is alone in a private mount
    /// namespace; its root is what it was when this returns.
    pub(crate) fn build(spec: &SandboxSpec, nodes: &Nodes) -> Result<Self, LaunchError> {
        let staging = Staging::enter()?;
        child::furnish(spec, nodes)?;
        child::cover(spec, |path| lies_in_a_mount(&spec.mounts, path))?;
        let all = outermost(&spec.mounts)
            .map(|mount| {
                let tree = clone_tree(CWD, &mount.target, OpenTreeFlags::AT_RECURSIVE)
                    .step_on("copy the mounts on", &mount.target)?;
                Ok((mount.clone(), tree))
            })
            .collect::<Result<_, LaunchError>>()?;
        staging.leave()?;
        Ok(Self { all })
    }

    /// Attaches them. Called inside of the root filesystem.
    pub(crate) fn attach(&self) -> Result<(), LaunchError> {
        for (spec, tree) in &self.all {
            let target = mounts::target_directory(spec)?;
            mounts::attach(tree, &target).step_on(&format!("mount {} on", spec.kind), &spec.target)?;
        }
        Ok(())
    }

    /// Whether `path` lies in one of them, so that it has been made read-only or hidden already.
    pub(crate) fn hold(&self, path: &str) -> bool {
        self.all.iter().any(|(mount, _)| lies_in(mount, path))
    }
}

/// The mounts that lie in no other one.
fn outermost(mounts: &[MountSpec]) -> impl Iterator<Item = &MountSpec> {
    mounts
        .iter()
        .enumerate()
        .filter(|(index, mount)| !lies_in_a_mount(&mounts[..*index], &mount.target))
        .map(|(_, mount)| mount)
}

fn lies_in_a_mount(mounts: &[MountSpec], path: &str) -> bool {
    mounts.iter().any(|mount| lies_in(mount, path))
}

fn lies_in(mount: &MountSpec, path: &str) -> bool {
    let path = Path::new(path);
    path.starts_with(&mount.target) && !path.components().any(|part| part == Component::ParentDir)
}

/// An empty tmpfs over the root, which the process has for its root.
struct Staging {
    before: OwnedFd,
    root: OwnedFd,
}

impl Staging {
    fn enter() -> Result<Self, LaunchError> {
        let before = open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .step("open the root")?;
        let root = mounts::new_tree("tmpfs", "staging", &["mode=755".into()])
            .and_then(|root| mounts::attach(&root, &before).map(|()| root))
            .step("mount a staging root")?;
        enter(&root).step("enter the staging root")?;
        Ok(Self { before, root })
    }

    fn leave(self) -> Result<(), LaunchError> {
        enter(&self.before)
            .and_then(|()| fchdir(&self.root))
            .and_then(|()| unmount(".", UnmountFlags::DETACH))
            .and_then(|()| fchdir(&self.before))
            .step("leave the staging root")
    }
}

fn enter(root: &OwnedFd) -> rustix::io::Result<()> {
    fchdir(root)?;
    chroot(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(mounts: &[MountSpec]) -> Vec<&str> {
        outermost(mounts).map(|mount| mount.target.as_str()).collect()
    }

    #[test]
    fn only_mounts_that_lie_in_no_other_are_attached() {
        let mounts = SandboxSpec::default_mounts(1);
        assert_eq!(targets(&mounts), ["/proc", "/dev", "/sys"]);
    }

    #[test]
    fn a_path_is_in_a_mount_by_its_components() {
        let mounts = SandboxSpec::default_mounts(1);
        for path in ["/proc", "/proc/sys", "/dev/shm/x"] {
            assert!(lies_in_a_mount(&mounts, path), "{path}");
        }
        for path in ["/process", "/etc/proc", "/proc/../etc/shadow", "/"] {
            assert!(!lies_in_a_mount(&mounts, path), "{path}");
        }
    }
}
