//! The end-to-end tests: what a person sees of brig, and what is on the host meanwhile and afterwards.
//!
//! A guest on an emulated KVM takes some 10 s to boot, so a test looks at all that one guest can show.

// A test fails by panicking, and this is one.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod compare;
mod container;
mod copies;
mod crash;
mod devices;
mod exec;
mod files;
mod habits;
mod hostile_guest;
mod hosts;
mod image_store;
mod images;
mod layers;
mod lifecycle;
mod logs;
mod memory;
mod options;
mod policies;
mod ports;
mod process;
mod recipes;
mod registers;
mod registries;
mod restores;
mod servers;
mod settings;
mod start_time;
mod terminals;
mod tours;
mod volumes;
mod walls;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    let all = [
        start_time::TESTS,
        bad_input::TESTS,
        compare::TESTS,
        container::TESTS,
        container::SHARED,
        copies::TESTS,
        crash::TESTS,
        devices::TESTS,
        devices::SHARED,
        exec::TESTS,
        files::TESTS,
        habits::TESTS,
        hostile_guest::TESTS,
        hosts::TESTS,
        image_store::TESTS,
        images::TESTS,
        layers::TESTS,
        lifecycle::TESTS,
        logs::TESTS,
        memory::TESTS,
        options::TESTS,
        policies::TESTS,
        ports::TESTS,
        process::TESTS,
        recipes::TESTS,
        registers::TESTS,
        registries::TESTS,
        restores::TESTS,
        servers::TESTS,
        settings::TESTS,
        terminals::TESTS,
        tours::TESTS,
        volumes::TESTS,
        walls::TESTS,
        watch::TESTS,
    ];
    brig_tests::suite::run(all.into_iter().flatten().copied())
}
