//! Who the process is: `USER` of an image, looked up in the image's own passwd(5) and group(5), by the rules of
//! Docker (github.com/moby/sys, `user.GetExecUser`).

use std::{
    fs::{self, File},
    io::{self, Read},
};

/// Most bytes of an image's passwd or group file.
const FILE_BYTES: u64 = 4 << 20;

/// Most supplementary groups: the kernel's `NGROUPS_MAX`.
const GROUPS_MAX: usize = 65536;

/// The largest user or group number.
const ID_MAX: u32 = i32::MAX as u32;

/// Why a user could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The user has no entry.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// The group has no entry.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number is out of range.
    #[error("uids and gids must be in range 0-{ID_MAX}: {0}")]
    OutOfRange(String),
    /// A file of the image cannot be read, or is not what it should be.
    #[error("cannot read {path} of the image")]
    Unreadable {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl UserError {
    /// Whether the image does not have the user or group, as opposed to a file that cannot be read.
    pub fn is_unknown(&self) -> bool {
        !matches!(self, Self::Unreadable { .. })
    }
}

/// Numbers and home of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User number.
    pub uid: u32,
    /// Primary group number.
    pub gid: u32,
    /// Supplementary group numbers, the primary one first (CVE-2022-36109).
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Looks `user` up in the files of the root filesystem that the calling process is in. It is in the groups `more` too.
///
/// # Errors
/// [`UserError`].
pub(crate) fn resolve(user: &str, more: &[String]) -> Result<Identity, UserError> {
    let passwd = read("/etc/passwd")?;
    let group = read("/etc/group")?;
    let mut identity = lookup(user, &passwd, &group)?;
    for wanted in more {
        let gid = find_group(wanted, &group)?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(identity)
}

/// Reads a file of the image; one that is missing is as an empty one. It is the image's author who says what it
/// is: a FIFO would never end, a device might do anything.
fn read(path: &'static str) -> Result<String, UserError> {
    let unreadable = |source| UserError::Unreadable { path, source };
    let length = match fs::metadata(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        Err(e) => return Err(unreadable(e)),
        Ok(metadata) if !metadata.is_file() => {
            return Err(unreadable(io::Error::other("not a regular file")));
        }
        Ok(metadata) => metadata.len(),
    };
    // The byte more shows in the same read that there is none.
    let mut bytes = vec![0; length.min(FILE_BYTES) as usize + 1];
    let read = File::open(path).and_then(|mut file| read_once(&mut file, &mut bytes));
    bytes.truncate(read.map_err(unreadable)?);
    if bytes.len() as u64 > FILE_BYTES {
        return Err(unreadable(io::Error::other("the file is too large")));
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// One read: of a regular file the kernel gives all that is asked for and there.
fn read_once(file: &mut File, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Finds the identity that `user` stands for: ``, `name`, `uid`, and each with `:group` or `:gid`.
fn lookup(user: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, group_wanted) = user.split_once(':').unwrap_or((user, ""));
    let entry = find_user(user, passwd)?;
    let mut identity = Identity {
        uid: entry.uid,
        gid: entry.gid,
        groups: vec![],
        home: entry.home.unwrap_or("/").to_owned(),
    };
    if group_wanted.is_empty() {
        identity.groups = entry.name.map(|name| member_of(name, group)).unwrap_or_default();
    } else {
        identity.gid = find_group(group_wanted, group)?;
    }
    identity.groups.retain(|&gid| gid != identity.gid);
    identity.groups.insert(0, identity.gid);
    identity.groups.truncate(GROUPS_MAX);
    Ok(identity)
}

/// What passwd says of a user.
struct User<'a> {
    name: Option<&'a str>,
    uid: u32,
    gid: u32,
    home: Option<&'a str>,
}

/// The first entry that matches; without one a number stands for itself.
fn find_user<'a>(wanted: &str, passwd: &'a str) -> Result<User<'a>, UserError> {
    let number = if wanted.is_empty() {
        Some(Ok(0))
    } else {
        number(wanted)
    };
    let number = number.transpose()?;
    let entry = passwd
        .lines()
        .filter_map(passwd_entry)
        .find(|entry| match number {
            Some(uid) => entry.uid == uid,
            None => entry.name == Some(wanted),
        });
    match (entry, number) {
        (Some(entry), _) => Ok(entry),
        (None, Some(uid)) => Ok(User {
            name: None,
            uid,
            gid: 0,
            home: None,
        }),
        (None, None) => Err(UserError::UnknownUser(wanted.to_owned())),
    }
}

/// `name:password:uid:gid:comment:home:shell`
fn passwd_entry(line: &str) -> Option<User<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let uid = fields.nth(1)?.parse().ok().filter(|&uid| uid <= ID_MAX)?;
    let gid = fields.next()?.parse().ok().filter(|&gid| gid <= ID_MAX)?;
    let home = fields.nth(1).filter(|home| !home.is_empty());
    Some(User {
        name: Some(name),
        uid,
        gid,
        home,
    })
}

