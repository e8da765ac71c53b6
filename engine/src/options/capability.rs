//! Capabilities by name (capabilities(7)).

use std::{fmt, str::FromStr};

use brig_protocol::spec::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::Error;

/// In the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Those that mean something in a user namespace and need no system call that the filter refuses, beside Docker's.
const ON_HOST: [&str; 5] = [
    "DAC_READ_SEARCH",
    "IPC_OWNER",
    "NET_ADMIN",
    "NET_BROADCAST",
    "SYS_PTRACE",
];

/// `CAP_SYS_TIME` (linux/capability.h): to set the clock.
pub const SYS_TIME: Capability = Capability::One(25);

/// One capability, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Capability {
    /// `ALL`.
    All,
    /// The one with this number.
    One(u8),
}

impl Capability {
    /// Whether it is in `set`.
    pub fn is_in(self, set: CapabilitySet) -> bool {
        set.0 & self.bits() == self.bits()
    }

    fn bits(self) -> u64 {
        match self {
            Self::All => (1 << NAMES.len()) - 1,
            Self::One(number) => 1 << number,
        }
    }
}

impl FromStr for Capability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            return Ok(Self::All);
        }
        NAMES
            .iter()
            .position(|known| *known == name)
            .map(|number| Self::One(number as u8))
            .ok_or_else(|| "there is no such capability: write NET_ADMIN or the like, or ALL".to_owned())
    }
}

impl TryFrom<String> for Capability {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        capability.to_string()
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("ALL"),
            Self::One(number) => {
                write!(f, "CAP_{}", NAMES.get(usize::from(*number)).unwrap_or(&"UNKNOWN"))
            }
        }
    }
}

/// Docker's default with these added and those dropped. Where both name all, the one that names single ones decides (moby,
/// `daemon/pkg/oci/caps`): what is dropped by name is not there, otherwise what is added by name is.
pub fn set(add: &[Capability], drop: &[Capability]) -> CapabilitySet {
    let single = |list: &[Capability]| {
        list.iter()
            .filter(|capability| **capability != Capability::All)
            .fold(0, |bits, capability| bits | capability.bits())
    };
    let base = if add.contains(&Capability::All) {
        Capability::All.bits()
    } else if drop.contains(&Capability::All) {
        0
    } else {
        CapabilitySet::DOCKER_DEFAULT.0
    };
    CapabilitySet((base | single(add)) & !single(drop))
}

/// Whether the set has the capability of this name.
pub(super) fn has(set: CapabilitySet, name: &str) -> bool {
    let capability: Result<Capability, _> = name.parse();
    capability.is_ok_and(|capability| set.0 & capability.bits() == capability.bits())
}

/// Refuses what has no effect on a kernel that the sandbox shares.
pub(super) fn check_on_host(add: &[Capability]) -> Result<(), Error> {
    for &capability in add {
        let is_default = CapabilitySet::DOCKER_DEFAULT.0 & capability.bits() == capability.bits();
        let means_something = || {
            ON_HOST
                .iter()
                .any(|name| name.parse::<Capability>() == Ok(capability))
        };
        if !is_default && !means_something() {
            return Err(Error::option(
                "--cap-add",
                format!(
                    "{capability} is not given away on the host's kernel: use --isolation vm, where the kernel is the sandbox's own"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<Capability> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn names_are_the_kernels_numbers() {
        for (name, number) in [
            ("CHOWN", 0),
            ("cap_net_admin", 12),
            ("SYS_ADMIN", 21),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(name.parse(), Ok(Capability::One(number)), "{name}");
        }
        assert!("NONSENSE".parse::<Capability>().is_err());
        assert_eq!(Capability::One(21).to_string(), "CAP_SYS_ADMIN");
    }

    #[test]
    fn what_is_added_and_dropped_is_as_with_docker() {
        let default = CapabilitySet::DOCKER_DEFAULT.0;
        let of = |add: &[&str], drop: &[&str]| set(&list(add), &list(drop)).0;
        assert_eq!(of(&[], &[]), default);
        assert_eq!(of(&["NET_ADMIN"], &["CHOWN"]), (default | 1 << 12) & !1);
        assert_eq!(of(&["KILL"], &["ALL"]), 1 << 5);
        assert_eq!(of(&["ALL"], &["KILL"]), ((1 << 41) - 1) & !(1 << 5));
        assert!(has(set(&[], &[]), "CAP_CHOWN") && !has(set(&[], &[]), "CAP_SYS_ADMIN"));
    }

    #[test]
    fn what_means_nothing_on_the_hosts_kernel_is_refused() {
        assert!(check_on_host(&list(&["CHOWN", "NET_ADMIN"])).is_ok());
        for name in ["SYS_ADMIN", "ALL", "SYS_TIME"] {
            let error = check_on_host(&list(&[name])).unwrap_err().to_string();
            assert!(error.contains("--isolation vm"), "{error}");
        }
    }
}
