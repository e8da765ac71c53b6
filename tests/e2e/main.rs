//! The end-to-end tests: what a person sees of brig, and what is on the host meanwhile and afterwards.
//!
//! A guest on an emulated KVM takes some 10 s to boot, so a test looks at all that one guest can show.

// A test fails by panicking, and this is one.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod crash;
mod hosts;
mod images;
mod lifecycle;
mod logs;
mod ports;
mod process;
mod restores;
mod servers;
mod start_time;
mod walls;

use std::process::ExitCode;

fn main() -> ExitCode {
    let all = [
        start_time::TESTS,
        bad_input::TESTS,
        crash::TESTS,
        hosts::TESTS,
        images::TESTS,
        lifecycle::TESTS,
        logs::TESTS,
        ports::TESTS,
        process::TESTS,
        restores::TESTS,
        servers::TESTS,
        walls::TESTS,
    ];
    brig_tests::suite::run(all.into_iter().flatten().copied())
}
