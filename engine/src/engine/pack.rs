//! A sandbox's files: exporting them, what has changed in them, an image of them.

use std::{fs::File, io};

use brig_image_store::{
    Image, ImageConfig, ImageName, MaxImageSize,
    compose::{Change, Composition, NewLayer},
};
use brig_protocol::{agent::Pack, spec::RootSpec};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::task::spawn_blocking;

use super::{Engine, LOCK_REST, LOCK_TRIES};
use crate::{
    Error, Isolation,
    cell::HostIds,
    clock::Timing,
    console::Console,
    control::{Reply, Request},
    disk,
    guest::{CellPlan, Guest},
    host::Machine,
    inspect,
    pack::{self, Files, Sink},
    sandbox::{Config, Sandbox, lock::Lock},
    signal::Signal,
    snapshot::store::DISK,
    spec,
    supervisor::make_layer,
    unpack::{self, Report},
};

/// Most bytes of a list of changes.
const CHANGES_BYTES_MAX: usize = 256 << 20;

/// What a user says of an image that is made of a sandbox.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// Its name.
    pub name: Option<ImageName>,
    /// Who made it.
    pub author: String,
    /// For its history.
    pub message: String,
    /// Applied to the sandbox's configuration.
    pub changes: Vec<Change>,
}

impl Engine {
    /// Gives a tar archive of a sandbox's files, as it sees them, to `sink`.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::ImageGone`], [`Error::Pack`], those of `sink`.
    pub async fn export(
        &self,
        reference: &str,
        cold: bool,
        report: &mut dyn FnMut(Report),
        sink: Sink<'_>,
    ) -> Result<(), Error> {
        let sandbox = self.find(reference)?;
        self.pack(reference, &sandbox, Pack::Files, cold, report, sink)
            .await?;
        self.note(&sandbox, "export", &[]);
        Ok(())
    }

    /// What a sandbox has changed of its image's files: `A`, `C` or `D` and the path, which a guest chose, each.
    ///
    /// # Errors
    /// As [`Self::export`].
    pub async fn diff(
        &self,
        reference: &str,
        cold: bool,
        report: &mut dyn FnMut(Report),
    ) -> Result<Vec<(char, String)>, Error> {
        let sandbox = self.find(reference)?;
        let mut bytes = Vec::new();
        let mut sink = |piece: &[u8]| {
            if bytes.len() + piece.len() > CHANGES_BYTES_MAX {
                return Err(Error::Pack {
                    name: reference.to_owned(),
                    reason: "it has changed too many files to list them".to_owned(),
                });
            }
            bytes.extend_from_slice(piece);
            Ok(())
        };
        self.pack(reference, &sandbox, Pack::Changes, cold, report, &mut sink)
            .await?;
        let lines = bytes.split(|&byte| byte == 0).filter(|line| !line.is_empty());
        Ok(lines
            .filter_map(|line| {
                let text = String::from_utf8_lossy(line);
                let kind = text.chars().next().filter(|kind| "ACD".contains(*kind))?;
                Some((kind, text[1..].to_owned()))
            })
            .collect())
    }

    /// Makes an image of a sandbox: its image, with a layer of what it has changed, and its configuration.
    ///
    /// # Errors
    /// As [`Self::export`], and [`Error::Image`].
    pub async fn commit(
        &self,
        reference: &str,
        options: &CommitOptions,
        cold: bool,
        report: &mut dyn FnMut(Report),
    ) -> Result<Image, Error> {
        let sandbox = self.find(reference)?;
        let base = self.image_of(&sandbox)?;
        let document = self.store.config_document(&base)?;
        let incoming = self.store.incoming()?;
        let mut writer = incoming.begin_blob(None)?;
        let mut sink = |piece: &[u8]| {
            let limit = MaxImageSize::DEFAULT;
            if writer.size() + piece.len() as u64 > limit.bytes() {
                return Err(Error::Pack {
                    name: reference.to_owned(),
                    reason: format!("its changes have more than {limit}"),
                });
            }
            Ok(writer.write(piece)?)
        };
        self.pack(reference, &sandbox, Pack::Layer, cold, report, &mut sink)
            .await?;
        let blob = writer.finish()?;
        let composition = Composition {
            base: Some((&base, document)),
            run: run_config(&sandbox.config, &base.config),
            changes: &options.changes,
            author: &options.author,
            message: &options.message,
            created_by: &sandbox.config.args().join(" "),
            created: Timestamp::now().to_string(),
            names: options.name.iter().cloned().collect(),
        };
        // What is not compressed has one digest.
        let diff_id = blob.digest;
        let found = composition.assemble(&incoming, NewLayer { blob, diff_id })?;
        let image = found.image.clone();
        let image = incoming.publish(&[found])?.pop().unwrap_or(image);
        let id = image.id.to_string();
        let mut more = vec![("imageID", id.clone())];
        if let Some(name) = &options.name {
            self.store.note("tag", Some(&image), &id, &name.to_string());
            more.push(("imageRef", name.to_string()));
        }
        self.note(&sandbox, "commit", &more);
        Ok(image)
    }

