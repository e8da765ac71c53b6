//! `fork`: one snapshot for a moment, and sandboxes of it that come up side by side.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use brig_engine::{
    Engine, SandboxId,
    engine::{SnapshotOptions, StartOptions, Summoned},
    error::chain,
    turns,
};
use tokio::task::JoinSet;

use super::{
    print,
    run::{Interrupts, discard},
};
use crate::{arguments::Fork, failure::Failure, progress::Step};

const START: StartOptions = StartOptions {
    attach: false,
    discard: true,
    cold: false,
    count: false,
    size: None,
};

/// `brig fork`: each copy's id is printed when it runs. Once one has failed no other is begun.
pub async fn fork(engine: Engine, options: &Fork) -> Result<i32, Failure> {
    let mut interrupts = Interrupts::new()?;
    let step = Step::spinner("Saving the sandbox");
    let saved = interrupts.end(engine.fork(&options.sandbox)).await??;
    drop(step);
    let copies = Rc::new(Copies {
        engine,
        snapshot: saved.name(),
        wishes: SnapshotOptions {
            auto_remove: options.rm,
            ..SnapshotOptions::default()
        },
        step: Step::counted("Starting copies", options.number.into()),
        left: Cell::new(options.number),
        running: Cell::new(0),
        starting: RefCell::default(),
        failures: RefCell::default(),
    });
    let mut workers = JoinSet::new();
    for _ in 0..turns::places().min(options.number as usize) {
        workers.spawn_local(Rc::clone(&copies).start_one_after_the_other());
    }
    let interrupted = interrupts
        .end(async { while workers.join_next().await.is_some() {} })
        .await;
    // What was in the middle of it is given up.
    workers.shutdown().await;
    let half_way = copies.starting.take();
    for id in &half_way {
        discard(&copies.engine, id).await;
    }
    interrupted?;
    copies.outcome(options.number)
}

/// Copies of one sandbox that are being started by several workers.
struct Copies {
    engine: Engine,
    snapshot: String,
    wishes: SnapshotOptions,
    step: Step,
    /// How many have not been begun.
    left: Cell<u32>,
    /// How many run.
    running: Cell<u32>,
    /// Those that have been begun and do not run yet.
    starting: RefCell<Vec<SandboxId>>,
    /// Why some do not, each reason once.
    failures: RefCell<Vec<String>>,
}

impl Copies {
    async fn start_one_after_the_other(self: Rc<Self>) {
        while let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            if let Err(reason) = self.start().await {
                self.left.set(0);
                let mut failures = self.failures.borrow_mut();
                if !failures.contains(&reason) {
                    failures.push(reason);
                }
            }
        }
    }

    /// Starts one. Nothing is left of one that does not start.
    async fn start(&self) -> Result<(), String> {
        let id = SandboxId::random().map_err(|e| chain(&e))?;
        let supervisor = self.engine.summon(&id, None).map_err(|e| chain(&e))?;
        self.starting.borrow_mut().push(id.clone());
        let made = self
            .engine
            .create_from_snapshot(id.clone(), &self.snapshot, &self.wishes);
        let started = match made {
            Ok(_) => self.launch(supervisor).await,
            Err(e) => Err(chain(&e)),
        };
        if started.is_err() {
            discard(&self.engine, &id).await;
        }
        self.starting.borrow_mut().retain(|other| *other != id);
        started?;
        self.running.set(self.running.get() + 1);
        let printed = self.step.count(|| print(&format!("{id}\n")));
        printed.map_err(|_| "cannot write".to_owned())
    }

    async fn launch(&self, supervisor: Summoned) -> Result<(), String> {
        let launch = async {
            let mut session = supervisor.start(START).await?;
            session.output.started(&mut |notice| self.step.note(notice)).await
        };
        launch.await.map(drop).map_err(|e: brig_engine::Error| chain(&e))
    }

    /// The exit code; what failed is told in a line each.
    fn outcome(&self, wanted: u32) -> Result<i32, Failure> {
        let failures = self.failures.borrow();
        if failures.is_empty() {
            return Ok(0);
        }
        let running = self.running.get();
        let line = |reason: &String| match wanted {
            1 => reason.clone(),
            _ => format!("{running} of {wanted} copies run, no more are started: {reason}"),
        };
        Err(Failure::commands(failures.iter().map(line).collect()))
    }
}
