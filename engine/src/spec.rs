//! A sandbox's configuration as the agent takes it.

use std::fmt::Write;

use brig_protocol::{
    agent::TO_AGENT_BYTES,
    spec::{
        CapabilitySet, CgroupSpec, Extras, FileImages, FileSpec, ProcessSpec, Rlimit, RootSpec, SandboxSpec,
        Seccomp, UserMount, VolumeSource, VolumeSpec, WindowSize,
    },
};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Isolation,
    cell::HostIds,
    control::ExecRequest,
    id::ID_DIGITS,
    options::{ExtraHost, HostOptions, Ulimit, mount::is_kernels},
    sandbox::Config,
    snapshot::Layout,
    volume::DATA,
};

/// Bytes of `/dev/shm`: Docker's default.
pub const SHM_BYTES: u64 = 64 << 20;

/// What Docker sets when an image has no `PATH`.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `RLIMIT_NOFILE` (asm-generic/resource.h) and the value that dockerd's units give: the most that a kernel allows by
/// default (`fs.nr_open`).
const RLIMIT_NOFILE: u8 = 7;
const OPEN_FILES: u64 = 1 << 20;

/// Bytes that are left in a message for what is not the user's.
const RESERVED_BYTES: usize = 64 << 10;

/// Where programs look for what tells their machine from others.
const MACHINE_ID: &str = "/etc/machine-id";

/// Stands for a hostname that is not known yet.
const MODEL_HOSTNAME: &str = "brig";

/// Most bytes of a hostname (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES: usize = 64;

/// Position of the disk with the image.
pub const IMAGE_DISK: u8 = 0;

/// Position of the writable disk of a sandbox that starts for the first time, and after a boot of any.
pub const FRESH_DISK: u8 = 1;

/// Position, in a guest that was restored from a template, of the writable disk of a sandbox that ran before: its
/// filesystem has other content than the one that the guest had mounted when it was saved.
pub const USED_DISK: u8 = 2;

/// What Docker sets for a process with a terminal when nobody says what kind it is.
const TERMINAL: &str = "TERM=xterm";

/// The spec of `config` in a guest whose disks are so. Its terminal, if it has one, is of this size.
pub fn sandbox_spec(config: &Config, layout: Layout, size: Option<WindowSize>) -> SandboxSpec {
    let options = &config.options;
    let mut spec = SandboxSpec {
        id: config.id.to_string(),
        hostname: config.hostname.clone(),
        files: files_with(config.id.as_str(), &config.hostname, options),
        mounts: SandboxSpec::default_mounts(options.shm_bytes.unwrap_or(SHM_BYTES)),
        extras: Extras {
            mounts: user_mounts(config, layout),
            sysctls: options
                .sysctls
                .iter()
                .map(|setting| (setting.file(), setting.value.clone()))
                .collect(),
            read_only: options.read_only,
            all_devices: options.privileged,
            devices: options
                .devices
                .iter()
                .map(|device| device.inside.clone())
                .collect(),
        },
        directories: config
            .volumes
            .iter()
            .filter(|path| !is_kernels(path) && !config.mounts.iter().any(|mount| mount.target == **path))
            .cloned()
            .collect(),
        cgroup: CgroupSpec {
            cpu_quota_us: config.cpus.quota_us(),
            pids_max: config.limits.pids.unwrap_or(0),
            ..CgroupSpec::default()
        },
        process: ProcessSpec {
            args: config.args(),
            env: config.env.clone(),
            cwd: config.working_dir.clone(),
            user: config.user.clone(),
            stdin: config.stdin,
            tty: config.tty.then(|| size.unwrap_or_default()),
            init: options.init,
            ..process_of(options)
        },
        ..model_spec(layout.writable())
    };
    if options.privileged {
        spec.masked_paths.clear();
        spec.readonly_paths.clear();
        for mount in &mut spec.mounts {
            mount.options.retain(|option| option != "ro");
        }
    }
    spec
}

