//! brig-agent, PID 1 of a guest. A panic here is the end of PID 1: the kernel panics, its console says why, and the VMM
//! sees the reset that follows.

//!
//! `main` is the C library's own, not the Rust runtime's: that would guard a stack, install handlers and look at the
//! standard streams before the first line here, and a tenth of the program would be there for it alone.

#![no_main]

use std::{
    ffi::{CStr, OsStr, c_char, c_int},
    os::unix::ffi::OsStrExt,
};

use brig_agent::{
    agent::{self, Setup},
    error::{AgentError, one_line},
    machine,
    prepared::Prepared,
    process::Places,
    streams::Arrivals,
    vsock, wake,
};
use brig_launcher::init;

/// Where the C library's start-up code ends.
// SAFETY: the program has no other symbol of this name, and the signature is one that C allows for it.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> i32 {
    let entered_us = agent::clock_us();
    // SAFETY: the C library hands over so many pointers to strings that nobody changes.
    let mut words = (0..count.max(0) as usize).map(|index| unsafe { CStr::from_ptr(*arguments.add(index)) });
    if words
        .next()
        .is_some_and(|name| name.to_bytes() == init::NAME.as_bytes())
    {
        return init::run(words.map(|word| OsStr::from_bytes(word.to_bytes()).to_owned()));
    }
    if let Err(error) = run(entered_us) {
        // The console: the kernel's log, of which the supervisor shows the last lines.
        eprintln!("brig-agent: {}", one_line(&error));
    }
    machine::reset()
}

fn run(entered_us: u64) -> Result<(), AgentError> {
    machine::prepare()?;
    let listener = vsock::listen_for_streams()?;
    let control = vsock::connect_to_supervisor()?;
    agent::serve(Setup {
        control,
        arrivals: Arrivals::Listener(listener),
        places: Places::under("/"),
        prepared: Prepared::default(),
        filter: None,
        entered_us,
        default_limit: Some(machine::PROCESS_OPEN_FILES),
        machine: Box::new(wake::Kernel::default()),
        abandon: machine::reset,
    })?;
    Ok(())
}
