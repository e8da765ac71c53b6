//! What can go wrong, one line each. The source is chained and not repeated in the message.

use std::{
    io,
    path::{Path, PathBuf},
};

use brig_protocol::{
    agent::StartFailure,
    vmm::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, VCPUS_MAX},
};

use crate::{port::PortError, resources::CONTAINER_MIB_MIN};

/// Exit code of a command that fails other than by what it was to run.
pub const CODE_COMMAND: i32 = 1;
/// Exit code when brig itself fails.
pub const CODE_BRIG: i32 = 125;
/// Exit code when the command cannot be executed.
pub const CODE_NOT_EXECUTABLE: i32 = 126;
/// Exit code when the command is not there.
pub const CODE_NOT_FOUND: i32 = 127;

/// Why the engine could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No id, name or prefix of an id.
    #[error("no such sandbox: {0}")]
    NoSuchSandbox(String),
    /// More than one id starts so.
    #[error("the id prefix {0} is ambiguous: write more of its digits")]
    AmbiguousPrefix(String),
    /// Names are unique.
    #[error("the name {name:?} is in use by sandbox {id}: remove it (brig rm {name}) or choose another name")]
    NameInUse {
        /// The name.
        name: String,
        /// Short id of the sandbox that has it.
        id: String,
    },
    /// Docker's rule for names.
    #[error(
        "invalid name {0:?}: a name has two or more of a-z, A-Z, 0-9, '_', '.', '-' and starts with a letter or digit"
    )]
    InvalidName(String),
    /// No volume is called so.
    #[error("no such volume: {0}")]
    NoSuchVolume(String),
    /// Somebody has it.
    #[error("the volume {name} is in use by {by}")]
    VolumeInUse {
        /// The volume.
        name: String,
        /// The sandbox.
        by: String,
    },
    /// An option that cannot be honoured.
    #[error("{option}: {reason}")]
    Option {
        /// The option, as the user writes it.
        option: &'static str,
        /// Why not, and what to do.
        reason: String,
    },
    /// Both cannot be.
    #[error("--no-healthcheck conflicts with --health-* options")]
    HealthConflict,
    /// The image says something that is no check.
    #[error("invalid health check {0:?}: it begins with CMD, CMD-SHELL or NONE")]
    InvalidHealthTest(String),
    /// There is nothing to execute.
    #[error("no command to execute was given")]
    NoExecCommand,
    /// Docker's words for a sandbox that does not run.
    #[error("cannot attach to a stopped sandbox: start it first (brig start {0})")]
    CannotAttach(String),
    /// No signal is called so.
    #[error("invalid signal: {0}: write a name or a number, TERM or 15")]
    InvalidSignal(String),
    /// No amount of memory.
    #[error("invalid amount of memory {0:?}: write it as 512m or 1g")]
    InvalidMemory(String),
    /// There are two.
    #[error(
        "invalid isolation {0:?}: vm (a microVM with its own kernel) or container (namespaces on this host's kernel)"
    )]
    InvalidIsolation(String),
    /// Nothing can be set under this name.
    #[error("there is no setting {0:?}: isolation, memory and cpus can be set")]
    NoSuchSetting(String),
    /// A file or a variable says something that cannot be.
    #[error("{place}")]
    Setting {
        /// The file, or the variable.
        place: String,
        /// What is wrong with it.
        #[source]
        source: Box<Error>,
    },
    /// The host cannot do what `container` isolation needs.
    #[error("cannot run this in container isolation: {0}")]
    Isolation(String),
    /// What only a guest can do.
    #[error(
        "{name} has container isolation, and only a sandbox with a guest of its own (--isolation vm) can be {what}"
    )]
    NeedsVm {
        /// The sandbox, as the user named it.
        name: String,
        /// What was asked for: a participle.
        what: &'static str,
    },
    /// Files could not be copied into or out of a sandbox.
    #[error("cannot copy files of {name}: {reason}")]
    Copy {
        /// The sandbox, as the user named it.
        name: String,
        /// What the agent said.
        reason: String,
    },
    /// What the agent was to do in a sandbox has failed.
    #[error("cannot look into {name}: {reason}")]
    Tool {
        /// The sandbox, as the user named it.
        name: String,
        /// What the agent said, or what is wrong with that.
        reason: String,
    },
    /// A sandbox cannot stand still or go on.
    #[error("cannot {action} {name}: {reason}")]
    Pause {
        /// The sandbox, as the user named it.
        name: String,
        /// `pause` or `unpause`.
        action: &'static str,
        /// Why.
        reason: String,
    },
    /// A guest's kernel needs more, or a container does.
    #[error(
        "{asked} of memory is too little: a guest, which has a kernel of its own, needs {MEMORY_MIB_MIN} MiB, a container {CONTAINER_MIB_MIN} MiB"
    )]
    MemoryTooSmall {
        /// As the user wrote it.
        asked: String,
    },
    /// More than a VMM can give.
    #[error("{asked} of memory is too much: a guest has {MEMORY_MIB_MAX} MiB at most")]
    MemoryTooLarge {
        /// As the user wrote it.
        asked: String,
    },
    /// More than the host has.
    #[error(
        "not enough memory for the guest: {asked_mib} MiB asked for, {host_mib} MiB is what the host has (-m gives another amount)"
    )]
    MemoryOfHost {
        /// What the guest should get.
        asked_mib: u32,
        /// What the host has.
        host_mib: u64,
    },
    /// Not `DEVICE:RATE`.
    #[error(
        "invalid limit {0:?}: write it as DEVICE:RATE, such as /:10mb or /dev/sda:100; the device / is the one with brig's files"
    )]
    InvalidRate(String),
    /// More than anyone needs.
    #[error(
        "too many limits of devices: at most {} of a kind",
        crate::device_rate::RATES_MAX
    )]
    TooManyRates,
    /// Nothing that can be limited.
    #[error("cannot limit the device {path}: {why}")]
    NoSuchDevice {
        /// As the user wrote it.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The host does not let a cgroup hold a process to limits.
    #[error("limits need a cgroup that can be written: {0}")]
    Cgroup(String),
    /// The supervisor could not give up what it does not need.
    #[error("cannot wall off the supervisor")]
    Walls(#[from] brig_jail::WallError),
    /// No number of CPUs.
    #[error("invalid number of CPUs {0:?}: from 0.01 to {VCPUS_MAX}")]
    InvalidCpus(String),
    /// Not `NAME=value`, or a NUL byte in it.
    #[error("invalid environment variable {0:?}: write it as NAME=VALUE")]
    InvalidEnv(String),
    /// Not an absolute path.
    #[error("invalid working directory {0:?}: it must be an absolute path")]
    InvalidWorkingDir(String),
    /// A hostname has letters, digits, dots and dashes, 64 at most.
    #[error("invalid hostname {0:?}: it has letters, digits, dots and dashes, 64 at most")]
    InvalidHostname(String),
    /// An argument cannot be passed to exec.
    #[error("invalid argument: it contains a NUL byte")]
    InvalidArgument,
    /// Arguments, environment and labels do not fit into a message to the guest.
    #[error("the command and its environment are too long: {bytes} bytes, at most {limit}")]
    CommandTooLong {
        /// What they take.
        bytes: usize,
        /// What they may take.
        limit: usize,
    },
    /// `-p` is wrong.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A host port is taken.
    #[error("cannot publish {address}: the port is already in use")]
    PortInUse {
        /// What should have been bound.
        address: String,
    },
    /// A host port cannot be bound for another reason.
    #[error("cannot publish {address}")]
    Bind {
        /// What should have been bound.
        address: String,
        /// Why it cannot.
        source: io::Error,
    },
    /// Neither the image nor the user says what to run.
    #[error("the image {0} names no command: write one after the image")]
    NoCommand(String),
    /// The image is not in the store.
    #[error(
        "unable to find image '{0}' locally: get it with `brig pull` or from an archive with `brig load -i FILE`"
    )]
    NoSuchImage(String),
    /// The image is for other machines.
    #[error(
        "image '{image}' is for {platform}, brig runs {host}: `brig pull --platform {host}` gets that one"
    )]
    Platform {
        /// The image as the user wrote it.
        image: String,
        /// What it is for.
        platform: String,
        /// What brig runs.
        host: String,
    },
    /// A sandbox's image has been removed.
    #[error("the image {0} of this sandbox is not unpacked any more: load it again")]
    ImageGone(String),
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] brig_image_store::StoreError),
    /// The image could not be unpacked.
    #[error("cannot unpack image {image}: {message}")]
    Unpack {
        /// The image.
        image: String,
        /// What the agent or the VMM said.
        message: String,
    },
    /// Only what is not running can be removed or started.
    #[error("the sandbox {0} is running: stop it before, or use -f")]
    RunningCannotRemove(String),
    /// It already runs, or another command starts it just now.
    #[error("the sandbox {0} is already running or being started")]
    AlreadyRunning(String),
    /// Signals go to running sandboxes only.
    #[error("the sandbox {0} is not running")]
    NotRunning(String),
    /// The sandbox could not be started.
    #[error("{message}")]
    Start {
        /// 125, 126 or 127.
        code: i32,
        /// One line, causes included.
        message: String,
    },
    /// The start was given up by the one who asked for it.
    #[error("the start was interrupted")]
    Interrupted,
    /// A supervisor ended in the middle of a request.
    #[error("the supervisor of sandbox {0} was killed")]
    SupervisorLost(String),
    /// A supervisor could not be spoken with.
    #[error("cannot talk to the supervisor of sandbox {id}")]
    Control {
        /// Short id of the sandbox.
        id: String,
        /// What failed.
        source: brig_protocol::frame::FrameError,
    },
    /// There is no KVM.
    #[error(
        "no /dev/kvm on this host: brig needs KVM (load the kernel module kvm_intel or kvm_amd; in a virtual machine, \
         switch on nested virtualization)"
    )]
    NoKvm,
    /// KVM is not for this user.
    #[error(
        "no permission to use /dev/kvm: add your user to the group kvm (usermod -aG kvm USER) and log in again"
    )]
    KvmPermission,
    /// `/dev/kvm` cannot be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Kvm(#[source] io::Error),
    /// A file of the installation is missing.
    #[error("cannot open {path}: run `make build`, or set BRIG_LIBDIR to the directory that has it")]
    Installation {
        /// The file.
        path: PathBuf,
        /// Why it cannot be opened.
        source: io::Error,
    },
    /// A guest could not be made ready to be saved.
    #[error("cannot make a template: {0}")]
    Template(String),
    /// No template's id starts so.
    #[error("no such template: {0} (brig template ls shows them)")]
    NoSuchTemplate(String),
    /// More than one template's id starts so.
    #[error("the template id {0} is ambiguous: write more of its digits")]
    AmbiguousTemplate(String),
    /// `$BRIG_TEMPLATE_BYTES` is no number.
    #[error("BRIG_TEMPLATE_BYTES is {0:?}: it must be a number of bytes")]
    TemplateBytes(String),
    /// No snapshot is called so.
    #[error("no such snapshot: {0} (brig snapshot ls shows them)")]
    NoSuchSnapshot(String),
    /// Names of snapshots are unique.
    #[error("there is a snapshot {0} already: remove it (brig snapshot rm {0}) or choose another name")]
    SnapshotExists(String),
    /// A snapshot cannot be used.
    #[error("the snapshot {name} {reason}")]
    Snapshot {
        /// Its name.
        name: String,
        /// What is wrong with it, in words that follow its name.
        reason: String,
    },
    /// A running sandbox could not be saved.
    #[error("cannot save the sandbox {name}: {reason}")]
    Save {
        /// As the user named it.
        name: String,
        /// One line.
        reason: String,
    },
    /// A sandbox's files could not be packed.
    #[error("cannot read the files of sandbox {name}: {reason}")]
    Pack {
        /// As the user named it.
        name: String,
        /// One line.
        reason: String,
    },
    /// What a sandbox's guest packed cannot be written where it is wanted.
    #[error("cannot write")]
    Output(#[source] io::Error),
    /// An archive is no snapshot.
    #[error("cannot import the snapshot: {0}")]
    Import(String),
    /// `mke2fs` is needed once.
    #[error("mke2fs is missing: install it (apt-get install e2fsprogs)")]
    NoMke2fs,
    /// Another program has its name, such as busybox's, which makes ext2.
    #[error("{0} is not the mke2fs of e2fsprogs, which makes ext4: install it (apt-get install e2fsprogs)")]
    OtherMke2fs(PathBuf),
    /// `mke2fs` failed.
    #[error("mke2fs failed: {0}")]
    Mke2fs(String),
    /// brig-vmm could not be started or ended too early.
    #[error(transparent)]
    Vmm(#[from] crate::vmm::VmmError),
    /// What a supervisor's steward was asked for did not succeed.
    #[error("{0}")]
    Steward(String),
    /// A file of brig's.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried: a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A record on disk is damaged.
    #[error("the record {path} is damaged")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Neither `$BRIG_ROOT` nor a home directory is known.
    #[error("no place for images and sandboxes: set BRIG_ROOT or HOME")]
    NoHome,
    /// The process could not be set up.
    #[error("cannot set up the process")]
    Runtime(#[source] io::Error),
    /// The kernel gave no random numbers.
    #[error("cannot get random numbers from the kernel")]
    Random(#[source] io::Error),
}

impl Error {
    /// For `map_err`: an I/O error on `path` while doing `action`.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// An option that cannot be honoured.
    pub(crate) fn option(option: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Option { option, reason }
    }

    /// Replaces the error of a file that is not there.
    pub(crate) fn missing_as(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => other(),
            error => error,
        }
    }

    /// What is wrong with the snapshot `name`, in words that follow its name. A hidden one is a fork's.
    pub(crate) fn snapshot(name: &str, reason: String) -> Self {
        let name = if name.starts_with('.') {
            "of the fork"
        } else {
            name
        };
        Self::Snapshot {
            name: name.to_owned(),
            reason,
        }
    }

    /// The exit code of a `brig run` or `brig start -a` that fails so.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Start { code, .. } => *code,
            Self::Interrupted => 130,
            _ => CODE_BRIG,
        }
    }
}

