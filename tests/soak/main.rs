//! Starts, uses, kills and removes sandboxes in parallel for a while, with faults: what is killed is any process of a sandbox, or of who
//! asked for it; disks are full, memory is refused, readers are slow, sandboxes are saved. Each answer is compared with what it must
//! be, and at the end nothing may be left.
//!
//! ```text
//! soak [--minutes N] [--workers N] [--seed N]
//! ```
//! Its report is a table. What went wrong is printed as it happens, with the numbers that make the same choices again.

mod actions;
mod random;
mod report;

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use brig_tests::{brig::Brig, machine::Need, store};

use self::{actions::ACTIONS, random::Random, report::Report};

struct Options {
    minutes: u64,
    workers: u64,
    seed: u64,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(what) => {
            eprintln!("soak: {what}");
            return ExitCode::from(2);
        }
    };
    if let Some(reason) = Need::Kvm.missing() {
        eprintln!("soak: skipped, {reason}");
        return ExitCode::SUCCESS;
    }
    let passed = soak(&options);
    store::remove();
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        minutes: 15,
        workers: 3,
        seed: u64::from(std::process::id()),
    };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().and_then(|value| value.parse().ok());
        let value = value.ok_or_else(|| format!("{word} takes a number"))?;
        match word.as_str() {
            "--minutes" => options.minutes = value,
            "--workers" => options.workers = value,
            "--seed" => options.seed = value,
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(options)
}

/// Whether everything was as it must be.
fn soak(options: &Options) -> bool {
    println!(
        "{} minutes, {} at a time, seed {}",
        options.minutes, options.workers, options.seed
    );
    let brig = Brig::new();
    // The template is made, so that it is not taken for something that is left.
    brig.ok(&["run", "--rm", "busybox", "true"]);
    let before = report::Host::look(&brig);
    let deadline = Instant::now() + Duration::from_secs(60 * options.minutes);
    let report = Mutex::new(Report::default());
    thread::scope(|scope| {
        for worker in 0..options.workers {
            let (brig, report) = (&brig, &report);
            scope.spawn(move || work(brig, worker, options.seed, deadline, report));
        }
    });
    let mut report = report.into_inner().expect("no worker ends by a panic");
    report.left(&before, &brig);
    print!("{report}");
    report.passed()
}

fn work(brig: &Brig, worker: u64, seed: u64, deadline: Instant, report: &Mutex<Report>) {
    let mut random = Random::new(seed << 8 | worker);
    for turn in 0.. {
        if Instant::now() >= deadline {
            return;
        }
        let action = &ACTIONS[random.below(ACTIONS.len() as u64) as usize];
        let name = format!("soak-{worker}-{turn}");
        let began = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| (action.run)(brig, &name, &mut random)));
        if result.is_err() {
            eprintln!(
                "soak: {} failed, turn {turn} of worker {worker} of seed {seed}",
                action.name
            );
            // Whatever it has left is not to be found as a leak of all others.
            brig.run(&["rm", "-f", &name]);
            brig.run(&["snapshot", "rm", &name]);
        }
        let mut report = report.lock().expect("no worker ends by a panic");
        report.count(action.name, began.elapsed(), result.is_ok());
    }
}
