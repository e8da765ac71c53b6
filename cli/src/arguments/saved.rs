//! The commands about saved guests: `snapshot`, `fork` and `template`.

use std::path::PathBuf;

use brig_engine::resources::{Cpus, MemoryMib};
use clap::{Args, Subcommand, ValueEnum};

pub(super) const SNAPSHOT_EXAMPLES: &str = "\
A snapshot has the sandbox's memory and disk, not its image. Connections to it are not part of it.

Examples:
  brig snapshot create warm-python warm
  brig run --rm -d -p 8080:80 --snapshot warm
  brig snapshot export warm -o warm.tar
  brig snapshot import warm.tar
  brig snapshot rm warm";

/// Snapshots.
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Save a running sandbox; it stands still for a moment and goes on
    Create(SnapshotCreate),
    /// List snapshots
    Ls(SnapshotList),
    /// Remove snapshots; sandboxes that were started from them go on
    Rm(SnapshotNames),
    /// Show everything about snapshots, as JSON
    Inspect(SnapshotNames),
    /// Write a snapshot to a tar archive
    Export(SnapshotExport),
    /// Take a snapshot from an archive. Import only what you would run: see docs/snapshots.md
    Import(SnapshotImport),
}

/// Options of `snapshot create`.
#[derive(Debug, Args)]
pub struct SnapshotCreate {
    /// Id, name, or the start of an id
    pub sandbox: String,
    /// Name of the snapshot
    pub name: String,
}

/// Options of `snapshot ls`.
#[derive(Debug, Args)]
pub struct SnapshotList {
    /// Only names
    #[arg(short, long)]
    pub quiet: bool,
    /// How to print them
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        conflicts_with = "quiet",
        default_value_t
    )]
    pub format: Format,
}

/// Snapshots to do something with.
#[derive(Debug, Args)]
pub struct SnapshotNames {
    /// Names
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Options of `snapshot export`.
#[derive(Debug, Args)]
pub struct SnapshotExport {
    /// Name
    pub name: String,
    /// The archive; standard output otherwise
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `snapshot import`.
#[derive(Debug, Args)]
pub struct SnapshotImport {
    /// The archive; `-` for standard input
    pub file: PathBuf,
    /// Name of the snapshot; the file's without its ending otherwise
    #[arg(long)]
    pub name: Option<String>,
}

pub(super) const FORK_EXAMPLES: &str = "\
The copies share memory with each other until they write to it. They have names, hostnames and ids of their own, and
publish no ports.

Examples:
  brig fork warm-python -n 10
  brig fork --rm db";

/// Options of `fork`.
#[derive(Debug, Args)]
pub struct Fork {
    /// How many copies
    #[arg(short = 'n', long, default_value_t = 1, value_name = "COPIES",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub number: u32,
    /// Remove each copy when its process ends
    #[arg(long)]
    pub rm: bool,
    /// Id, name, or the start of an id
    pub sandbox: String,
}

pub(super) const TEMPLATE_EXAMPLES: &str = "\
A template is a booted guest, saved once for each number of vCPUs and amount of memory; each start is a copy of it.
They take at most $BRIG_TEMPLATE_BYTES together (4 GiB); with BRIG_NO_TEMPLATE=1 guests boot and none is made.

Examples:
  brig template create --cpus 2 --memory 1g
  brig template ls
  brig template rm --all";

/// Templates.
#[derive(Debug, Subcommand)]
pub enum Template {
    /// Make the template of a size of guest, unless there is one, and print its id
    Create(TemplateCreate),
    /// List templates
    Ls(TemplateList),
    /// Remove templates; sandboxes that were started from them go on
    Rm(TemplateRemove),
}

/// Options of `template create`.
#[derive(Debug, Args)]
pub struct TemplateCreate {
    /// Number of CPUs: 1 (the default), 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<Cpus>,
    /// Memory of the guest: 512m (the default), 1g
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<MemoryMib>,
}

/// Options of `template ls`.
#[derive(Debug, Args)]
pub struct TemplateList {
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Show ids whole
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print them
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        conflicts_with = "quiet",
        default_value_t
    )]
    pub format: Format,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON array.
    Json,
}

/// Options of `template rm`.
#[derive(Debug, Args)]
pub struct TemplateRemove {
    /// All of them
    #[arg(long)]
    pub all: bool,
    /// Ids, or starts of ids
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "ID")]
    pub templates: Vec<String>,
}
