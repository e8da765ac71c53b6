//! `stop`, `rm`, `wait` and `kill`: each does its work for all sandboxes that it is given, and fails at the end when it
//! failed for one.

use brig_engine::{Engine, Error, signal::Signal};

use super::print;
use crate::{
    arguments::{Kill, Rm, Sandboxes, Stop},
    failure::Failure,
};

/// `brig stop`.
pub async fn stop(engine: &Engine, options: &Stop) -> Result<i32, Failure> {
    // A negative time waits for ever.
    let timeout_s = u32::try_from(options.time).ok();
    let mut outcome = Outcome::default();
    for reference in &options.sandboxes.sandboxes {
        let stopped = engine.stop(reference, options.signal, timeout_s).await;
        outcome.take(stopped.map(|()| reference.clone()))?;
    }
    outcome.code()
}

/// `brig rm`.
pub async fn remove(engine: &Engine, options: &Rm) -> Result<i32, Failure> {
    let mut outcome = Outcome::default();
    for reference in &options.sandboxes.sandboxes {
        let removed = engine.remove(reference, options.force).await;
        outcome.take(removed.map(|()| reference.clone()))?;
    }
    outcome.code()
}

/// `brig wait`.
pub async fn wait(engine: &Engine, options: &Sandboxes) -> Result<i32, Failure> {
    let mut outcome = Outcome::default();
    for reference in &options.sandboxes {
        outcome.take(engine.wait(reference).await.map(|code| code.to_string()))?;
    }
    outcome.code()
}

/// `brig pause`, and `brig unpause` when they are not to be `still`.
pub async fn pause(engine: &Engine, options: &Sandboxes, still: bool) -> Result<i32, Failure> {
    let mut outcome = Outcome::default();
    for reference in &options.sandboxes {
        let done = engine.pause(reference, still).await;
        outcome.take(done.map(|()| reference.clone()))?;
    }
    outcome.code()
}

/// `brig kill`.
pub async fn kill(engine: &Engine, options: &Kill) -> Result<i32, Failure> {
    let signal: Signal = options.signal.parse()?;
    let mut outcome = Outcome::default();
    for reference in &options.sandboxes.sandboxes {
        let sent = engine.kill(reference, signal).await;
        outcome.take(sent.map(|()| reference.clone()))?;
    }
    outcome.code()
}

#[derive(Default)]
struct Outcome {
    failed: bool,
}

impl Outcome {
    /// Prints one result, or why there is none.
    fn take(&mut self, result: Result<String, Error>) -> Result<(), Failure> {
        match result {
            Ok(line) => print(&format!("{line}\n")),
            Err(e) => {
                Failure::from(e).report();
                self.failed = true;
                Ok(())
            }
        }
    }

    fn code(self) -> Result<i32, Failure> {
        if self.failed {
            Err(Failure::reported())
        } else {
            Ok(0)
        }
    }
}
