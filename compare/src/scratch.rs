//! A brig of the comparison's own, so that nothing of the user's is measured, unpacked again or removed.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::Error;

/// The brig that is compared, and where it has what.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The program `brig`.
    pub program: PathBuf,
    /// Where `brig-bench` and `bench.tar` are.
    pub lib: PathBuf,
    /// The user's images and sandboxes.
    pub root: PathBuf,
    /// The user's sockets.
    pub runtime: PathBuf,
}

/// Directories that go when this does.
#[derive(Debug)]
pub struct Scratch {
    installation: Installation,
    root: PathBuf,
    runtime: PathBuf,
    /// Where others than brig have files, which must be able to walk to it as other users.
    bundles: PathBuf,
    numbers: AtomicU32,
    cleaned: Mutex<bool>,
}

impl Scratch {
    /// Makes the directories, on the file systems where the user's are.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn make(installation: Installation) -> Result<Self, Error> {
        let name = format!("compare-{}", std::process::id());
        let public = Path::new("/var/tmp");
        let public = if public.is_dir() {
            public.into()
        } else {
            std::env::temp_dir()
        };
        let scratch = Self {
            root: installation.root.join(&name),
            runtime: installation.runtime.join(&name),
            bundles: public.join(format!("brig-{name}")),
            installation,
            numbers: AtomicU32::new(0),
            cleaned: Mutex::new(false),
        };
        for path in [&scratch.root, &scratch.runtime] {
            private(path).map_err(Error::file("make", path))?;
        }
        // What has been found out about the host, and guests that have booted: without them, each is made again.
        let _ = link_tree(
            &scratch.installation.root.join("templates"),
            &scratch.root.join("templates"),
        );
        let _ = fs::hard_link(
            scratch.installation.root.join("kvm.json"),
            scratch.root.join("kvm.json"),
        );
        // Somebody else's of that name is not ours to use.
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&scratch.bundles)
            .map_err(Error::file("make", &scratch.bundles))?;
        Ok(scratch)
    }

    /// The brig that is compared.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Where the comparison's images and sandboxes are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where others than brig have files.
    pub fn bundles(&self) -> &Path {
        &self.bundles
    }

    /// A name that this comparison has not yet used.
    pub fn name(&self) -> String {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        format!("compare-{}-{number}", std::process::id())
    }

    /// A command of the comparison's own brig.
    pub fn brig<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.installation.program);
        command
            .args(words)
            .env("BRIG_ROOT", &self.root)
            .env("BRIG_RUNTIME", &self.runtime)
            .env("BRIG_LIBDIR", &self.installation.lib)
            .stdin(Stdio::null());
        command
    }

    /// A command of the user's brig.
    pub fn users_brig<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.installation.program);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Stops what still runs, and removes the directories. What cannot be removed is left.
    pub fn clean(&self) {
        let Ok(mut cleaned) = self.cleaned.lock() else {
            return;
        };
        if std::mem::replace(&mut *cleaned, true) {
            return;
        }
        if let Ok(sandboxes) = fs::read_dir(self.root.join("sandboxes")) {
            for id in sandboxes.flatten().map(|entry| entry.file_name()) {
                let _ = self.brig(&[OsStr::new("rm"), OsStr::new("-f"), &id]).output();
            }
        }
        // Files of other ids go with it where this user cannot remove them.
        let _ = self.brig(&["system", "prune", "-af"]).output();
        for path in [&self.bundles, &self.root, &self.runtime] {
            let _ = fs::remove_dir_all(path);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.clean();
    }
}

fn private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Directories anew, and files as hard links: those of templates are never changed, and appear under their names as a whole.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    private(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            link_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::hard_link(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Runs a command that has to succeed, and gives what it printed.
pub(crate) fn ok(command: &mut Command, what: &str) -> Result<Output, Error> {
    let output = command.output().map_err(Error::system(what))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(Error::ended(what, &output))
    }
}

/// As [`ok`]: its standard output as text.
pub(crate) fn text(command: &mut Command, what: &str) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&ok(command, what)?.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(directory: &Path) -> Installation {
        Installation {
            program: "/bin/false".into(),
            lib: directory.join("lib"),
            root: directory.join("root"),
            runtime: directory.join("run"),
        }
    }

    #[test]
    fn templates_are_shared_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let template = directory.path().join("root/templates/key");
        fs::create_dir_all(&template).unwrap();
        fs::write(template.join("memory"), "guest").unwrap();
        let scratch = Scratch::make(installation(directory.path())).unwrap();
        assert_eq!(
            fs::read(scratch.root().join("templates/key/memory")).unwrap(),
            b"guest"
        );
        assert!(scratch.bundles().is_dir());
        // Another of this process would use the same directories.
        assert!(Scratch::make(installation(directory.path())).is_err());
        let (root, bundles) = (scratch.root().to_owned(), scratch.bundles().to_owned());
        scratch.clean();
        assert!(!root.exists() && !bundles.exists());
        assert_eq!(fs::read(template.join("memory")).unwrap(), b"guest");
    }

    #[test]
    fn a_program_that_fails_is_told_by_its_last_line() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'a notice' >&2; echo 'brig: no such image' >&2; exit 1",
        ]);
        assert_eq!(
            ok(&mut command, "save it").unwrap_err().line(),
            "save it: no such image"
        );
        assert!(
            ok(&mut Command::new("/nowhere"), "save it")
                .unwrap_err()
                .line()
                .starts_with("cannot save it: ")
        );
        assert_eq!(text(Command::new("echo").arg("x"), "").unwrap(), "x\n");
    }
}
