//! `--volume` and `--mount`.

use std::str::FromStr;

use super::{Tmpfs, mount::check_path};
use crate::volume::{Source, VolumeMount, check_name};

/// One `--volume`: `[NAME:|/HOST/PATH:]/PATH[:ro]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOption(pub VolumeMount);

/// One `--mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountOption {
    /// `type=volume` or `type=bind`.
    Volume(VolumeMount),
    /// `type=tmpfs`.
    Tmpfs(Tmpfs),
}

/// What a source means: a path is the host's, a name a volume's, nothing a volume without a name.
fn source(text: &str) -> Result<Source, String> {
    if text.is_empty() {
        return Ok(Source::Anonymous);
    }
    if text.starts_with(['/', '.']) {
        return std::path::absolute(text)
            .map(Source::Host)
            .map_err(|e| format!("{text:?}: {e}"));
    }
    check_name(text)?;
    Ok(Source::Volume(text.to_owned()))
}

impl FromStr for VolumeOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (from, target, options) = match parts[..] {
            [target] => ("", target, ""),
            [from, target] => (from, target, ""),
            [from, target, options] => (from, target, options),
            _ => return Err("write NAME:/PATH[:ro]".to_owned()),
        };
        if parts.len() > 1 && from.is_empty() {
            return Err("the name before the colon is missing".to_owned());
        }
        let mut mount = VolumeMount {
            source: source(from)?,
            target: target.to_owned(),
            read_only: false,
            copy: true,
        };
        check_path(target)?;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => mount.read_only = true,
                "rw" => mount.read_only = false,
                "nocopy" => mount.copy = false,
                other => return Err(format!("{other:?} cannot be honoured: ro, rw or nocopy")),
            }
        }
        if matches!(mount.source, Source::Host(_)) {
            mount.copy = false;
        }
        Ok(Self(mount))
    }
}

impl FromStr for MountOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut kind, mut from, mut target) = ("volume", "", "");
        let (mut read_only, mut copy) = (false, true);
        let mut tmpfs = Vec::new();
        let truth = |value: &str| match value {
            "" | "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(format!("{other:?} is neither true nor false")),
        };
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "type" => kind = value,
                "source" | "src" => from = value,
                "target" | "dst" | "destination" => target = value,
                "readonly" | "ro" => read_only = truth(value)?,
                "volume-nocopy" => copy = !truth(value)?,
                "tmpfs-size" => tmpfs.push(format!("size={value}")),
                "tmpfs-mode" => tmpfs.push(format!("mode={value}")),
                other => {
                    return Err(format!(
                        "{other:?} is not known: type, source, target, readonly, volume-nocopy, tmpfs-size, tmpfs-mode"
                    ));
                }
            }
        }
        if !matches!(kind, "volume" | "tmpfs" | "bind") {
            return Err(format!("{kind:?} is no type of a mount: volume, tmpfs or bind"));
        }
        if target.is_empty() {
            return Err("target=/PATH is missing: where it is to be".to_owned());
        }
        check_path(target)?;
        match (kind, source(from)?) {
            ("tmpfs", Source::Anonymous) => {
                if read_only {
                    tmpfs.push("ro".to_owned());
                }
                Tmpfs::new(target, tmpfs).map(Self::Tmpfs)
            }
            ("tmpfs", _) => Err("a tmpfs has no source".to_owned()),
            _ if !tmpfs.is_empty() => Err("tmpfs-size and tmpfs-mode are for type=tmpfs".to_owned()),
            ("volume", source @ (Source::Volume(_) | Source::Anonymous)) => Ok(Self::Volume(VolumeMount {
                source,
                target: target.to_owned(),
                read_only,
                copy,
            })),
            ("volume", Source::Host(_)) => Err("a volume has a name and no path: type=bind".to_owned()),
            ("bind", Source::Host(path)) => Ok(Self::Volume(VolumeMount {
                source: Source::Host(path),
                target: target.to_owned(),
                read_only,
                copy: false,
            })),
            (_, _) => Err("a bind needs source=/PATH".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_a_name_a_path_or_neither() {
        let of = |text: &str| text.parse::<VolumeOption>().map(|option| option.0);
        let named = of("data:/var/lib/data:ro").unwrap();
        assert_eq!(named.source, Source::Volume("data".into()));
        assert_eq!(
            (named.target.as_str(), named.read_only, named.copy),
            ("/var/lib/data", true, true)
        );
        assert_eq!(of("/var/lib/data").unwrap().source, Source::Anonymous);
        let host = of("/srv:/data").unwrap();
        assert_eq!((host.source, host.copy), (Source::Host("/srv".into()), false));
        for wrong in [
            "data:relative",
            ":/data",
            "a b:/data",
            "data:/x:z",
            "data:/x:ro:y",
            "x:/",
            "data:/a/../b",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mount_is_told_by_its_keys() {
        let of = |text: &str| text.parse::<MountOption>();
        let volume = of("type=volume,src=data,dst=/data,readonly").unwrap();
        let MountOption::Volume(volume) = volume else {
            panic!("{volume:?}")
        };
        assert!(volume.read_only && volume.source == Source::Volume("data".into()));
        let tmpfs = of("type=tmpfs,target=/run,tmpfs-size=1m").unwrap();
        let MountOption::Tmpfs(tmpfs) = tmpfs else {
            panic!("{tmpfs:?}")
        };
        assert_eq!(tmpfs.options, ["size=1m"]);
        for wrong in [
            "type=what,dst=/x",
            "dst=x",
            "type=bind,dst=/x",
            "type=tmpfs,src=a1,dst=/x",
            "volume-what=1,dst=/x",
            "src=/x,dst=/y",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        let why = |text| of(text).unwrap_err();
        assert!(why("type=what").contains("no type of a mount"));
        assert!(why("type=tmpfs").contains("target=/PATH is missing"));
    }
}
