//! The program that makes ext4 filesystems: e2fsprogs' mke2fs(8). Others have the same name, such as busybox's, which knows
//! ext2 only.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::Error;

/// Where it may be: where `PATH` says, which for most users other than root is nowhere, and where e2fsprogs is installed.
const CANDIDATES: [&str; 3] = ["mke2fs", "/sbin/mke2fs", "/usr/sbin/mke2fs"];

/// What e2fsprogs' prints for `-V`, beside its version.
const LIBRARY: &str = "EXT2FS Library";

/// A command that runs it with no configuration but its arguments.
///
/// # Errors
/// [`Error::NoMke2fs`], [`Error::OtherMke2fs`].
pub fn command() -> Result<Command, Error> {
    find(&CANDIDATES).map(command_of)
}

fn command_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        // The machine's own mke2fs.conf could add features.
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// The first of `candidates` that is e2fsprogs'.
fn find<'a>(candidates: &[&'a str]) -> Result<&'a Path, Error> {
    let mut other = None;
    for program in candidates.iter().copied().map(Path::new) {
        match command_of(program).arg("-V").output() {
            Ok(said) if String::from_utf8_lossy(&said.stderr).contains(LIBRARY) => return Ok(program),
            Ok(_) => other = other.or_else(|| Some(whereabouts(program))),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) => {}
            Err(e) => return Err(Error::file("run", program)(e)),
        }
    }
    Err(other.map_or(Error::NoMke2fs, Error::OtherMke2fs))
}

/// The file that a program's name stands for, as far as `PATH` tells.
fn whereabouts(program: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // A name with a slash stands for itself.
        .map(|directory| directory.join(program))
        .find(|file| file.exists())
        .unwrap_or_else(|| program.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISSING: &str = "/nonexistent/mke2fs";
    /// Programs that end well and say nothing of a library.
    const OTHERS: [&str; 2] = ["true", "/bin/true"];

    #[test]
    fn a_program_that_is_nowhere_is_missing() {
        assert!(matches!(find(&[MISSING]), Err(Error::NoMke2fs)));
        // A file that cannot be executed is no program.
        assert!(matches!(find(&["/dev/null", MISSING]), Err(Error::NoMke2fs)));
    }

    #[test]
    fn another_program_of_that_name_is_told_apart_and_named() {
        for other in OTHERS {
            let error = find(&[MISSING, other]).unwrap_err();
            assert!(
                matches!(&error, Error::OtherMke2fs(path) if path.is_absolute()),
                "{error:?}"
            );
            let text = error.to_string();
            assert!(
                text.contains("/true") && text.contains("apt-get install e2fsprogs"),
                "{text}"
            );
        }
    }

    #[test]
    fn e2fsprogs_is_found_behind_another_program() {
        match find(&CANDIDATES) {
            Err(Error::NoMke2fs | Error::OtherMke2fs(_)) => eprintln!("skipped: e2fsprogs is not installed"),
            found => {
                let found = found.unwrap().to_str().unwrap();
                assert_eq!(find(&[OTHERS[0], MISSING, found]).unwrap(), Path::new(found));
            }
        }
    }
}
