//! A sandbox's configuration as the agent takes it.

use brig_protocol::{
    agent::TO_AGENT_BYTES,
    spec::{CapabilitySet, CgroupSpec, FileSpec, ProcessSpec, Rlimit, RootSpec, SandboxSpec},
};

use crate::{Error, id::ID_DIGITS, sandbox::Config};

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

/// The spec of `config`, its writable layer on the guest's disk `writable`.
pub fn sandbox_spec(config: &Config, writable: u8) -> SandboxSpec {
    SandboxSpec {
        id: config.id.to_string(),
        hostname: config.hostname.clone(),
        files: files(&config.hostname),
        cgroup: CgroupSpec {
            cpu_quota_us: config.cpus.quota_us(),
            ..CgroupSpec::default()
        },
        process: ProcessSpec {
            args: config.args(),
            env: config.env.clone(),
            cwd: config.working_dir.clone(),
            user: config.user.clone(),
            stdin: config.stdin,
            ..model_process()
        },
        ..model_spec(writable)
    }
}

/// What all sandboxes have in common: what a template is prepared for.
pub fn model_spec(writable: u8) -> SandboxSpec {
    SandboxSpec {
        id: "0".repeat(ID_DIGITS),
        hostname: MODEL_HOSTNAME.into(),
        root: RootSpec::Disks {
            image: IMAGE_DISK,
            writable,
        },
        mounts: SandboxSpec::default_mounts(SHM_BYTES),
        files: files(MODEL_HOSTNAME),
        masked_paths: SandboxSpec::default_masked_paths(),
        readonly_paths: SandboxSpec::default_readonly_paths(),
        cgroup: CgroupSpec::default(),
        process: model_process(),
    }
}

fn model_process() -> ProcessSpec {
    ProcessSpec {
        args: vec!["/bin/true".into()],
        env: vec![DEFAULT_PATH.into()],
        cwd: "/".into(),
        user: String::new(),
        capabilities: CapabilitySet::DOCKER_DEFAULT,
        no_new_privileges: false,
        rlimits: vec![Rlimit {
            resource: RLIMIT_NOFILE,
            soft: OPEN_FILES,
            hard: OPEN_FILES,
        }],
        stdin: false,
    }
}

/// The files that Docker puts over the image's. A sandbox has no network but its loopback, so no name server is named.
pub(crate) fn files(hostname: &str) -> Vec<FileSpec> {
    let file = |path: &str, content: String| FileSpec {
        path: path.into(),
        content: content.into_bytes(),
        mode: 0o644,
    };
    vec![
        file(
            "/etc/hosts",
            format!(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                 ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.1.1\t{hostname}\n"
            ),
        ),
        file("/etc/hostname", format!("{hostname}\n")),
        file(
            "/etc/resolv.conf",
            "# this sandbox has no network besides its loopback\n".to_owned(),
        ),
    ]
}

/// The environment: `PATH`, `HOSTNAME`, the image's, the user's; a later value of a name takes the place of an earlier.
///
/// # Errors
/// [`Error::InvalidEnv`].
pub fn environment(hostname: &str, image: &[String], user: &[String]) -> Result<Vec<String>, Error> {
    let mut environment: Vec<String> = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    for entry in image.iter().chain(user) {
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
    let args = config.args();
    if args.iter().chain([&config.user]).any(|text| text.contains('\0')) {
        return Err(Error::InvalidArgument);
    }
    if !config.working_dir.starts_with('/') || config.working_dir.contains('\0') {
        return Err(Error::InvalidWorkingDir(config.working_dir.clone()));
    }
    let hostname = &config.hostname;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if hostname.is_empty() || hostname.len() > HOSTNAME_BYTES || !hostname.bytes().all(allowed) {
        return Err(Error::InvalidHostname(hostname.clone()));
    }
    // Each text also carries its length, in five bytes at most.
    let bytes = args
        .iter()
        .chain(&config.env)
        .map(|text| text.len() + 5)
        .sum::<usize>()
        + config.working_dir.len()
        + config.user.len();
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
                    environment("box", &[], &texts(&[entry])),
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
    fn the_longest_command_fits_into_a_message() {
        let mut long = config(SandboxId::random().unwrap(), "x".into());
        long.command = vec![String::new(); (TO_AGENT_BYTES - RESERVED_BYTES) / 5 - 100];
        check(&long).unwrap();
        let message = brig_protocol::agent::ToAgent::Start(Box::new(sandbox_spec(&long, FRESH_DISK)));
        brig_protocol::frame::encode(&message, TO_AGENT_BYTES).unwrap();
    }

    #[test]
    fn a_fraction_of_a_cpu_becomes_the_cgroups_quota() {
        let mut half = config(SandboxId::random().unwrap(), "x".into());
        half.cpus = "0.5".parse().unwrap();
        assert_eq!(sandbox_spec(&half, FRESH_DISK).cgroup.cpu_quota_us, 50_000);
    }
}