/// Filesystems in memory and volumes, those before others that these lie in.
fn user_mounts(config: &Config, layout: Layout) -> Vec<UserMount> {
    let source = |index: usize| match config.isolation {
        Isolation::Vm => VolumeSource::Disk {
            disk: layout.first_volume() + index as u8,
            directory: DATA.to_owned(),
        },
        Isolation::Container => VolumeSource::Host(index as u8),
    };
    let volumes = config.mounts.iter().enumerate().map(|(index, mount)| {
        UserMount::Volume(VolumeSpec {
            source: source(index),
            target: mount.target.clone(),
            read_only: mount.read_only,
            copy: mount.copy,
        })
    });
    let tmpfs = config
        .options
        .tmpfs
        .iter()
        .map(|tmpfs| UserMount::New(tmpfs.spec()));
    let mut all: Vec<UserMount> = tmpfs.chain(volumes).collect();
    all.sort_by_key(|mount| {
        let target = match mount {
            UserMount::New(spec) => &spec.target,
            UserMount::Volume(spec) => &spec.target,
        };
        target.split('/').filter(|part| !part.is_empty()).count()
    });
    all
}

/// What the options say of each process of a sandbox.
fn process_of(options: &HostOptions) -> ProcessSpec {
    let mut spec = model_process();
    let chosen = |resource| options.ulimits.iter().any(|limit| limit.resource == resource);
    spec.rlimits.retain(|limit| !chosen(limit.resource));
    spec.rlimits.extend(options.ulimits.iter().map(Ulimit::rlimit));
    let capabilities = options.capabilities();
    ProcessSpec {
        groups: options.groups.clone(),
        capabilities,
        no_new_privileges: options.no_new_privileges,
        // It has compiled when the sandbox was made.
        seccomp: options.seccomp.compile(capabilities).unwrap_or_default(),
        ..spec
    }
}

/// The spec of `config` for a cell with these ids. What it is limited to, its cgroup is outside.
pub fn cell_spec(config: &Config, ids: &HostIds, size: Option<WindowSize>) -> SandboxSpec {
    let mut spec = sandbox_spec(config, Layout::Booted, size);
    spec.root = RootSpec::Cell;
    spec.cgroup = CgroupSpec::default();
    keep_to_limits(&mut spec.process);
    if !ids.are_several() {
        // There is no group but root's.
        for mount in &mut spec.mounts {
            mount.options.retain(|option| !option.starts_with("gid="));
        }
    }
    spec
}

/// Nobody but the host's root may raise a limit.
fn keep_to_limits(process: &mut ProcessSpec) {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    for limit in &mut process.rlimits {
        if let Some(most) = most.filter(|_| limit.resource == RLIMIT_NOFILE) {
            limit.soft = limit.soft.min(most);
            limit.hard = limit.hard.min(most);
        }
    }
}

/// What all sandboxes have in common: what a template is prepared for.
pub fn model_spec(writable: u8) -> SandboxSpec {
    let id = "0".repeat(ID_DIGITS);
    SandboxSpec {
        files: files(&id, MODEL_HOSTNAME),
        id,
        hostname: MODEL_HOSTNAME.into(),
        root: RootSpec::Disks {
            image: IMAGE_DISK,
            writable,
        },
        mounts: SandboxSpec::default_mounts(SHM_BYTES),
        directories: Vec::new(),
        masked_paths: SandboxSpec::default_masked_paths(),
        readonly_paths: SandboxSpec::default_readonly_paths(),
        cgroup: CgroupSpec::default(),
        extras: Extras::default(),
        process: model_process(),
    }
}

