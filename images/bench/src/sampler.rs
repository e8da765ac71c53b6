//! How often something is done, for how long, and which of it is warm-up.
//!
//! The first operations are done in batches that double until a batch lasts long enough to be timed well, or a fifth of the time is
//! over. All of them are warm-up: caches, page tables and lazily made tables are filled by them. Then come samples, each a
//! batch of that length, until the time or the number of samples is reached.

use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};

/// A batch that lasts this long is not distorted by reading the clock.
const BATCH_LEAST: Duration = Duration::from_millis(1);

/// The part of the time that warm-up may take.
const WARM_UP_PART: u32 = 5;

/// Time that passes.
pub trait Clock {
    /// Time since some moment.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
pub struct Monotonic(Instant);

impl Monotonic {
    /// Starts at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// How much may be done.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// For warm-up and samples. Passed by one batch at most.
    pub time: Duration,
    /// Most samples.
    pub samples: usize,
    /// Most operations in a batch.
    pub batch: u64,
}

/// What came out, with the mean time of an operation for each batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// Of the first batches; the first of all is a single operation.
    pub warm_up: Vec<f64>,
    /// Of the others; at least one.
    pub samples: Vec<f64>,
    /// Operations in a sample.
    pub batch: u64,
}

/// Measures: `operation(n)` does something `n` times and returns how long that took, in which it may leave out what it did
/// to prepare. Times are in nanoseconds.
///
/// # Errors
/// Those of the operation.
pub fn sample(
    clock: &dyn Clock,
    budget: Budget,
    mut operation: impl FnMut(u64) -> io::Result<Duration>,
) -> io::Result<Times> {
    let start = clock.now();
    let passed = || clock.now().saturating_sub(start);
    let mut times = Times::default();
    let mut batch = 1;
    loop {
        let took = operation(batch)?;
        times.warm_up.push(mean(took, batch));
        if took >= BATCH_LEAST || passed() >= budget.time / WARM_UP_PART || batch >= budget.batch {
            break;
        }
        batch = (batch * 2).min(budget.batch);
    }
    times.batch = batch;
    while times.samples.is_empty() || (times.samples.len() < budget.samples && passed() < budget.time) {
        times.samples.push(mean(operation(batch)?, batch));
    }
    Ok(times)
}

fn mean(took: Duration, operations: u64) -> f64 {
    // A clock may be too coarse to see anything pass; nothing takes no time.
    (took.as_nanos().max(1)) as f64 / operations as f64
}

/// Times something that is one operation after another.
///
/// # Errors
/// Those of the operation.
pub fn repeat(count: u64, mut operation: impl FnMut() -> io::Result<()>) -> io::Result<Duration> {
    let start = Instant::now();
    for _ in 0..count {
        operation()?;
    }
    Ok(start.elapsed())
}

/// A clock that a test moves.
#[derive(Default)]
pub struct ByHand(Cell<Duration>);

impl ByHand {
    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.0.set(self.0.get() + time);
    }
}

impl Clock for ByHand {
    fn now(&self) -> Duration {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget {
        time: Duration::from_secs(1),
        samples: 50,
        batch: u64::MAX,
    };

    /// Measures an operation that takes this long each time.
    fn measure(budget: Budget, each: Duration) -> (Times, Vec<u64>, Duration) {
        let (clock, mut batches) = (ByHand::default(), Vec::new());
        let times = sample(&clock, budget, |count| {
            batches.push(count);
            let took = each * count as u32;
            clock.pass(took);
            Ok(took)
        });
        (times.unwrap(), batches, clock.now())
    }

    #[test]
    fn batches_double_until_one_can_be_timed_well() {
        let (times, batches, _) = measure(BUDGET, Duration::from_micros(100));
        assert_eq!(batches[..6], [1, 2, 4, 8, 16, 16]);
        assert_eq!(times.batch, 16);
        assert_eq!(times.warm_up, [1e5; 5]);
        assert_eq!(times.samples, [1e5; 50]);
    }

    #[test]
    fn the_first_run_is_never_among_the_samples() {
        let clock = ByHand::default();
        let mut first = true;
        let times = sample(&clock, BUDGET, |count| {
            let took = if std::mem::take(&mut first) { 500 } else { 20 };
            let took = Duration::from_millis(took) * count as u32;
            clock.pass(took);
            Ok(took)
        });
        let times = times.unwrap();
        assert_eq!(times.warm_up, [5e8]);
        assert_eq!(times.samples, [2e7; 25]);
    }

    #[test]
    fn the_time_is_passed_by_one_operation_at_most() {
        let (times, batches, passed) = measure(BUDGET, Duration::from_millis(300));
        assert_eq!(batches, [1, 1, 1, 1]);
        assert_eq!(times.samples.len(), 3);
        assert_eq!(passed, Duration::from_millis(1200));
    }

    #[test]
    fn what_takes_longer_than_the_time_has_one_sample() {
        let (times, ..) = measure(BUDGET, Duration::from_secs(7));
        assert_eq!((times.warm_up.len(), times.samples.len()), (1, 1));
    }

    #[test]
    fn a_batch_is_no_longer_than_it_may_be() {
        let (times, batches, _) = measure(Budget { batch: 6, ..BUDGET }, Duration::from_micros(1));
        assert_eq!(batches[..4], [1, 2, 4, 6]);
        assert_eq!(times.batch, 6);
    }

    #[test]
    fn an_error_ends_it() {
        let clock = ByHand::default();
        let error = sample(&clock, BUDGET, |_| Err(io::Error::other("no"))).unwrap_err();
        assert_eq!(error.to_string(), "no");
    }
}