/// The exit code that a failed start of a process stands for.
pub(crate) fn start_failure_code(kind: StartFailure) -> i32 {
    match kind {
        StartFailure::NotFound => CODE_NOT_FOUND,
        StartFailure::NotExecutable => CODE_NOT_EXECUTABLE,
        StartFailure::UnknownUser | StartFailure::Other => CODE_BRIG,
    }
}

/// An error and its causes on one line. Control characters, which a guest may have put into its part, are replaced.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    one_line(&text, usize::MAX)
}

/// `text` without control characters and with at most `limit` characters: what a guest said, made fit for a terminal.
pub fn one_line(text: &str, limit: usize) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(limit)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_each_cause_once() {
        let error = Error::file("open", Path::new("/x"))(io::ErrorKind::NotFound.into());
        assert_eq!(chain(&error), "cannot open /x: entity not found");
    }

    #[test]
    fn what_a_guest_says_cannot_steer_a_terminal() {
        assert_eq!(one_line("a\x1b[31m\nb\u{9b}c", 100), "a [31m b c");
        assert_eq!(one_line("abcdef", 3), "abc");
    }

    #[test]
    fn failures_to_start_have_dockers_exit_codes() {
        assert_eq!(start_failure_code(StartFailure::NotFound), 127);
        assert_eq!(start_failure_code(StartFailure::NotExecutable), 126);
        assert_eq!(start_failure_code(StartFailure::UnknownUser), 125);
        assert_eq!(Error::NoKvm.exit_code(), 125);
    }
}
