//! `brig compare`: the same image in a microVM, in a container, and where they are there under crun, under runc and as a plain
//! process, measured one after another, and what came of it as a table, as JSON and as a page with plots.
//!
//! brig is known here by its command line only, as a user knows it: what is measured is what is felt.
//!
//! | module | what it is for |
//! |---|---|
//! | [`scratch`] | a brig of the comparison's own, which goes at the end |
//! | [`ways`], [`subject`], [`world`] | the ways to run an image, the image in each of them |
//! | [`measure`] | the measurements, one module a section |
//! | [`processes`], [`trace`], [`filter`], [`calls`] | what the host's kernel tells of processes: memory, system calls, filters |
//! | [`statistics`] | medians and quantiles |
//! | [`report`] | tables, JSON, the page |

pub mod calls;
mod error;
pub mod filter;
mod measure;
pub mod processes;
pub mod report;
pub mod scratch;
pub mod statistics;
pub mod subject;
pub mod trace;
mod walls;
pub mod ways;
pub mod world;

use std::sync::Arc;

pub use error::Error;
pub use measure::SECTIONS;

use crate::{
    report::Report,
    scratch::{Installation, Scratch},
    world::World,
};

/// What is to be compared, and how thoroughly.
#[derive(Clone, Debug)]
pub struct Options {
    /// The user's image; the benchmarks' own without.
    pub image: Option<String>,
    /// What it runs; its own command without.
    pub command: Vec<String>,
    /// Starts that are measured, but the cold ones.
    pub runs: usize,
    /// Cold starts.
    pub cold_runs: usize,
    /// How many are started at the same time.
    pub at_once: usize,
    /// How often the benchmarks run in each way.
    pub rounds: usize,
    /// For each row of the benchmarks.
    pub seconds: f64,
    /// The file of the disk rows.
    pub size_mib: usize,
    /// Memory that is taken and given back.
    pub hold_mib: usize,
    /// The sections that are wanted; all without.
    pub only: Vec<String>,
    /// Why there can be no microVM here.
    pub no_vm: Option<String>,
}

impl Options {
    /// Whether a section is wanted.
    pub fn wants(&self, section: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == section)
    }

    /// How the benchmarks' program is to measure.
    fn bench_options(&self) -> Vec<String> {
        [
            "--seconds",
            &self.seconds.to_string(),
            "--size",
            &self.size_mib.to_string(),
        ]
        .map(String::from)
        .into()
    }
}

/// What is known about the host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Names and values.
    pub facts: Vec<(String, String)>,
    /// Whether its KVM interprets the guest's kernel.
    pub emulated_kvm: bool,
}

/// The directories that a comparison works in. They go with the last of its owners, or by [`Scratch::clean`].
///
/// # Errors
/// [`Error::System`].
pub fn prepare(installation: Installation) -> Result<Arc<Scratch>, Error> {
    Scratch::make(installation).map(Arc::new)
}

/// Compares. `progress` is told what goes on.
///
/// # Errors
/// When nothing at all can be compared; what fails in one way only is in the report.
pub fn compare(
    options: &Options,
    host: Host,
    scratch: Arc<Scratch>,
    progress: &dyn Fn(&str),
) -> Result<Report, Error> {
    let mut options = options.clone();
    if options.image.is_none() && options.command.is_empty() {
        // Something that writes and ends.
        options.command = vec!["help".into()];
    }
    let world = World::make(&options, scratch, progress)?;
    let sections = measure::all(&world);
    let mut notices = Vec::new();
    if host.emulated_kvm && world.ways.contains(&ways::Way::Vm) {
        notices.push(
            "The KVM of this host has no hardware virtualization: it interprets the guest's kernel, some 1000 times slower than a \
             processor with VMX or SVM runs it. The guest's user code runs at full speed. Figures of the microVM in which the kernel takes \
             part say nothing about other hosts."
                .into(),
        );
    }
    Ok(Report {
        notices,
        subject: format!(
            "{} {}",
            world.subject.name,
            world.subject.words(&options.command).join(" ")
        ),
        host: host.facts,
        missing: world.missing(),
        sections,
        walls: if options.wants("surface") {
            walls::of(&world.ways)
        } else {
            Vec::new()
        },
    })
}
