//! The measurements, one module a section.
//!
//! | module | section |
//! |---|---|
//! | [`start`] | how long a start takes, in stages, one at a time and many at once |
//! | [`memory`] | what memory of the host's a sandbox takes, and gives back |
//! | [`micro`] | latencies, CPU and disk, by the benchmarks' program in the sandbox |
//! | [`network`] | a published port, by its client on the host |
//! | [`space`] | what a sandbox takes from the disk |
//! | [`surface`] | what of the host a sandbox can reach |

mod memory;
mod micro;
mod network;
mod space;
mod start;
mod surface;

use crate::{report::Section, world::World};

/// The sections by their words, in the order in which they are shown.
pub const SECTIONS: [&str; 8] = [
    "start", "memory", "latency", "cpu", "port", "disk", "space", "surface",
];

/// Measures what is wanted.
pub fn all(world: &World<'_>) -> Vec<Section> {
    let mut sections = Vec::new();
    let wants = |id: &str| world.options.wants(id);
    if wants("start") {
        sections.push(start::one_at_a_time(world));
        sections.push(start::others(world));
    }
    if wants("memory") {
        sections.push(memory::section(world));
    }
    sections.extend(micro::sections(world));
    if wants("port") {
        sections.push(network::section(world));
    }
    if wants("space") {
        sections.push(space::section(world));
    }
    if wants("surface") {
        sections.push(surface::section(world));
    }
    let mut sections: Vec<_> = sections
        .into_iter()
        .map(Section::without_gaps)
        .filter(|s| !s.rows.is_empty())
        .collect();
    sections.sort_by_key(|section| SECTIONS.iter().position(|id| *id == section.id));
    sections
}
