//! From what an image says and a user wants to a sandbox's configuration.

use std::collections::{BTreeMap, BTreeSet};

use brig_image_store::{Image, ImageConfig, ImageId, Platform, Transport, image::ExposedPort};
use jiff::Timestamp;

use crate::{
    Error, Isolation, SandboxId,
    device_rate::DeviceRates,
    options::{
        HostOptions, Swap,
        mount::{check_path, is_kernels},
    },
    port::{self, PORTS_MAX, PortError, PublishedPort},
    resources::{Cpus, MemoryMib},
    sandbox::{
        Config,
        config::{self, Limits},
        health::{HealthConfig, HealthOptions},
    },
    signal::Signal,
    spec,
    volume::{Source, VOLUMES_MAX, VolumeMount},
};

/// What a user may choose. The default leaves everything to the image and to brig.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateOptions {
    /// The image as the user wrote it.
    pub image: String,
    /// Takes the place of the image's command.
    pub command: Vec<String>,
    /// Takes the place of the image's entrypoint, and drops its command. Empty text stands for none.
    pub entrypoint: Option<String>,
    /// The name; a random one when there is none.
    pub name: Option<String>,
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// User.
    pub user: Option<String>,
    /// Hostname; the short id when there is none.
    pub hostname: Option<String>,
    /// What it is walled off by.
    pub isolation: Isolation,
    /// Guest memory, or a limit where there is no guest.
    pub memory: Option<MemoryMib>,
    /// CPU time.
    pub cpus: Option<Cpus>,
    /// Most processes and threads.
    pub pids: Option<u64>,
    /// How fast it may read and write.
    pub device_rates: DeviceRates,
    /// Memory and swap together.
    pub swap: Option<Swap>,
    /// Its share of CPU time.
    pub cpu_shares: Option<u64>,
    /// Whether nothing of it is killed for memory.
    pub oom_kill_disable: bool,
    /// Volumes and directories of the host's.
    pub mounts: Vec<VolumeMount>,
    /// What else there is to choose.
    pub options: HostOptions,
    /// Ports to publish.
    pub ports: Vec<PublishedPort>,
    /// Ports that it listens on, beside those that the image says.
    pub exposed: Vec<ExposedPort>,
    /// The signal that `stop` sends.
    pub stop_signal: Option<Signal>,
    /// Whether the sandbox goes with its process's end.
    pub auto_remove: bool,
    /// Whether the process has a standard input.
    pub stdin: bool,
    /// Whether that ends when the first client leaves that is attached to it.
    pub stdin_once: bool,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Whether its guest always boots, template or not.
    pub no_template: bool,
    /// Health checks.
    pub health: HealthOptions,
    /// Whether each TCP port that the image exposes is published at a free port of the host.
    pub publish_all: bool,
    /// Labels, beside those of the image.
    pub labels: BTreeMap<String, String>,
}

impl CreateOptions {
    /// The limits that it wants.
    fn limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            cpus: self.cpus,
            pids: self.pids,
            swap: self.swap,
            cpu_shares: self.cpu_shares,
            oom_kill_disable: self.oom_kill_disable,
        }
    }
}

/// Choices in which nothing is wrong, as far as can be told without the image.
#[derive(Debug)]
pub struct CheckedOptions(CreateOptions);

impl CheckedOptions {
    /// Checks them. What the engine knows of names, volumes and devices is the engine's to check.
    pub(super) fn new(options: CreateOptions) -> Result<Self, Error> {
        options.limits().check(options.isolation)?;
        options.options.check(options.isolation)?;
        check_mounts(&options)?;
        options.options.restart.check(options.auto_remove)?;
        // What does not compile is no filter.
        options.options.seccomp.compile(options.options.capabilities())?;
        Ok(Self(options))
    }

    /// The names of the volumes that it mounts.
    pub(super) fn volumes(&self) -> impl Iterator<Item = &str> {
        self.0.mounts.iter().filter_map(VolumeMount::volume)
    }

    /// What the sandbox is to be walled off by.
    pub fn isolation(&self) -> Isolation {
        self.0.isolation
    }
}

/// A configuration that lacks an id, a name and what depends on them.
#[derive(Debug)]
pub struct Draft {
    config: Config,
    image_id: ImageId,
    name: Option<String>,
    hostname: Option<String>,
    image_env: Vec<String>,
    user_env: Vec<String>,
}

