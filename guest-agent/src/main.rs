//! brig-agent, PID 1 of a guest. A panic here is the end of PID 1: the kernel panics, its console says why, and the VMM
//! sees the reset that follows.

use brig_agent::{
    agent::{self, Setup},
    error::{AgentError, one_line},
    machine,
    process::Places,
    vsock,
};

fn main() {
    let entered_us = agent::clock_us();
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
        listener,
        places: Places::under("/"),
        entered_us,
        default_limit: Some(machine::PROCESS_OPEN_FILES),
        abandon: machine::reset,
    })?;
    Ok(())
}
