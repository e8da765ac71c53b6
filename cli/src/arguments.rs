//! The command line: Docker's words where there are such.

mod compare;
mod config;
mod container;
mod copy;
mod images;
mod saved;
mod unsupported;
mod volumes;
mod watch;
mod wishes;

use std::{ffi::OsString, path::PathBuf, process, time::Duration};

use brig_engine::{
    Isolation,
    device_rate::DeviceRate,
    error::CODE_BRIG,
    options::{RestartPolicy, Swap},
    port::{self, PublishedPort},
    resources::{Cpus, MemoryMib},
    signal::Signal,
};
use brig_image_store::{MaxImageSize, Platform, image::ExposedPort};
use clap::{
    Args, CommandFactory, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};

use self::compare::COMPARE_EXAMPLES;
use self::config::CONFIG_EXAMPLES;
use self::container::CONTAINER_EXAMPLES;
use self::copy::CP_EXAMPLES;
use self::images::{
    COMMIT_EXAMPLES, DIFF_EXAMPLES, EXPORT_EXAMPLES, IMAGE_EXAMPLES, IMPORT_EXAMPLES, LIST_EXAMPLES,
    LOAD_EXAMPLES, REMOVE_EXAMPLES, SAVE_EXAMPLES, TAG_EXAMPLES,
};
use self::saved::{FORK_EXAMPLES, SNAPSHOT_EXAMPLES, TEMPLATE_EXAMPLES};
use self::volumes::VOLUME_EXAMPLES;
use self::watch::{EVENTS_EXAMPLES, PAUSE_EXAMPLES, STATS_EXAMPLES, TOP_EXAMPLES};
pub use self::{
    compare::Compare, config::*, container::*, copy::Copy, images::*, saved::*, volumes::*, watch::*,
    wishes::Wishes,
};
use crate::{detach::DetachKeys, durations, failure::CODE_COMMAND};

/// Run an untrusted image in a microVM of its own
#[derive(Debug, Parser)]
#[command(name = "brig", version, disable_help_subcommand = true, disable_version_flag = true, after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print version
    #[arg(short = 'v', short_alias = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

impl Arguments {
    /// Those of a command line, the program's name first. To define all commands takes longer than anything else that brig does before
    /// a sandbox starts, so that those whose user waits for milliseconds are tried alone. All others, errors and
    /// help among them, are left to all definitions together.
    ///
    /// # Errors
    /// Those of clap, help and version among them.
    pub fn of(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let rest = words.get(1..).unwrap_or_default();
        let alone = match rest.first().and_then(|word| word.to_str()) {
            Some("run") => alone(rest).map(|run| Command::Run(Box::new(run))),
            Some("exec") => alone(rest).map(Command::Exec),
            _ => None,
        };
        if let Some(command) = alone {
            return Ok(Self {
                command,
                version: None,
            });
        }
        let arguments = match Self::try_parse_from(&words) {
            Ok(arguments) => arguments,
            Err(error) => match with_plain_flag(words, &error) {
                Some(words) => return Self::of(words),
                None => return Err(error),
            },
        };
        Ok(match arguments.command {
            Command::Container(command) => Self {
                command: command.short(),
                version: None,
            },
            Command::Help(help) => {
                let name = std::iter::once("brig".to_owned());
                let words = name.chain(help.words).chain(["--help".to_owned()]);
                Self::try_parse_from(words)?
            }
            _ => arguments,
        })
    }
}

/// The arguments of one command, if they are right and do not ask for help.
fn alone<T: Args>(words: &[OsString]) -> Option<T> {
    let command = T::augment_args(clap::Command::new("brig").disable_help_flag(true));
    T::from_arg_matches(&command.try_get_matches_from(words).ok()?).ok()
}

/// The words with the flag that `error` is about as brig writes it: Docker takes `--rm=true` and `--rm=false`, too, and `-d=1`.
fn with_plain_flag(mut words: Vec<OsString>, error: &clap::Error) -> Option<Vec<OsString>> {
    let of_error = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let is_short = match error.kind() {
        ErrorKind::TooManyValues => false,
        ErrorKind::UnknownArgument if of_error(ContextKind::InvalidArg) == "-=" => true,
        _ => return None,
    };
    // The first such word is the one that stopped the reading: what follows an image has not been read.
    let flag = |word: &OsString| {
        let (flag, value) = word.to_str()?.split_once('=')?;
        let is_meant = if is_short {
            flag.starts_with('-') && !flag.starts_with("--")
        } else {
            flag.starts_with("--") && value == of_error(ContextKind::InvalidValue)
        };
        let is_set = match value {
            "1" | "t" | "T" | "true" | "True" | "TRUE" => true,
            "0" | "f" | "F" | "false" | "False" | "FALSE" => false,
            _ => return None,
        };
        is_meant.then(|| (flag.to_owned(), is_set))
    };
    let (at, (mut flag, is_set)) = words
        .iter()
        .enumerate()
        .find_map(|(at, word)| Some((at, flag(word)?)))?;
    if is_short && !is_set {
        // Of several in one word it is the last.
        flag.pop();
    }
    if is_set || is_short && flag.len() > 1 {
        words[at] = flag.into();
    } else {
        words.remove(at);
    }
    Some(words)
}

const EXAMPLES: &str = "\
Examples:
  brig run -d -p 8080:80 --name web welcome    start the image that ships with brig
  brig ps                                      what runs
  brig logs -f web                             what it writes
  brig stop web && brig rm web                 end it
  brig pull nginx                              download an image
  brig load -i image.tar                       take in an image from `docker save`

