//! What a sandbox is doing (`state.json`, replaced atomically), and which changes of it there are.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::health::Health;
use crate::{guest::Origin, port::BoundPort};

/// The exit code of a sandbox whose processes were killed with its VMM or its supervisor: 128 + SIGKILL.
pub const KILLED_CODE: i32 = 137;

/// The exit code of a sandbox whose guest failed under its processes.
pub const CRASHED_CODE: i32 = 255;

/// Docker's states that a sandbox can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, and never started with success.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process has ended, and its supervisor rests before it starts it again.
    Restarting,
    /// Its first process has ended.
    Exited,
}

impl Status {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
        }
    }
}

/// The changing part of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// What it is doing.
    pub status: Status,
    /// Whether its processes stand still, while it runs.
    #[serde(default)]
    pub paused: bool,
    /// The supervisor, while it runs.
    pub supervisor_pid: Option<u32>,
    /// The VMM, while it runs.
    pub vmm_pid: Option<u32>,
    /// When the first process was started last.
    pub started: Option<Timestamp>,
    /// When the first process ended last.
    pub finished: Option<Timestamp>,
    /// Its last exit code, as Docker counts: 128 + signal, 125 to 127 when it could not be started.
    pub exit_code: i32,
    /// Why brig ended it or could not start it.
    pub error: Option<String>,
    /// Published ports, while it runs.
    pub ports: Vec<BoundPort>,
    /// `uname -r` of its guest, while it runs. The guest's own words.
    pub kernel: Option<String>,
    /// How its guest came to be, while it runs.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// Whether workarounds for an emulated KVM are active in its VMM, while it runs.
    #[serde(default)]
    pub workarounds: Option<bool>,
    /// Why its VMM is in no cgroups of its own, while it runs.
    #[serde(default)]
    pub unconfined: Option<String>,
    /// What its health checks have found, since it was started last.
    #[serde(default)]
    pub health: Option<Health>,
    /// How often its supervisor has started it again since somebody has started it.
    #[serde(default)]
    pub restarts: u32,
    /// Whether somebody has stopped it since it was started last.
    #[serde(default)]
    pub stopped: bool,
    /// Whether it was ended with the host, or with its supervisor.
    #[serde(default)]
    pub interrupted: bool,
    /// Whether the kernel has killed a process of it for want of memory, since it was started last.
    #[serde(default)]
    pub oom_killed: bool,
}

/// Who has ended a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ender {
    /// Itself.
    #[default]
    Itself,
    /// Somebody who wants it to be stopped.
    User,
    /// The host, which goes down.
    Host,
}

impl State {
    /// The state of a sandbox that has just been made.
    pub fn created() -> Self {
        Self {
            status: Status::Created,
            paused: false,
            supervisor_pid: None,
            vmm_pid: None,
            started: None,
            finished: None,
            exit_code: 0,
            error: None,
            ports: Vec::new(),
            kernel: None,
            origin: None,
            workarounds: None,
            unconfined: None,
            health: None,
            restarts: 0,
            stopped: false,
            interrupted: false,
            oom_killed: false,
        }
    }

    /// Docker's word for what it is doing.
    pub fn word(&self) -> &'static str {
        if self.paused {
            "paused"
        } else {
            self.status.as_str()
        }
    }

    /// The first process was started.
    #[must_use]
    pub fn running(&self, now: Timestamp, live: Live) -> Self {
        Self {
            status: Status::Running,
            paused: false,
            supervisor_pid: Some(live.supervisor_pid),
            vmm_pid: live.vmm_pid,
            started: Some(now),
            finished: self.finished,
            exit_code: 0,
            error: None,
            ports: live.ports,
            kernel: Some(live.kernel),
            origin: Some(live.origin),
            workarounds: Some(live.workarounds),
            unconfined: live.unconfined,
            health: None,
            restarts: if self.status == Status::Restarting {
                self.restarts
            } else {
                0
            },
            stopped: false,
            interrupted: false,
            oom_killed: false,
        }
    }

    /// The first process could not be started. As with Docker a sandbox that never ran stays `created`.
    #[must_use]
    pub fn start_failed(&self, exit_code: i32, error: String) -> Self {
        Self {
            exit_code,
            error: Some(error),
            ..self.ended()
        }
    }

    /// The first process ended, or was ended with the guest around it.
    #[must_use]
    pub fn exited(&self, now: Timestamp, exit_code: i32, error: Option<String>) -> Self {
        Self {
            status: Status::Exited,
            finished: Some(now),
            exit_code,
            error,
            ..self.ended()
        }
    }

    /// The first process ended, and will be started again.
    #[must_use]
    pub fn resting(&self, now: Timestamp, exit_code: i32, error: Option<String>) -> Self {
        Self {
            status: Status::Restarting,
            restarts: self.restarts.saturating_add(1),
            ..self.exited(now, exit_code, error)
        }
    }

    /// It is not started again.
    #[must_use]
    pub fn rested(&self, ender: Ender) -> Self {
        self.ended().by(ender)
    }

    /// The same, ended by this one.
    #[must_use]
    pub fn by(self, ender: Ender) -> Self {
        Self {
            stopped: ender == Ender::User,
            interrupted: ender == Ender::Host,
            ..self
        }
    }

    /// What this state means when no supervisor is alive: one that says `running` was interrupted.
    #[must_use]
    pub fn without_supervisor(&self, now: Timestamp) -> Self {
        match self.status {
            Status::Running => self
                .exited(
                    now,
                    KILLED_CODE,
                    Some("the supervisor of the sandbox was killed".to_owned()),
                )
                .by(Ender::Host),
            Status::Restarting => self.rested(Ender::Host),
            Status::Created | Status::Exited => self.ended(),
        }
    }

    fn ended(&self) -> Self {
        Self {
            status: match self.status {
                Status::Restarting => Status::Exited,
                status => status,
            },
            paused: false,
            supervisor_pid: None,
            vmm_pid: None,
            ports: Vec::new(),
            kernel: None,
            origin: None,
            workarounds: None,
            unconfined: None,
            ..self.clone()
        }
    }
}

