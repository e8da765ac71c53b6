//! Removing a tree that somebody else has filled: a sandbox's files may be nested deeper than any stack, path or table of
//! descriptors reaches, and hold links to everywhere.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, chmodat, openat, renameat_with, unlinkat},
    io::Errno,
};

/// Removes the directory at `path` and everything in it. Nothing outside is touched: no link is followed. Directories that are
/// not empty are moved up beside each other and emptied there, so that two descriptors do for any depth.
///
/// # Errors
/// Those of the files; the first one ends it.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match open_directory(CWD, path).and_then(|top| empty_tree(&top)) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => match HELPER.get() {
            Some(help) => help(path)?,
            None => return Err(e),
        },
        emptied => emptied?,
    }
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Empties a directory that holds files of others.
pub type Helper = fn(&Path) -> io::Result<()>;

static HELPER: OnceLock<Helper> = OnceLock::new();

/// Names who empties a directory that this process may not: files may belong to subordinate ids of the user's. The first one who is
/// named stays.
pub fn set_helper(helper: Helper) {
    let _ = HELPER.set(helper);
}

/// Removes everything in a directory.
///
/// # Errors
/// As [`remove_tree`].
pub fn empty_tree(top: &OwnedFd) -> io::Result<()> {
    let mut spare = 0;
    let mut full: Vec<CString> = sweep(top.as_fd(), None, &mut spare)?;
    while let Some(name) = full.pop() {
        let directory = open_to_empty(top.as_fd(), &name)?;
        full.extend(sweep(directory.as_fd(), Some(top.as_fd()), &mut spare)?);
        unlinkat(top, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Removes what is in a directory but the directories that are not empty. Those are moved to `up` under new names, when it is
/// given; their names are returned.
fn sweep(directory: BorrowedFd<'_>, up: Option<BorrowedFd<'_>>, spare: &mut u64) -> io::Result<Vec<CString>> {
    let mut full = Vec::new();
    // Taken before anything is removed, as a directory that changes may show a name twice or never.
    for name in names(directory)? {
        match unlinkat(directory, &name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(Errno::NOENT) => continue,
            removed => {
                removed?;
                continue;
            }
        }
        match unlinkat(directory, &name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            removed => {
                removed?;
                continue;
            }
        }
        full.push(match up {
            Some(up) => move_up(directory, &name, up, spare)?,
            None => name,
        });
    }
    Ok(full)
}

fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

fn move_up(from: BorrowedFd<'_>, name: &CStr, up: BorrowedFd<'_>, spare: &mut u64) -> io::Result<CString> {
    // Its ".." changes, which needs the right to write to it.
    let _ = chmodat(from, name, Mode::RWXU, AtFlags::empty());
    loop {
        let new = CString::new(format!(".removed-{spare}"))?;
        *spare += 1;
        match renameat_with(from, name, up, &new, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            moved => {
                moved?;
                return Ok(new);
            }
        }
    }
}

/// Opens a directory whose owner may have kept everybody out, itself included.
fn open_to_empty(top: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    match open_directory(top, name) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
        opened => return opened,
    }
    // Nobody but the caller is at work here: the name is the directory's still.
    chmodat(top, name, Mode::RWXU, AtFlags::empty())?;
    open_directory(top, name)
}

fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_goes_and_links_are_not_followed() {
        let temporary = tempfile::tempdir().unwrap();
        let kept = temporary.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let tree = temporary.path().join("tree");
        fs::create_dir(&tree).unwrap();
        symlink(&kept, tree.join("link")).unwrap();
        fs::create_dir_all(tree.join("closed/inside")).unwrap();
        fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
        let mut here = open_directory(CWD, tree.as_path()).unwrap();
        for depth in 0..5000 {
            mkdirat(&here, "directory", Mode::RWXU).unwrap();
            let below = open_directory(&here, "directory").unwrap();
            if depth % 1000 == 0 {
                rustix::fs::symlinkat(&kept, &below, "link").unwrap();
            }
            here = below;
        }
        drop(here);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
    }
}