Files are in $BRIG_ROOT (/var/lib/brig for root, ~/.local/share/brig for others).";

/// How much `--timing` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TimingDetail {
    /// When each stage was reached.
    Stages,
    /// And what the guest had cost then: VM exits, page faults, emulated instructions.
    Full,
    /// When each stage was reached, as one line for programs: nanoseconds of `CLOCK_MONOTONIC`.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a sandbox of an image and start it
    #[command(after_help = RUN_EXAMPLES, disable_help_flag = true,
              override_usage = "brig run [OPTIONS] IMAGE [COMMAND] [ARGUMENT]...")]
    Run(Box<Run>),
    /// Make a sandbox of an image and do not start it
    #[command(after_help = CREATE_EXAMPLES, disable_help_flag = true,
              override_usage = "brig create [OPTIONS] IMAGE [COMMAND] [ARGUMENT]...")]
    Create(Box<Create>),
    /// List sandboxes
    #[command(after_help = PS_EXAMPLES)]
    Ps(Ps),
    /// Stop sandboxes: send the stop signal, and SIGKILL when that is not enough
    Stop(Stop),
    /// Stop sandboxes and start them again
    Restart(Restart),
    /// Give a sandbox another name
    Rename(Rename),
    /// Start stopped sandboxes
    #[command(after_help = START_EXAMPLES)]
    Start(Start),
    /// Change a sandbox's limits and its restart policy
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(Update),
    /// Run a command in a running sandbox
    #[command(after_help = EXEC_EXAMPLES, override_usage = "brig exec [OPTIONS] SANDBOX COMMAND [ARGUMENT]...")]
    Exec(Exec),
    /// Show what a running sandbox writes from now on, and type to it
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(Attach),
    /// Show what a sandbox has written
    #[command(after_help = LOGS_EXAMPLES)]
    Logs(Logs),
    /// Show what sandboxes take: CPU, memory, network, disk
    #[command(after_help = STATS_EXAMPLES)]
    Stats(Stats),
    /// List the processes of a sandbox
    #[command(after_help = TOP_EXAMPLES)]
    Top(Top),
    /// Show what happens to sandboxes, as it happens
    #[command(after_help = EVENTS_EXAMPLES)]
    Events(Events),
    /// Remove sandboxes and their files
    Rm(Rm),
    /// Wait for the end of sandboxes and print their exit codes
    Wait(Sandboxes),
    /// Let all processes of sandboxes stand still
    #[command(after_help = PAUSE_EXAMPLES)]
    Pause(Sandboxes),
    /// Let the processes of paused sandboxes go on
    #[command(after_help = PAUSE_EXAMPLES)]
    Unpause(Sandboxes),
    /// Send a signal to running sandboxes
    Kill(Kill),
    /// Show everything about sandboxes, images or volumes, as JSON
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(Inspect),
    /// List the published ports of a sandbox
    Port(Port),
    /// Manage sandboxes, in Docker's word
    #[command(subcommand, after_help = CONTAINER_EXAMPLES)]
    Container(Container),
    /// List images
    #[command(after_help = LIST_EXAMPLES)]
    Images(Images),
    /// Remove names and images
    #[command(after_help = REMOVE_EXAMPLES)]
    Rmi(Rmi),
    /// Give an image another name
    #[command(after_help = TAG_EXAMPLES)]
    Tag(Tag),
    /// Load images from an archive: `docker save`, or an OCI layout
    #[command(after_help = LOAD_EXAMPLES)]
    Load(Load),
    /// Write images to an archive
    #[command(after_help = SAVE_EXAMPLES)]
    Save(Save),
    /// Make an image of a tar archive of files
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(Import),
    /// Show what an image was made of
    History(History),
    /// Copy files between this machine and a sandbox, running or not
    #[command(after_help = CP_EXAMPLES)]
    Cp(Copy),
    /// Write the files of a sandbox to a tar archive
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(Export),
    /// Make an image of what a sandbox has changed
    #[command(after_help = COMMIT_EXAMPLES)]
    Commit(Commit),
    /// List the files that a sandbox has changed
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(Diff),
    /// Manage images
    #[command(subcommand, after_help = IMAGE_EXAMPLES)]
    Image(Image),
    #[command(flatten)]
    Registry(Registry),
    /// Files that outlive sandboxes
    #[command(subcommand, after_help = VOLUME_EXAMPLES)]
    Volume(Volume),
    /// Save running sandboxes, and manage what was saved
    #[command(subcommand, after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(Snapshot),
    /// Start copies of a running sandbox, which goes on
    #[command(after_help = FORK_EXAMPLES)]
    Fork(Fork),
    /// Guests that are ready to start from: made when they are needed first
    #[command(subcommand, after_help = TEMPLATE_EXAMPLES)]
    Template(Template),
    /// Measure what each isolation costs here: the same image in a microVM, in a container, under crun and runc
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(Compare),
    /// Show and set what new sandboxes get when `run` does not say
    #[command(subcommand, after_help = CONFIG_EXAMPLES)]
    Config(Config),
    /// About this host and this brig
    #[command(subcommand)]
    System(System),
    /// Show what this host can do, and where brig's files are
    Info(Info),
    /// Show the version
    Version(Version),
    /// Print the help of a command
    Help(Help),
    /// Print what a shell needs to complete brig's commands
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion(Completion),
    /// Write the manual pages
    #[command(hide = true)]
    Manual(Manual),
}

