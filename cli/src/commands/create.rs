//! `create`, and what `run` has in common with it: making a sandbox.

use std::{collections::BTreeMap, fs};

use brig_engine::{
    CreateOptions, Engine, Isolation, SandboxId,
    device_rate::DeviceRates,
    engine::{Draft, SnapshotOptions},
    options::{HostOptions, LogOptions, MountOption, SeccompOption, SecurityOption, limit},
    port::{PORTS_MAX, PortError, PublishedPort},
    sandbox::{Config, health::HealthOptions},
    settings::Settings,
    template,
    unpack::{self, Timing},
    volume::VolumeMount,
};

use super::{
    print, registry,
    run::{Interrupts, unpack_image},
};
use crate::{arguments::Create, cidfile::CidFile, env_file, failure::Failure};

/// `brig create`.
pub async fn create(engine: &Engine, mut options: Create) -> Result<i32, Failure> {
    settle(engine, &mut options)?;
    let options = &options;
    // As Docker's command line takes it: whoever attaches first gives the input.
    let wanted = Wanted::new(options, false)?;
    let cidfile = options.cidfile.as_deref().map(CidFile::create).transpose()?;
    let cold = options.no_template || template::switched_off();
    let mut interrupts = Interrupts::new()?;
    let make = async {
        let (prepared, _) = wanted.prepare(engine, options, cold, &mut interrupts).await?;
        prepared.make(engine, SandboxId::random()?)
    };
    let config = make.await.map_err(Failure::of_create)?;
    if let Some(file) = cidfile {
        file.write(&config.id)?;
    }
    print(&format!("{}\n", config.id))?;
    Ok(0)
}

/// What the user wants, before anything has been looked up.
pub(super) enum Wanted {
    /// A sandbox of an image.
    Image(Box<CreateOptions>),
    /// One that goes on from the snapshot of this name.
    Snapshot(String, SnapshotOptions),
}

/// All that a sandbox needs but an id and a name.
pub(super) enum Prepared {
    /// It begins with its image.
    Image(Box<Draft>),
    /// It goes on from the snapshot of this name.
    Snapshot(String, SnapshotOptions),
}

impl Wanted {
    /// Reads the arguments. `detach` says whether nobody will be attached to the sandbox from its start on.
    pub(super) fn new(options: &Create, detach: bool) -> Result<Self, Failure> {
        let Some(snapshot) = &options.snapshot else {
            return Ok(Self::Image(Box::new(wishes(options, detach)?)));
        };
        let wishes = SnapshotOptions {
            name: options.name.clone(),
            hostname: options.hostname.clone(),
            ports: ports(options)?,
            stop_signal: options.stop_signal,
            auto_remove: options.rm,
            restart: options.restart,
            stop_timeout: options.stop_timeout,
            log: LogOptions::parse(&options.wishes.log_opt).map_err(Failure::of_run)?,
            labels: all_labels(options)?,
        };
        Ok(Self::Snapshot(snapshot.clone(), wishes))
    }

    /// Pulls and unpacks the image if it has to be, and tells how it was unpacked.
    pub(super) async fn prepare(
        self,
        engine: &Engine,
        options: &Create,
        cold: bool,
        interrupts: &mut Interrupts,
    ) -> Result<(Prepared, Option<Timing>), Failure> {
        let (image, isolation, prepared) = match self {
            Self::Image(wishes) => {
                // What is wrong with the options is told before the image is pulled or unpacked, which takes long.
                let wishes = engine.check(*wishes).map_err(Failure::of_run)?;
                let image = interrupts.end(registry::image(engine, options)).await??;
                let draft = engine.draft(&image, &wishes).map_err(Failure::of_run)?;
                (image, wishes.isolation(), Prepared::Image(Box::new(draft)))
            }
            Self::Snapshot(name, wishes) => {
                let image = engine.image_of_snapshot(&name).map_err(Failure::of_run)?;
                (image, Isolation::Vm, Prepared::Snapshot(name, wishes))
            }
        };
        let unpacking = unpack::Options {
            cold,
            max_size: options.max_image_size,
        };
        let timing = interrupts
            .end(unpack_image(engine, &image, isolation, unpacking))
            .await??;
        Ok((prepared, timing))
    }
}

