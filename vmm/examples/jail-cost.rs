//! What the jail adds to the start of a process: this program, started as the supervisor starts brig-vmm and walled off by the same
//! functions, against the same program started by a plain fork and exec, in turns. Both run until they have ended.
//!
//! ```text
//! jail-cost [ROUNDS]     (200)
//! ```

use std::{
    env,
    error::Error,
    ffi::CString,
    fs::File,
    os::fd::AsFd,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use brig_jail::spawn::{Program, spawn};
use brig_vmm::jail;

/// The first argument of this program in the jail, and of the one without.
const JAILED: &str = "--jailed";
const PLAIN: &str = "--plain";

fn main() -> Result<(), Box<dyn Error>> {
    let word = env::args().nth(1).unwrap_or_default();
    match word.as_str() {
        PLAIN => return Ok(()),
        JAILED => return Ok(jail::at_start()?),
        _ => {}
    }
    let rounds = word.parse().unwrap_or(200);
    let own = env::current_exe()?;
    let (mut plain, mut jailed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        let status = Command::new(&own).arg(PLAIN).stdin(Stdio::null()).status()?;
        plain.push(began.elapsed());
        let began = Instant::now();
        let walled = start_jailed(&own)?;
        jailed.push(began.elapsed());
        if !status.success() || !walled {
            return Err("a process has failed".into());
        }
    }
    let (plain, jailed) = (median(plain), median(jailed));
    println!(
        "plain {plain:?}, jailed {jailed:?}: {:?} more (medians of {rounds})",
        jailed.saturating_sub(plain)
    );
    Ok(())
}

fn start_jailed(own: &std::path::Path) -> Result<bool, Box<dyn Error>> {
    let program = File::open(own)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let said = File::options().write(true).open("/dev/null")?;
    let process = spawn(&Program {
        file: program.as_fd(),
        arguments: &[CString::new("jail-cost")?, CString::new(JAILED)?],
        streams: [null.as_fd(), null.as_fd(), said.as_fd()],
    })?;
    Ok(process.wait()?.success())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
