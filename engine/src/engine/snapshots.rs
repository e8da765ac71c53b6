//! Saving running sandboxes, and making new ones that go on from there.

use std::{collections::BTreeMap, fs::File, os::unix::fs::MetadataExt, path::Path};

use brig_image_store::Image;
use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::Engine;
use crate::{
    Error, Isolation, SandboxId,
    control::{Reply, Request, SavedSandbox},
    files,
    guest::Kvm,
    options::{HostOptions, LogOptions, RestartPolicy},
    port::PublishedPort,
    sandbox::{Config, Sandbox},
    signal::Signal,
    snapshot::{self, FileRecord, Part, Record, Snapshots, Workspace, sparse},
    spec,
    template::key::Platform,
    volume::{Source, VolumeMount},
};

/// What a user may choose of a sandbox that goes on from a snapshot. Everything else is the saved sandbox's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotOptions {
    /// The name; a random one when there is none.
    pub name: Option<String>,
    /// Hostname; the short id when there is none.
    pub hostname: Option<String>,
    /// Ports to publish.
    pub ports: Vec<PublishedPort>,
    /// The signal that `stop` sends.
    pub stop_signal: Option<Signal>,
    /// Whether the sandbox goes with its process's end.
    pub auto_remove: bool,
    /// What happens when its process has ended.
    pub restart: RestartPolicy,
    /// Seconds until SIGKILL when `stop` does not say.
    pub stop_timeout: Option<i32>,
    /// What becomes of its log.
    pub log: LogOptions,
    /// Labels, beside those of the saved sandbox.
    pub labels: BTreeMap<String, String>,
}

/// Says that only a guest can be what is asked for.
///
/// # Errors
/// [`Error::NeedsVm`] of a sandbox on the host's kernel.
pub(super) fn needs_vm(sandbox: &Sandbox, name: &str, what: &'static str) -> Result<(), Error> {
    match sandbox.config.isolation {
        Isolation::Vm => Ok(()),
        Isolation::Container => Err(Error::NeedsVm {
            name: name.to_owned(),
            what,
        }),
    }
}

impl Engine {
    /// Its snapshots.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::new(&self.paths)
    }

    /// Saves a running sandbox under `name`. The sandbox stands still while its memory and disk are copied, and goes on.
    ///
    /// # Errors
    /// [`Error::SnapshotExists`], [`Error::InvalidName`], [`Error::NotRunning`], [`Error::Save`], [`Error::File`].
    pub async fn snapshot(&self, reference: &str, name: &str) -> Result<(), Error> {
        let snapshots = self.snapshots();
        snapshots.check_free(name)?;
        let workspace = self.save(reference, true).await?;
        snapshots.publish(workspace, name)
    }

    /// Saves a running sandbox for copies that start at once: the snapshot goes when it is dropped, and can be used by its
    /// [`Workspace::name`] before.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Save`], [`Error::File`].
    pub async fn fork(&self, reference: &str) -> Result<Workspace, Error> {
        self.save(reference, false).await
    }

    async fn save(&self, reference: &str, digests: bool) -> Result<Workspace, Error> {
        let sandbox = self.find(reference)?;
        if !sandbox.is_running() {
            return Err(Error::NotRunning(reference.to_owned()));
        }
        needs_vm(&sandbox, reference, "saved")?;
        let failed = |reason: String| Error::Save {
            name: reference.to_owned(),
            reason,
        };
        let kvm = Kvm::open(&self.paths, &self.host).await?;
        let platform = Platform::this(&self.paths, kvm.kind)?;
        self.room_for(&sandbox).map_err(failed)?;
        let workspace = self.snapshots().workspace()?;
        let request = Request::Save {
            workspace: workspace.name(),
        };
        let saved = match self.ask(sandbox.id(), &request).await? {
            Some(Reply::Saved(saved)) => saved,
            Some(Reply::Failed { message, .. }) => return Err(failed(message)),
            _ => return Err(Error::NotRunning(reference.to_owned())),
        };
        finish(workspace, sandbox.config, saved, platform, digests).await
    }

    /// A guest whose VMM cannot write it down cannot go on: it is not tried where it may not fit.
    fn room_for(&self, sandbox: &Sandbox) -> Result<(), String> {
        let path = self.paths.snapshots();
        let Ok(space) = rustix::fs::statvfs(&path) else {
            return Ok(());
        };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let volumes = sandbox.config.mounts.iter().filter_map(VolumeMount::volume);
        let disks = volumes
            .map(|name| self.volumes().disk(name))
            .chain([self.registry.directory(sandbox.id()).disk()]);
        let on_disk = |path| std::fs::metadata(path).map_or(0, |m| MetadataExt::blocks(&m) * 512);
        let wanted = disks.fold(sandbox.config.memory.bytes(), |sum, path| {
            sum.saturating_add(on_disk(path))
        });
        if free < wanted {
            return Err(format!(
                "{} has {} MiB left and it may take {}: make room",
                path.display(),
                free >> 20,
                wanted >> 20
            ));
        }
        Ok(())
    }

    /// The image of a snapshot.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`], [`Error::Snapshot`] when the snapshot is damaged or its image is not in the store.
    pub fn image_of_snapshot(&self, name: &str) -> Result<Image, Error> {
        let config = self.snapshots().record(name)?.config;
        self.store.resolve(&config.image_id)?.ok_or_else(|| {
            let reason = format!("needs the image {} ({}): load it", config.image, config.image_id);
            Error::snapshot(name, reason)
        })
    }

    /// Makes the sandbox `id`, whose process goes on from a snapshot when it is started first.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`], [`Error::Snapshot`], [`Error::NameInUse`], those of the options' checks.
    pub fn create_from_snapshot(
        &self,
        id: SandboxId,
        name: &str,
        options: &SnapshotOptions,
    ) -> Result<Config, Error> {
        let saved = self.snapshots().record(name)?.config;
        saved.memory.check_host()?;
        options.restart.check(options.auto_remove)?;
        let make = |mounts, id, sandbox_name| Config {
            mounts,
            ..go_on_config(&saved, name, options, id, sandbox_name)
        };
        spec::check(&make(Vec::new(), id.clone(), String::new()))?;
        let image = self.image_of_snapshot(name)?;
        self.with_volumes(&volumes_of_copy(&saved.mounts), |mounts| {
            let make = |id, name| make(mounts.to_vec(), id, name);
            self.store
                .keeping(&image.id, || {
                    self.registry
                        .create(id, options.name.as_deref(), make, |_| Ok(()))
                })?
                .ok_or_else(|| Error::NoSuchImage(saved.image.clone()))
        })
    }
}

