//! Names: of hosts, of the resolver, of the kernel's settings.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Most bytes of a name (DNS has 253).
const NAME_BYTES: usize = 255;

/// Settings of the ipc namespace that Docker lets a user change, beside those of `fs.mqueue` and `net`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];
const PREFIXES: [&str; 2] = ["net.", "fs.mqueue."];

/// A line of `/etc/hosts`, `db:10.0.0.2` or `db=10.0.0.2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

impl FromStr for ExtraHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once([':', '=']).ok_or("write NAME:ADDRESS")?;
        if address == "host-gateway" {
            return Err(
                "a sandbox has no way to the host, so there is no gateway: write an address".to_owned(),
            );
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(allowed) {
            return Err(format!("{name:?} is no name of a host"));
        }
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        Ok(Self {
            name: name.to_owned(),
            address: bare.parse().map_err(|_| format!("{address:?} is no address"))?,
        })
    }
}

impl fmt::Display for ExtraHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.address)
    }
}

/// A word of `/etc/resolv.conf`.
pub(super) fn check_resolver_word(word: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if word.is_empty() || word.len() > NAME_BYTES || !word.bytes().all(allowed) {
        return Err(Error::option(
            "--dns-search",
            format!("{word:?} is no word of resolv.conf"),
        ));
    }
    Ok(())
}

/// A setting of the kernel, `net.core.somaxconn=1024`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// With dots.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Sysctl {
    /// Its file below `/proc/sys`. A slash in the name stands for a dot in a part of it (sysctl(8)).
    pub fn file(&self) -> String {
        let swap = |character| match character {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        self.name.chars().map(swap).collect()
    }
}

impl FromStr for Sysctl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/');
        let parts = name.split(['.', '/']).all(|part| !part.is_empty());
        if name.len() > NAME_BYTES || !name.bytes().all(allowed) || !parts {
            return Err(format!("{name:?} is no setting of a kernel"));
        }
        if value.is_empty() || value.len() > NAME_BYTES || value.contains(['\0', '\n']) {
            return Err(format!("{value:?} is no value"));
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// On the host's kernel only what a namespace has of its own.
pub(super) fn check_sysctls_on_host(settings: &[Sysctl]) -> Result<(), Error> {
    for Sysctl { name, .. } in settings {
        if !IPC.contains(&name.as_str()) && !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(Error::option(
                "--sysctl",
                format!(
                    "{name} is the whole host's: use --isolation vm, where the kernel is the sandbox's own"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_name_and_an_address() {
        let host: ExtraHost = "db:10.0.0.2".parse().unwrap();
        assert_eq!(host.to_string(), "db:10.0.0.2");
        let host: ExtraHost = "six=[fe80::1]".parse().unwrap();
        assert_eq!(host.address, "fe80::1".parse::<IpAddr>().unwrap());
        for wrong in ["db", "db:x", ":1.2.3.4", "a b:1.2.3.4", "x:host-gateway"] {
            assert!(wrong.parse::<ExtraHost>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_setting_is_a_file_below_proc_sys() {
        let setting: Sysctl = "net.ipv4.conf.eth0/1.forwarding=1".parse().unwrap();
        assert_eq!(setting.file(), "net/ipv4/conf/eth0.1/forwarding");
        for wrong in ["net", "=1", "net..x=1", "a b=1", "net.x=", ".net=1", "../x=1"] {
            assert!(wrong.parse::<Sysctl>().is_err(), "{wrong}");
        }
        let of = |text: &str| check_sysctls_on_host(&[text.parse().unwrap()]);
        assert!(of("net.core.somaxconn=1").is_ok() && of("kernel.shmmax=1").is_ok());
        assert!(of("vm.overcommit_memory=1").is_err());
    }
}
