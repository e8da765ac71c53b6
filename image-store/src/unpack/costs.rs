//! Where the time of an unpack goes.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use brig_protocol::agent::UnpackCosts;

/// Adds up the time of each step. A step inside of another counts for itself alone, whatever is in none for the rest.
#[derive(Debug)]
pub struct Stopwatch {
    sums: [Cell<Duration>; STEPS],
    current: Cell<Step>,
    since: Cell<Instant>,
}

/// A step that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything else.
    Rest,
    /// Compressed bytes come from their disk.
    Read,
    /// They are decompressed.
    Decompress,
    /// What comes out is hashed.
    Hash,
    /// The image is written to its disk.
    Write,
}

/// Number of steps.
const STEPS: usize = Step::Write as usize + 1;

impl Stopwatch {
    /// Starts to measure.
    pub fn start() -> Self {
        Self {
            sums: Default::default(),
            current: Cell::new(Step::Rest),
            since: Cell::new(Instant::now()),
        }
    }

    /// Runs one step, or a part of it.
    pub fn time<T>(&self, step: Step, run: impl FnOnce() -> T) -> T {
        let outer = self.go_on_with(step);
        let result = run();
        self.go_on_with(outer);
        result
    }

    /// What each step has taken so far.
    pub fn costs(&self) -> UnpackCosts {
        self.go_on_with(self.current.get());
        let us = |step| {
            let sum: &Cell<Duration> = &self.sums[step as usize];
            u64::try_from(sum.get().as_micros()).unwrap_or(u64::MAX)
        };
        UnpackCosts {
            read_us: us(Step::Read),
            decompress_us: us(Step::Decompress),
            hash_us: us(Step::Hash),
            write_us: us(Step::Write),
            rest_us: us(Step::Rest),
        }
    }

    /// Ends what runs and begins with `step`; returns what ran.
    fn go_on_with(&self, step: Step) -> Step {
        let now = Instant::now();
        let before = self.current.replace(step);
        let sum = &self.sums[before as usize];
        sum.set(sum.get() + now.duration_since(self.since.replace(now)));
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_inside_of_another_counts_for_itself() {
        let spin = |ms| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(ms) {}
        };
        let start = Instant::now();
        let watch = Stopwatch::start();
        watch.time(Step::Decompress, || {
            watch.time(Step::Read, || spin(20));
            spin(5);
        });
        spin(2);
        watch.time(Step::Write, || spin(3));
        let costs = watch.costs();
        let all = start.elapsed().as_micros() as u64;
        assert!(costs.read_us >= 20_000 && costs.decompress_us >= 5_000);
        assert!(costs.write_us >= 3_000 && costs.rest_us >= 2_000 && costs.hash_us == 0);
        let sum = costs.read_us + costs.decompress_us + costs.write_us + costs.rest_us;
        assert!(sum <= all, "{costs:?} of {all}");
    }
}
