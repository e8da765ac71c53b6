//! The walls around the processes of a running sandbox, read back from the kernel (proc(5)): nothing here is what was asked
//! for, all of it is what is in force.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{Error, cell::cgroups, sandbox::Sandbox};

/// The namespaces that a process of brig's can be alone in.
const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

/// The limits that are told, as `/proc/PID/limits` calls them.
const LIMITS: [&str; 5] = [
    "Max core file size",
    "Max open files",
    "Max processes",
    "Max locked memory",
    "Max msgqueue size",
];

/// What is in force around `sandbox`'s brig-vmm. What the kernel does not tell the one who asks is null.
///
/// # Errors
/// [`Error::NotRunning`] when it has none.
pub fn security(sandbox: &Sandbox) -> Result<Value, Error> {
    let not_running = || Error::NotRunning(sandbox.config.id.short().to_owned());
    let (Some(vmm), Some(supervisor)) = (sandbox.state.vmm_pid, sandbox.state.supervisor_pid) else {
        return Err(not_running());
    };
    let (vmm, supervisor) = (Process::new(vmm), Process::new(supervisor));
    let status = vmm.read("status").map_err(|_| not_running())?;
    let status = Fields(&status);
    Ok(json!({
        "Id": sandbox.config.id.as_str(),
        "SupervisorPid": sandbox.state.supervisor_pid,
        "VmmPid": sandbox.state.vmm_pid,
        "Supervisor": supervisor.own_walls(),
        "Uid": status.number("Uid:"),
        "Gid": status.number("Gid:"),
        "Groups": status.words("Groups:"),
        "Capabilities": capabilities(&status),
        "NoNewPrivs": status.number("NoNewPrivs:").map(|value| value == 1),
        "Dumpable": vmm.is_dumpable(status.number("Uid:")),
        "Namespaces": namespaces(&vmm, &supervisor),
        "Root": vmm.root(),
        "Limits": limits(&vmm),
        "Cgroup": vmm.cgroup(&supervisor, sandbox.state.unconfined.as_deref()),
        "Threads": vmm.threads(),
        // A domain is visible to no process outside of it.
        "Landlock": Value::Null,
    }))
}

/// A process as `/proc` tells it.
struct Process(PathBuf);

impl Process {
    fn new(pid: u32) -> Self {
        Self(Path::new("/proc").join(pid.to_string()))
    }

    fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(name))
    }

    fn link(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.0.join(name)).ok()?;
        Some(target.to_string_lossy().into_owned())
    }

    /// The files of a process that is not dumpable are root's. Of root's own process that says nothing.
    fn is_dumpable(&self, uid: Option<u64>) -> Option<bool> {
        let owner = u64::from(fs::metadata(self.0.join("mem")).ok()?.uid());
        (uid != Some(0)).then_some(uid == Some(owner))
    }

    /// What is mounted where it can go: all of `mountinfo`, whose lines start with numbers, then say what is mounted where.
    fn root(&self) -> Value {
        let Ok(mounts) = self.read("mountinfo") else {
            return Value::Null;
        };
        let mounts: Vec<Value> = mounts
            .lines()
            .filter_map(|line| {
                let (before, after) = line.split_once(" - ")?;
                let words: Vec<_> = before.split(' ').collect();
                Some(json!({
                    "Target": words.get(4)?,
                    "Options": words.get(5)?.split(',').collect::<Vec<_>>(),
                    "Type": after.split(' ').next()?,
                }))
            })
            .collect();
        json!({ "Mounts": mounts })
    }

    fn cgroup(&self, other: &Self, why_not: Option<&str>) -> Value {
        let (Ok(own), Ok(others)) = (self.read("cgroup"), other.read("cgroup")) else {
            return Value::Null;
        };
        let held = cgroups::in_force(&own);
        json!({
            "Paths": own.lines().collect::<Vec<_>>(),
            // In that of its supervisor it has the limits of whoever started brig, and none of its own.
            "OwnLimits": own != others,
            "Reason": why_not,
            "MemoryBytes": held.memory,
            "Cpus": held.cpus,
            "Pids": held.pids,
        })
    }

    /// What it has given up.
    fn own_walls(&self) -> Value {
        let Ok(status) = self.read("status") else {
            return Value::Null;
        };
        let status = Fields(&status);
        json!({
            "Uid": status.number("Uid:"),
            "Capabilities": capabilities(&status),
            "NoNewPrivs": status.number("NoNewPrivs:").map(|value| value == 1),
            "Threads": self.threads(),
        })
    }

    fn threads(&self) -> Value {
        let Ok(tasks) = fs::read_dir(self.0.join("task")) else {
            return Value::Null;
        };
        let threads: Vec<Value> = tasks
            .flatten()
            .filter_map(|task| {
                // One that has just ended is none any more.
                let status = fs::read_to_string(task.path().join("status")).ok()?;
                let status = Fields(&status);
                let seccomp = match status.number("Seccomp:") {
                    Some(0) => "none",
                    Some(1) => "strict",
                    Some(2) => "filter",
                    _ => "unknown",
                };
                Some(json!({
                    "Name": status.words("Name:").join(" "),
                    "Seccomp": seccomp,
                    "Filters": status.number("Seccomp_filters:"),
                    "NoNewPrivs": status.number("NoNewPrivs:").map(|value| value == 1),
                    "CapEff": status.words("CapEff:").first(),
                }))
            })
            .collect();
        Value::Array(threads)
    }
}

