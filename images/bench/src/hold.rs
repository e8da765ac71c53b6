//! Memory that is taken and given back, for who watches from outside what comes back to the host.

use std::{
    io::{self, Write},
    time::Duration,
};

use crate::{
    report,
    sys::{Memory, Signals},
};

/// Takes `mib` MiB and says so, gives them back after `time` or on SIGUSR1 and says so, and waits for SIGTERM or SIGINT.
///
/// # Errors
/// Those of mmap(2) and of writing to `out`.
pub fn run(mib: usize, time: Duration, out: &mut impl Write) -> io::Result<()> {
    let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGUSR1])?;
    let mut memory = Memory::map(mib << 20)?;
    memory.touch();
    report::event(out, "taken", "mib", mib as u64)?;
    let ended = |signal| matches!(signal, Some(libc::SIGTERM | libc::SIGINT));
    if ended(signals.wait(Some(time))?) {
        return Ok(());
    }
    drop(memory);
    report::event(out, "given back", "mib", mib as u64)?;
    while !ended(signals.wait(None)?) {}
    Ok(())
}
