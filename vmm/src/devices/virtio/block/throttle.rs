//! How fast a guest may use its disks.
//!
//! A limit is a bucket with what may be done in [`BURST`], filled as time passes. A request is carried out whole as soon as the
//! bucket is not overdrawn, and the next waits until what it has overdrawn has been filled up: so a request may be larger than the
//! bucket, and the rate holds all the same.

use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use brig_protocol::vmm::IoLimits;

use crate::lock::lock;

/// What a guest that has been idle may do at once.
const BURST: Duration = Duration::from_millis(100);

/// Which way a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the disk.
    Read,
    /// Into it, or something else that makes the host's disk work: a flush, a discard.
    Write,
}

/// One limit: so much a second.
#[derive(Debug)]
struct Bucket {
    rate: NonZeroU64,
    /// When it would be full if nothing more were taken. In the past of a full one.
    full_at: Instant,
}

impl Bucket {
    fn new(rate: NonZeroU64, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// Until when a request has to wait; `None` when it need not.
    fn wait(&self, now: Instant) -> Option<Instant> {
        let from = self.full_at.checked_sub(BURST)?;
        (from > now).then_some(from)
    }

    fn take(&mut self, amount: u64, now: Instant) {
        let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(self.rate.get());
        let time = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let begins = self.full_at.max(now);
        // Centuries ahead there is nothing to add.
        self.full_at = begins.checked_add(time).unwrap_or(begins);
    }
}

/// The limits of one direction.
#[derive(Debug)]
struct Limits {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

/// The limits of all disks of a guest together.
#[derive(Debug)]
struct Buckets {
    read: Limits,
    write: Limits,
}

/// A handle to them: each disk of a guest has one.
#[derive(Clone, Debug)]
pub struct Throttle(Arc<Mutex<Buckets>>);

impl Throttle {
    /// `None` when nothing is limited.
    pub fn new(limits: &IoLimits) -> Option<Self> {
        if *limits == IoLimits::default() {
            return None;
        }
        let now = Instant::now();
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket::new(rate, now));
        Some(Self(Arc::new(Mutex::new(Buckets {
            read: Limits {
                bytes: bucket(limits.read_bytes),
                operations: bucket(limits.read_operations),
            },
            write: Limits {
                bytes: bucket(limits.write_bytes),
                operations: bucket(limits.write_operations),
            },
        }))))
    }

    /// Takes a request of so many bytes out of the buckets, or says until when it has to wait.
    ///
    /// # Errors
    /// When that is.
    pub fn take(&self, direction: Direction, bytes: u64, now: Instant) -> Result<(), Instant> {
        let mut buckets = lock(&*self.0);
        let Limits {
            bytes: volume,
            operations,
        } = match direction {
            Direction::Read => &mut buckets.read,
            Direction::Write => &mut buckets.write,
        };
        let mut both = [(volume, bytes), (operations, 1)];
        let waits = both.iter().filter_map(|(bucket, _)| bucket.as_ref()?.wait(now));
        if let Some(until) = waits.max() {
            return Err(until);
        }
        for (bucket, amount) in &mut both {
            if let Some(bucket) = bucket {
                bucket.take(*amount, now);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(change: impl FnOnce(&mut IoLimits)) -> Throttle {
        let mut limits = IoLimits::default();
        change(&mut limits);
        Throttle::new(&limits).unwrap()
    }

    /// How long a guest that does nothing else takes for requests of `bytes` each, by the clock that it is given.
    fn takes(throttle: &Throttle, direction: Direction, requests: u32, bytes: u64) -> Duration {
        let began = Instant::now();
        let mut now = began;
        for _ in 0..requests {
            while let Err(until) = throttle.take(direction, bytes, now) {
                assert!(until > now, "it waits for something");
                now = until;
            }
        }
        now - began
    }

    #[test]
    fn nothing_is_limited_unless_it_is_said() {
        assert!(Throttle::new(&IoLimits::default()).is_none());
        let throttle = throttle(|limits| limits.read_bytes = NonZeroU64::new(1));
        assert_eq!(takes(&throttle, Direction::Write, 1000, 1 << 20), Duration::ZERO);
    }

    #[test]
    fn bytes_and_operations_have_their_rates() {
        let throttle = throttle(|limits| {
            limits.write_bytes = NonZeroU64::new(1 << 20);
            limits.read_operations = NonZeroU64::new(50);
        });
        // The last is begun when those before it have been paid, but for what may be done at once.
        let took = takes(&throttle, Direction::Write, 11, 1 << 20);
        assert!((9.8..10.0).contains(&took.as_secs_f64()), "{took:?}");
        let took = takes(&throttle, Direction::Read, 501, 4096);
        assert!((9.8..10.0).contains(&took.as_secs_f64()), "{took:?}");
    }

    #[test]
    fn a_request_that_is_larger_than_the_bucket_is_carried_out_and_paid_afterwards() {
        let throttle = throttle(|limits| limits.read_bytes = NonZeroU64::new(1000));
        let now = Instant::now();
        assert!(throttle.take(Direction::Read, 100_000, now).is_ok());
        let until = throttle.take(Direction::Read, 1, now).unwrap_err();
        assert_eq!(until, now + Duration::from_millis(100_000 - 100));
        assert!(throttle.take(Direction::Read, 1, until).is_ok());
    }

    #[test]
    fn time_that_was_not_used_is_saved_for_a_burst_and_no_more() {
        let throttle = throttle(|limits| limits.read_operations = NonZeroU64::new(100));
        let later = Instant::now() + Duration::from_secs(3600);
        let at_once = (0..100)
            .take_while(|_| throttle.take(Direction::Read, 0, later).is_ok())
            .count();
        assert!((10..=11).contains(&at_once), "{at_once}");
    }

    #[test]
    fn no_amount_overflows() {
        let throttle = throttle(|limits| limits.write_bytes = NonZeroU64::new(1));
        let mut now = Instant::now();
        for _ in 0..4 {
            if let Err(until) = throttle.take(Direction::Write, u64::MAX, now) {
                now = until;
            }
        }
    }
}