/// The lines of a file such as `/proc/PID/status`: a name, then words.
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    fn words(&self, name: &str) -> Vec<&'a str> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().split_whitespace().collect()
    }

    /// The first word.
    fn number(&self, name: &str) -> Option<u64> {
        self.words(name).first()?.parse().ok()
    }
}

fn capabilities(status: &Fields<'_>) -> Value {
    let sets = [
        ("Inheritable", "CapInh:"),
        ("Permitted", "CapPrm:"),
        ("Effective", "CapEff:"),
        ("Bounding", "CapBnd:"),
        ("Ambient", "CapAmb:"),
    ];
    let sets = sets.map(|(name, field)| (name.to_owned(), json!(status.words(field).first())));
    Value::Object(sets.into_iter().collect())
}

fn namespaces(process: &Process, other: &Process) -> Value {
    let own = |name: &str| {
        let (link, others) = (process.link(name), other.link(name));
        let own = link.is_some().then(|| link != others);
        json!({ "Namespace": link, "Own": own })
    };
    let all = NAMESPACES.map(|name| (name.to_owned(), own(&format!("ns/{name}"))));
    Value::Object(all.into_iter().collect())
}

/// Soft and hard limit, as the kernel writes them.
fn limits(process: &Process) -> Value {
    let Ok(text) = process.read("limits") else {
        return Value::Null;
    };
    let fields = Fields(&text);
    let both = |name: &str| json!(fields.words(name).into_iter().take(2).collect::<Vec<_>>());
    let all: Map<String, Value> = LIMITS.iter().map(|&name| (name.to_owned(), both(name))).collect();
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SandboxId, sandbox::State, test_support::config};

    fn sandbox(pid: Option<u32>) -> Sandbox {
        let mut state = State::created();
        (state.vmm_pid, state.supervisor_pid) = (pid, pid);
        Sandbox {
            config: config(SandboxId::random().unwrap(), "web".into()),
            state,
            supervised: pid.is_some(),
        }
    }

    #[test]
    fn a_process_without_walls_is_told_to_have_none() {
        let value = security(&sandbox(Some(std::process::id()))).unwrap();
        for name in NAMESPACES {
            assert_eq!(value["Namespaces"][name]["Own"], false, "{value:#}");
        }
        assert!(value["Root"]["Mounts"].as_array().unwrap().len() > 1, "{value:#}");
        assert_eq!(value["Cgroup"]["OwnLimits"], false);
        assert_eq!(value["Uid"], rustix::process::getuid().as_raw());
        let threads = value["Threads"].as_array().unwrap();
        assert!(!threads.is_empty());
        assert_eq!(value["Limits"]["Max open files"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn what_does_not_run_has_no_walls_to_tell_of() {
        assert!(matches!(security(&sandbox(None)), Err(Error::NotRunning(_))));
        // No process has this number.
        assert!(matches!(
            security(&sandbox(Some(u32::MAX))),
            Err(Error::NotRunning(_))
        ));
    }
}