/// The commands that another program has, with its options and its help; see [`crate::commands::registry`].
#[derive(Debug, Subcommand)]
pub enum Registry {
    /// Download an image from a registry
    #[command(disable_help_flag = true)]
    Pull(Handed),
    /// Upload an image to a registry
    #[command(disable_help_flag = true)]
    Push(Handed),
    /// Keep a name and a password for a registry
    #[command(disable_help_flag = true)]
    Login(Handed),
    /// Forget the name and the password for a registry
    #[command(disable_help_flag = true)]
    Logout(Handed),
    /// Look for images in a registry
    #[command(disable_help_flag = true)]
    Search(Handed),
}

/// Words that are handed over as they are.
#[derive(Debug, Args)]
pub struct Handed {
    /// Everything behind the command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

/// When `run` and `create` pull the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Each time: the registry may have a newer one.
    Always,
    /// When it is not in the store.
    Missing,
    /// Never.
    Never,
}

const RUN_EXAMPLES: &str = "\
Exit codes are Docker's: 125 when brig itself fails, 126 when the command cannot be executed, 127 when it is not
there, otherwise the command's own.

Examples:
  brig run --rm busybox uname -a
  brig run -d -p 127.0.0.1:8080:80 --name web welcome
  echo hello | brig run --rm -i busybox wc -c
  brig run --rm -it debian-slim bash               with a terminal; ctrl-p ctrl-q leaves it running
  brig run --rm --isolation container busybox uname -a
  brig run --rm -m 1g --cpus 2 -e DEBUG=1 -u 1000:1000 IMAGE COMMAND";

const CREATE_EXAMPLES: &str = "\
Prints the sandbox's id. The image is pulled and unpacked now, so that `brig start` finds all that it needs.

Examples:
  brig create --name web -p 8080:80 welcome && brig start web
  brig create -i --name count busybox wc -c && echo hello | brig start -ai count
  brig create --pull always --max-image-size 200m nginx";

const EXEC_EXAMPLES: &str = "\
Exit codes are Docker's: 126 when the command cannot be executed, 127 when it is not there, 1 when brig itself fails, otherwise
the command's own. A command whose terminal goes away is hung up on.

Examples:
  brig exec web ls -l /
  brig exec -it web sh
  echo 'select 1' | brig exec -i -u postgres db psql
  brig exec -d -e LEVEL=debug -w /srv web ./collect";

const ATTACH_EXAMPLES: &str = "\
Ends with the sandbox and its exit code, or when ctrl-p ctrl-q is typed, which leaves the sandbox running (with a
terminal only).

Examples:
  brig attach shell
  brig attach --no-stdin --sig-proxy=false web
  brig attach --detach-keys ctrl-x,x shell";

const UPDATE_EXAMPLES: &str = "\
A guest's memory and CPUs are changed while it does not run. A running container keeps to the kinds of limits that it was started with.

Examples:
  brig update --restart unless-stopped web db
  brig update -m 1g --cpus 2 web";

const START_EXAMPLES: &str = "\
Examples:
  brig start web db
  brig start --restart-policy                      after a boot of the host: what the policies want to run
  brig start -ai shell";

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Run in the background and print the sandbox's id
    #[arg(short, long)]
    pub detach: bool,
    /// The keys that leave the sandbox running: ctrl-p,ctrl-q otherwise
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<DetachKeys>,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Print where the time went; `full`: and what the guest cost until then; `json`: as a line of JSON
    #[arg(long, value_name = "full|json", num_args = 0..=1, require_equals = true, default_missing_value = "stages")]
    pub timing: Option<TimingDetail>,
    #[command(flatten)]
    pub create: Create,
}

