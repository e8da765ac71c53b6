//! A guest's time of day. Its kernel counts by itself: it does not see that the host slept, that somebody set the host's
//! clock, or that its own runs a little faster than the host's. So it is asked for its time whenever the host's has made a
//! leap, when it goes on after a pause, and every [`INTERVAL`], and is told by how much it is wrong.

use std::{future::pending, io, os::fd::OwnedFd, time::Duration};

use brig_protocol::agent::{FromAgent, ToAgent};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{Isolation, options::capability::SYS_TIME, sandbox::Config};

/// How often a guest is asked although nothing has happened. At 50 millionths, which is much for a clock, that is 30 ms.
const INTERVAL: Duration = Duration::from_secs(600);

/// A guest that is wrong by less keeps its time.
const TOLERANCE_NS: i128 = 50_000_000;

/// Nanoseconds of a second.
const NS: i128 = 1_000_000_000;

/// Keeps the time of one guest.
#[derive(Debug, Default)]
pub(super) struct Timekeeper {
    /// Ready when the guest is to be asked; none where it is not.
    timer: Option<AsyncFd<OwnedFd>>,
    /// When it was asked, until it has answered.
    asked_ns: Option<i128>,
}

impl Timekeeper {
    /// Of a sandbox's guest. A container's time is the host's, and a sandbox that may set its clock keeps it itself. Without a
    /// timer, which takes a descriptor, the guest keeps the time that it has.
    pub fn new(config: &Config) -> Self {
        let keeps = config.isolation == Isolation::Vm && !SYS_TIME.is_in(config.options.capabilities());
        Self {
            timer: keeps.then(timer).and_then(Result::ok),
            asked_ns: None,
        }
    }

    /// Waits until the guest is to be asked; for ever when it never is. Cancel safe.
    pub async fn due(&self) {
        let Some(timer) = &self.timer else {
            return pending().await;
        };
        // One that cannot be waited for is never due.
        match timer.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return pending().await,
        }
        let mut expirations = [0; 8];
        // ECANCELED says that the host's clock was set.
        let _ = rustix::io::read(timer.get_ref(), &mut expirations);
        let _ = arm(timer.get_ref());
    }

    /// What the guest is asked, unless it has not answered the last time.
    pub fn ask(&mut self) -> Option<ToAgent> {
        if self.timer.is_none() || self.asked_ns.is_some() {
            return None;
        }
        self.asked_ns = Some(now_ns());
        Some(ToAgent::Clock)
    }

    /// What the guest is told when it has answered.
    pub fn heed(&mut self, message: &FromAgent) -> Option<ToAgent> {
        let FromAgent::Clock { realtime_ns } = message else {
            return None;
        };
        let asked = self.asked_ns.take()?;
        correction(asked, i128::from(*realtime_ns), now_ns()).map(|ns| ToAgent::ShiftClock { ns })
    }
}

/// By how much a guest is wrong whose answer `told` was read at some time between `asked` and `heard`, all in nanoseconds since
/// 1970. Nothing, when it is right as far as that can be known.
fn correction(asked: i128, told: i128, heard: i128) -> Option<i64> {
    let unknown = (heard - asked).max(0) / 2;
    let wrong = asked + unknown - told;
    (wrong.abs() > TOLERANCE_NS.max(unknown))
        .then(|| i64::try_from(wrong).ok())
        .flatten()
}

fn now_ns() -> i128 {
    let now = clock_gettime(ClockId::Realtime);
    i128::from(now.tv_sec) * NS + i128::from(now.tv_nsec)
}

/// A timer that is ready in [`INTERVAL`], or when the host's clock has been set (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`):
/// the end of a sleep counts as that.
fn timer() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
    arm(&timer)?;
    // SAFETY: an `OwnedFd` names the same open descriptor as long as it lives, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?)
}

fn arm(timer: &OwnedFd) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let times = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: Timespec {
            tv_sec: now.tv_sec.saturating_add(INTERVAL.as_secs() as i64),
            tv_nsec: now.tv_nsec,
        },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer, flags, &times)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i128 = 1_000_000;

    #[test]
    fn a_guest_that_is_wrong_by_more_than_can_be_known_is_corrected() {
        let start = 1_700_000_000 * NS;
        let ask = |told: i128, took: i128| correction(start, start + told, start + took);
        // It answers half-way and is right.
        assert_eq!(ask(5 * MS, 10 * MS), None);
        // It has slept for an hour, or is an hour ahead.
        assert_eq!(ask(5 * MS - 3600 * NS, 10 * MS), Some(3_600_000_000_000));
        assert_eq!(ask(5 * MS + 3600 * NS, 10 * MS), Some(-3_600_000_000_000));
        // Within the tolerance, and just outside of it.
        assert_eq!(ask(-45 * MS, 0), None);
        assert_eq!(ask(-51 * MS, 0), Some(51_000_000));
        // An answer that took two seconds says little.
        assert_eq!(ask(200 * MS, 2 * NS), None);
        assert_eq!(ask(-5 * NS, 2 * NS), Some(6_000_000_000));
        // The host's clock went back meanwhile.
        assert_eq!(ask(0, -3600 * NS), None);
    }

    #[test]
    fn an_answer_that_makes_no_sense_does_no_harm() {
        for told in [0, i128::from(u64::MAX)] {
            let now = now_ns();
            let corrected = correction(now, told, now).map(i128::from);
            assert!(corrected.is_none_or(|ns| ns == now - told));
        }
        let mut keeper = Timekeeper::default();
        // Nobody asked.
        let answer = FromAgent::Clock { realtime_ns: 7 };
        assert!(keeper.heed(&answer).is_none() && keeper.ask().is_none());
    }

    #[tokio::test]
    async fn a_guest_is_asked_again_only_once_it_has_answered() {
        let mut keeper = Timekeeper {
            timer: Some(timer().unwrap()),
            asked_ns: None,
        };
        assert_eq!(keeper.ask(), Some(ToAgent::Clock));
        assert_eq!(keeper.ask(), None);
        let hour_ago = u64::try_from(now_ns() - 3600 * NS).unwrap();
        let told = keeper.heed(&FromAgent::Clock {
            realtime_ns: hour_ago,
        });
        assert!(matches!(told, Some(ToAgent::ShiftClock { ns }) if ns > 3_599_000_000_000));
        assert_eq!(keeper.ask(), Some(ToAgent::Clock));
        // It is not due for a long time.
        let due = tokio::time::timeout(Duration::from_millis(20), keeper.due());
        assert!(due.await.is_err());
    }
}
