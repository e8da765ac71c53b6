//! The agent on two inherited Unix sockets in place of vsock, for the tests, which play the supervisor: descriptor 3 is
//! the control connection and 4 the listener. The argument is the directory for the agent's own places.

use std::{
    os::fd::{FromRawFd, OwnedFd},
    process::ExitCode,
};

use brig_agent::{
    agent::{self, Outcome, Setup},
    error::one_line,
    process::Places,
};

fn main() -> ExitCode {
    let entered_us = agent::clock_us();
    let Some(base) = std::env::args_os().nth(1) else {
        return ExitCode::FAILURE;
    };
    // SAFETY: the parent has put both descriptors there and nothing else in this process owns them.
    let (control, listener) = unsafe { (OwnedFd::from_raw_fd(3), OwnedFd::from_raw_fd(4)) };
    let places = Places::under(base);
    let abandon = || -> ! { std::process::exit(3) };
    match agent::serve(Setup {
        control,
        listener,
        places,
        entered_us,
        default_limit: None,
        abandon,
    }) {
        Ok(Outcome::Shutdown) => ExitCode::SUCCESS,
        Ok(Outcome::Disconnected) => ExitCode::from(2),
        Err(error) => {
            eprintln!("{}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}
