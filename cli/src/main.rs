//! `brig`: Docker's command line over the engine. Arguments in, tables and progress out.
//!
//! | module | job |
//! |---|---|
//! | [`arguments`] | what can be written, and its help |
//! | [`commands`] | one module a command, or a few that belong together |
//! | [`foreground`] | a terminal's or a pipe's streams and signals, joined with a sandbox's |
//! | [`table`], [`text`], [`progress`], [`timing`] | what a person sees |

mod arguments;
mod commands;
mod failure;
mod foreground;
mod progress;
mod table;
mod text;
mod timing;

use std::{ffi::OsString, process};

use clap::Parser;

use crate::{
    arguments::{Arguments, Command},
    failure::Failure,
};

fn main() {
    let began_ns = brig_engine::clock::monotonic_ns();
    let words: Vec<OsString> = std::env::args_os().collect();
    if let [_, command, id] = words.as_slice()
        && command == commands::supervise::COMMAND
    {
        // SAFETY: the process has just begun: one thread, and no object that owns a descriptor.
        let code = unsafe { commands::supervise::run(id) };
        process::exit(code);
    }
    let arguments = Arguments::try_parse_from(words).unwrap_or_else(|e| arguments::exit(&e));
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
