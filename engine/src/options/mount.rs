//! Filesystems in memory, and devices of the host's.

use std::{fmt, os::unix::fs::FileTypeExt, str::FromStr};

use brig_protocol::spec::MountSpec;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Most bytes of a path or of options.
const TEXT_BYTES: usize = 4096;

/// What Docker mounts a tmpfs with.
const DEFAULTS: [(&str, &str); 3] = [("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")];

/// Options of a tmpfs that a user may give (tmpfs(5)), with a value or without.
const WORDS: [&str; 12] = [
    "rw",
    "ro",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "noatime",
    "nodiratime",
    "strictatime",
    "relatime",
];
const KEYS: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];

/// Checks a path of a sandbox's.
///
/// # Errors
/// A line that says what is wrong.
pub fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') || path.contains('\0') || path.len() > TEXT_BYTES {
        return Err(format!("{path:?} is no absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("{path:?} has .. in it"));
    }
    if path.trim_matches('/').is_empty() {
        return Err("the root cannot be mounted over".to_owned());
    }
    Ok(())
}

/// Whether a path, which [`check_path`] has let pass, is in a filesystem by which the kernel tells and is told things, or is the
/// directory of the devices. What an empty volume would be filled with there is no image's.
pub fn is_kernels(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    matches!(
        (parts.next(), parts.next()),
        (Some("proc" | "sys"), _) | (Some("dev"), None)
    )
}

/// A filesystem in memory, `/run:size=64m,exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where.
    pub path: String,
    /// Options as the user gave them.
    pub options: Vec<String>,
}

impl Tmpfs {
    /// With these options.
    ///
    /// # Errors
    /// A line that says what is wrong.
    pub fn new(path: &str, options: Vec<String>) -> Result<Self, String> {
        check_path(path)?;
        for option in &options {
            let known = match option.split_once('=') {
                Some((key, value)) => KEYS.contains(&key) && !value.is_empty() && value.len() < TEXT_BYTES,
                None => WORDS.contains(&option.as_str()),
            };
            if !known || option.contains('\0') {
                return Err(format!("{option:?} is no option of a tmpfs"));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            options,
        })
    }

    /// As the agent takes it: what the user does not say is as with Docker.
    pub fn spec(&self) -> MountSpec {
        let says = |option: &str| self.options.iter().any(|said| said == option);
        let defaults = DEFAULTS
            .iter()
            .filter(|(_, opposite)| !says(opposite))
            .map(|(option, _)| (*option).to_owned());
        let wishes = self.options.iter().filter(|option| *option != "rw").cloned();
        MountSpec {
            target: self.path.clone(),
            kind: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            options: defaults.chain(wishes).collect(),
        }
    }
}

impl FromStr for Tmpfs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let options = options.split(',').filter(|option| !option.is_empty());
        Self::new(path, options.map(str::to_owned).collect())
    }
}

impl fmt::Display for Tmpfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path, self.options.join(","))
    }
}

/// A device of the host's, `/dev/fuse[:/dev/fuse[:rwm]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path on the host.
    pub host: String,
    /// Its path in the sandbox.
    pub inside: String,
}

impl Device {
    /// Checks that it is a device of this host.
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |reason: String| Error::option("--device", reason);
        let kind = std::fs::metadata(&self.host)
            .map_err(|e| wrong(format!("{}: {e}", self.host)))?
            .file_type();
        if kind.is_char_device() || kind.is_block_device() {
            return Ok(());
        }
        Err(wrong(format!("{} is no device", self.host)))
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let host = parts.next().unwrap_or_default();
        let inside = parts.next().filter(|part| !part.is_empty()).unwrap_or(host);
        let rights = parts.next().unwrap_or("rwm");
        if parts.next().is_some() {
            return Err("write /dev/NAME[:/dev/NAME]".to_owned());
        }
        if !["rwm", "rw"].contains(&rights) {
            return Err(format!(
                "a device cannot be given with {rights:?} alone: write rwm, or nothing"
            ));
        }
        check_path(host)?;
        check_path(inside)?;
        Ok(Self {
            host: host.to_owned(),
            inside: inside.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tmpfs_has_dockers_options_unless_it_is_told_otherwise() {
        let plain: Tmpfs = "/run".parse().unwrap();
        assert_eq!(plain.spec().options, ["nosuid", "nodev", "noexec"]);
        let wished: Tmpfs = "/run:rw,exec,size=64m,mode=700".parse().unwrap();
        assert_eq!(
            wished.spec().options,
            ["nosuid", "nodev", "exec", "size=64m", "mode=700"]
        );
        for wrong in [
            "run",
            "/",
            "/a/../b",
            "/run:what",
            "/run:size=",
            "/run:lowerdir=/x",
        ] {
            assert!(wrong.parse::<Tmpfs>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_kernels_filesystems_are_known_however_they_are_written() {
        for path in ["/proc", "//proc/", "/proc/1/root", "/./sys/fs/cgroup", "/dev/"] {
            assert!(check_path(path).is_ok() && is_kernels(path), "{path}");
        }
        for path in ["/process", "/var/proc", "/dev/shm", "/data/sys"] {
            assert!(!is_kernels(path), "{path}");
        }
    }

    #[test]
    fn a_device_may_have_another_path_inside() {
        let device: Device = "/dev/fuse".parse().unwrap();
        assert_eq!(
            (device.host.as_str(), device.inside.as_str()),
            ("/dev/fuse", "/dev/fuse")
        );
        let device: Device = "/dev/null:/dev/x:rwm".parse().unwrap();
        assert_eq!(device.inside, "/dev/x");
        device.check().unwrap();
        for wrong in ["fuse", "/dev/fuse:/dev/fuse:r", "/dev/a:/b:rwm:x"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
        let no_device: Device = "/etc/passwd".parse().unwrap();
        assert!(no_device.check().unwrap_err().to_string().contains("no device"));
    }
}
