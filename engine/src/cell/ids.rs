//! Which ids of the host the ids inside of a sandbox are.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use brig_protocol::cell::IdMap;
use rustix::process::{getgid, getuid};

use crate::Error;

/// Where root's sandboxes have their ids when no file says so: above everything that systemd gives out and below 2^31, which
/// some filesystems cannot tell from a negative number (systemd.io/UIDS-GIDS, "unused"), behind those of
/// [`brig_jail::identity`].
const ROOT_FIRST: u32 = 0x7100_0000;
const ROOT_COUNT: u32 = 0x0f00_0000;

/// Least ids that a range must have to be of use: with fewer there is no `nobody`.
const LEAST: u32 = 65_536;

/// Where subordinate ids stand (subuid(5), subgid(5)).
const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

/// Where the helpers are looked for.
const HELPERS: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];

/// The ids that this user's sandboxes have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIds {
    map: IdMap,
}

impl HostIds {
    /// Looks them up. Root's are a range that is nobody else's: that of the user `brig` in `/etc/subuid`, or one of its own.
    /// Others' are their subordinate ids. A user who has none, or no `newuidmap`, has one id inside: root.
    pub fn look_up() -> Self {
        let uid = getuid().as_raw();
        let map = if uid == 0 {
            root_range()
        } else {
            subordinate(uid, getgid().as_raw()).unwrap_or(IdMap::Single)
        };
        Self { map }
    }

    /// As brig-cell takes it.
    pub fn map(&self) -> &IdMap {
        &self.map
    }

    /// A name for what is on the disk with these owners.
    pub fn key(&self) -> String {
        match &self.map {
            IdMap::Single => "single".to_owned(),
            IdMap::Range { first, .. } => first.to_string(),
            IdMap::Subordinate { uids, gids, .. } => format!("{}-{}", uids.0, gids.0),
        }
    }

    /// Who the sandbox's root is on the host, when that is not the one who runs brig.
    pub fn root(&self) -> Option<u32> {
        match &self.map {
            IdMap::Range { first, .. } => Some(*first),
            IdMap::Single | IdMap::Subordinate { .. } => None,
        }
    }

    /// Whether there is anybody but root inside.
    pub fn are_several(&self) -> bool {
        self.map != IdMap::Single
    }

    /// Checks that the host lets a sandbox have them.
    ///
    /// # Errors
    /// [`Error::Isolation`] with what the kernel lacks.
    pub fn check(&self) -> Result<(), Error> {
        let lacks = |text: &str| Err(Error::Isolation(format!("this kernel {text}")));
        if !Path::new("/proc/self/ns/user").exists() {
            return lacks("has no user namespaces (CONFIG_USER_NS)");
        }
        // A module is not loaded for one who is not root outside.
        if read("/proc/filesystems").is_some_and(|text| !text.lines().any(|line| line.ends_with("\toverlay")))
        {
            return lacks("has no overlayfs loaded: modprobe overlay");
        }
        Ok(())
    }
}

fn root_range() -> IdMap {
    let uids = read(SUBUID).and_then(|text| range_of(&text, &["brig"]));
    let gids = read(SUBGID).and_then(|text| range_of(&text, &["brig"]));
    match (uids, gids) {
        // One range for both, as it stands in the directory's name.
        (Some(uids), Some(gids)) if uids == gids => IdMap::Range {
            first: uids.0,
            count: uids.1,
        },
        _ => IdMap::Range {
            first: ROOT_FIRST,
            count: ROOT_COUNT,
        },
    }
}

fn subordinate(uid: u32, gid: u32) -> Option<IdMap> {
    let name = user_name(uid)?;
    let number = uid.to_string();
    let names = [name.as_str(), number.as_str()];
    let _ = gid;
    Some(IdMap::Subordinate {
        newuidmap: helper("newuidmap")?,
        newgidmap: helper("newgidmap")?,
        uids: range_of(&read(SUBUID)?, &names)?,
        gids: range_of(&read(SUBGID)?, &names)?,
    })
}

/// The user's name, for files that name it so; the number where it has none.
fn user_name(uid: u32) -> Option<String> {
    let passwd = read("/etc/passwd");
    let entry = passwd.iter().flat_map(|text| text.lines()).find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    entry
        .or_else(|| env::var("USER").ok())
        .or_else(|| Some(uid.to_string()))
}

/// The first range of one of these names that is large enough.
fn range_of(text: &str, names: &[&str]) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
        let fits = first > 0 && count >= LEAST && first.checked_add(count).is_some();
        (names.contains(&name) && fits).then_some((first, count))
    })
}

fn helper(name: &str) -> Option<String> {
    let found = HELPERS.iter().map(|directory| Path::new(directory).join(name));
    let path: PathBuf = found.into_iter().find(|path| path.is_file())?;
    Some(path.to_str()?.to_owned())
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_that_is_large_enough_is_taken() {
        let text = "other:1:65536\nme:100:10\nme:200000:65536\n1000:300000:65536\n";
        assert_eq!(range_of(text, &["me", "1000"]), Some((200_000, 65_536)));
        assert_eq!(range_of(text, &["1000"]), Some((300_000, 65_536)));
        assert_eq!(range_of(text, &["nobody"]), None);
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let text = "\nme\nme:x:y\nme:4294967295:65536\nme:0:65536\nme:7:70000:more\n";
        assert_eq!(range_of(text, &["me"]), Some((7, 70_000)));
    }

    #[test]
    fn maps_have_names_of_their_own() {
        let of = |map| HostIds { map }.key();
        let range = of(IdMap::Range {
            first: 5,
            count: 65_536,
        });
        assert_ne!(range, of(IdMap::Single));
        assert_eq!(range, "5");
    }
}