    pub(super) fn image_of(&self, sandbox: &Sandbox) -> Result<Image, Error> {
        let gone = || Error::ImageGone(sandbox.config.image.clone());
        self.store.resolve(&sandbox.config.image_id)?.ok_or_else(gone)
    }

    async fn pack(
        &self,
        reference: &str,
        sandbox: &Sandbox,
        what: Pack,
        cold: bool,
        report: &mut dyn FnMut(Report),
        sink: Sink<'_>,
    ) -> Result<(), Error> {
        let image = self.image_of(sandbox)?;
        // An archive of all files has directories for the mounts, as an image has.
        let hidden = if what == Pack::Files {
            Vec::new()
        } else {
            spec::covered()
        };
        let name = reference.to_owned();
        let options = unpack::Options {
            cold,
            ..unpack::Options::default()
        };
        if sandbox.config.isolation == Isolation::Container {
            let ids = HostIds::look_up();
            ids.check()?;
            let (unpacked, _) =
                unpack::ensure_directory(&self.host, &self.store, &image, options, report).await?;
            // Where the sandbox runs, its layer is read as it changes, as Docker does.
            let plan = CellPlan {
                image: unpacked,
                layer: make_layer(&self.registry.directory(sandbox.id()), &ids)?,
                ids: ids.map().clone(),
                devices: Vec::new(),
                volumes: Vec::new(),
                cgroups: None,
            };
            let host = Machine::new(&self.paths).of_sandbox(sandbox.id());
            let cell = Guest::enter(&host, plan, Console::default(), &mut Timing::default()).await?;
            return pack::pack_in(cell, RootSpec::Cell, name, hidden, what, sink).await;
        }
        let (unpacked, _) =
            unpack::ensure(&self.paths, &self.host, &self.store, &image, options, report).await?;
        let files = Files {
            name,
            image: unpacked,
            disk: self.copy_disk(reference, sandbox).await?,
            hidden,
        };
        pack::pack(&self.paths, &self.host, &files, what, cold, report, sink).await
    }

    /// A copy of a sandbox's disk, without a name: of one that runs as it is between two writes.
    async fn copy_disk(&self, reference: &str, sandbox: &Sandbox) -> Result<File, Error> {
        let id = sandbox.id();
        for _ in 0..LOCK_TRIES {
            if self.registry.load(id)?.supervised {
                let workspace = self.snapshots().workspace()?;
                let request = Request::CopyDisk {
                    workspace: workspace.name(),
                };
                match self.ask(id, &request).await? {
                    Some(Reply::Done) => {
                        let path = workspace.path().join(DISK);
                        let file = File::options().read(true).write(true).open(&path);
                        return file.map_err(Error::file("open", &path));
                    }
                    Some(Reply::Failed { message, .. }) => {
                        return Err(Error::Pack {
                            name: reference.to_owned(),
                            reason: message,
                        });
                    }
                    // It has ended meanwhile.
                    _ => {}
                }
            } else if let Some(lock) = Lock::try_take(&self.registry.directory(id).lock())? {
                // Nobody starts it while it is copied.
                let (from, paths) = (self.registry.directory(id).disk(), self.paths.clone());
                let copy = move || {
                    let _lock = lock;
                    let source = match File::open(&from) {
                        // It was never started.
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {
                            disk::open_blank(&paths.templates())?
                        }
                        opened => opened.map_err(Error::file("open", &from))?,
                    };
                    disk::copy_unnamed(&source, &paths.templates())
                };
                return spawn_blocking(copy)
                    .await
                    .unwrap_or_else(|e| Err(Error::Runtime(io::Error::other(e))));
            }
            tokio::time::sleep(LOCK_REST).await;
        }
        Err(Error::AlreadyRunning(reference.to_owned()))
    }
}

