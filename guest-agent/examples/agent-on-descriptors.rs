//! The agent on two inherited Unix sockets in place of vsock, for the tests, which play the supervisor: descriptor 3 is
//! the control connection and 4 the listener. The argument is the directory for the agent's own places.

use std::{
    fs, io,
    os::fd::{FromRawFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
};

use brig_agent::{
    agent::{self, Outcome, Setup},
    error::{AgentError, one_line},
    prepared::Prepared,
    process::Places,
    streams::Arrivals,
    wake::Machine,
};
use rustix::time::Timespec;

/// Writes down what a guest's kernel would be told: this one is the host's.
#[derive(Debug)]
struct Notebook(PathBuf);

impl Machine for Notebook {
    fn open(&mut self, _places: &Places) -> Result<(), AgentError> {
        Ok(())
    }

    fn set_clock(&mut self, now: Timespec) -> io::Result<()> {
        fs::write(self.0.join("clock"), format!("{}.{:09}", now.tv_sec, now.tv_nsec))
    }

    fn shift_clock(&mut self, ns: i64) -> io::Result<()> {
        fs::write(self.0.join("shift"), ns.to_string())
    }

    fn reseed(&mut self, seed: &[u8; 32]) -> io::Result<()> {
        fs::write(self.0.join("seed"), seed)
    }
}

fn main() -> ExitCode {
    let entered_us = agent::clock_us();
    let Some(base) = std::env::args_os().nth(1) else {
        return ExitCode::FAILURE;
    };
    // SAFETY: the parent has put both descriptors there and nothing else in this process owns them.
    let (control, listener) = unsafe { (OwnedFd::from_raw_fd(3), OwnedFd::from_raw_fd(4)) };
    let places = Places::under(base.clone());
    let abandon = || -> ! { std::process::exit(3) };
    match agent::serve(Setup {
        control,
        arrivals: Arrivals::Listener(listener),
        places,
        prepared: Prepared::default(),
        filter: None,
        entered_us,
        default_limit: None,
        machine: Box::new(Notebook(base.into())),
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
