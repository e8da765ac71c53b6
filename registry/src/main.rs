//! `brig-registry`: the process that speaks to registries, which `brig pull`, `push`, `login`, `logout` and `search`
//! become and `brig run` starts when an image is missing. A user sees one program: it calls itself `brig`.
//!
//! | module | job |
//! |---|---|
//! | [`arguments`] | what can be written, and its help |
//! | [`commands`] | the commands |
//! | [`display`] | progress: bars on a terminal, elsewhere lines, or JSON |
//! | [`confine`] | what this process gives up before it connects to anything |

mod arguments;
mod commands;
mod confine;
mod display;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;

/// Exit code of a command that fails.
const CODE_FAILED: u8 = 1;

/// Added to the number of a signal that has ended a command, as shells do.
const CODE_SIGNAL: u8 = 128;

fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|e| arguments::exit(&e));
    match commands::dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let interrupted = error.downcast_ref::<commands::Interrupted>();
            let code = interrupted.map_or(CODE_FAILED, |interrupted| CODE_SIGNAL + interrupted.signal as u8);
            let line = match error.downcast_ref::<brig_registry::Error>() {
                Some(error) => error.line(),
                None => brig_registry::plain(&format!("{error:#}"), usize::MAX),
            };
            eprintln!("brig: {line}");
            ExitCode::from(code)
        }
    }
}