/// Checks what can be wrong with `options` for this image.
pub(super) fn draft(image: &Image, CheckedOptions(options): &CheckedOptions) -> Result<Draft, Error> {
    check_platform(image, &options.image)?;
    let said = &image.config;
    let (entrypoint, image_command) = match options.entrypoint.as_deref() {
        None => (said.entrypoint.clone(), said.cmd.clone()),
        Some("") => (Vec::new(), Vec::new()),
        Some(program) => (vec![program.to_owned()], Vec::new()),
    };
    let command = if options.command.is_empty() {
        image_command
    } else {
        options.command.clone()
    };
    if entrypoint
        .first()
        .or(command.first())
        .is_none_or(String::is_empty)
    {
        return Err(Error::NoCommand(options.image.clone()));
    }
    let stop_signal = match (options.stop_signal, &said.stop_signal) {
        (Some(signal), _) => signal,
        (None, Some(signal)) => signal.parse()?,
        (None, None) => Signal::TERM,
    };
    let mut labels = said.labels.clone();
    labels.extend(options.labels.clone());
    let draft = Draft {
        config: Config {
            version: config::VERSION,
            // Takes the place of the real one until there is one: the checks below look at neither id nor name.
            id: SandboxId::random()?,
            name: String::new(),
            created: Timestamp::now(),
            image_id: image.id.to_string(),
            image: options.image.clone(),
            entrypoint,
            command,
            env: Vec::new(),
            working_dir: options
                .working_dir
                .clone()
                .unwrap_or_else(|| absolute(&said.working_dir)),
            user: options.user.clone().unwrap_or_else(|| said.user.clone()),
            hostname: String::new(),
            stdin: options.stdin,
            stdin_once: options.stdin_once,
            tty: options.tty,
            isolation: options.isolation,
            limits: options.limits(),
            device_rates: options.device_rates.clone(),
            memory: options.memory.unwrap_or(MemoryMib::DEFAULT),
            cpus: options.cpus.unwrap_or(Cpus::DEFAULT),
            ports: published(image, options)?,
            exposed_ports: exposed(image, options).map(ToString::to_string).collect(),
            stop_signal,
            auto_remove: options.auto_remove,
            no_template: options.no_template,
            snapshot: None,
            health: HealthConfig::new(said.healthcheck.as_ref(), &said.shell, &options.health)?,
            volumes: said.volumes.clone(),
            mounts: mounts(said, options),
            options: options.options.clone(),
            labels,
        },
        image_id: image.id,
        name: options.name.clone(),
        hostname: options.hostname.clone(),
        image_env: said.env.clone(),
        user_env: options.env.clone(),
    };
    spec::environment("", options.tty, &draft.image_env, &draft.user_env)?;
    spec::check(&draft.clone_for_check())?;
    Ok(draft)
}

/// Checks what is mounted where.
fn check_mounts(options: &CreateOptions) -> Result<(), Error> {
    let refused = |reason: String| Err(Error::option("--volume", reason));
    if options.mounts.len() > VOLUMES_MAX {
        return refused(format!("a sandbox has {VOLUMES_MAX} volumes at most"));
    }
    let volumes = options.mounts.iter().map(|mount| &mount.target);
    let tmpfs = options.options.tmpfs.iter().map(|tmpfs| &tmpfs.path);
    let mut targets: Vec<&str> = volumes
        .chain(tmpfs)
        .map(|target| target.trim_end_matches('/'))
        .collect();
    targets.sort_unstable();
    if let Some([target, _]) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
        return refused(format!("two things are to be mounted on {target}"));
    }
    if let Some(mount) = options.mounts.iter().find(|mount| is_kernels(&mount.target)) {
        return refused(format!(
            "{} is the kernel's: nothing is mounted there",
            mount.target
        ));
    }
    for mount in &options.mounts {
        if let Source::Host(path) = &mount.source {
            let shown = path.display();
            if options.isolation == Isolation::Vm {
                return refused(format!(
                    "a guest cannot have {shown} of the host: use a named volume and brig cp, or --isolation container"
                ));
            }
            if let Err(e) = std::fs::metadata(path) {
                return refused(format!("{shown}: {e}"));
            }
        }
    }
    // One disk cannot be mounted twice.
    let mut names: Vec<_> = options.mounts.iter().filter_map(VolumeMount::volume).collect();
    names.sort_unstable();
    if options.isolation == Isolation::Vm
        && let Some([name, _]) = names.windows(2).find(|pair| pair[0] == pair[1])
    {
        return refused(format!("a guest can have {name} in one place only"));
    }
    Ok(())
}

