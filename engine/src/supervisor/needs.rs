//! What the starts of a sandbox need of the host's files. Programs that make some of them are run before the supervisor has given up
//! running any.

use std::path::{Path, PathBuf};

use brig_jail::landlock::Access;

use crate::{
    Error, Paths,
    cell::cgroups,
    disk,
    sandbox::{Config, Directory},
    turns,
    volume::{VolumeMount, Volumes},
};

/// Files and directories, and what is done with them.
#[derive(Debug)]
pub struct Needs(Vec<(PathBuf, Access)>);

impl Needs {
    /// Makes what a sandbox in a guest starts with, and lists what it and its supervisor use.
    ///
    /// # Errors
    /// Those of making disks and volumes.
    pub(super) fn lay_out(paths: &Paths, config: &Config, directory: &Directory) -> Result<Self, Error> {
        let mut changed = vec![
            directory.path().to_owned(),
            paths.events(),
            "/dev/kvm".into(),
            "/dev/null".into(),
        ];
        changed.extend(turns::lay_out(paths));
        changed.extend(cgroups::lay_out());
        if config.snapshot.is_none() {
            make_disks(paths, config, directory)?;
        }
        // At its first start they are copies of what the snapshot has.
        let goes_on = config.snapshot.is_some() && !directory.disk().exists();
        let volumes = Volumes::new(&paths.root);
        for name in config.mounts.iter().filter_map(VolumeMount::volume) {
            if !goes_on {
                volumes.lay_out(name)?;
            }
            changed.extend(volumes.changed_by_use(name));
        }
        let snapshot = config.snapshot.as_ref().map(|name| paths.snapshots().join(name));
        let read = [
            paths.images(),
            paths.templates(),
            paths.kvm_cache(),
            paths.lib.clone(),
            "/proc".into(),
            "/sys".into(),
        ];
        let changed = changed.into_iter().map(|path| (path, Access::Change));
        let read = read.into_iter().chain(snapshot).map(|path| (path, Access::Read));
        Ok(Self(changed.chain(read).collect()))
    }

    /// All of them.
    pub(super) fn paths(&self) -> impl Iterator<Item = (&Path, Access)> {
        self.0.iter().map(|(path, access)| (path.as_path(), *access))
    }
}

/// The blank disk, which guests that boot get a copy of, or the sandbox's own where it has a size of its own.
fn make_disks(paths: &Paths, config: &Config, directory: &Directory) -> Result<(), Error> {
    match config.options.storage_bytes {
        // A template's disk has another size, so that this one is taken as that of a sandbox that ran before.
        Some(bytes) if !directory.disk().exists() => disk::make_sized(&directory.disk(), bytes),
        Some(_) => Ok(()),
        None => disk::blank(&paths.templates()).map(drop),
    }
}
