//! The command line: Docker's words where there are such.

mod saved;

use std::{path::PathBuf, process};

use brig_engine::{
    error::CODE_BRIG,
    port::{self, PublishedPort},
    resources::{Cpus, MemoryMib},
    signal::Signal,
};
use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};

pub use self::saved::*;
use self::saved::{FORK_EXAMPLES, SNAPSHOT_EXAMPLES, TEMPLATE_EXAMPLES};

/// Run an untrusted image in a microVM of its own
#[derive(Debug, Parser)]
#[command(name = "brig", version, disable_help_subcommand = true, after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  brig run -d -p 8080:80 --name web welcome    start the image that ships with brig
  brig ps                                      what runs
  brig logs -f web                             what it writes
  brig stop web && brig rm web                 end it
  brig load -i image.tar                       take in an image from `docker save`

Files are in $BRIG_ROOT (/var/lib/brig for root, ~/.local/share/brig for others).";

/// How much `--timing` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TimingDetail {
    /// When each stage was reached.
    Stages,
    /// And what the guest had cost then: VM exits, page faults, emulated instructions.
    Full,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a sandbox of an image and start it
    #[command(after_help = RUN_EXAMPLES, disable_help_flag = true,
              override_usage = "brig run [OPTIONS] IMAGE [COMMAND] [ARGUMENT]...")]
    Run(Box<Run>),
    /// List sandboxes
    Ps(Ps),
    /// Stop sandboxes: send the stop signal, and SIGKILL when that is not enough
    Stop(Stop),
    /// Start stopped sandboxes
    Start(Start),
    /// Show what a sandbox has written
    Logs(Logs),
    /// Remove sandboxes and their files
    Rm(Rm),
    /// Wait for the end of sandboxes and print their exit codes
    Wait(Sandboxes),
    /// Send a signal to running sandboxes
    Kill(Kill),
    /// Show everything about sandboxes, as JSON
    Inspect(Sandboxes),
    /// List the published ports of a sandbox
    Port(Port),
    /// List images
    Images(Images),
    /// Load images from an archive: `docker save`, or an OCI layout
    Load(Load),
    /// Save running sandboxes, and manage what was saved
    #[command(subcommand, after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(Snapshot),
    /// Start copies of a running sandbox, which goes on
    #[command(after_help = FORK_EXAMPLES)]
    Fork(Fork),
    /// Guests that are ready to start from: made when they are needed first
    #[command(subcommand, after_help = TEMPLATE_EXAMPLES)]
    Template(Template),
    /// About this host and this brig
    #[command(subcommand)]
    System(System),
    /// Show the version
    Version,
}

const RUN_EXAMPLES: &str = "\
Exit codes are Docker's: 125 when brig itself fails, 126 when the command cannot be executed, 127 when it is not
there, otherwise the command's own.

Examples:
  brig run --rm busybox uname -a
  brig run -d -p 127.0.0.1:8080:80 --name web welcome
  echo hello | brig run --rm -i busybox wc -c
  brig run --rm -m 1g --cpus 2 -e DEBUG=1 -u 1000:1000 IMAGE COMMAND";

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Run in the background and print the sandbox's id
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the sandbox when its process ends
    #[arg(long)]
    pub rm: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Publish a TCP port: 8080:80, 127.0.0.1:8080:80, 80 (a free port), 8080-8082:80-82
    #[arg(short, long, value_name = "[[IP:]PORT:]PORT", value_parser = parse_ports)]
    pub publish: Vec<Ports>,
    /// Name of the sandbox; a random one otherwise
    #[arg(long)]
    pub name: Option<String>,
    /// Set an environment variable; without a value the one that brig itself has
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// User and group: NAME, UID, NAME:GROUP, UID:GID
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Run this program in the place of the image's
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Memory of the guest: 512m (the default), 1g
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<MemoryMib>,
    /// Number of CPUs: 1 (the default), 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<Cpus>,
    /// Hostname; the start of the id otherwise
    // No `-h` for the help in this command: with Docker it is the hostname.
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// The signal that `brig stop` sends
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<Signal>,
    /// Set a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Boot the guest, now and at each later start, template or not
    #[arg(long)]
    pub no_template: bool,
    /// Go on from a snapshot: image, command and size of the guest are the saved sandbox's
    #[arg(long, value_name = "NAME", conflicts_with_all = ["env", "workdir", "user", "entrypoint", "memory", "cpus",
          "no_template", "words"])]
    pub snapshot: Option<String>,
    /// Print where the time went; `full`: and what the guest cost until then
    #[arg(long, value_name = "full", num_args = 0..=1, require_equals = true, default_missing_value = "stages")]
    pub timing: Option<TimingDetail>,
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

