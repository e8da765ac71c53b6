//! What can be changed of a sandbox that is there.

use crate::{
    Error, Isolation,
    options::{RestartPolicy, Swap},
    resources::{Cpus, MemoryMib},
    sandbox::{Config, Sandbox, config::Limits},
};

/// What is to be changed; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What happens when its process has ended.
    pub restart: Option<RestartPolicy>,
    /// Its memory.
    pub memory: Option<MemoryMib>,
    /// Memory and swap together.
    pub swap: Option<Swap>,
    /// CPU time.
    pub cpus: Option<Cpus>,
    /// Its share of CPU time.
    pub cpu_shares: Option<u64>,
    /// Most processes and threads; the inner `None` for no limit.
    pub pids: Option<Option<u64>>,
}

impl Changes {
    fn limits_anything(&self) -> bool {
        self.memory.is_some()
            || self.swap.is_some()
            || self.cpus.is_some()
            || self.cpu_shares.is_some()
            || self.pids.is_some()
    }
}

/// Checks whether the changes can be made now.
pub(super) fn check(sandbox: &Sandbox, changes: &Changes) -> Result<(), Error> {
    let config = &sandbox.config;
    let refused = |option, reason: &str| Err(Error::option(option, format!("{}: {reason}", config.name)));
    if *changes == Changes::default() {
        return refused(
            "update",
            "there is nothing to change: --restart, --memory, --cpus, --pids-limit",
        );
    }
    changes
        .restart
        .map_or(Ok(()), |policy| policy.check(config.auto_remove))?;
    if !changes.limits_anything() {
        return Ok(());
    }
    let mut after = config.limits;
    limit(&mut after, changes);
    after.check(config.isolation)?;
    match config.isolation {
        Isolation::Vm => {
            if sandbox.supervised {
                return refused(
                    "update",
                    "a guest has the size that it was started with: stop it first",
                );
            }
            if config.snapshot.is_some() && sandbox.state.started.is_none() {
                return refused(
                    "update",
                    "it goes on from a snapshot, whose size it has: start it once before",
                );
            }
        }
        Isolation::Container => {
            if sandbox.supervised && needs_more(&config.limits, &after) {
                return refused("update", "it was started without such a limit: stop it first");
            }
        }
    }
    Ok(())
}

/// Whether cgroups are needed that a sandbox with the limits `before` has not got.
fn needs_more(before: &Limits, after: &Limits) -> bool {
    let needed = |limits: &Limits| {
        [
            limits.memory.is_some(),
            limits.cpus.is_some() || limits.cpu_shares.is_some(),
            limits.pids.is_some(),
        ]
    };
    needed(before)
        .into_iter()
        .zip(needed(after))
        .any(|(before, after)| after && !before)
}

fn limit(limits: &mut Limits, changes: &Changes) {
    limits.memory = changes.memory.or(limits.memory);
    limits.swap = changes.swap.or(limits.swap);
    limits.cpus = changes.cpus.or(limits.cpus);
    limits.cpu_shares = changes.cpu_shares.or(limits.cpu_shares);
    limits.pids = changes.pids.unwrap_or(limits.pids);
}

/// Makes the changes.
pub(super) fn apply(config: &mut Config, changes: &Changes) {
    config.options.restart = changes.restart.unwrap_or(config.options.restart);
    limit(&mut config.limits, changes);
    config.memory = changes.memory.unwrap_or(config.memory);
    config.cpus = changes.cpus.unwrap_or(config.cpus);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SandboxId, sandbox::State, test_support::config};

    fn sandbox(isolation: Isolation, supervised: bool) -> Sandbox {
        let mut config = config(SandboxId::random().unwrap(), "box".into());
        config.isolation = isolation;
        Sandbox {
            config,
            state: State::created(),
            supervised,
        }
    }

    #[test]
    fn a_policy_can_always_be_changed_and_a_guests_size_when_it_does_not_run() {
        let policy = Changes {
            restart: Some(RestartPolicy::Always),
            ..Changes::default()
        };
        let size = Changes {
            memory: Some("256m".parse().unwrap()),
            cpus: Some("2".parse().unwrap()),
            ..Changes::default()
        };
        check(&sandbox(Isolation::Vm, true), &policy).unwrap();
        let error = check(&sandbox(Isolation::Vm, true), &size)
            .unwrap_err()
            .to_string();
        assert!(error.contains("stop it first"), "{error}");
        let mut stopped = sandbox(Isolation::Vm, false);
        check(&stopped, &size).unwrap();
        apply(&mut stopped.config, &size);
        assert_eq!(
            (stopped.config.memory.get(), stopped.config.cpus.vcpus()),
            (256, 2)
        );
        assert!(check(&stopped, &Changes::default()).is_err());
        stopped.config.auto_remove = true;
        assert!(check(&stopped, &policy).is_err());
    }

    #[test]
    fn a_running_container_keeps_the_kinds_of_limits_that_it_has() {
        let size = Changes {
            memory: Some("256m".parse().unwrap()),
            ..Changes::default()
        };
        let mut container = sandbox(Isolation::Container, true);
        let error = check(&container, &size).unwrap_err().to_string();
        assert!(error.contains("stop it first"), "{error}");
        container.config.limits.memory = Some("128m".parse().unwrap());
        check(&container, &size).unwrap();
        let swap = Changes {
            swap: Some("64m".parse().unwrap()),
            ..Changes::default()
        };
        let error = check(&container, &swap).unwrap_err().to_string();
        assert!(error.contains("not less than --memory"), "{error}");
    }
}
