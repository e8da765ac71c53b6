//! Commands that watch sandboxes: what happens to them, what they take, what runs in them.

use clap::Args;

/// Examples of `events`.
pub const EVENTS_EXAMPLES: &str = "\
A time is an age (10m, 1h30m), a date, a time with its zone, or seconds since 1970. An end that is not in the future ends the
command at once; without one it goes on.
Filters: container=SANDBOX, event=ACTION, image=IMAGE, isolation=vm|container, label=NAME[=VALUE], type=container|image|volume,
volume=NAME. Several of one kind are alternatives, but labels.
A format is `json`, or a template of .Type .Action .Status .ID .From .Actor.ID .Actor.Attributes.NAME .Scope .Time .TimeNano.

Examples:
  brig events
  brig events --since 10m --until 0s --filter event=die
  brig events --filter container=web --format '{{.Time}} {{.Action}}'";

/// Options of `events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Also what has happened since this time
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only what happens until this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only what this is true of
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// How to print it
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Examples of `stats`.
pub const STATS_EXAMPLES: &str = "\
Of a sandbox with a guest the figures are its hypervisor's, as the host sees it: the guest's memory is part of it, and what a guest does not
tell (its network) is shown as --. Of a container they are those of its processes.
A format is `table`, `json`, or a template of .ID .Container .Name .Isolation .CPUPerc .MemUsage .MemPerc .NetIO .BlockIO .PIDs.

Examples:
  brig stats
  brig stats --no-stream web db
  brig stats --no-stream --format 'table {{.Name}}\\t{{.MemUsage}}'";

/// Options of `stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Show it once, and not again and again
    #[arg(long)]
    pub no_stream: bool,
    /// Show ids whole
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print it
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Ids, names, or starts of ids; all that run otherwise
    #[arg(value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Examples of `top`.
pub const TOP_EXAMPLES: &str = "\
Pids and users are those that the processes have in the sandbox. Options are some of ps(1): -e, -f, aux, and -o or -eo with a list of pid, ppid,
user, uid, pcpu, stat, tty, stime, etime, time, vsz, rss, nlwp, comm, args.

Examples:
  brig top web
  brig top web aux
  brig top web -o pid,rss,comm";

/// Options of `top`.
#[derive(Debug, Args)]
pub struct Top {
    /// The sandbox (its id, its name, or the start of its id), then options as for ps(1)
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "SANDBOX [OPTION]"
    )]
    pub words: Vec<String>,
}

/// Examples of `pause` and `unpause`.
pub const PAUSE_EXAMPLES: &str = "\
A sandbox that stands still takes no CPU time and keeps its memory and its ports. stop and kill let it go on; exec waits for unpause.

Examples:
  brig pause web
  brig unpause web";
