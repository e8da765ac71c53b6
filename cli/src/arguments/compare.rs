//! The arguments of `compare`.

use std::path::PathBuf;

use clap::Args;

pub(super) const COMPARE_EXAMPLES: &str = "\
Without an image it is one of brig's own, whose program measures what a sandbox is like from within: system calls, memory, disk, CPU.
Nothing of yours is touched: it works in a store of its own, which is removed at the end. The image's program never runs without a wall;
the plain process is brig's own program.
Sections: start, memory, latency, cpu, port, disk, space, surface.

Examples:
  brig compare
  brig compare --only start,memory busybox -- true
  brig compare --quick --json | jq '.sections[].rows[] | {title, unit, vm: .cells.vm.median}'
  brig compare --html compare.html --explain nginx -- nginx -v";

/// Options of `compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Starts of each kind that are measured, after one that is not
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
    /// Cold starts of the microVM: a fifth of the others otherwise
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub cold_runs: Option<u32>,
    /// How many are started at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub at_once: u32,
    /// Time for each row that is measured in the sandbox, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, value_parser = seconds)]
    pub seconds: f64,
    /// Little of everything: figures that show the order of magnitude
    #[arg(long)]
    pub quick: bool,
    /// Only these sections
    #[arg(long, value_name = "SECTIONS", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(brig_compare::SECTIONS))]
    pub only: Vec<String>,
    /// Print everything as JSON, all samples included
    #[arg(long)]
    pub json: bool,
    /// Write a page with plots as well; it needs nothing but itself
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Tell how each row was measured
    #[arg(long, conflicts_with = "json")]
    pub explain: bool,
    /// The image; one of brig's own otherwise
    pub image: Option<String>,
    /// What it runs; its own command otherwise
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("write seconds from 0 to 600".to_owned()),
    }
}