/// The configuration of a sandbox that goes on from where `saved` was.
fn go_on_config(
    saved: &Config,
    snapshot: &str,
    options: &SnapshotOptions,
    id: SandboxId,
    name: String,
) -> Config {
    let hostname = options.hostname.clone().unwrap_or_else(|| id.short().to_owned());
    let old = format!("HOSTNAME={}", saved.hostname);
    let env = saved
        .env
        .iter()
        .map(|entry| {
            if *entry == old {
                format!("HOSTNAME={hostname}")
            } else {
                entry.clone()
            }
        })
        .collect();
    let mut labels = saved.labels.clone();
    labels.extend(options.labels.clone());
    Config {
        id,
        name,
        created: Timestamp::now(),
        hostname,
        env,
        ports: options.ports.clone(),
        stop_signal: options.stop_signal.unwrap_or(saved.stop_signal),
        auto_remove: options.auto_remove,
        snapshot: Some(snapshot.to_owned()),
        options: HostOptions {
            restart: options.restart,
            stop_timeout: options.stop_timeout.or(saved.options.stop_timeout),
            log: options.log,
            ..saved.options.clone()
        },
        labels,
        ..saved.clone()
    }
}

/// Those of a copy: each is a volume without a name, with what the saved sandbox's had in it.
fn volumes_of_copy(saved: &[VolumeMount]) -> Vec<VolumeMount> {
    let copy = |mount: &VolumeMount| VolumeMount {
        source: Source::Anonymous,
        ..mount.clone()
    };
    saved.iter().map(copy).collect()
}

/// Writes down what has been saved.
async fn finish(
    workspace: Workspace,
    config: Config,
    saved: SavedSandbox,
    platform: Platform,
    digests: bool,
) -> Result<Workspace, Error> {
    let make = move || {
        let file = |part: Part| describe(&workspace.path().join(part.name()), digests);
        let volumes = (0..).zip(&config.mounts);
        let volumes = volumes.map(|(index, _)| file(Part::Volume(index)));
        let record = Record {
            volumes: volumes.collect::<Result<_, _>>()?,
            version: snapshot::VERSION,
            created: Timestamp::now(),
            imported: false,
            config: Config {
                snapshot: None,
                ..config
            },
            layout: saved.layout,
            kernel: saved.kernel,
            image_bytes: saved.image_bytes,
            platform,
            memory: file(Part::Memory)?,
            state: file(Part::State)?,
            disk: file(Part::Disk)?,
        };
        workspace.finish(&record)?;
        Ok(workspace)
    };
    spawn_blocking(make)
        .await
        .unwrap_or_else(|e| Err(Error::Runtime(std::io::Error::other(e))))
}

fn describe(path: &Path, digests: bool) -> Result<FileRecord, Error> {
    let bytes = files::seal(path)?;
    let digest = if digests {
        let file = File::open(path).map_err(Error::file("read", path))?;
        Some(sparse::digest(&file).map_err(Error::file("read", path))?)
    } else {
        None
    };
    Ok(FileRecord { bytes, digest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::config;

    #[test]
    fn a_copy_has_what_the_user_chooses_and_everything_else_of_the_saved_sandbox() {
        let mut saved = config(SandboxId::random().unwrap(), "source".into());
        saved.env = vec![format!("HOSTNAME={}", saved.hostname), "A=1".into()];
        saved.ports = crate::port::parse("8080:80").unwrap();
        saved.auto_remove = true;
        saved.labels.insert("old".into(), "1".into());
        let id = SandboxId::random().unwrap();
        let options = SnapshotOptions {
            labels: BTreeMap::from([("new".into(), "2".into())]),
            ..SnapshotOptions::default()
        };
        let copy = go_on_config(&saved, "warm", &options, id.clone(), "copy".into());
        assert_eq!((copy.id.as_str(), copy.name.as_str()), (id.as_str(), "copy"));
        assert_eq!(copy.hostname, id.short());
        assert_eq!(copy.env, [format!("HOSTNAME={}", id.short()), "A=1".into()]);
        assert!(copy.ports.is_empty() && !copy.auto_remove);
        assert_eq!(copy.labels.len(), 2);
        assert_eq!(copy.snapshot.as_deref(), Some("warm"));
        assert_eq!((copy.args(), copy.memory), (saved.args(), saved.memory));
    }
}
