//! The user that a jailed process becomes: one of its own where the starter may choose, the starter's where not.

use std::{fs, io};

use rustix::process::{Pid, getegid, geteuid};

/// The first id of those that belong to jailed processes: one each, this plus the process's pid, which no other process
/// has at the same time. From here to 0x7fffffff there is nothing: systemd's lists of ids
/// (github.com/systemd/systemd, docs/UIDS-GIDS.md) call it unused, and `/etc/subuid` starts at 100,000 and gives 65,536 a user.
pub const FIRST: u32 = 0x7000_0000;

/// The bound of pids (`PID_MAX_LIMIT` of the kernel), and so of these ids.
pub const COUNT: u32 = 1 << 22;

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Whether it is nobody else's. As another one's user a process keeps that one's supplementary groups.
    pub own: bool,
}

impl Identity {
    /// The ids of this process.
    fn starters() -> Self {
        Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            own: false,
        }
    }

    /// An identity for the process `pid`. Only root can give away ids, and a root that has them.
    fn of(pid: Pid) -> Self {
        let has = |file| fs::read_to_string(file).is_ok_and(|map| maps_all(&map));
        if geteuid().is_root() && has("/proc/self/uid_map") && has("/proc/self/gid_map") {
            let id = FIRST + pid.as_raw_nonzero().get() as u32;
            return Self {
                uid: id,
                gid: id,
                own: true,
            };
        }
        Self::starters()
    }

    /// Gives the process `pid`, which is in a new user namespace, the only ids that there are in it; returns them. They have the
    /// same numbers there and here.
    ///
    /// # Errors
    /// Those of writing `/proc/PID/uid_map` (user_namespaces(7)).
    pub(crate) fn assign(pid: Pid) -> io::Result<Self> {
        let identity = Self::of(pid);
        match identity.write(pid) {
            // A root without CAP_SETUID: another user than others, if not another than itself.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && identity.own => {
                let starters = Self::starters();
                starters.write(pid).map(|()| starters)
            }
            result => result.map(|()| identity),
        }
    }

    fn write(self, pid: Pid) -> io::Result<()> {
        let file = |name| format!("/proc/{}/{name}", pid.as_raw_nonzero());
        if !self.own {
            // Without it an ordinary user may not map a group: groups that deny something could be left.
            fs::write(file("setgroups"), "deny")?;
        }
        fs::write(file("gid_map"), format!("{0} {0} 1", self.gid))?;
        fs::write(file("uid_map"), format!("{0} {0} 1", self.uid))
    }
}

/// Whether all ids of jailed processes are mapped by a file such as `/proc/self/uid_map`.
fn maps_all(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        first <= FIRST && u64::from(first) + u64::from(count) >= u64::from(FIRST + COUNT)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_namespace_with_all_ids_has_those_of_jailed_processes() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(!maps_all("         0     100000      65536\n"));
        assert!(!maps_all("0 100000 65536\n1879048192 1879048192 1000\n"));
        assert!(maps_all("0 100000 65536\n1879048192 1879048192 4194304\n"));
        assert!(!maps_all("nonsense\n"));
        assert!(!maps_all(""));
    }
}