impl Run {
    /// The image as the user wrote it.
    pub fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The command and its arguments; empty for the image's own.
    pub fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// The ports of one `-p`.
#[derive(Clone, Debug)]
pub struct Ports(pub Vec<PublishedPort>);

fn parse_ports(text: &str) -> Result<Ports, port::PortError> {
    port::parse(text).map(Ports)
}

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
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
    /// Seconds until SIGKILL; -1 waits for ever
    #[arg(short, long, alias = "timeout", default_value_t = 10, allow_negative_numbers = true, value_name = "SECONDS",
          value_parser = clap::value_parser!(i32).range(-1..))]
    pub time: i32,
    /// Signal to send in the place of the sandbox's own
    #[arg(short, long)]
    pub signal: Option<Signal>,
    #[command(flatten)]
    pub sandboxes: Sandboxes,
}

/// Options of `start`.
#[derive(Debug, Args)]
pub struct Start {
    /// Show what the sandbox writes, forward signals, and exit with its code
    #[arg(short, long)]
    pub attach: bool,
    /// Boot the guests this time, template or not
    #[arg(long)]
    pub no_template: bool,
    #[command(flatten)]
    pub sandboxes: Sandboxes,
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

/// Options of `port`.
#[derive(Debug, Args)]
pub struct Port {
    /// Id, name, or the start of an id
    pub sandbox: String,
    /// Only this port of the sandbox: 80, 80/tcp
    pub port: Option<String>,
}

/// Options of `images`.
#[derive(Debug, Args)]
pub struct Images {
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Show ids whole
    #[arg(long)]
    pub no_trunc: bool,
}

/// Options of `load`.
#[derive(Debug, Args)]
pub struct Load {
    /// The archive, or a directory with an OCI layout; standard input otherwise
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// About the host.
#[derive(Debug, Subcommand)]
pub enum System {
    /// Show what this host can do, and where brig's files are
    Info,
}

/// Prints what is wrong with the arguments (or the help that they ask for) and ends the process as Docker does.
pub fn exit(error: &clap::Error) -> ! {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            process::exit(0)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            let _ = error.print();
            process::exit(CODE_BRIG)
        }
        _ => {
            eprintln!("brig: {}", one_line(error));
            process::exit(CODE_BRIG)
        }
    }
}

/// clap's message without its headline's `error: ` and its usage block.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let message: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let message = message.join(" ");
    format!(
        "{} (see brig --help)",
        message.strip_prefix("error: ").unwrap_or(&message)
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run(words: &[&str]) -> Result<Run, clap::Error> {
        let words = ["brig", "run"].iter().chain(words);
        Arguments::try_parse_from(words).map(|arguments| match arguments.command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_command() {
        let run = run(&["--rm", "-i", "img", "sh", "-c", "echo -n x", "--rm", "-p"]).unwrap();
        assert_eq!(run.image(), "img");
        assert_eq!(run.command(), ["sh", "-c", "echo -n x", "--rm", "-p"]);
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
                (run.image(), run.command()),
                ("img", &[option.to_owned(), "--help".to_owned()][..])
            );
            assert!(!run.detach && !run.rm && run.name.is_none(), "{option}");
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
    fn a_snapshot_takes_the_place_of_the_image() {
        let from = run(&["-d", "-p", "80", "--snapshot", "warm"]).unwrap();
        assert_eq!((from.snapshot.as_deref(), from.image()), (Some("warm"), ""));
        assert!(run(&["--snapshot", "warm", "img"]).is_err());
        assert!(run(&["--snapshot", "warm", "-m", "1g"]).is_err());
        assert!(run(&["-d"]).is_err());
    }

    #[test]
    fn short_options_can_be_joined_and_repeated() {
        let run = run(&["-di", "-p", "80", "-p8080:80", "-eA=1", "-h", "box", "img"]).unwrap();
        assert!(run.detach && run.interactive);
        assert_eq!(run.publish.len(), 2);
        assert_eq!(
            (run.env.as_slice(), run.hostname.as_deref()),
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
            let line = one_line(&run(words).unwrap_err());
            assert!(!line.contains('\n') && !line.starts_with("error"), "{line}");
        }
        let line = one_line(&run(&["-m", "1m", "img"]).unwrap_err());
        assert!(line.contains("too little"), "{line}");
    }

    #[test]
    fn a_tail_is_a_number_or_all() {
        assert_eq!(parse_tail("all"), Ok(Tail(None)));
        assert_eq!(parse_tail("-1"), Ok(Tail(None)));
        assert_eq!(parse_tail("0"), Ok(Tail(Some(0))));
        assert!(parse_tail("x").is_err());
    }
}
