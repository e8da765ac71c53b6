//! The ways to run an image that are compared.

use std::path::PathBuf;

use crate::report::Column;

/// A way to run an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// brig, in a microVM.
    Vm,
    /// brig, in namespaces on the host's kernel.
    Container,
    /// crun, with the same namespaces.
    Crun,
    /// runc, with the same namespaces.
    Runc,
    /// Without any wall: the base line.
    Process,
}

/// A microVM that boots.
pub const COLD: Column = Column {
    id: "cold",
    title: "microVM, cold",
};

impl Way {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::Vm, Self::Container, Self::Crun, Self::Runc, Self::Process];

    /// Its column.
    pub fn column(self) -> Column {
        let (id, title) = match self {
            Self::Vm => ("vm", "microVM"),
            Self::Container => ("container", "container"),
            Self::Crun => ("crun", "crun"),
            Self::Runc => ("runc", "runc"),
            Self::Process => ("process", "process"),
        };
        Column { id, title }
    }

    /// Whether brig does it.
    pub fn is_brig(self) -> bool {
        matches!(self, Self::Vm | Self::Container)
    }

    /// The other runtime's program.
    pub fn runtime(self) -> Option<&'static str> {
        match self {
            Self::Crun => Some("crun"),
            Self::Runc => Some("runc"),
            _ => None,
        }
    }
}

/// Where a program is that is looked for as a shell does, and in the directories of the administrator's.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}