fn model_process() -> ProcessSpec {
    ProcessSpec {
        args: vec!["/bin/true".into()],
        env: vec![DEFAULT_PATH.into()],
        cwd: "/".into(),
        user: String::new(),
        groups: Vec::new(),
        capabilities: CapabilitySet::DOCKER_DEFAULT,
        no_new_privileges: false,
        seccomp: Seccomp::Default,
        init: false,
        rlimits: vec![Rlimit {
            resource: RLIMIT_NOFILE,
            soft: OPEN_FILES,
            hard: OPEN_FILES,
        }],
        stdin: false,
        tty: None,
    }
}

/// The files that Docker puts over the image's, and a machine id: an image has one for all of its sandboxes, or an empty file for
/// systemd to fill. A sandbox has no network but its loopback, so no name server is named.
pub(crate) fn files(id: &str, hostname: &str) -> Vec<FileSpec> {
    files_with(id, hostname, &HostOptions::default())
}

/// The same with the hosts and the name servers that the user says.
pub(crate) fn files_with(id: &str, hostname: &str, options: &HostOptions) -> Vec<FileSpec> {
    let mut hosts = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for ExtraHost { name, address } in &options.hosts {
        // Writing to a String does not fail.
        let _ = writeln!(hosts, "{address}\t{name}");
    }
    let _ = writeln!(hosts, "127.0.1.1\t{hostname}");
    let file = |path: &str, content: String| FileSpec {
        path: path.into(),
        content: content.into_bytes(),
        mode: 0o644,
        images: FileImages::All,
    };
    vec![
        file("/etc/hosts", hosts),
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/resolv.conf", resolver(options)),
        FileSpec {
            mode: 0o444,
            images: FileImages::WithFile,
            ..file(MACHINE_ID, machine_id(id))
        },
    ]
}

