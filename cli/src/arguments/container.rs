//! `container …`: Docker's longer forms of the commands about sandboxes.

use clap::{Args, Subcommand};

use super::{
    Attach, Command, Commit, Copy, Create, Diff, Exec, Export, Inspect, InspectKind, Kill, Logs, Port, Ps,
    Rename, Restart, Rm, Run, Sandboxes, Start, Stats, Stop, Top, Update,
};

pub(super) const CONTAINER_EXAMPLES: &str = "\
Each but prune has a shorter form: brig ps, brig run, brig logs.

Examples:
  brig container ls -a
  brig container prune --filter until=24h";

pub(super) const PRUNE_EXAMPLES: &str = "\
Filters: until=TIME (an age such as 24h, or a date), label=KEY[=VALUE], label!=KEY[=VALUE].

Examples:
  brig container prune
  brig container prune -f --filter until=24h";

/// Sandboxes.
#[derive(Debug, Subcommand)]
pub enum Container {
    /// Show what a running sandbox writes from now on, and type to it
    Attach(Attach),
    /// Make an image of what a sandbox has changed
    Commit(Commit),
    /// Copy files between this machine and a sandbox, running or not
    Cp(Copy),
    /// Make a sandbox of an image and do not start it
    #[command(
        disable_help_flag = true,
        override_usage = "brig container create [OPTIONS] IMAGE [COMMAND] [ARGUMENT]..."
    )]
    Create(Box<Create>),
    /// List the files that a sandbox has changed
    Diff(Diff),
    /// Run a command in a running sandbox
    #[command(override_usage = "brig container exec [OPTIONS] SANDBOX COMMAND [ARGUMENT]...")]
    Exec(Exec),
    /// Write the files of a sandbox to a tar archive
    Export(Export),
    /// Show everything about sandboxes, as JSON
    Inspect(Inspect),
    /// Send a signal to running sandboxes
    Kill(Kill),
    /// Show what a sandbox has written
    Logs(Logs),
    /// List sandboxes
    #[command(visible_aliases = ["list", "ps"])]
    Ls(Ps),
    /// Let all processes of sandboxes stand still
    Pause(Sandboxes),
    /// List the published ports of a sandbox
    Port(Port),
    /// Remove the sandboxes that do not run
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune(ContainerPrune),
    /// Give a sandbox another name
    Rename(Rename),
    /// Stop sandboxes and start them again
    Restart(Restart),
    /// Remove sandboxes and their files
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Make a sandbox of an image and start it
    #[command(
        disable_help_flag = true,
        override_usage = "brig container run [OPTIONS] IMAGE [COMMAND] [ARGUMENT]..."
    )]
    Run(Box<Run>),
    /// Start stopped sandboxes
    Start(Start),
    /// Show what sandboxes take: CPU, memory, network, disk
    Stats(Stats),
    /// Stop sandboxes: send the stop signal, and SIGKILL when that is not enough
    Stop(Stop),
    /// List the processes of a sandbox
    Top(Top),
    /// Let the processes of paused sandboxes go on
    Unpause(Sandboxes),
    /// Change a sandbox's limits and its restart policy
    Update(Update),
    /// Wait for the end of sandboxes and print their exit codes
    Wait(Sandboxes),
}

/// Options of `container prune`.
#[derive(Debug, Args)]
pub struct ContainerPrune {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only those that this is true of
    #[arg(long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
}

impl Container {
    /// The same command in its short form, where there is one.
    pub fn short(self) -> Command {
        match self {
            Self::Attach(options) => Command::Attach(options),
            Self::Commit(options) => Command::Commit(options),
            Self::Cp(options) => Command::Cp(options),
            Self::Create(options) => Command::Create(options),
            Self::Diff(options) => Command::Diff(options),
            Self::Exec(options) => Command::Exec(options),
            Self::Export(options) => Command::Export(options),
            // The short one looks for images and volumes too.
            Self::Inspect(options) => Command::Inspect(Inspect {
                kind: Some(options.kind.unwrap_or(InspectKind::Container)),
                ..options
            }),
            Self::Kill(options) => Command::Kill(options),
            Self::Logs(options) => Command::Logs(options),
            Self::Ls(options) => Command::Ps(options),
            Self::Pause(options) => Command::Pause(options),
            Self::Port(options) => Command::Port(options),
            Self::Prune(options) => Command::Container(Self::Prune(options)),
            Self::Rename(options) => Command::Rename(options),
            Self::Restart(options) => Command::Restart(options),
            Self::Rm(options) => Command::Rm(options),
            Self::Run(options) => Command::Run(options),
            Self::Start(options) => Command::Start(options),
            Self::Stats(options) => Command::Stats(options),
            Self::Stop(options) => Command::Stop(options),
            Self::Top(options) => Command::Top(options),
            Self::Unpause(options) => Command::Unpause(options),
            Self::Update(options) => Command::Update(options),
            Self::Wait(options) => Command::Wait(options),
        }
    }
}
