//! The cgroup of a sandbox (cgroups(7), version 2; Documentation/admin-guide/cgroup-v2.rst).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use brig_protocol::spec::CgroupSpec;

use crate::error::{Context, LaunchError};

/// Microseconds of a period of `cpu.max`, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// A cgroup with the limits of a spec. Dropping it leaves it in place: see [`Cgroup::remove`].
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `name` below `parent`, a directory of a cgroup2 filesystem that holds no processes of its own or
    /// is the root, and sets its limits.
    ///
    /// # Errors
    /// [`LaunchError::Step`], for instance when the kernel does not have a controller that a limit needs.
    pub fn create(parent: &Path, name: &str, limits: &CgroupSpec) -> Result<Self, LaunchError> {
        let settings = settings(limits);
        for (controller, ..) in &settings {
            write(&parent.join("cgroup.subtree_control"), &format!("+{controller}"))?;
        }
        let path = parent.join(name);
        match fs::create_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.step_on("create the cgroup", path.display())?,
        }
        let cgroup = Self { path };
        for (_, file, value) in &settings {
            write(&cgroup.path.join(file), value)?;
        }
        Ok(cgroup)
    }

    /// The cgroup `name` below `parent`, which [`Cgroup::create`] has made.
    pub fn existing(parent: &Path, name: &str) -> Self {
        Self {
            path: parent.join(name),
        }
    }

    /// Moves the calling process into the cgroup.
    ///
    /// # Errors
    /// [`LaunchError::Step`].
    pub(crate) fn join(&self) -> Result<(), LaunchError> {
        write(&self.path.join("cgroup.procs"), "0")
    }

    /// Removes the cgroup, whose processes have ended.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir(&self.path)
    }
}

/// The controller, file and value of each limit that is set.
fn settings(limits: &CgroupSpec) -> Vec<(&'static str, &'static str, String)> {
    let mut settings = Vec::new();
    if limits.cpu_quota_us > 0 {
        settings.push((
            "cpu",
            "cpu.max",
            format!("{} {CPU_PERIOD_US}", limits.cpu_quota_us),
        ));
    }
    if limits.pids_max > 0 {
        settings.push(("pids", "pids.max", limits.pids_max.to_string()));
    }
    if limits.memory_max > 0 {
        settings.push(("memory", "memory.max", limits.memory_max.to_string()));
    }
    settings
}

fn write(file: &Path, value: &str) -> Result<(), LaunchError> {
    fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut opened| io::Write::write_all(&mut opened, value.as_bytes()))
        .step_on(&format!("write {value:?} to"), file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_are_set_need_a_controller() {
        assert!(settings(&CgroupSpec::default()).is_empty());
        let limits = CgroupSpec {
            cpu_quota_us: 50_000,
            pids_max: 0,
            memory_max: 1 << 20,
        };
        assert_eq!(
            settings(&limits),
            [
                ("cpu", "cpu.max", "50000 100000".to_owned()),
                ("memory", "memory.max", "1048576".to_owned())
            ]
        );
    }

    #[test]
    fn a_missing_controller_is_named_in_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let limits = CgroupSpec {
            pids_max: 5,
            ..CgroupSpec::default()
        };
        let error = Cgroup::create(directory.path(), "x", &limits)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("cannot write \"+pids\" to "), "{error}");
    }
}