/// Options of `create`, and of `run`.
#[derive(Debug, Args)]
pub struct Create {
    /// Remove the sandbox when its process ends
    #[arg(long)]
    pub rm: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Publish a TCP port: 8080:80, 127.0.0.1:8080:80, 80 (a free port), 8080-8082:80-82
    #[arg(short, long, value_name = "[[IP:]PORT:]PORT", value_parser = parse_ports)]
    pub publish: Vec<Ports>,
    /// Publish each TCP port that the image or --expose names at a free port
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Say that it listens on a port: 80, 8000-8010/tcp, 53/udp
    #[arg(long, value_name = "PORT", value_parser = parse_exposed)]
    pub expose: Vec<Exposed>,
    /// Check with this line of shell whether the sandbox is well
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time between two checks: 30s
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    pub health_interval: Option<Duration>,
    /// Time that a check may take: 30s
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    pub health_timeout: Option<Duration>,
    /// Time after the start in which failures do not count: 0s
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    pub health_start_period: Option<Duration>,
    /// Time between two checks until then: 5s
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    pub health_start_interval: Option<Duration>,
    /// Failures in a row that make it unhealthy: 3
    #[arg(long, value_name = "NUMBER")]
    pub health_retries: Option<u32>,
    /// No checks, whatever the image says
    #[arg(long)]
    pub no_healthcheck: bool,
    /// Name of the sandbox; a random one otherwise
    #[arg(long)]
    pub name: Option<String>,
    /// Set an environment variable; without a value the one that brig itself has
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// User and group: NAME, UID, NAME:GROUP, UID:GID
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Run this program in the place of the image's
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// What walls the sandbox off: vm, a microVM with its own kernel, or container, namespaces on this host's; what
    /// $BRIG_ISOLATION or `brig config` says, else vm
    #[arg(long, value_name = "vm|container")]
    pub isolation: Option<Isolation>,
    /// Memory of the guest: 512m (the default), 1g; the most that a container may use
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<MemoryMib>,
    /// Number of CPUs: 1 (the default), 1.5; a container has all unless this says otherwise
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<Cpus>,
    /// Most processes and threads
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = parse_pids)]
    pub pids_limit: Option<PidsLimit>,
    /// Read no more bytes a second; the device / is the disk with the sandbox's files: /:10mb
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = DeviceRate::bytes)]
    pub device_read_bps: Vec<DeviceRate>,
    /// Write no more bytes a second
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = DeviceRate::bytes)]
    pub device_write_bps: Vec<DeviceRate>,
    /// Read no more often a second: /:100
    #[arg(long, value_name = "DEVICE:NUMBER", value_parser = DeviceRate::operations)]
    pub device_read_iops: Vec<DeviceRate>,
    /// Write no more often a second
    #[arg(long, value_name = "DEVICE:NUMBER", value_parser = DeviceRate::operations)]
    pub device_write_iops: Vec<DeviceRate>,
    /// Hostname; the start of the id otherwise
    // No `-h` for the help in this command: with Docker it is the hostname.
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// The signal that `brig stop` sends
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<Signal>,
    /// Seconds until `brig stop` sends SIGKILL: 10; -1 waits for ever
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1..))]
    pub stop_timeout: Option<i32>,
    /// Start it again when its process has ended: no, on-failure[:NUMBER], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub restart: RestartPolicy,
    #[command(flatten)]
    pub wishes: Wishes,
    /// Set a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Read labels from a file, one a line
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Write the sandbox's id to this file, which must not be there
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Pull the image from its registry first
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub pull: PullPolicy,
    /// No progress while the image is pulled
    #[arg(short, long)]
    pub quiet: bool,
    /// The platform that the image is for: linux/amd64, the only one that brig runs
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    /// Refuse an image whose layers have more bytes than this, or that is larger when it is unpacked
    #[arg(long, value_name = "BYTES", default_value_t)]
    pub max_image_size: MaxImageSize,
    /// Boot the guest, now and at each later start, template or not
    #[arg(long)]
    pub no_template: bool,
    /// Go on from a snapshot: image, command and size of the guest are the saved sandbox's
    #[arg(long, value_name = "NAME", conflicts_with_all = ["isolation", "pids_limit", "env", "env_file", "tty", "publish_all", "expose", "health_cmd",
          "health_interval", "health_timeout", "health_start_period", "health_start_interval", "health_retries", "no_healthcheck",
          "workdir", "user",
          "entrypoint", "memory", "cpus", "device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops",
          "no_template", "words", "volume", "mount", "init", "read_only", "tmpfs", "shm_size", "ulimit", "cap_add", "cap_drop", "security_opt", "privileged",
          "group_add", "add_host", "dns", "dns_search", "dns_option", "memory_swap", "cpu_shares", "oom_kill_disable", "storage_opt",
          "sysctl", "device"])]
    pub snapshot: Option<String>,
    /// The image (a name, or the start of an id), then the command and its arguments; the image's otherwise
    // One argument for both: clap would take an option of brig's that is the command's first word for brig's.
    #[arg(
        required_unless_present = "snapshot",
        trailing_var_arg = true,
        value_name = "IMAGE [COMMAND]"
    )]
    words: Vec<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
}

impl Create {
    /// The image as the user wrote it.
    pub fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The command and its arguments; empty for the image's own.
    pub fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// `--pids-limit`: as with Docker 0 and -1 stand for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PidsLimit(pub Option<u64>);

fn parse_pids(text: &str) -> Result<PidsLimit, String> {
    match text.parse::<i64>() {
        Ok(-1 | 0) => Ok(PidsLimit(None)),
        Ok(limit) if limit > 0 => Ok(PidsLimit(u64::try_from(limit).ok())),
        _ => Err("write a number, or -1 for no limit".to_owned()),
    }
}

/// The ports of one `-p`.
#[derive(Clone, Debug)]
pub struct Ports(pub Vec<PublishedPort>);

/// The ports of one `--expose`.
#[derive(Clone, Debug)]
pub struct Exposed(pub Vec<ExposedPort>);

fn parse_exposed(text: &str) -> Result<Exposed, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let one = |port: &str| format!("{port}/{protocol}").parse::<ExposedPort>();
    match (one(first), one(last)) {
        (Ok(first), Ok(last)) if first.port <= last.port => {
            let port = |port| ExposedPort { port, ..first };
            Ok(Exposed((first.port..=last.port).map(port).collect()))
        }
        _ => Err("write it as 80, 8000-8010 or 53/udp".to_owned()),
    }
}

fn parse_ports(text: &str) -> Result<Ports, port::PortError> {
    port::parse(text).map(Ports)
}