/// What the user mounts, and a volume without a name for each that the image wants where the user mounts nothing. What an
/// image wants beyond [`VOLUMES_MAX`] is a directory of the writable layer.
fn mounts(said: &ImageConfig, options: &CreateOptions) -> Vec<VolumeMount> {
    let same = |a: &str, b: &str| a.trim_end_matches('/') == b.trim_end_matches('/');
    let mut mounts = options.mounts.clone();
    for target in &said.volumes {
        let tmpfs = &options.options.tmpfs;
        let taken = mounts.iter().any(|mount| same(&mount.target, target))
            || tmpfs.iter().any(|tmpfs| same(&tmpfs.path, target));
        // What would be refused of a user is none of an image.
        let wrong = check_path(target).is_err() || is_kernels(target);
        if taken || wrong || mounts.len() >= VOLUMES_MAX {
            continue;
        }
        mounts.push(VolumeMount {
            source: Source::Anonymous,
            target: target.clone(),
            read_only: false,
            copy: true,
        });
    }
    mounts
}

/// The ports that the image and the user say it listens on, each once.
fn exposed<'a>(image: &'a Image, options: &'a CreateOptions) -> impl Iterator<Item = &'a ExposedPort> {
    let all = image.config.exposed_ports.iter().chain(&options.exposed);
    all.collect::<BTreeSet<_>>().into_iter()
}

/// The user's ports, and those of the image when all of them are wanted.
fn published(image: &Image, options: &CreateOptions) -> Result<Vec<PublishedPort>, Error> {
    let mut ports = options.ports.clone();
    if options.publish_all {
        for exposed in exposed(image, options) {
            let is_there = |port: &PublishedPort| port.container_port == exposed.port;
            // Nothing but TCP reaches in.
            if exposed.protocol == Transport::Tcp && !ports.iter().any(is_there) {
                ports.extend(port::parse(&exposed.port.to_string())?);
            }
        }
        if ports.len() > PORTS_MAX {
            return Err(PortError::TooMany.into());
        }
    }
    Ok(ports)
}

/// An image of another platform can be pulled, but not run.
fn check_platform(image: &Image, name: &str) -> Result<(), Error> {
    let host = Platform::host();
    if (&image.os, &image.architecture) == (&host.os, &host.architecture) {
        return Ok(());
    }
    Err(Error::Platform {
        image: name.to_owned(),
        platform: format!("{}/{}", image.os, image.architecture),
        host: host.to_string(),
    })
}

/// As Docker reads an image's working directory.
fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

impl Draft {
    fn clone_for_check(&self) -> Config {
        self.filled(self.config.id.clone(), String::new())
    }

    /// What is mounted.
    pub(super) fn mounts(&self) -> &[VolumeMount] {
        &self.config.mounts
    }

    /// Has other things mounted.
    pub(super) fn set_mounts(&mut self, mounts: Vec<VolumeMount>) {
        self.config.mounts = mounts;
    }

    /// The image.
    pub(super) fn image_id(&self) -> ImageId {
        self.image_id
    }

    /// What it is walled off by.
    pub(super) fn isolation(&self) -> Isolation {
        self.config.isolation
    }

    /// The image as the user wrote it.
    pub(super) fn image(&self) -> &str {
        &self.config.image
    }

    /// The name that the user chose.
    pub(super) fn wanted_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The configuration of the sandbox with this id and name.
    pub(super) fn finish(self, id: SandboxId, name: String) -> Config {
        Config {
            // Between the checks and this an image may have been unpacked, which takes long.
            created: Timestamp::now(),
            ..self.filled(id, name)
        }
    }

