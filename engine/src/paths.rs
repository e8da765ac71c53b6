//! Where things are: the root (kept over reboots), the runtime directory (sockets) and the programs of brig.

use std::{
    env, fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::{Error, SandboxId};

/// The directories of one brig installation and its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Images, sandboxes and templates.
    pub root: PathBuf,
    /// Control sockets.
    pub runtime: PathBuf,
    /// `brig-supervisor`, `brig-vmm`, `brig-cell`, `vmlinux`, `initrd.cpio`, `welcome.tar`.
    pub lib: PathBuf,
}

impl Paths {
    /// From `$BRIG_ROOT`, `$BRIG_RUNTIME` and `$BRIG_LIBDIR`. Without them root has `/var/lib/brig` and `/run/brig`,
    /// other users `$XDG_DATA_HOME/brig` and `$XDG_RUNTIME_DIR/brig`, and the programs are in `../lib/brig` beside
    /// the directory of the running executable.
    ///
    /// # Errors
    /// [`Error::NoHome`] when nothing says where the user's files are.
    pub fn from_environment() -> Result<Self, Error> {
        let variable = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let is_root = rustix::process::geteuid().is_root();
        let root = match variable("BRIG_ROOT") {
            Some(root) => root,
            None if is_root => "/var/lib/brig".into(),
            None => variable("XDG_DATA_HOME")
                .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
                .ok_or(Error::NoHome)?
                .join("brig"),
        };
        let runtime = match variable("BRIG_RUNTIME") {
            Some(runtime) => runtime,
            None if is_root => "/run/brig".into(),
            None => match variable("XDG_RUNTIME_DIR") {
                Some(runtime) => runtime.join("brig"),
                None => root.join("run"),
            },
        };
        let lib = match variable("BRIG_LIBDIR") {
            Some(lib) => lib,
            None => beside_executable()?,
        };
        Ok(Self {
            root: absolute(root)?,
            runtime: absolute(runtime)?,
            lib: absolute(lib)?,
        })
    }

    /// Makes the root and the runtime directory, for their owner alone.
    ///
    /// # Errors
    /// [`Error::File`] with the directory that could not be made.
    pub fn make(&self) -> Result<(), Error> {
        for path in [
            &self.root,
            &self.runtime,
            &self.sandboxes(),
            &self.templates(),
            &self.snapshots(),
            &self.events(),
        ] {
            make_private_directory(path)?;
        }
        Ok(())
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The sandboxes, one directory each.
    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// The directory of one sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    /// What has happened, see [`crate::events`].
    pub fn events(&self) -> PathBuf {
        self.root.join(crate::events::DIRECTORY)
    }

    /// Users' snapshots, one directory each.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Templates, and the blank disk.
    pub fn templates(&self) -> PathBuf {
        Self::templates_in(&self.root)
    }

    /// The same of a root.
    pub(crate) fn templates_in(root: &Path) -> PathBuf {
        root.join("templates")
    }

    /// A place among the guests that come up at the same time, see [`crate::turns`].
    pub fn start_lock(&self, place: usize) -> PathBuf {
        self.root.join(format!("start-{place}.lock"))
    }

    /// The remembered answer of the KVM probe.
    pub fn kvm_cache(&self) -> PathBuf {
        self.root.join("kvm.json")
    }

    /// The program that is a sandbox's supervisor.
    pub fn supervisor(&self) -> PathBuf {
        self.lib.join("brig-supervisor")
    }

    /// The jailed hypervisor process.
    pub fn vmm(&self) -> PathBuf {
        self.lib.join("brig-vmm")
    }

    /// The program that is a cell on the host's kernel.
    pub fn cell(&self) -> PathBuf {
        self.lib.join("brig-cell")
    }

    /// The program that speaks to registries.
    pub fn registry(&self) -> PathBuf {
        self.lib.join("brig-registry")
    }

    /// The guest's kernel, an uncompressed ELF file.
    pub fn kernel(&self) -> PathBuf {
        self.lib.join("vmlinux")
    }

    /// The guest's first root filesystem, with brig-agent as its only program.
    pub fn initrd(&self) -> PathBuf {
        self.lib.join("initrd.cpio")
    }

    /// The archive of the image that ships with brig.
    pub fn welcome(&self) -> PathBuf {
        self.lib.join("welcome.tar")
    }
}

fn beside_executable() -> Result<PathBuf, Error> {
    let executable = env::current_exe().map_err(Error::file("find", Path::new("/proc/self/exe")))?;
    let bin = executable.parent().unwrap_or(Path::new("/"));
    Ok(bin.parent().unwrap_or(bin).join("lib/brig"))
}

fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(Error::file("resolve", &path))
}

/// Makes `path` and what is missing above it with mode 0700. A directory that exists is left as its owner made it.
pub(crate) fn make_private_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("make", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn directories_are_made_for_their_owner_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: temporary.path().join("a/root"),
            runtime: temporary.path().join("run"),
            lib: temporary.path().join("lib"),
        };
        paths.make().unwrap();
        paths.make().unwrap();
        let mode = fs::metadata(paths.sandboxes()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_the_place_of_the_root_is_one_clear_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = make_private_directory(file.path()).unwrap_err();
        assert!(error.to_string().contains("cannot make"), "{error}");
    }
}