const PS_EXAMPLES: &str = "\
Filters: id, name (a part, ^ and $ for its ends), label=NAME[=VALUE], exited=CODE, status=created|running|paused|restarting|exited, ancestor=IMAGE, publish=PORT,
expose=PORT, volume=NAME|PATH, health=starting|healthy|unhealthy|none, isolation=vm|container, before=SANDBOX, since=SANDBOX. Several of
one kind are alternatives, but labels.
A format is `table`, `json`, or a template of .ID .Image .Command .CreatedAt .RunningFor .Status .State .Isolation .Ports .Names .Size
.Mounts .LocalVolumes .Networks .Labels and {{.Label \"NAME\"}}, with `table ` before it for a heading.

Examples:
  brig ps -a --filter status=exited --filter ancestor=nginx
  brig ps --format 'table {{.Names}}\\t{{.Status}}'
  brig rm $(brig ps -aq --filter exited=0)";

const LOGS_EXAMPLES: &str = "\
A time is an age (10m, 1h30m), a date, a time with its zone, or seconds since 1970.

Examples:
  brig logs -f --tail 20 web
  brig logs -t --since 10m --until 2026-01-31T12:00:00Z web";

const COMPLETION_EXAMPLES: &str = "\
Examples:
  source <(brig completion bash)
  brig completion zsh >~/.zfunc/_brig
  brig completion fish >~/.config/fish/completions/brig.fish";

/// Options of `completion`.
#[derive(Debug, Args)]
pub struct Completion {
    /// The shell
    pub shell: Shell,
}

/// The shells that commands are completed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

impl From<Shell> for clap_complete::Shell {
    fn from(shell: Shell) -> Self {
        match shell {
            Shell::Bash => Self::Bash,
            Shell::Zsh => Self::Zsh,
            Shell::Fish => Self::Fish,
        }
    }
}

/// Options of `manual`.
#[derive(Debug, Args)]
pub struct Manual {
    /// Where they are written to
    pub directory: PathBuf,
}

/// Options of `rename`.
#[derive(Debug, Args)]
pub struct Rename {
    /// Id, name, or the start of an id
    pub sandbox: String,
    /// The new name
    pub name: String,
}

/// Options of `restart`.
#[derive(Debug, Args)]
pub struct Restart {
    /// Seconds until SIGKILL; -1 waits for ever; what the sandbox was made with otherwise, or 10
    #[arg(short, long, alias = "timeout", allow_negative_numbers = true, value_name = "SECONDS",
          value_parser = clap::value_parser!(i32).range(-1..))]
    pub time: Option<i32>,
    /// Signal to send in the place of the sandbox's own
    #[arg(short, long)]
    pub signal: Option<Signal>,
    #[command(flatten)]
    pub sandboxes: Sandboxes,
}

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Only those that this is true of
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// How to print them
    #[arg(long, value_name = "FORMAT", conflicts_with = "quiet")]
    pub format: Option<String>,
    /// Only so many that were made last, running or not
    #[arg(short = 'n', long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub last: Option<i64>,
    /// Only the one that was made last, running or not
    #[arg(short, long)]
    pub latest: bool,
    /// Show what they take from the disk
    #[arg(short, long)]
    pub size: bool,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Show ids and commands whole
    #[arg(long)]
    pub no_trunc: bool,
}

/// Options of `stop`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds until SIGKILL; -1 waits for ever; what the sandbox was made with otherwise, or 10
    #[arg(short, long, alias = "timeout", allow_negative_numbers = true, value_name = "SECONDS",
          value_parser = clap::value_parser!(i32).range(-1..))]
    pub time: Option<i32>,
    /// Signal to send in the place of the sandbox's own
    #[arg(short, long)]
    pub signal: Option<Signal>,
    /// Stop all, because the host goes down: `brig start --restart-policy` starts them again after the next boot
    #[arg(long, conflicts_with_all = ["time", "signal", "sandboxes"])]
    pub shutdown: bool,
    /// Ids, names, or starts of ids
    #[arg(required_unless_present = "shutdown", value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Options of `update`.
#[derive(Debug, Args)]
pub struct Update {
    /// What happens when its process has ended: no, on-failure[:NUMBER], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<RestartPolicy>,
    /// Memory of the guest; the most that a container may use
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<MemoryMib>,
    /// Memory and swap together, -1 for no limit (container isolation)
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<Swap>,
    /// Number of CPUs: 1, 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<Cpus>,
    /// Share of CPU time where others want some (container isolation)
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    pub cpu_shares: Option<u64>,
    /// Most processes and threads, -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = parse_pids)]
    pub pids_limit: Option<PidsLimit>,
    #[command(flatten)]
    pub sandboxes: Sandboxes,
}

/// Options of `start`.
#[derive(Debug, Args)]
pub struct Start {
    /// Show what the sandbox writes, forward signals, and exit with its code
    #[arg(short, long)]
    pub attach: bool,
    /// Pass standard input on, if the sandbox was made with it
    #[arg(short, long)]
    pub interactive: bool,
    /// The keys that leave the sandbox running: ctrl-p,ctrl-q otherwise
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<DetachKeys>,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Boot the guests this time, template or not
    #[arg(long)]
    pub no_template: bool,
    /// Start what is to run after a boot of the host, by what the restart policies say
    #[arg(long, conflicts_with_all = ["attach", "interactive", "sandboxes"])]
    pub restart_policy: bool,
    /// Ids, names, or starts of ids
    #[arg(required_unless_present = "restart_policy", value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

impl Start {
    /// What `brig start SANDBOX` means.
    pub fn of(sandbox: &str) -> Option<Self> {
        match Arguments::try_parse_from(["brig", "start", "--", sandbox])
            .ok()?
            .command
        {
            Command::Start(start) => Some(start),
            _ => None,
        }
    }
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Run in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; without a value the one that brig itself has
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// User and group: NAME, UID, NAME:GROUP, UID:GID; the sandbox's otherwise
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Working directory; the sandbox's otherwise
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Give the command every capability
    #[arg(long)]
    pub privileged: bool,
    /// Print where the time went
    #[arg(long)]
    pub timing: bool,
    /// The keys that leave the command running: ctrl-p,ctrl-q otherwise
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<DetachKeys>,
    /// The sandbox, then the command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "SANDBOX COMMAND")]
    pub words: Vec<String>,
}

/// Options of `attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// Do not pass standard input on
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// The keys that leave the sandbox running: ctrl-p,ctrl-q otherwise
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<DetachKeys>,
    /// Id, name, or the start of an id
    pub sandbox: String,
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on until the sandbox ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many of the last lines
    #[arg(short = 'n', long, default_value = "all", value_name = "LINES", value_parser = parse_tail,
          allow_negative_numbers = true)]
    pub tail: Tail,
    /// Show when each line was written
    #[arg(short, long)]
    pub timestamps: bool,
    /// Show what `--log-opt` adds to lines: brig has no such option, so that changes nothing
    #[arg(long)]
    pub details: bool,
    /// Only what was written at this time or later
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only what was written at this time or earlier
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Id, name, or the start of an id
    pub sandbox: String,
}

