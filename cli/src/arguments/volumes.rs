//! The arguments of `volume`.

use clap::{Args, Subcommand};

pub(super) const VOLUME_EXAMPLES: &str = "\
A volume is made by its first use too. Its files are for one isolation, which its first use decides: a disk for guests, a directory for
containers.

Examples:
  brig volume create data
  brig run -d -v data:/var/lib/postgresql/data -e POSTGRES_PASSWORD=secret postgres
  brig volume ls --filter dangling=true
  brig volume rm data";

/// What is to be done with volumes.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume
    Create(VolumeCreate),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeList),
    /// Show everything about volumes, as JSON
    Inspect(VolumeInspect),
    /// Remove volumes that no sandbox has
    #[command(visible_alias = "remove")]
    Rm(VolumeRemove),
    /// Remove the volumes that have no name and that no sandbox has
    Prune(VolumePrune),
}

/// Options of `volume create`.
#[derive(Debug, Args)]
pub struct VolumeCreate {
    /// Set a label
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// The driver: local, the only one
    #[arg(short, long, value_name = "DRIVER", value_parser = ["local"])]
    pub driver: Option<String>,
    /// Its name; a random one otherwise
    pub name: Option<String>,
}

/// Options of `volume ls`.
#[derive(Debug, Args)]
pub struct VolumeList {
    /// Only names
    #[arg(short, long)]
    pub quiet: bool,
    /// Only those that this is true of: dangling=BOOL, name=PART, label=NAME[=VALUE]
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// `table`, `json`, or a template of .Name .Driver .Isolation .Size .Labels .CreatedAt .Mountpoint .Scope .Links
    #[arg(long, value_name = "FORMAT", conflicts_with = "quiet")]
    pub format: Option<String>,
}

/// Options of `volume inspect`.
#[derive(Debug, Args)]
pub struct VolumeInspect {
    /// How to print them: json, or a template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
}

/// Options of `volume rm`.
#[derive(Debug, Args)]
pub struct VolumeRemove {
    /// No error for one that is not there
    #[arg(short, long)]
    pub force: bool,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
}

/// Options of `volume prune`.
#[derive(Debug, Args)]
pub struct VolumePrune {
    /// Those with a name too
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only those that this is true of: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
}