/// What is known of a sandbox only while it runs.
#[derive(Clone, Debug)]
pub struct Live {
    /// The supervisor.
    pub supervisor_pid: u32,
    /// The VMM.
    pub vmm_pid: Option<u32>,
    /// Published ports.
    pub ports: Vec<BoundPort>,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// How the guest came to be.
    pub origin: Origin,
    /// Whether workarounds for an emulated KVM are active.
    pub workarounds: bool,
    /// Why the VMM is in no cgroups of its own.
    pub unconfined: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::live;

    fn running() -> State {
        let live = Live {
            supervisor_pid: 10,
            vmm_pid: Some(11),
            ports: vec![BoundPort {
                host: "0.0.0.0:8080".parse().unwrap(),
                container_port: 80,
            }],
            kernel: "6.12".into(),
            origin: Origin::Template,
            workarounds: true,
            unconfined: None,
        };
        State::created().running(Timestamp::UNIX_EPOCH, live)
    }

    #[test]
    fn what_runs_is_forgotten_when_it_ends() {
        let state = running().exited(Timestamp::UNIX_EPOCH, 3, None);
        assert_eq!((state.status, state.exit_code), (Status::Exited, 3));
        assert_eq!((state.supervisor_pid, state.vmm_pid), (None, None));
        assert!(state.ports.is_empty());
        assert_eq!(state.started, Some(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn a_running_state_without_a_supervisor_is_a_killed_sandbox() {
        let state = running().without_supervisor(Timestamp::UNIX_EPOCH);
        assert_eq!((state.status, state.exit_code), (Status::Exited, KILLED_CODE));
        assert!(state.ports.is_empty());
    }

    #[test]
    fn restarts_are_counted_until_somebody_starts_it() {
        let now = Timestamp::UNIX_EPOCH;
        let resting = running().resting(now, 3, None);
        assert_eq!(
            (resting.status, resting.exit_code, resting.restarts),
            (Status::Restarting, 3, 1)
        );
        let again = resting.running(now, live()).resting(now, 4, None);
        assert_eq!((again.exit_code, again.restarts), (4, 2));
        let stopped = again.rested(Ender::User);
        assert_eq!(
            (stopped.status, stopped.exit_code, stopped.stopped),
            (Status::Exited, 4, true)
        );
        assert_eq!(stopped.running(now, live()).restarts, 0);
        let killed = again.without_supervisor(now);
        assert_eq!(
            (killed.status, killed.interrupted, killed.stopped),
            (Status::Exited, true, false)
        );
    }

    #[test]
    fn other_states_do_not_need_a_supervisor() {
        let created = State::created();
        assert_eq!(created.without_supervisor(Timestamp::UNIX_EPOCH), created);
        let exited = running().exited(Timestamp::UNIX_EPOCH, 0, None);
        assert_eq!(exited.without_supervisor(Timestamp::UNIX_EPOCH), exited);
    }

    #[test]
    fn a_failed_start_keeps_the_status_and_tells_why() {
        let state = State::created().start_failed(127, "no such file".into());
        assert_eq!((state.status, state.exit_code), (Status::Created, 127));
        let state = running()
            .exited(Timestamp::UNIX_EPOCH, 0, None)
            .start_failed(125, "port".into());
        assert_eq!(
            (state.status, state.error.as_deref()),
            (Status::Exited, Some("port"))
        );
    }

    #[test]
    fn a_new_start_forgets_the_last_exit_and_its_error() {
        let failed = State::created().start_failed(127, "no such file".into());
        let state = failed.running(Timestamp::UNIX_EPOCH, live());
        assert_eq!((state.exit_code, state.error), (0, None));
    }
}
