//! Volumes: opened while the caller's root is still the process's, mounted once the sandbox's is. One that is empty becomes what
//! the image has at its place, as with Docker.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
};

use brig_protocol::spec::{HOST_VOLUMES, MountSpec, VolumeSource, VolumeSpec};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
        fchmod, fchown, fstat, futimens, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
    },
    mount::{OpenTreeFlags, open_tree},
};

use crate::{
    error::{Context, LaunchError},
    extras::target_file,
    masked::clone_tree,
    mounts::{self, Reach},
};

/// Most directories that lie in each other: the process that copies has a small stack.
const DEPTH: u32 = 64;

/// Opens what a volume's files are, as a mount that is attached nowhere.
pub(crate) fn open_source(spec: &VolumeSpec) -> io::Result<OwnedFd> {
    match &spec.source {
        VolumeSource::Host(number) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            Ok(open_tree(CWD, format!("{HOST_VOLUMES}/{number}"), flags)?)
        }
        VolumeSource::Disk { disk, directory } => {
            let device = format!("/dev/vd{}", char::from(b'a' + disk % 26));
            let options: &[&str] = if spec.read_only {
                // A disk that can only be read is not recovered.
                &["ro", "noload", "noatime"]
            } else {
                &["noinit_itable", "no_prefetch_block_bitmaps", "noatime"]
            };
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            let whole = mounts::new_tree("ext4", &device, &options)?;
            // A part of a mount can be had once that is attached somewhere (before Linux 6.15): here, where it goes with the old
            // root. Beside it there is what belongs to the filesystem: lost+found.
            let place = format!("{HOST_VOLUMES}/{disk}");
            fs::create_dir_all(&place)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            mounts::attach(&whole, &rustix::fs::open(&place, flags, Mode::empty())?)?;
            clone_tree(CWD, &format!("{place}/{directory}"), OpenTreeFlags::empty())
        }
    }
}

/// The same, with an error that names the place.
pub(crate) fn open(spec: &VolumeSpec) -> Result<OwnedFd, LaunchError> {
    open_source(spec).step_on("open the volume for", &spec.target)
}

/// Mounts it, and fills it before if it is empty.
pub(crate) fn mount(spec: &VolumeSpec, tree: &OwnedFd) -> Result<(), LaunchError> {
    let mut attributes = libc::MOUNT_ATTR_NODEV;
    let is_directory =
        FileType::from_raw_mode(fstat(tree).step("look at a volume")?.st_mode) == FileType::Directory;
    let target = if is_directory {
        let target = mounts::target_directory(&MountSpec {
            target: spec.target.clone(),
            kind: "volume".to_owned(),
            source: String::new(),
            options: Vec::new(),
        })?;
        if spec.copy && !spec.read_only {
            fill(&target, tree).step_on("fill the volume for", &spec.target)?;
        }
        target
    } else {
        target_file(&spec.target).step_on("create", &spec.target)?
    };
    if spec.read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    mounts::set_attributes(tree, attributes, Reach::Below).step_on("set up the volume for", &spec.target)?;
    mounts::attach(tree, &target).step_on("mount the volume on", &spec.target)
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Copies what is in the directory `from` into the directory `to` if that is empty, which gets the owner and mode of the first.
fn fill(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let (from, to) = (
        openat(from, ".", DIRECTORY, Mode::empty())?,
        openat(to, ".", DIRECTORY, Mode::empty())?,
    );
    if !names(&to)?.is_empty() {
        return Ok(());
    }
    copy_directory(&from, &to, 0)?;
    take_over(&fstat(&from)?, &to)
}

fn names(directory: &OwnedFd) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Nothing but this process touches either.
fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: u32) -> io::Result<()> {
    if depth > DEPTH {
        return Err(io::Error::other("directories lie too deep in each other"));
    }
    for name in names(from)? {
        let stat = statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let name = name.as_c_str();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let (inner, copy) = (
                    openat(from, name, DIRECTORY, Mode::empty())?,
                    openat(to, name, DIRECTORY, Mode::empty())?,
                );
                copy_directory(&inner, &copy, depth + 1)?;
                take_over(&stat, &copy)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut source = File::from(openat(from, name, flags | OFlags::RDONLY, Mode::empty())?);
                let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let mut copy = File::from(openat(to, name, create, Mode::from_raw_mode(0o600))?);
                io::copy(&mut source, &mut copy)?;
                take_over(&stat, &copy.into())?;
            }
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                own(&stat, to, name)?;
            }
            kind @ (FileType::Fifo | FileType::Socket) => {
                mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), 0)?;
                own(&stat, to, name)?;
                chmodat(
                    to,
                    name,
                    Mode::from_raw_mode(stat.st_mode & 0o7777),
                    AtFlags::empty(),
                )?;
            }
            // Device nodes open nothing in a sandbox.
            _ => {}
        }
    }
    Ok(())
}

fn own(stat: &Stat, directory: &OwnedFd, name: &std::ffi::CStr) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(chownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Gives a copy owner, mode and time of what it is a copy of: the owner first, as a change of it drops bits of the mode.
fn take_over(stat: &Stat, copy: &OwnedFd) -> io::Result<()> {
    fchown(
        copy,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    fchmod(copy, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let modified = Timespec {
        tv_sec: stat.st_mtime as _,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    let times = Timestamps {
        last_access: modified,
        last_modification: modified,
    };
    Ok(futimens(copy.as_fd(), &times)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn opened(path: &std::path::Path) -> OwnedFd {
        open_directory(path).unwrap()
    }

    fn open_directory(path: &std::path::Path) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(path, DIRECTORY, Mode::empty())?)
    }

    #[test]
    fn an_empty_volume_becomes_what_the_image_has_and_another_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let (image, volume) = (scratch.path().join("image"), scratch.path().join("volume"));
        fs::create_dir_all(image.join("deep/er")).unwrap();
        fs::create_dir(&volume).unwrap();
        fs::write(image.join("deep/file"), "text").unwrap();
        fs::set_permissions(image.join("deep/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", image.join("link")).unwrap();
        fill(&opened(&image), &opened(&volume)).unwrap();
        assert_eq!(fs::read_to_string(volume.join("deep/file")).unwrap(), "text");
        let mode = |path: &str| fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("deep/file"), mode(".")), (0o640, 0o751));
        assert_eq!(
            fs::read_link(volume.join("link")).unwrap().to_str(),
            Some("/etc/passwd")
        );
        assert!(volume.join("deep/er").is_dir());
        // What is there is the user's.
        fs::remove_dir_all(volume.join("deep")).unwrap();
        fill(&opened(&image), &opened(&volume)).unwrap();
        assert!(!volume.join("deep").exists());
    }

    #[test]
    fn what_lies_too_deep_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let (image, volume) = (scratch.path().join("image"), scratch.path().join("volume"));
        fs::create_dir(&volume).unwrap();
        let deep: std::path::PathBuf = (0..DEPTH + 2).map(|_| "d").collect();
        fs::create_dir_all(image.join(deep)).unwrap();
        assert!(fill(&opened(&image), &opened(&volume)).is_err());
    }
}
