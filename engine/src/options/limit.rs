//! Amounts: limits of processes, swap, sizes of logs and of the writable layer.

use std::{fmt, str::FromStr};

use brig_image_store::limits::parse_bytes;
use brig_protocol::spec::{RESOURCES, Rlimit};
use serde::{Deserialize, Serialize};

use crate::{Error, resources::MemoryMib};

/// `RLIM_INFINITY`.
const UNLIMITED: u64 = u64::MAX;

/// The smallest and the largest writable layer: what an ext4 of this layout needs, and can be (`engine/src/disk.rs`).
const STORAGE: std::ops::RangeInclusive<u64> = (32 << 20)..=(8 << 40);

/// A limit of each process, `nofile=1024:4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The number of the resource.
    pub resource: u8,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

impl Ulimit {
    /// The resource's name.
    pub fn name(&self) -> &'static str {
        RESOURCES
            .get(usize::from(self.resource))
            .copied()
            .unwrap_or("unknown")
    }

    /// As the agent takes it.
    pub fn rlimit(&self) -> Rlimit {
        Rlimit {
            resource: self.resource,
            soft: self.soft,
            hard: self.hard,
        }
    }
}

impl FromStr for Ulimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').ok_or("write NAME=SOFT[:HARD]")?;
        let resource = RESOURCES
            .iter()
            .position(|known| *known == name)
            .ok_or_else(|| format!("there is no limit {name:?}: one of {}", RESOURCES.join(", ")))?;
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(UNLIMITED),
            text => text.parse().map_err(|_| format!("{text:?} is no number")),
        };
        let (soft, hard) = match values.split_once(':') {
            Some((soft, hard)) => (number(soft)?, number(hard)?),
            None => (number(values)?, number(values)?),
        };
        if soft > hard {
            return Err("the soft limit is above the hard one".to_owned());
        }
        Ok(Self {
            resource: resource as u8,
            soft,
            hard,
        })
    }
}

/// Nobody raises a limit of the host's but one whom the host lets.
pub(super) fn check_ulimits_on_host(limits: &[Ulimit]) -> Result<(), Error> {
    for limit in limits {
        let mut present = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the kernel writes the two numbers, which are this function's own; a resource that does not exist is refused.
        let read =
            unsafe { libc::getrlimit(libc::__rlimit_resource_t::from(limit.resource), &raw mut present) };
        if read == 0 && limit.hard > present.rlim_max {
            return Err(Error::option(
                "--ulimit",
                format!(
                    "{} of whoever runs brig is {}, and a container cannot have more: raise that, or use --isolation vm",
                    limit.name(),
                    present.rlim_max
                ),
            ));
        }
    }
    Ok(())
}

/// Memory and swap together, or no limit of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Swap {
    /// `-1`.
    Unlimited,
    /// So much of both.
    Total(MemoryMib),
}

impl FromStr for Swap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Self::Unlimited),
            text => text.parse().map(Self::Total).map_err(|e: Error| e.to_string()),
        }
    }
}

/// `--log-opt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogOptions {
    /// Bytes of a file of the log; 0 for no limit but brig's own.
    pub max_size: u64,
    /// How many files there may be; 0 for brig's own number.
    pub max_file: u32,
}

/// Most files of a log.
pub(crate) const LOG_FILES: u32 = 100;

/// The smallest file of a log: there has to be room for one line.
const LOG_BYTES: u64 = 1 << 10;

impl LogOptions {
    /// Takes `KEY=VALUE` entries.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn parse(entries: &[String]) -> Result<Self, Error> {
        let mut options = Self::default();
        let wrong = |reason: String| Error::option("--log-opt", reason);
        for entry in entries {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            match key {
                "max-size" if value == "-1" => options.max_size = 0,
                "max-size" => {
                    let bytes =
                        parse_bytes(value).ok_or_else(|| wrong(format!("{value:?} is no size: 10m")))?;
                    if bytes < LOG_BYTES as f64 {
                        return Err(wrong(format!(
                            "max-size={value} is too little: {LOG_BYTES} bytes at least"
                        )));
                    }
                    options.max_size = bytes as u64;
                }
                "max-file" => {
                    options.max_file = value
                        .parse()
                        .ok()
                        .filter(|count| (1..=LOG_FILES).contains(count))
                        .ok_or_else(|| {
                            wrong(format!(
                                "max-file is a number from 1 to {LOG_FILES}, not {value:?}"
                            ))
                        })?;
                }
                _ => return Err(wrong(format!("{key:?} is not known: max-size=10m, max-file=3"))),
            }
        }
        if options.max_file > 1 && options.max_size == 0 {
            return Err(wrong("max-file needs max-size".to_owned()));
        }
        Ok(options)
    }
}

/// The bytes of `--storage-opt size=10g`.
///
/// # Errors
/// [`Error::Option`].
pub fn storage(entries: &[String]) -> Result<Option<u64>, Error> {
    let mut size = None;
    for entry in entries {
        let wrong = |reason: String| Error::option("--storage-opt", reason);
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        if key != "size" {
            return Err(wrong(format!("{key:?} is not known: size=20g")));
        }
        let bytes = parse_bytes(value).ok_or_else(|| wrong(format!("{value:?} is no size: 20g")))? as u64;
        if !STORAGE.contains(&bytes) {
            return Err(wrong(format!("size={value} is not between 32m and 8t")));
        }
        // Whole blocks.
        size = Some(bytes & !0xfff);
    }
    Ok(size)
}

/// The bytes of `--shm-size`.
///
/// # Errors
/// A line that says what is wrong.
pub fn shm(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).ok_or("write 64m or the like")? as u64;
    if bytes == 0 {
        return Err("there has to be something".to_owned());
    }
    Ok(bytes)
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.name(), self.soft, self.hard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_limit_has_a_name_and_one_or_two_numbers() {
        let limit: Ulimit = "nofile=1024:4096".parse().unwrap();
        assert_eq!((limit.resource, limit.soft, limit.hard), (7, 1024, 4096));
        let limit: Ulimit = "core=-1".parse().unwrap();
        assert_eq!((limit.resource, limit.soft, limit.hard), (4, u64::MAX, u64::MAX));
        for wrong in ["nofile", "nofile=", "what=1", "nofile=5:4", "nofile=1:x"] {
            assert!(wrong.parse::<Ulimit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_log_is_bounded_by_sizes_and_numbers() {
        let options = LogOptions::parse(&texts(&["max-size=10m", "max-file=3"])).unwrap();
        assert_eq!((options.max_size, options.max_file), (10 << 20, 3));
        assert_eq!(LogOptions::parse(&[]).unwrap(), LogOptions::default());
        for wrong in [
            &["max-size=x"][..],
            &["max-file=0"],
            &["max-file=3"],
            &["tag=x"],
            &["max-size=1k", "max-file=101"],
        ] {
            assert!(LogOptions::parse(&texts(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_writable_layer_has_a_size_within_bounds() {
        assert_eq!(storage(&texts(&["size=1g"])).unwrap(), Some(1 << 30));
        assert_eq!(storage(&[]).unwrap(), None);
        for wrong in ["size=1m", "size=9t", "size", "what=1g"] {
            assert!(storage(&texts(&[wrong])).is_err(), "{wrong}");
        }
    }
}