/// The content of `/etc/resolv.conf`.
fn resolver(options: &HostOptions) -> String {
    let mut text = "# this sandbox has no network besides its loopback\n".to_owned();
    for server in &options.dns {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (word, list) in [("search", &options.dns_search), ("options", &options.dns_options)] {
        if !list.is_empty() {
            let _ = writeln!(text, "{word} {}", list.join(" "));
        }
    }
    text
}

/// The paths that are covered in every sandbox: what is there below is brig's, for the mounts to have a place.
pub(crate) fn covered() -> Vec<String> {
    let mounts = SandboxSpec::default_mounts(SHM_BYTES)
        .into_iter()
        .map(|mount| mount.target);
    mounts
        .chain(files("", MODEL_HOSTNAME).into_iter().map(|file| file.path))
        .collect()
}

/// The content of `/etc/machine-id` (machine-id(5)): 128 bits that the sandbox's id decides and that do not tell it.
fn machine_id(id: &str) -> String {
    let digest = Sha256::digest(format!("brig machine-id {id}"));
    let mut bits = [0; 16];
    bits.copy_from_slice(&digest[..16]);
    format!("{:032x}\n", u128::from_be_bytes(bits))
}

/// The spec of another process in the sandbox of `config`: what the request leaves open is as in the first.
///
/// # Errors
/// Those of [`check_process`] and of its environment.
pub fn exec_spec(config: &Config, request: &ExecRequest) -> Result<ProcessSpec, Error> {
    let terminal = [TERMINAL.to_owned()];
    let mut env = merged(Vec::new(), if request.tty.is_some() { &terminal } else { &[] })?;
    env = merged(env, &config.env)?;
    env = merged(env, &request.env)?;
    let user = request.user.as_deref().unwrap_or(&config.user);
    let cwd = request.working_dir.as_deref().unwrap_or(&config.working_dir);
    if request.args.first().is_none_or(String::is_empty) {
        return Err(Error::NoExecCommand);
    }
    check_process(&request.args, &env, user, cwd)?;
    let mut spec = ProcessSpec {
        args: request.args.clone(),
        env,
        cwd: cwd.to_owned(),
        user: user.to_owned(),
        stdin: request.stdin,
        tty: request.tty,
        ..process_of(&config.options)
    };
    if request.privileged {
        spec.capabilities = CapabilitySet(u64::MAX);
    }
    if config.isolation == Isolation::Container {
        keep_to_limits(&mut spec);
    }
    Ok(spec)
}

/// The environment: `PATH`, `HOSTNAME`, with a terminal `TERM`, the image's, the user's; a later value of a name takes the
/// place of an earlier.
///
/// # Errors
/// [`Error::InvalidEnv`].
pub fn environment(
    hostname: &str,
    tty: bool,
    image: &[String],
    user: &[String],
) -> Result<Vec<String>, Error> {
    let mut environment: Vec<String> = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    environment.extend(tty.then(|| TERMINAL.to_owned()));
    merged(merged(environment, image)?, user)
}

/// `environment` with the entries of `more`, which take the place of those of the same name.
fn merged(mut environment: Vec<String>, more: &[String]) -> Result<Vec<String>, Error> {
    for entry in more {
        let name = match entry.split_once('=') {
            Some((name, _)) if !name.is_empty() && !entry.contains('\0') => name,
            _ => return Err(Error::InvalidEnv(entry.clone())),
        };
        let same_name = |known: &&mut String| known.split_once('=').is_some_and(|(known, _)| known == name);
        match environment.iter_mut().find(same_name) {
            Some(known) => known.clone_from(entry),
            None => environment.push(entry.clone()),
        }
    }
    Ok(environment)
}

/// Checks what a user or an image chose for the first process: what exec(3) and the guest's kernel would refuse.
///
/// # Errors
/// [`Error::InvalidArgument`], [`Error::InvalidWorkingDir`], [`Error::InvalidHostname`], [`Error::CommandTooLong`].
pub fn check(config: &Config) -> Result<(), Error> {
    let hostname = &config.hostname;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if hostname.is_empty() || hostname.len() > HOSTNAME_BYTES || !hostname.bytes().all(allowed) {
        return Err(Error::InvalidHostname(hostname.clone()));
    }
    check_process(&config.args(), &config.env, &config.user, &config.working_dir)
}

/// Checks what a user chose for a process.
///
/// # Errors
/// [`Error::InvalidArgument`], [`Error::InvalidWorkingDir`], [`Error::CommandTooLong`].
fn check_process(args: &[String], env: &[String], user: &str, working_dir: &str) -> Result<(), Error> {
    if user.contains('\0') || args.iter().any(|text| text.contains('\0')) {
        return Err(Error::InvalidArgument);
    }
    if !working_dir.starts_with('/') || working_dir.contains('\0') {
        return Err(Error::InvalidWorkingDir(working_dir.to_owned()));
    }
    // Each text also carries its length, in five bytes at most.
    let bytes =
        args.iter().chain(env).map(|text| text.len() + 5).sum::<usize>() + working_dir.len() + user.len();
    let limit = TO_AGENT_BYTES - RESERVED_BYTES;
    if bytes > limit {
        return Err(Error::CommandTooLong { bytes, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SandboxId, test_support::config};

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_later_value_of_a_name_takes_the_place_of_an_earlier() {
        let environment = environment(
            "box",
            false,
            &texts(&["PATH=/bin", "A=1", "B=2"]),
            &texts(&["A=3", "C=", "HOSTNAME=h"]),
        )
        .unwrap();
        assert_eq!(environment, ["PATH=/bin", "HOSTNAME=h", "A=3", "B=2", "C="]);
    }

    #[test]
    fn entries_that_are_no_variable_are_refused() {
        for entry in ["", "A", "=x", "A=\0"] {
            assert!(
                matches!(
                    environment("box", false, &[], &texts(&[entry])),
                    Err(Error::InvalidEnv(_))
                ),
                "{entry:?}"
            );
        }
    }

    #[test]
    fn what_exec_would_refuse_is_refused_at_once() {
        let make = || config(SandboxId::random().unwrap(), "x".into());
        check(&make()).unwrap();
        let mut bad = make();
        bad.command.push("a\0b".into());
        assert!(matches!(check(&bad), Err(Error::InvalidArgument)));
        let mut bad = make();
        bad.working_dir = "relative".into();
        assert!(matches!(check(&bad), Err(Error::InvalidWorkingDir(_))));
        for hostname in ["", "a b", "a\nb", &"x".repeat(65)] {
            let mut bad = make();
            bad.hostname = hostname.into();
            assert!(
                matches!(check(&bad), Err(Error::InvalidHostname(_))),
                "{hostname:?}"
            );
        }
        let mut bad = make();
        bad.command = vec!["x".repeat(1 << 20); 3];
        assert!(matches!(check(&bad), Err(Error::CommandTooLong { .. })));
    }

    #[test]
    fn another_process_has_what_the_first_has_unless_it_is_told_otherwise() {
        let mut first = config(SandboxId::random().unwrap(), "x".into());
        first.env = texts(&["PATH=/bin", "A=1"]);
        first.user = "web".into();
        first.working_dir = "/srv".into();
        let mut request = ExecRequest {
            args: texts(&["sh"]),
            ..ExecRequest::default()
        };
        let spec = exec_spec(&first, &request).unwrap();
        assert_eq!((spec.user.as_str(), spec.cwd.as_str()), ("web", "/srv"));
        assert_eq!(spec.env, ["PATH=/bin", "A=1"]);
        assert_eq!(spec.capabilities, CapabilitySet::DOCKER_DEFAULT);
        request.env = texts(&["A=2", "B=3"]);
        request.user = Some("0".into());
        request.working_dir = Some("/tmp".into());
        request.tty = Some(WindowSize::default());
        request.privileged = true;
        let spec = exec_spec(&first, &request).unwrap();
        assert_eq!((spec.user.as_str(), spec.cwd.as_str()), ("0", "/tmp"));
        assert_eq!(spec.env, ["TERM=xterm", "PATH=/bin", "A=2", "B=3"]);
        assert_eq!(spec.capabilities, CapabilitySet(u64::MAX));
        request.args = texts(&[""]);
        assert!(matches!(exec_spec(&first, &request), Err(Error::NoExecCommand)));
        request.args = texts(&["x"]);
        request.working_dir = Some("tmp".into());
        assert!(matches!(
            exec_spec(&first, &request),
            Err(Error::InvalidWorkingDir(_))
        ));
    }

    #[test]
    fn the_longest_command_fits_into_a_message() {
        let mut long = config(SandboxId::random().unwrap(), "x".into());
        long.command = vec![String::new(); (TO_AGENT_BYTES - RESERVED_BYTES) / 5 - 100];
        check(&long).unwrap();
        let message =
            brig_protocol::agent::ToAgent::Start(Box::new(sandbox_spec(&long, Layout::Fresh, None)));
        brig_protocol::frame::encode(&message, TO_AGENT_BYTES).unwrap();
    }

    #[test]
    fn each_sandbox_has_a_machine_id_of_its_own_that_does_not_tell_its_id() {
        let of = |id: &SandboxId| {
            let files = files(id.as_str(), "x");
            let file = files.into_iter().find(|file| file.path == MACHINE_ID).unwrap();
            assert_eq!((file.mode, file.images), (0o444, FileImages::WithFile));
            String::from_utf8(file.content).unwrap()
        };
        let (one, other) = (SandboxId::random().unwrap(), SandboxId::random().unwrap());
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&other));
        let text = of(&one);
        let id = text.strip_suffix('\n').unwrap();
        assert_eq!(id.len(), 32);
        assert!(
            id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            "{id}"
        );
        assert!(!one.as_str().contains(id));
    }

    #[test]
    fn a_fraction_of_a_cpu_becomes_the_cgroups_quota() {
        let mut half = config(SandboxId::random().unwrap(), "x".into());
        half.cpus = "0.5".parse().unwrap();
        assert_eq!(
            sandbox_spec(&half, Layout::Fresh, None).cgroup.cpu_quota_us,
            50_000
        );
    }
}
