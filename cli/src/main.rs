//! `brig`: Docker's command line over the engine. Arguments in, tables and progress out.
//!
//! | module | job |
//! |---|---|
//! | [`arguments`] | what can be written, and its help |
//! | [`commands`] | one module a command, or a few that belong together |
//! | [`foreground`] | a terminal's or a pipe's streams and signals, joined with a sandbox's |
//! | [`terminal`], [`detach`] | raw mode and size of the terminal; the keys to leave by |
//! | [`table`], [`text`], [`progress`], [`timing`] | what a person sees |
//! | [`durations`] | Go's durations |
//! | [`env_file`] | environment variables in files |
//! | [`listing`], [`format`] | lists and values as `--format` says |
//! | [`confirm`], [`output`], [`cidfile`] | asking first; files that are there whole or not at all |
//! | [`moment`] | times as options write them |

mod arguments;
mod cidfile;
mod commands;
mod confirm;
mod detach;
mod durations;
mod env_file;
mod failure;
mod foreground;
mod format;
mod listing;
mod moment;
mod output;
mod progress;
mod table;
mod terminal;
mod text;
mod timing;

use std::process;

use crate::{
    arguments::{Arguments, Command},
    failure::Failure,
};

fn main() {
    let began_ns = brig_engine::clock::monotonic_ns();
    let arguments = Arguments::of(std::env::args_os().collect()).unwrap_or_else(|e| arguments::exit(&e));
    // Threads that wait for input must not keep the process from ending, so it ends here.
    process::exit(match run(arguments.command, began_ns) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    })
}

fn run(command: Command, began_ns: u64) -> Result<i32, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(brig_engine::Error::Runtime)?;
    let result =
        runtime.block_on(tokio::task::LocalSet::new().run_until(commands::dispatch(command, began_ns)));
    runtime.shutdown_background();
    result
}
