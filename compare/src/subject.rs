//! The image that is run, and the bundles by which others than brig run it.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    Error,
    scratch::{Scratch, ok, text},
};

/// An image in the comparison's own store.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As a person wrote it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The archive that it was loaded from.
    pub archive: PathBuf,
    /// Whether it is the image of our own benchmarks, whose program may run without a wall.
    pub is_bench: bool,
    /// Its `Config` (image specification, config.md).
    config: Value,
}

impl Subject {
    /// The image of the benchmarks.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn bench(scratch: &Scratch) -> Result<Self, Error> {
        let archive = scratch.installation().lib.join("bench.tar");
        if !archive.exists() {
            let reason = format!("{} is missing: install brig again", archive.display());
            return Err(Error::Told(reason));
        }
        Self::load(scratch, archive, "bench", None)
    }

    /// An image of the user's.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn users(scratch: &Scratch, name: &str) -> Result<Self, Error> {
        let archive = scratch.root().join("image.tar");
        let id = inspect(&mut scratch.users_brig(&["image", "inspect", "--", name]))?.0;
        let mut save = scratch.users_brig(&["save", "-o"]);
        save.arg(&archive).arg("--").arg(name);
        ok(&mut save, "save the image")?;
        Self::load(scratch, archive, name, Some(id))
    }

    fn load(scratch: &Scratch, archive: PathBuf, name: &str, id: Option<String>) -> Result<Self, Error> {
        let mut load = scratch.brig(&["load", "-q", "-i"]);
        ok(load.arg(&archive), "load the image")?;
        let wanted = id.as_deref().unwrap_or(name);
        let (id, config) = inspect(&mut scratch.brig(&["image", "inspect", "--", wanted]))?;
        Ok(Self {
            name: name.to_owned(),
            id,
            archive,
            is_bench: name == "bench",
            config,
        })
    }

    /// The words that the image runs when it is given `command`; its own ones without.
    pub fn words(&self, command: &[String]) -> Vec<String> {
        let mut words = strings(&self.config["Entrypoint"]);
        if command.is_empty() {
            words.extend(strings(&self.config["Cmd"]));
        } else {
            words.extend(command.iter().cloned());
        }
        words
    }

    /// Removes it from the comparison's store, with all that was unpacked, and loads it again.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn load_again(&self, scratch: &Scratch) -> Result<(), Error> {
        ok(
            &mut scratch.brig(&["rmi", "-f", "--", &self.id]),
            "remove the image",
        )?;
        ok(&mut scratch.brig(&["system", "prune", "-f"]), "remove the image")?;
        let mut load = scratch.brig(&["load", "-q", "-i"]);
        ok(load.arg(&self.archive), "load the image").map(drop)
    }
}

fn inspect(command: &mut Command) -> Result<(String, Value), Error> {
    let text = text(command, "look at the image")?;
    let value: Value = serde_json::from_str(&text).map_err(|e| Error::Told(format!("image inspect: {e}")))?;
    let image = &value[0];
    let id = image["Id"]
        .as_str()
        .unwrap_or_default()
        .trim_start_matches("sha256:");
    Ok((id.to_owned(), image["Config"].clone()))
}

fn strings(value: &Value) -> Vec<String> {
    let words = value.as_array().map(Vec::as_slice).unwrap_or_default();
    words
        .iter()
        .filter_map(|word| word.as_str().map(str::to_owned))
        .collect()
}

/// A root filesystem for others than brig: a copy of what brig has unpacked for its containers, with the same ids.
#[derive(Clone, Debug)]
pub struct Root {
    path: PathBuf,
    owner: u32,
}

impl Root {
    /// Copies it. The image has run in a container before, so that it is unpacked.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::System`].
    pub fn copy(scratch: &Scratch, subject: &Subject) -> Result<Self, Error> {
        let unpacked = unpacked(scratch, subject)?;
        let owner = fs::metadata(&unpacked)
            .map_err(Error::file("look at", &unpacked))?
            .uid();
        let path = scratch
            .bundles()
            .join(format!("root-{}", &subject.id[..12.min(subject.id.len())]));
        let mut copy = Command::new("cp");
        ok(
            copy.arg("-a").arg(&unpacked).arg(&path),
            "copy the root filesystem",
        )?;
        Ok(Self { path, owner })
    }