/// What a sandbox was started with, as an image's configuration says it.
fn run_config(config: &Config, image: &ImageConfig) -> Map<String, Value> {
    // The name of this one sandbox is nothing for those that are made of the image.
    let own = format!("HOSTNAME={}", config.hostname);
    let env: Vec<&String> = config.env.iter().filter(|entry| **entry != own).collect();
    let ports: Map<String, Value> = config
        .exposed_ports
        .iter()
        .map(|port| (port.clone(), json!({})))
        .collect();
    let list = |items: &[String]| {
        if items.is_empty() {
            Value::Null
        } else {
            json!(items)
        }
    };
    let mut run = Map::new();
    run.insert("Entrypoint".into(), list(&config.entrypoint));
    run.insert("Cmd".into(), list(&config.command));
    run.insert("Env".into(), json!(env));
    run.insert("WorkingDir".into(), config.working_dir.clone().into());
    run.insert("User".into(), config.user.clone().into());
    run.insert("Labels".into(), json!(config.labels));
    if !ports.is_empty() {
        run.insert("ExposedPorts".into(), ports.into());
    }
    // What neither the image nor the user has said is left unsaid.
    let stop_signal = config.stop_signal.to_string();
    if image.stop_signal.is_some() || config.stop_signal != Signal::TERM {
        run.insert("StopSignal".into(), stop_signal.into());
    }
    match &config.health {
        Some(health) => {
            run.insert("Healthcheck".into(), inspect::healthcheck(health));
        }
        None if image.healthcheck.is_some() => {
            run.insert("Healthcheck".into(), json!({ "Test": ["NONE"] }));
        }
        None => {}
    }
    run
}

#[cfg(test)]
mod tests {
    use brig_image_store::Healthcheck;

    use super::*;
    use crate::{
        SandboxId,
        sandbox::health::{HealthConfig, HealthOptions},
        test_support::{config, image},
    };

    #[test]
    fn a_sandbox_s_own_name_does_not_get_into_an_image() {
        let mut config = config(SandboxId::random().unwrap(), "x".into());
        config.env = vec![format!("HOSTNAME={}", config.hostname), "A=b".into()];
        config.command = vec!["/run".into()];
        config.entrypoint = Vec::new();
        let run = run_config(&config, &ImageConfig::default());
        assert_eq!(run["Env"], json!(["A=b"]));
        assert_eq!(
            (&run["Cmd"], &run["Entrypoint"]),
            (&json!(["/run"]), &Value::Null)
        );
        assert!(!run.contains_key("StopSignal") && !run.contains_key("Healthcheck"));
    }

    #[test]
    fn signal_and_health_check_of_a_sandbox_get_into_an_image() {
        let mut image = image(&[], &["cmd"]).config;
        let mut config = config(SandboxId::random().unwrap(), "x".into());
        config.stop_signal = Signal::KILL;
        let options = HealthOptions {
            command: Some("true".into()),
            ..HealthOptions::default()
        };
        config.health = HealthConfig::new(None, &[], &options).unwrap();
        let run = run_config(&config, &image);
        assert_eq!(run["StopSignal"], "SIGKILL");
        assert_eq!(
            run["Healthcheck"]["Test"].as_array().unwrap().last(),
            Some(&json!("true"))
        );
        // The image's own are not taken over again when the user has chosen otherwise.
        image.stop_signal = Some("SIGQUIT".into());
        image.healthcheck = Some(Healthcheck::default());
        config.stop_signal = Signal::TERM;
        config.health = None;
        let run = run_config(&config, &image);
        assert_eq!(run["StopSignal"], "SIGTERM");
        assert_eq!(run["Healthcheck"], json!({ "Test": ["NONE"] }));
    }
}