/// The number of a group; without an entry a number stands for itself.
fn find_group(wanted: &str, group: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(wanted) {
        return gid;
    }
    group
        .lines()
        .filter_map(group_entry)
        .find_map(|(name, gid, _)| (name == wanted).then_some(gid))
        .ok_or_else(|| UserError::UnknownGroup(wanted.to_owned()))
}

/// The groups that have `user` in their lists.
fn member_of(user: &str, group: &str) -> Vec<u32> {
    group
        .lines()
        .filter_map(group_entry)
        .filter_map(|(_, gid, members)| members.split(',').any(|member| member == user).then_some(gid))
        .collect()
}

/// `name:password:gid:members`
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = fields.nth(1)?.parse().ok().filter(|&gid| gid <= ID_MAX)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

/// The number that a text is; `None` when it is a name.
fn number(text: &str) -> Option<Result<u32, UserError>> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(
        text.parse()
            .ok()
            .filter(|&id| id <= ID_MAX)
            .ok_or_else(|| UserError::OutOfRange(text.to_owned())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken line\nbad:x:one:2::/:\n\
        web:x:33:34:www data:/var/www:/bin/false\nhomeless:x:50:50:::\nweb:x:99:99::/second:\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:web,root\nweb:x:34:web\nssl:x:44:other,web\nempty\n";

    fn identity(user: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = lookup(user, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn no_user_means_root_as_the_image_describes_it() {
        assert_eq!(identity(""), (0, 0, vec![0, 4], "/root".into()));
        assert_eq!(identity("0"), identity("root"));
        let bare = lookup("", "", "").unwrap();
        assert_eq!(
            (bare.uid, bare.gid, bare.groups, bare.home.as_str()),
            (0, 0, vec![0], "/")
        );
    }

    #[test]
    fn a_name_brings_its_groups_along_and_the_first_entry_wins() {
        assert_eq!(identity("web"), (33, 34, vec![34, 4, 44], "/var/www".into()));
    }

    #[test]
    fn a_number_with_an_entry_is_as_its_name() {
        assert_eq!(identity("33"), identity("web"));
    }

    #[test]
    fn a_number_without_an_entry_stands_for_itself() {
        assert_eq!(identity("1234"), (1234, 0, vec![0], "/".into()));
        assert_eq!(identity("1234:5678"), (1234, 5678, vec![5678], "/".into()));
    }

    #[test]
    fn an_explicit_group_replaces_all_others() {
        assert_eq!(identity("web:ssl"), (33, 44, vec![44], "/var/www".into()));
        assert_eq!(identity(":ssl"), (0, 44, vec![44], "/root".into()));
    }

    #[test]
    fn an_entry_without_a_home_has_the_root_for_one() {
        assert_eq!(identity("homeless").3, "/");
    }

    #[test]
    fn names_without_an_entry_are_unknown() {
        let error = lookup("nobody", PASSWD, GROUP).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to find user nobody: no matching entries in passwd file"
        );
        let error = lookup("web:nogroup", PASSWD, GROUP).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to find group nogroup: no matching entries in group file"
        );
        assert!(error.is_unknown());
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for user in ["-1", "4294967295", "2147483648", "0:99999999999999999999"] {
            assert!(
                matches!(lookup(user, PASSWD, GROUP), Err(UserError::OutOfRange(_))),
                "{user}"
            );
        }
    }
}
