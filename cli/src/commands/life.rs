//! `stop`, `update`, `rm`, `wait` and `kill`: each does its work for all sandboxes that it is given, and fails at the end when it
//! failed for one.

use std::time::Duration;

use brig_engine::{Engine, Error, engine::Changes, signal::Signal};

use super::{images::filter::PruneFilters, print, system::report};
use crate::{
    arguments::{ContainerPrune, Kill, Rm, Sandboxes, Stop, Update},
    confirm,
    failure::Failure,
    text,
};

/// How long a sandbox is waited for that has been sent SIGKILL: Docker's.
const DEATH: Duration = Duration::from_secs(10);

/// `brig stop`.
pub async fn stop(engine: &Engine, options: &Stop) -> Result<i32, Failure> {
    let mut outcome = Outcome::default();
    if options.shutdown {
        engine.stop_with_host().await?;
    }
    for reference in &options.sandboxes {
        let stopped = engine.stop(reference, options.signal, options.time).await;
        outcome.take(stopped.map(|()| reference.clone()))?;
    }
    outcome.code()
}

/// `brig update`.
pub fn update(engine: &Engine, options: &Update) -> Result<i32, Failure> {
    let changes = Changes {
        restart: options.restart,
        memory: options.memory,
        swap: options.memory_swap,
        cpus: options.cpus,
        cpu_shares: options.cpu_shares,
        pids: options.pids_limit.map(|limit| limit.0),
    };
    let mut outcome = Outcome::default();
    for reference in &options.sandboxes.sandboxes {
        outcome.take(engine.update(reference, &changes).map(|()| reference.clone()))?;
    }
    outcome.code()
}

/// `brig rm`.
pub async fn remove(engine: &Engine, options: &Rm) -> Result<i32, Failure> {
    let mut outcome = Outcome::default();
    for reference in &options.sandboxes.sandboxes {
        let removed = engine
            .remove_with(reference, options.force, options.volumes)
            .await;
        match removed {
            // As with Docker that is told, and no failure of one who only wants it gone.
            Err(e @ Error::NoSuchSandbox(_)) if options.force => {
                Failure::from(e).report();
            }
            removed => outcome.take(removed.map(|()| reference.clone()))?,
        }
    }
    outcome.code()
}

/// `brig container prune`.
pub async fn prune(engine: &Engine, options: &ContainerPrune) -> Result<i32, Failure> {
    let filters = PruneFilters::new(&options.filter)?;
    if !options.force && !confirm::ask("This will remove all stopped sandboxes.")? {
        return Ok(0);
    }
    let (gone, bytes) = engine
        .prune_sandboxes(|sandbox| filters.fit(sandbox.config.created, &sandbox.config.labels))
        .await?;
    report("Deleted Containers:", gone)?;
    print(&format!("Total reclaimed space: {}\n", text::size(bytes)))?;
    Ok(0)
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
        let sandbox = engine.find(reference).map(|sandbox| sandbox.id().to_string());
        let sent = engine.kill(reference, signal).await;
        if let (Ok(()), Ok(id), Signal::KILL) = (&sent, sandbox, signal) {
            // As with Docker it is dead when the command ends. One with --rm is gone then, which is no failure.
            let _ = tokio::time::timeout(DEATH, engine.wait(&id)).await;
        }
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
