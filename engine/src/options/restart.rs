//! What happens when a sandbox's process has ended (`--restart`), and when.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Docker's (moby, `daemon/internal/restartmanager`): the first rest, the longest, and how long a process has to run for the
/// next rest to be the first again.
const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(60);
const STABLE: Duration = Duration::from_secs(10);

/// When a sandbox is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When the exit code is not 0, so many times in a row at most.
    OnFailure(Option<u32>),
    /// Always.
    Always,
    /// Always, but not when somebody had stopped it before the host was booted.
    UnlessStopped,
}

impl RestartPolicy {
    /// Docker's word, without the number.
    pub fn word(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure(_) => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }

    /// Checks it against `--rm`: what is removed when it ends cannot be started again.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn check(self, auto_remove: bool) -> Result<(), Error> {
        if auto_remove && self != Self::No {
            return Err(Error::option(
                "--restart",
                "it conflicts with --rm, which removes what has ended",
            ));
        }
        Ok(())
    }

    /// Whether a process that ended with this code, after so many restarts in a row, is started again.
    pub fn wants(self, code: i32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure(most) => code != 0 && most.is_none_or(|most| restarts < most),
        }
    }

    /// Whether a sandbox is started that does not run when the host has booted. `ran` says that it ran when the host went down;
    /// the others are of its last end.
    pub fn after_boot(self, ran: bool, stopped: bool, code: i32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always => true,
            Self::UnlessStopped => !stopped,
            Self::OnFailure(_) => !stopped && (ran || self.wants(code, restarts)),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse() {
            Ok(0) => Ok(None),
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(format!("{text:?} is no number of restarts")),
        };
        match text
            .split_once(':')
            .map_or((text, None), |(word, number)| (word, Some(number)))
        {
            ("no" | "", None) => Ok(Self::No),
            ("always", None) => Ok(Self::Always),
            ("unless-stopped", None) => Ok(Self::UnlessStopped),
            ("on-failure", None) => Ok(Self::OnFailure(None)),
            ("on-failure", Some(most)) => number(most).map(Self::OnFailure),
            _ => Err("write no, on-failure[:NUMBER], always or unless-stopped".to_owned()),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnFailure(Some(most)) => write!(f, "on-failure:{most}"),
            other => f.write_str(other.word()),
        }
    }
}

/// The rests between restarts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rests {
    last: Option<Duration>,
}

impl Rests {
    /// How long to rest after a process that has run for this time.
    pub fn next(&mut self, ran: Duration) -> Duration {
        let next = match self.last {
            Some(last) if ran < STABLE => (last * 2).min(LONGEST_REST),
            _ => FIRST_REST,
        };
        self.last = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_docker_writes_them() {
        for (text, policy) in [
            ("no", RestartPolicy::No),
            ("always", RestartPolicy::Always),
            ("unless-stopped", RestartPolicy::UnlessStopped),
            ("on-failure", RestartPolicy::OnFailure(None)),
            ("on-failure:3", RestartPolicy::OnFailure(Some(3))),
        ] {
            assert_eq!(text.parse(), Ok(policy));
            assert_eq!(policy.to_string(), text);
        }
        for wrong in ["x", "always:3", "on-failure:x", "no:1"] {
            assert!(wrong.parse::<RestartPolicy>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn failures_are_counted_and_successes_are_final() {
        let three = RestartPolicy::OnFailure(Some(3));
        assert!(three.wants(1, 2) && !three.wants(1, 3) && !three.wants(0, 0));
        assert!(RestartPolicy::OnFailure(None).wants(137, 1000));
        assert!(RestartPolicy::Always.wants(0, 1000) && !RestartPolicy::No.wants(1, 0));
    }

    #[test]
    fn after_a_boot_a_stopped_sandbox_stays_so_unless_it_is_always_wanted() {
        assert!(RestartPolicy::Always.after_boot(false, true, 0, 0));
        assert!(RestartPolicy::UnlessStopped.after_boot(true, false, 0, 0));
        assert!(!RestartPolicy::UnlessStopped.after_boot(false, true, 0, 0));
        assert!(RestartPolicy::OnFailure(Some(1)).after_boot(true, false, 137, 1));
        assert!(!RestartPolicy::OnFailure(Some(1)).after_boot(false, false, 1, 1));
        assert!(!RestartPolicy::OnFailure(None).after_boot(false, false, 0, 0));
        assert!(!RestartPolicy::No.after_boot(true, false, 1, 0));
    }

    #[test]
    fn rests_double_up_to_a_minute_and_begin_again_after_a_long_run() {
        let mut rests = Rests::default();
        let short = Duration::from_secs(1);
        let seen: Vec<_> = (0..12).map(|_| rests.next(short).as_millis()).collect();
        assert_eq!(
            seen,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000
            ]
        );
        assert_eq!(rests.next(Duration::from_secs(11)), FIRST_REST);
        assert_eq!(rests.next(short).as_millis(), 200);
    }
}
