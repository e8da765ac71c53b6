//! Whether a sandbox is well: how that is found out, and what has been found.

use std::time::Duration;

use brig_image_store::Healthcheck;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Docker's (moby, `daemon/health.go`).
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// The shell of an image that names none.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Checks that are kept.
const RESULTS: usize = 5;

/// How it is found out whether a sandbox is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthConfig {
    /// As Docker has it: `CMD` with a program and its arguments, or `CMD-SHELL` with a line.
    pub test: Vec<String>,
    /// What is executed.
    pub args: Vec<String>,
    /// Time between two checks.
    pub interval: Duration,
    /// Time that a check may take.
    pub timeout: Duration,
    /// Time after the start in which a failure does not count.
    pub start_period: Duration,
    /// Time between two checks then.
    pub start_interval: Duration,
    /// So many failures in a row mean that it is not well.
    pub retries: u32,
}

/// What a user may choose. What is left open is the image's, or Docker's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthOptions {
    /// No checks, whatever the image says.
    pub none: bool,
    /// A line for the shell.
    pub command: Option<String>,
    /// See [`HealthConfig`].
    pub interval: Option<Duration>,
    /// See [`HealthConfig`].
    pub timeout: Option<Duration>,
    /// See [`HealthConfig`].
    pub start_period: Option<Duration>,
    /// See [`HealthConfig`].
    pub start_interval: Option<Duration>,
    /// See [`HealthConfig`].
    pub retries: Option<u32>,
}

impl HealthConfig {
    /// From what the image says and a user wants; `None` when nothing is to be checked.
    ///
    /// # Errors
    /// [`Error::HealthConflict`], [`Error::InvalidHealthTest`].
    pub fn new(
        image: Option<&Healthcheck>,
        shell: &[String],
        options: &HealthOptions,
    ) -> Result<Option<Self>, Error> {
        let HealthOptions {
            none,
            command,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        } = options;
        let durations = [interval, timeout, start_period, start_interval];
        if *none {
            if command.is_some() || retries.is_some() || durations.iter().any(|option| option.is_some()) {
                return Err(Error::HealthConflict);
            }
            return Ok(None);
        }
        let said = image.cloned().unwrap_or_default();
        let test = match command {
            Some(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
            None => said.test,
        };
        let args = match test.split_first() {
            None => return Ok(None),
            Some((kind, _)) if kind == "NONE" => return Ok(None),
            Some((kind, args)) if kind == "CMD" && !args.is_empty() => args.to_vec(),
            Some((kind, [line])) if kind == "CMD-SHELL" => with_shell(shell, line),
            _ => return Err(Error::InvalidHealthTest(test.join(" "))),
        };
        let chosen = |user: &Option<Duration>, image_ns: u64, default: Duration| {
            let image = (image_ns > 0).then(|| Duration::from_nanos(image_ns));
            user.filter(|time| !time.is_zero()).or(image).unwrap_or(default)
        };
        let retries = retries.filter(|&retries| retries > 0);
        let image_retries = (said.retries > 0).then_some(said.retries);
        Ok(Some(Self {
            test,
            args,
            interval: chosen(interval, said.interval_ns, INTERVAL),
            timeout: chosen(timeout, said.timeout_ns, TIMEOUT),
            start_period: chosen(start_period, said.start_period_ns, Duration::ZERO),
            start_interval: chosen(start_interval, said.start_interval_ns, START_INTERVAL),
            retries: retries.or(image_retries).unwrap_or(RETRIES),
        }))
    }
}

fn with_shell(shell: &[String], line: &str) -> Vec<String> {
    let mut args = shell.to_vec();
    if args.is_empty() {
        args = SHELL.map(String::from).to_vec();
    }
    args.push(line.to_owned());
    args
}

/// Docker's words for how well a sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Nobody knows yet.
    Starting,
    /// The last check has succeeded, or too few have failed since one has.
    Healthy,
    /// Too many checks in a row have failed.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// When it began.
    pub start: Timestamp,
    /// When it was over.
    pub end: Timestamp,
    /// The exit code: 0 is well. -1 for one that could not be started or took too long.
    pub exit_code: i32,
    /// The beginning of what it has written.
    pub output: String,
}

/// What has been found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How well it is.
    pub status: HealthStatus,
    /// Failures since the last success.
    pub failing_streak: u32,
    /// The last checks, the newest last.
    pub log: Vec<Checked>,
}

impl Health {
    /// Of a sandbox that has just been started.
    pub fn starting() -> Self {
        Self {
            status: HealthStatus::Starting,
            failing_streak: 0,
            log: Vec::new(),
        }
    }