impl Prepared {
    /// Makes the sandbox `id`.
    pub(super) fn make(self, engine: &Engine, id: SandboxId) -> Result<Config, Failure> {
        match self {
            Self::Image(draft) => engine.create(id, *draft),
            Self::Snapshot(name, wishes) => engine.create_from_snapshot(id, &name, &wishes),
        }
        .map_err(Failure::of_run)
    }
}

/// Enters what the user has set for all sandboxes where the options say nothing, and gives the isolation. A snapshot is a guest's,
/// whose size it has.
pub(super) fn settle(engine: &Engine, options: &mut Create) -> Result<Isolation, Failure> {
    if options.snapshot.is_some() {
        return Ok(Isolation::Vm);
    }
    let settings = Settings::read(engine.paths()).map_err(Failure::of_run)?;
    let isolation = match options.isolation {
        Some(isolation) => isolation,
        None => settings.isolation().map_err(Failure::of_run)?,
    };
    options.isolation = Some(isolation);
    if options.memory.is_none() {
        options.memory = settings.memory().map_err(Failure::of_run)?;
    }
    if options.cpus.is_none() {
        options.cpus = settings.cpus().map_err(Failure::of_run)?;
    }
    Ok(isolation)
}

fn ports(options: &Create) -> Result<Vec<PublishedPort>, Failure> {
    let ports: Vec<_> = options.publish.iter().flat_map(|ports| ports.0.clone()).collect();
    if ports.len() > PORTS_MAX {
        return Err(Failure::of_run(PortError::TooMany.into()));
    }
    Ok(ports)
}

/// The arguments as the engine takes them.
fn wishes(options: &Create, detach: bool) -> Result<CreateOptions, Failure> {
    let mut env = env_file::read(&options.env_file)?;
    env.extend(options.env.iter().cloned());
    Ok(CreateOptions {
        isolation: options.isolation.unwrap_or_default(),
        pids: options.pids_limit.and_then(|limit| limit.0),
        swap: options.wishes.memory_swap,
        cpu_shares: options.wishes.cpu_shares,
        oom_kill_disable: options.wishes.oom_kill_disable,
        mounts: mounts(options),
        options: host_options(options)?,
        image: options.image().to_owned(),
        command: options.command().to_vec(),
        entrypoint: options.entrypoint.clone(),
        name: options.name.clone(),
        env: environment(&env),
        working_dir: options.workdir.clone(),
        user: options.user.clone(),
        hostname: options.hostname.clone(),
        memory: options.memory,
        cpus: options.cpus,
        device_rates: DeviceRates {
            read_bps: options.device_read_bps.clone(),
            write_bps: options.device_write_bps.clone(),
            read_iops: options.device_read_iops.clone(),
            write_iops: options.device_write_iops.clone(),
        },
        ports: ports(options)?,
        exposed: options.expose.iter().flat_map(|ports| ports.0.clone()).collect(),
        stop_signal: options.stop_signal,
        auto_remove: options.rm,
        no_template: options.no_template,
        stdin: options.interactive,
        // As Docker's command line has it.
        stdin_once: options.interactive && !detach,
        tty: options.tty,
        health: HealthOptions {
            none: options.no_healthcheck,
            command: options.health_cmd.clone(),
            interval: options.health_interval,
            timeout: options.health_timeout,
            start_period: options.health_start_period,
            start_interval: options.health_start_interval,
            retries: options.health_retries,
        },
        publish_all: options.publish_all,
        labels: all_labels(options)?,
    })
}

