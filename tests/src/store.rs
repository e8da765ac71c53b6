//! The images that most tests use, loaded and unpacked once, and handed to each test as hard links.

use std::{
    fs, io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tempfile::TempDir;

use crate::{brig::Brig, machine, suite::Isolation};

static SHARED: Mutex<[Option<TempDir>; 2]> = Mutex::new([None, None]);

/// Makes `root` a brig root that has the shared images.
///
/// # Panics
/// When they cannot be prepared.
pub fn seed(root: &Path) {
    let isolation = Isolation::of_this_test();
    let mut shared = shared();
    let directory = shared[isolation as usize].get_or_insert_with(|| prepare(isolation));
    link_tree(&directory.path().join("root"), root).expect("the shared images can be linked");
}

/// Removes the shared images from the host.
pub fn remove() {
    *shared() = [None, None];
}

fn shared() -> MutexGuard<'static, [Option<TempDir>; 2]> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn prepare(isolation: Isolation) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let brig = Brig::at(directory.path());
    let archive = machine::image_archive("busybox");
    brig.ok(&["load", "-i", archive.to_str().expect("a path in UTF-8")]);
    // Directories cannot be handed on as hard links: in a container each test unpacks its own.
    if isolation == Isolation::Vm && machine::Need::Kvm.missing().is_none() {
        // Unpacks them.
        brig.ok(&["run", "--rm", "busybox", "true"]);
        let id = brig.ok(&["run", "-d", "welcome"]);
        brig.ok(&["rm", "-f", id.trim()]);
    }
    directory
}

/// Copies directories, and files as hard links. What is of one sandbox or process alone is left out.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir()
            && ["sandboxes", "events"]
                .iter()
                .any(|own| entry.file_name() == *own)
        {
            fs::create_dir_all(target)?;
        } else if kind.is_dir() {
            link_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::hard_link(entry.path(), target)?;
        }
    }
    fs::set_permissions(to, fs::metadata(from)?.permissions())
}