/// How many of the last lines are wanted; `None` for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail(pub Option<usize>);

/// As Docker: a negative number means all lines.
fn parse_tail(text: &str) -> Result<Tail, String> {
    match text.parse::<i64>() {
        _ if text == "all" => Ok(Tail(None)),
        Ok(count) => Ok(Tail(usize::try_from(count).ok())),
        Err(_) => Err("write a number of lines, or all".to_owned()),
    }
}

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// Kill those that run
    #[arg(short, long)]
    pub force: bool,
    /// Remove their volumes that have no name
    #[arg(short, long)]
    pub volumes: bool,
    #[command(flatten)]
    pub sandboxes: Sandboxes,
}

/// Options of `kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    pub signal: String,
    #[command(flatten)]
    pub sandboxes: Sandboxes,
}

/// Sandboxes to do something with.
#[derive(Debug, Args)]
pub struct Sandboxes {
    /// Ids, names, or starts of ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Options of `info`.
#[derive(Debug, Args)]
pub struct Info {
    /// How to print it: json, or a template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Options of `version`.
#[derive(Debug, Args)]
pub struct Version {
    /// How to print it: json, or a template of .Client.Version, .Client.Os and .Client.Arch; the same of .Server
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Options of `help`.
#[derive(Debug, Args)]
pub struct Help {
    /// The command
    #[arg(value_name = "COMMAND")]
    pub words: Vec<String>,
}

/// What `inspect` describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InspectKind {
    /// Sandboxes, in Docker's word.
    Container,
    /// Images.
    Image,
    /// Volumes.
    Volume,
}

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Sandboxes, else images, else volumes: ids, names, or starts of ids
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Only what is such
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<InspectKind>,
    /// Also what a sandbox takes from the disk
    #[arg(short, long)]
    pub size: bool,
    /// Show instead what walls the hypervisor of a running sandbox off: users, namespaces, capabilities, filters of system
    /// calls, limits, all of it read from the kernel
    #[arg(long, conflicts_with_all = ["kind", "size"])]
    pub security: bool,
    /// How to print them: json, or a template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  brig inspect web
  brig inspect --format '{{.State.Status}} {{.Config.Image}}' web
  brig inspect -f '{{range $port, $host := .NetworkSettings.Ports}}{{$port}} {{(index $host 0).HostPort}}{{end}}' web
  brig inspect --type image welcome
  brig inspect --security web";

/// Options of `port`.
#[derive(Debug, Args)]
pub struct Port {
    /// Id, name, or the start of an id
    pub sandbox: String,
    /// Only this port of the sandbox: 80, 80/tcp
    pub port: Option<String>,
}

/// About the host.
#[derive(Debug, Subcommand)]
pub enum System {
    /// Show what this host can do, and where brig's files are
    Info(Info),
    /// Show what happens to sandboxes, as it happens
    #[command(after_help = EVENTS_EXAMPLES)]
    Events(Events),
    /// Show what brig takes from the disk
    Df(SystemDf),
    /// Remove what is not needed: stopped sandboxes, images, what killed processes left
    #[command(after_help = SYSTEM_PRUNE_EXAMPLES)]
    Prune(SystemPrune),
    /// Compare every file of the image store with its digest
    Check,
}

const SYSTEM_PRUNE_EXAMPLES: &str = "\
Examples:
  brig system prune
  brig system prune -af";

/// Options of `system df`.
#[derive(Debug, Args)]
pub struct SystemDf {
    /// Each image, sandbox, template and snapshot
    #[arg(short, long, conflicts_with = "format")]
    pub verbose: bool,
    /// `table`, `json`, or a template of .Type .TotalCount .Active .Size .Reclaimable
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Options of `system prune`.
#[derive(Debug, Args)]
pub struct SystemPrune {
    /// All images that nothing uses, not only those without a name, and all templates
    #[arg(short, long)]
    pub all: bool,
    /// Volumes without a name that no sandbox has, too
    #[arg(long)]
    pub volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only sandboxes and images that this is true of: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "volumes")]
    pub filter: Vec<String>,
}

/// Prints what is wrong with the arguments (or the help that they ask for) and ends the process as Docker does.
pub fn exit(error: &clap::Error) -> ! {
    match error.kind() {
        // The help is also shown to whoever names no command, which is no failure of `docker` either.
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingSubcommand => {
            let _ = error.print();
            process::exit(0)
        }
        _ => {
            eprintln!("brig: {}", one_line(error, std::env::args().skip(1)));
            process::exit(exit_code(error))
        }
    }
}

/// Docker's code of what is wrong with an option, and of what is wrong with the other words.
fn exit_code(error: &clap::Error) -> i32 {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if word.starts_with('-') => CODE_BRIG,
        _ => CODE_COMMAND,
    }
}