fn mounts(options: &Create) -> Vec<VolumeMount> {
    let volumes = options.wishes.volume.iter().map(|option| option.0.clone());
    let mounts = options.wishes.mount.iter().filter_map(|option| match option {
        MountOption::Volume(mount) => Some(mount.clone()),
        MountOption::Tmpfs(_) => None,
    });
    volumes.chain(mounts).collect()
}

fn host_options(options: &Create) -> Result<HostOptions, Failure> {
    let wishes = &options.wishes;
    let mut chosen = HostOptions {
        restart: options.restart,
        stop_timeout: options.stop_timeout,
        init: wishes.init,
        read_only: wishes.read_only,
        tmpfs: wishes.tmpfs.clone(),
        shm_bytes: wishes.shm_size,
        ulimits: wishes.ulimit.clone(),
        cap_add: wishes.cap_add.clone(),
        cap_drop: wishes.cap_drop.clone(),
        privileged: wishes.privileged,
        groups: wishes.group_add.clone(),
        hosts: wishes.add_host.clone(),
        dns: wishes.dns.clone(),
        dns_search: wishes.dns_search.clone(),
        dns_options: wishes.dns_option.clone(),
        log: LogOptions::parse(&wishes.log_opt).map_err(Failure::of_run)?,
        storage_bytes: limit::storage(&wishes.storage_opt).map_err(Failure::of_run)?,
        sysctls: wishes.sysctl.clone(),
        devices: wishes.device.clone(),
        ..HostOptions::default()
    };
    chosen
        .tmpfs
        .extend(wishes.mount.iter().filter_map(|option| match option {
            MountOption::Tmpfs(tmpfs) => Some(tmpfs.clone()),
            MountOption::Volume(_) => None,
        }));
    for option in &wishes.security_opt {
        match option {
            SecurityOption::NoNewPrivileges(value) => chosen.no_new_privileges = *value,
            SecurityOption::Builtin => chosen.seccomp = SeccompOption::Default,
            SecurityOption::Unconfined => chosen.seccomp = SeccompOption::Unconfined,
            SecurityOption::Profile(path) => {
                chosen.seccomp = SeccompOption::read(path.clone()).map_err(Failure::of_run)?;
            }
        }
    }
    Ok(chosen)
}

/// `NAME` alone takes the value that brig itself has, and stands for nothing when it has none.
pub(super) fn environment(entries: &[String]) -> Vec<String> {
    let with_value = |entry: &String| {
        if entry.contains('=') || entry.is_empty() {
            return Some(entry.clone());
        }
        std::env::var_os(entry).map(|value| format!("{entry}={}", value.to_string_lossy()))
    };
    entries.iter().filter_map(with_value).collect()
}

/// Those of files, then those of the command line, which win.
fn all_labels(options: &Create) -> Result<BTreeMap<String, String>, Failure> {
    let mut entries = Vec::new();
    for path in &options.label_file {
        let text = fs::read_to_string(path)
            .map_err(|e| Failure::usage(format!("cannot read {}: {e}", path.display())))?;
        let lines = text.lines().map(str::trim_start);
        let said = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        entries.extend(said.map(str::to_owned));
    }
    entries.extend(options.label.iter().cloned());
    Ok(labels(&entries))
}

pub(super) fn labels(entries: &[String]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_without_a_value_is_brigs_own() {
        let path = std::env::var("PATH").unwrap();
        let entries = ["A=1", "PATH", "NO_SUCH_VARIABLE_HERE"].map(String::from);
        assert_eq!(environment(&entries), ["A=1".to_owned(), format!("PATH={path}")]);
    }

    #[test]
    fn a_label_may_have_no_value() {
        let labels = labels(&["a=b=c", "d"].map(String::from));
        assert_eq!(
            labels.into_iter().collect::<Vec<_>>(),
            [("a".into(), "b=c".into()), ("d".into(), String::new())]
        );
    }
}
