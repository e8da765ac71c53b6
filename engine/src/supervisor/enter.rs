//! A sandbox on the host's kernel: a cell where others have a guest.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, chown},
    path::PathBuf,
};

use super::start::{Start, Started};
use crate::{
    Error,
    cell::{Cgroups, HostIds},
    clock::Timing,
    guest::{CellPlan, Guest},
    sandbox::Directory,
    snapshot::Layout,
    spec::cell_spec,
    turns,
    volume::{Source, VolumeMount, Volumes},
};

impl Start<'_> {
    /// Makes a cell and starts the process in it. Dropping the future kills it.
    pub(super) async fn enter(&self, timing: &mut Timing) -> Result<Started, Error> {
        let ids = HostIds::look_up();
        ids.check()?;
        let plan = CellPlan {
            image: self.host.image_directory(self.config, &ids)?,
            layer: make_layer(self.directory, &ids)?,
            volumes: self.volume_directories()?,
            ids: ids.map().clone(),
            devices: self
                .config
                .options
                .devices
                .iter()
                .map(|device| device.host.clone())
                .collect(),
            cgroups: Cgroups::create(
                &self.config.id,
                &self.config.limits,
                &self.config.device_rates.of_cgroup(&self.paths.root)?,
            )?,
        };
        let spec = cell_spec(self.config, &ids, self.size);
        // Held until the process runs.
        let _turn = turns::take(self.paths).await;
        let mut guest = Guest::enter(self.host, plan, self.console()?, timing).await?;
        let streams = match self.start_process(&mut guest, spec, false, timing).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(failed)) => {
                guest.vmm.kill().await;
                return Err(failed);
            }
            Err(failure) => return Err(guest.explain(failure).await),
        };
        Ok(Started {
            guest,
            streams,
            layout: Layout::Booted,
            image_bytes: 0,
        })
    }
}

impl Start<'_> {
    /// The volumes and directories that the cell gets, in the order of the configuration's.
    fn volume_directories(&self) -> Result<Vec<PathBuf>, Error> {
        let volumes = Volumes::new(&self.paths.root);
        let directory = |mount: &VolumeMount| match &mount.source {
            Source::Volume(name) => volumes.data(name),
            Source::Host(path) => Ok(path.clone()),
            // They have names once the sandbox is made.
            Source::Anonymous => Err(Error::option("--volume", "it has no name")),
        };
        self.config.mounts.iter().map(directory).collect()
    }
}

/// The directory of a sandbox's writable layer, which is the sandbox's root's.
pub(crate) fn make_layer(directory: &Directory, ids: &HostIds) -> Result<PathBuf, Error> {
    let path = directory.layer();
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::file("make", &path))?,
    }
    if let Some(root) = ids.root() {
        chown(&path, Some(root), Some(root)).map_err(Error::file("give away", &path))?;
    }
    Ok(path)
}