    /// A bundle (OCI runtime specification, config.md) with it that is like what brig runs: a user namespace with the same ids, and
    /// the mounts, masked paths and capabilities of Docker's default. No cgroup, as brig makes none without a limit, and no
    /// filter of system calls.
    ///
    /// # Errors
    /// [`Error::System`]; [`Error::Told`] for an image whose user only its own files tell.
    pub fn bundle(&self, scratch: &Scratch, subject: &Subject, command: &[String]) -> Result<PathBuf, Error> {
        let path = scratch.bundles().join(scratch.name());
        fs::create_dir(&path).map_err(Error::file("make", &path))?;
        // The runtimes go through it as the namespace's root.
        chown(&path, Some(self.owner), Some(self.owner)).map_err(Error::file("give away", &path))?;
        let config = config(subject, &subject.words(command), &self.path, self.owner)?;
        let file = path.join("config.json");
        fs::write(&file, config.to_string()).map_err(Error::file("write", &file))?;
        Ok(path)
    }
}

/// The directory that the image is unpacked to: the one whose last change is the newest, as it was unpacked just now.
fn unpacked(scratch: &Scratch, subject: &Subject) -> Result<PathBuf, Error> {
    let directories = scratch.root().join("images/directories");
    let entries = fs::read_dir(&directories).map_err(Error::file("read", &directories))?;
    let newest = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .max_by_key(|path| {
            let metadata = fs::metadata(path).ok();
            metadata.map(|metadata| (metadata.ctime(), metadata.ctime_nsec()))
        });
    newest.ok_or_else(|| Error::Told(format!("{} is not unpacked", subject.name)))
}

/// Docker's default capabilities.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

fn config(subject: &Subject, words: &[String], root: &Path, owner: u32) -> Result<Value, Error> {
    let mut env = strings(&subject.config["Env"]);
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    let user = subject.config["User"].as_str().unwrap_or_default();
    let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
    let number = |text: &str| match text {
        "" => Ok(0),
        _ => text
            .parse::<u32>()
            .map_err(|_| Error::Told(format!("user {user:?} is in the image's own files"))),
    };
    let cwd = match subject.config["WorkingDir"].as_str() {
        Some(path) if !path.is_empty() => path,
        _ => "/",
    };
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    let namespaces: Vec<Value> = ["user", "mount", "pid", "uts", "ipc", "network", "cgroup"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    let map = json!([{"containerID": 0, "hostID": owner, "size": 65536}]);
    Ok(json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": {"uid": number(uid)?, "gid": number(gid)?},
            "args": words,
            "env": env,
            "cwd": cwd,
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        },
        "root": {"path": root, "readonly": false},
        "hostname": "compare",
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "uidMappings": map,
            "gidMappings": map,
            "namespaces": namespaces,
            "cgroupsPath": "",
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(config: Value) -> Subject {
        Subject {
            name: "x".into(),
            id: "0123".into(),
            archive: PathBuf::new(),
            is_bench: false,
            config,
        }
    }

    #[test]
    fn a_command_takes_the_place_of_the_images_own() {
        let subject = subject(json!({"Entrypoint": ["/bench"], "Cmd": ["run"]}));
        assert_eq!(subject.words(&[]), ["/bench", "run"]);
        assert_eq!(subject.words(&["list".into()]), ["/bench", "list"]);
    }

    #[test]
    fn a_bundle_has_what_the_image_says() {
        let image = subject(json!({"Env": ["A=1"], "User": "5:7", "WorkingDir": "/w"}));
        let config = super::config(&image, &["x".into()], Path::new("/r"), 9).unwrap();
        assert_eq!(config["process"]["user"], json!({"uid": 5, "gid": 7}));
        assert_eq!(config["process"]["cwd"], "/w");
        assert_eq!(config["process"]["env"][0], "A=1");
        assert!(config["process"]["env"][1].as_str().unwrap().starts_with("PATH="));
        assert_eq!(config["linux"]["uidMappings"][0]["hostID"], 9);
        let named = subject(json!({"User": "www-data"}));
        assert!(super::config(&named, &[], Path::new("/r"), 9).is_err());
    }
}