/// clap's message without its headline's `error: ` and its usage block.
fn one_line(error: &clap::Error, words: impl IntoIterator<Item = String>) -> String {
    let command = command_of(words);
    if let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg)
        && error.kind() == ErrorKind::UnknownArgument
        && let Some(why) = unsupported::reason(&command, option)
    {
        return format!("{option} cannot be honoured: {why}");
    }
    if let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand)
        && command == "brig"
        && let Some(why) = unsupported::command(name)
    {
        return format!("there is no command {name}: {why}");
    }
    let text = error.render().to_string();
    let message: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let message = message.join(" ").replace(" tip: ", "; ");
    // Nobody who has mistyped an option means it as the image or as a name.
    let message = match message.find("; to pass '") {
        Some(at) => message[..at].to_owned(),
        None => message,
    };
    format!(
        "{} (see {} --help)",
        message.strip_prefix("error: ").unwrap_or(&message),
        command
    )
}

/// The command that `words` begin with.
fn command_of(words: impl IntoIterator<Item = String>) -> String {
    let all = Arguments::command();
    let mut command = &all;
    let mut path = all.get_name().to_owned();
    for word in words {
        let Some(next) = command.find_subcommand(&word) else {
            break;
        };
        path.extend([" ", next.get_name()]);
        command = next;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Result<Run, clap::Error> {
        let words = ["brig", "run"].iter().chain(words);
        Arguments::try_parse_from(words).map(|arguments| match arguments.command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_command_that_is_tried_alone_is_understood_as_among_all() {
        for line in [
            "run img",
            "run --rm -it -p 8080:80 -e A=b --name web --memory 64m img sh -c 'x --help' --rm",
            "run -d --isolation container --timing img",
            "run --timing=full img --help",
            "run img --version -h",
            "run -h host img",
            "run --help",
            "run --version",
            "run",
            "run --no-such-option img",
            "run -p nonsense img",
            "run --cpus x img",
            "run -- img --rm",
            "exec web ls",
            "exec -it -e A=b -w /tmp web sh -c x --help",
            "exec web --help",
            "exec --help",
            "exec -h",
            "exec web",
            "exec",
            "exec --user 1 web -- id -u",
        ] {
            let words: Vec<OsString> = ["brig"]
                .into_iter()
                .chain(line.split(' '))
                .map(Into::into)
                .collect();
            let show = |result: Result<Arguments, clap::Error>| match result {
                Ok(arguments) => format!("{arguments:?}"),
                Err(e) => e.to_string(),
            };
            assert_eq!(
                show(Arguments::of(words.clone())),
                show(Arguments::try_parse_from(words)),
                "{line}"
            );
        }
    }

    #[test]
    fn flags_take_docker_values() {
        let of = |line: &str| {
            let words = ["brig"].into_iter().chain(line.split(' ')).map(Into::into);
            Arguments::of(words.collect())
        };
        let run = |line: &str| match of(line).unwrap().command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        };
        let read = run("run --rm=true --init=false -d=1 -it=0 -e A=true --tty=false img --rm=false x=true");
        assert!(
            read.create.rm
                && read.detach
                && read.create.interactive
                && !read.create.wishes.init
                && !read.create.tty
        );
        assert_eq!(read.create.env, ["A=true"]);
        assert_eq!(read.create.command(), ["--rm=false", "x=true"]);
        assert!(run("container run --rm=true img").create.rm);
        for wrong in [
            "run --rm=yes img",
            "run --rm= img",
            "ps --all=2",
            "run --pull=true img",
            "run -d=2 img",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn long_forms_are_the_short_ones_and_help_is_of_a_command() {
        let of = |line: &str| {
            let words = ["brig"].into_iter().chain(line.split(' ')).map(Into::into);
            Arguments::of(words.collect())
        };
        let shown = |line: &str| format!("{:?}", of(line).unwrap().command);
        for (long, short) in [
            ("container ls -aq", "ps -aq"),
            ("container list", "ps"),
            ("container ps -n 2", "ps -n 2"),
            ("container rm -f a b", "rm -f a b"),
            ("container remove a", "rm a"),
            ("container exec -it web sh -c x", "exec -it web sh -c x"),
            ("container run --rm img true --help", "run --rm img true --help"),
            ("container inspect a", "inspect --type container a"),
            ("container logs -n 3 web", "logs -n 3 web"),
        ] {
            assert_eq!(shown(long), shown(short), "{long}");
        }
        for line in ["help run", "help container prune", "help"] {
            assert_eq!(of(line).unwrap_err().kind(), ErrorKind::DisplayHelp, "{line}");
        }
        assert!(shown("help pull").contains("--help"));
        assert_eq!(of("help nope").unwrap_err().kind(), ErrorKind::InvalidSubcommand);
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_command() {
        let run = run(&["--rm", "-i", "img", "sh", "-c", "echo -n x", "--rm", "-p"]).unwrap();
        assert_eq!(run.create.image(), "img");
        assert_eq!(run.create.command(), ["sh", "-c", "echo -n x", "--rm", "-p"]);
    }

    #[test]
    fn options_right_after_the_image_belong_to_the_command() {
        for option in [
            "--help",
            "-h",
            "--version",
            "-d",
            "--rm",
            "--name=x",
            "--nope",
            "--",
            "-",
        ] {
            let run = run(&["img", option, "--help"]).unwrap();
            assert_eq!(
                (run.create.image(), run.create.command()),
                ("img", &[option.to_owned(), "--help".to_owned()][..])
            );
            assert!(
                !run.detach && !run.create.rm && run.create.name.is_none(),
                "{option}"
            );
        }
        let help = run(&["--help", "img"]).unwrap_err();
        assert_eq!(help.kind(), ErrorKind::DisplayHelp);
        assert!(
            help.to_string()
                .contains("Usage: brig run [OPTIONS] IMAGE [COMMAND]"),
            "{help}"
        );
    }

    #[test]
    fn create_takes_what_run_takes_but_what_is_of_a_start() {
        let create = |words: &[&str]| {
            let words = ["brig", "create"].iter().chain(words);
            Arguments::try_parse_from(words).map(|arguments| match arguments.command {
                Command::Create(create) => *create,
                other => panic!("{other:?}"),
            })
        };
        let made = create(&[
            "-it",
            "--rm",
            "-p",
            "80",
            "--pull",
            "always",
            "--max-image-size",
            "1m",
            "-h",
            "box",
            "img",
            "sh",
            "-d",
        ]);
        let made = made.unwrap();
        assert_eq!(
            (made.image(), made.command()),
            ("img", &["sh".to_owned(), "-d".to_owned()][..])
        );
        assert!(made.interactive && made.tty && made.rm);
        assert_eq!(
            (made.pull, made.max_image_size.bytes()),
            (PullPolicy::Always, 1 << 20)
        );
        assert_eq!(
            create(&["--snapshot", "warm"]).unwrap().snapshot.as_deref(),
            Some("warm")
        );
        for option in ["-d", "--detach-keys=a", "--sig-proxy", "--timing"] {
            let error = create(&[option, "img"]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownArgument, "{option}");
        }
        let help = create(&["--help"]).unwrap_err().to_string();
        assert!(
            help.contains("Usage: brig create [OPTIONS] IMAGE [COMMAND]"),
            "{help}"
        );
    }

    #[test]
    fn a_snapshot_takes_the_place_of_the_image() {
        let from = run(&["-d", "-p", "80", "--snapshot", "warm"]).unwrap();
        assert_eq!(
            (from.create.snapshot.as_deref(), from.create.image()),
            (Some("warm"), "")
        );
        assert!(run(&["--snapshot", "warm", "img"]).is_err());
        assert!(run(&["--snapshot", "warm", "-m", "1g"]).is_err());
        assert!(run(&["-d"]).is_err());
    }

    #[test]
    fn short_options_can_be_joined_and_repeated() {
        let run = run(&["-di", "-p", "80", "-p8080:80", "-eA=1", "-h", "box", "img"]).unwrap();
        assert!(run.detach && run.create.interactive);
        assert_eq!(run.create.publish.len(), 2);
        assert_eq!(
            (run.create.env.as_slice(), run.create.hostname.as_deref()),
            (&["A=1".to_owned()][..], Some("box"))
        );
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for words in [
            &["-p", "x", "img"][..],
            &["-m", "1m", "img"],
            &["--nope", "img"],
            &[],
        ] {
            let all = ["run"].iter().chain(words).map(ToString::to_string);
            let line = one_line(&run(words).unwrap_err(), all);
            assert!(!line.contains('\n') && !line.starts_with("error"), "{line}");
            assert!(line.ends_with("(see brig run --help)"), "{line}");
        }
        for (option, why) in [
            ("--gpus", "device"),
            ("--volumes-from=x", "-v NAME:PATH"),
            ("-a", "redirect"),
        ] {
            let words = ["run", option, "x", "img"].map(String::from);
            let line = one_line(&run(&[option, "x", "img"]).unwrap_err(), words);
            let name = option.split('=').next().unwrap();
            assert!(
                line.starts_with(&format!("{name} cannot be honoured: ")),
                "{line}"
            );
            assert!(line.contains(why), "{line}");
        }
        let wrong = run(&["--network", "host", "img"]).unwrap_err();
        let line = one_line(&wrong, ["run".to_owned()]);
        assert!(line.contains("no network") && !line.contains('\n'), "{line}");
        assert!(run(&["--net=none", "img"]).is_ok());
        let line = one_line(&run(&["-m", "1m", "img"]).unwrap_err(), []);
        assert!(line.contains("too little"), "{line}");
        for name in ["build", "network", "compose"] {
            let wrong = Arguments::try_parse_from(["brig", name, "ls"]).unwrap_err();
            let line = one_line(&wrong, [name.to_owned()]);
            assert!(
                line.starts_with(&format!("there is no command {name}: ")),
                "{line}"
            );
        }
        let words = ["image", "rmm"].map(String::from);
        let wrong = Arguments::try_parse_from(["brig", "image", "rmm"]).unwrap_err();
        let line = one_line(&wrong, words);
        assert!(line.ends_with("'rm' (see brig image --help)"), "{line}");
    }

    #[test]
    fn exit_codes_tell_options_from_other_words() {
        for (code, words) in [
            (125, &["run", "--no-such-option", "img"][..]),
            (125, &["run", "-m", "img"]),
            (125, &["run", "-m", "little", "img"]),
            (125, &["stop", "-t", "soon", "x"]),
            (1, &["run"]),
            (1, &["start"]),
            (1, &["rename", "a", "b", "c"]),
            (1, &["tag", "a", "UPPER"]),
            (1, &["runn"]),
        ] {
            let wrong = Arguments::try_parse_from(["brig"].iter().chain(words)).unwrap_err();
            assert_eq!(exit_code(&wrong), code, "{words:?}: {wrong}");
        }
    }

    #[test]
    fn a_tail_is_a_number_or_all() {
        assert_eq!(parse_tail("all"), Ok(Tail(None)));
        assert_eq!(parse_tail("-1"), Ok(Tail(None)));
        assert_eq!(parse_tail("0"), Ok(Tail(Some(0))));
        assert!(parse_tail("x").is_err());
    }
}
