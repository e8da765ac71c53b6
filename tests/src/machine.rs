//! What the machine under the tests offers.

use std::{
    env,
    fs::OpenOptions,
    path::{Path, PathBuf},
};

/// What a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing but brig itself.
    Nothing,
    /// A usable `/dev/kvm`.
    Kvm,
    /// The same, and root, to make a host that lacks something.
    KvmAndRoot,
    /// Root, to make a host that lacks something.
    Root,
}

impl Need {
    /// Why this machine does not offer it, or `None` when it does.
    pub fn missing(self) -> Option<String> {
        let kvm = || {
            let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
            opened.err().map(|error| format!("/dev/kvm: {error}"))
        };
        let root = || (!is_root()).then(|| "not root".to_owned());
        match self {
            Self::Nothing => None,
            Self::Kvm => kvm(),
            Self::Root => root(),
            Self::KvmAndRoot => kvm().or_else(root),
        }
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this is the emulated machine of `tests/rig`, with a standard KVM.
pub fn is_rig() -> bool {
    env::var_os("BRIG_TEST_RIG").is_some()
}

/// The top of the source tree.
fn top() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The `brig` under test: `$BRIG_BIN`, or the one that `make build` leaves.
pub fn brig() -> PathBuf {
    env::var_os("BRIG_BIN").map_or_else(|| top().join("build/bin/brig"), PathBuf::from)
}

/// The directory of brig's other programs and files.
pub fn lib_directory() -> PathBuf {
    let program = brig();
    let bin = program.parent().unwrap_or(Path::new("/"));
    bin.join("../lib/brig")
}

/// The archive of an image with a recipe under `images`: in `$BRIG_TEST_IMAGES`, or built now.
pub fn image_archive(name: &str) -> PathBuf {
    if let Some(directory) = env::var_os("BRIG_TEST_IMAGES") {
        return Path::new(&directory).join(format!("{name}.tar"));
    }
    let archive = top().join(format!("target/test-images/{name}.tar"));
    let status = std::process::Command::new(top().join("images/build"))
        .arg(name)
        .arg(&archive)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "images/build {name} failed"
    );
    archive
}