    /// Adds a check of a sandbox that was started at `started`.
    #[must_use]
    pub fn with(mut self, checked: Checked, config: &HealthConfig, started: Timestamp) -> Self {
        if checked.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if !(self.status == HealthStatus::Starting && in_start_period(checked.start, config, started))
        {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= config.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push(checked);
        if self.log.len() > RESULTS {
            self.log.remove(0);
        }
        self
    }

    /// How long to wait for the next check.
    pub fn rest(&self, config: &HealthConfig, started: Timestamp, now: Timestamp) -> Duration {
        if self.status == HealthStatus::Starting && in_start_period(now, config, started) {
            config.start_interval
        } else {
            config.interval
        }
    }
}

fn in_start_period(time: Timestamp, config: &HealthConfig, started: Timestamp) -> bool {
    let since = time.duration_since(started);
    Duration::try_from(since).is_ok_and(|since| since < config.start_period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    fn image() -> Healthcheck {
        Healthcheck {
            test: texts(&["CMD-SHELL", "curl localhost"]),
            interval_ns: 1_500_000_000,
            retries: 7,
            ..Healthcheck::default()
        }
    }

    #[test]
    fn what_is_left_open_is_the_images_and_then_dockers() {
        let options = HealthOptions {
            timeout: Some(Duration::from_secs(2)),
            ..HealthOptions::default()
        };
        let config = HealthConfig::new(Some(&image()), &[], &options).unwrap().unwrap();
        assert_eq!(config.args, ["/bin/sh", "-c", "curl localhost"]);
        assert_eq!(config.interval, Duration::from_millis(1500));
        assert_eq!(config.timeout, Duration::from_secs(2));
        assert_eq!((config.start_period, config.retries), (Duration::ZERO, 7));
        let shell = texts(&["/bin/bash", "-ec"]);
        let config = HealthConfig::new(Some(&image()), &shell, &options)
            .unwrap()
            .unwrap();
        assert_eq!(config.args, ["/bin/bash", "-ec", "curl localhost"]);
        let options = HealthOptions {
            command: Some("true".into()),
            retries: Some(1),
            ..HealthOptions::default()
        };
        let config = HealthConfig::new(Some(&image()), &[], &options).unwrap().unwrap();
        assert_eq!((config.test, config.retries), (texts(&["CMD-SHELL", "true"]), 1));
    }

    #[test]
    fn there_may_be_nothing_to_check_or_nonsense() {
        let none = HealthOptions {
            none: true,
            ..HealthOptions::default()
        };
        assert_eq!(HealthConfig::new(Some(&image()), &[], &none).unwrap(), None);
        let conflict = HealthOptions {
            retries: Some(1),
            ..none
        };
        assert!(matches!(
            HealthConfig::new(None, &[], &conflict),
            Err(Error::HealthConflict)
        ));
        let options = HealthOptions::default();
        assert_eq!(HealthConfig::new(None, &[], &options).unwrap(), None);
        for (test, is_wrong) in [
            (&["NONE"][..], false),
            (&[], false),
            (&["CMD"], true),
            (&["CMD-SHELL", "a", "b"], true),
            (&["what"], true),
        ] {
            let image = Healthcheck {
                test: texts(test),
                ..Healthcheck::default()
            };
            let config = HealthConfig::new(Some(&image), &[], &options);
            assert_eq!(config.is_err(), is_wrong, "{test:?}");
        }
    }

    #[test]
    fn failures_count_after_the_start_period_and_a_success_ends_them() {
        let at = |second: i64| Timestamp::from_second(1000 + second).unwrap();
        let options = HealthOptions {
            start_period: Some(Duration::from_secs(10)),
            ..HealthOptions::default()
        };
        let config = HealthConfig::new(Some(&image()), &[], &options).unwrap().unwrap();
        let config = HealthConfig { retries: 2, ..config };
        let checked = |second, exit_code| Checked {
            start: at(second),
            end: at(second + 1),
            exit_code,
            output: String::new(),
        };
        let mut health = Health::starting();
        let mut seen = Vec::new();
        assert_eq!(health.rest(&config, at(0), at(1)), START_INTERVAL);
        assert_eq!(health.rest(&config, at(0), at(11)), config.interval);
        for (second, code) in [(1, 1), (9, 1), (10, 1), (11, -1), (12, 0), (13, 1), (14, 2)] {
            health = health.with(checked(second, code), &config, at(0));
            seen.push((health.status.as_str(), health.failing_streak));
        }
        assert_eq!(
            seen,
            [
                ("starting", 0),
                ("starting", 0),
                ("starting", 1),
                ("unhealthy", 2),
                ("healthy", 0),
                ("healthy", 1),
                ("unhealthy", 2)
            ]
        );
        assert_eq!(health.log.len(), RESULTS);
        assert_eq!(health.log[0].start, at(10));
    }
}