    fn filled(&self, id: SandboxId, name: String) -> Config {
        let hostname = self.hostname.clone().unwrap_or_else(|| id.short().to_owned());
        // The entries have been checked, and a hostname has nothing that could make one wrong.
        let env = spec::environment(&hostname, self.config.tty, &self.image_env, &self.user_env)
            .unwrap_or_default();
        Config {
            id,
            name,
            env,
            hostname,
            ..self.config.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::image;

    fn options() -> CreateOptions {
        CreateOptions {
            image: "img".into(),
            ..CreateOptions::default()
        }
    }

    /// Both checks, one after the other.
    fn draft(image: &Image, options: &CreateOptions) -> Result<Draft, Error> {
        super::draft(image, &CheckedOptions::new(options.clone())?)
    }

    fn args(image: &Image, options: &CreateOptions) -> Result<Vec<String>, Error> {
        Ok(draft(image, options)?
            .finish(SandboxId::random()?, "x".into())
            .args())
    }

    #[test]
    fn entrypoint_and_command_are_chosen_as_docker_does() {
        let image = image(&["/entry", "-e"], &["cmd"]);
        assert_eq!(args(&image, &options()).unwrap(), ["/entry", "-e", "cmd"]);
        let command = vec!["other".to_owned()];
        let with_command = CreateOptions { command, ..options() };
        assert_eq!(args(&image, &with_command).unwrap(), ["/entry", "-e", "other"]);
        let entry = |text: &str| CreateOptions {
            entrypoint: Some(text.into()),
            ..options()
        };
        assert_eq!(args(&image, &entry("/sh")).unwrap(), ["/sh"]);
        assert!(matches!(args(&image, &entry("")), Err(Error::NoCommand(_))));
        assert_eq!(
            args(
                &image,
                &CreateOptions {
                    entrypoint: Some(String::new()),
                    ..with_command
                }
            )
            .unwrap(),
            ["other"]
        );
    }

    #[test]
    fn all_ports_of_an_image_are_published_but_for_those_that_are() {
        let mut image = image(&[], &["cmd"]);
        image.config.exposed_ports = ["53/udp", "80/tcp", "443/tcp"]
            .map(|port| port.parse().unwrap())
            .into();
        let options = CreateOptions {
            ports: port::parse("8080:80").unwrap(),
            exposed: vec!["90/tcp".parse().unwrap(), "80".parse().unwrap()],
            publish_all: true,
            ..options()
        };
        let config = draft(&image, &options).unwrap().config;
        let ports: Vec<_> = config
            .ports
            .iter()
            .map(|port| (port.host_port, port.container_port))
            .collect();
        assert_eq!(ports, [(8080, 80), (0, 90), (0, 443)]);
        assert_eq!(config.exposed_ports, ["53/udp", "80/tcp", "90/tcp", "443/tcp"]);
    }

    #[test]
    fn an_image_of_another_platform_is_not_run() {
        let mut image = image(&[], &["cmd"]);
        image.architecture = "arm64".into();
        let error = args(&image, &options()).unwrap_err().to_string();
        assert!(
            error.contains("linux/arm64") && error.contains("--platform"),
            "{error}"
        );
    }

    #[test]
    fn an_image_without_a_command_says_so() {
        let error = args(&image(&[], &[]), &options()).unwrap_err();
        assert!(error.to_string().contains("names no command"), "{error}");
    }

    #[test]
    fn the_users_wishes_win_over_the_images() {
        let mut image = image(&[], &["cmd"]);
        image.config.stop_signal = Some("SIGQUIT".into());
        image.config.env = vec!["A=image".into(), "B=image".into()];
        image.config.working_dir = "srv".into();
        let options = CreateOptions {
            env: vec!["A=user".into()],
            hostname: Some("box".into()),
            ..options()
        };
        let config = draft(&image, &options)
            .unwrap()
            .finish(SandboxId::random().unwrap(), "x".into());
        assert_eq!(
            config.env,
            [spec::DEFAULT_PATH, "HOSTNAME=box", "A=user", "B=image"]
        );
        assert_eq!(
            (config.stop_signal.number(), config.working_dir.as_str()),
            (3, "/srv")
        );
        let options = CreateOptions {
            stop_signal: Some(Signal::KILL),
            ..options
        };
        assert_eq!(draft(&image, &options).unwrap().config.stop_signal, Signal::KILL);
    }

    #[test]
    fn the_hostname_is_the_short_id_when_nobody_chose_one() {
        let id = SandboxId::random().unwrap();
        let config = draft(&image(&[], &["cmd"]), &options())
            .unwrap()
            .finish(id.clone(), "x".into());
        assert_eq!(config.hostname, id.short());
        assert!(config.env.contains(&format!("HOSTNAME={}", id.short())));
    }

    #[test]
    fn wrong_options_are_refused_before_anything_is_made() {
        let image = image(&[], &["cmd"]);
        let bad = CreateOptions {
            hostname: Some("a b".into()),
            ..options()
        };
        assert!(matches!(args(&image, &bad), Err(Error::InvalidHostname(_))));
        let bad = CreateOptions {
            env: vec!["x".into()],
            ..options()
        };
        assert!(matches!(args(&image, &bad), Err(Error::InvalidEnv(_))));
        let bad = CreateOptions {
            working_dir: Some("x".into()),
            ..options()
        };
        assert!(matches!(args(&image, &bad), Err(Error::InvalidWorkingDir(_))));
    }
}
