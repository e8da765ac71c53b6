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
    /// One with hardware virtualization.
    StandardKvm,
    /// A usable `/dev/kvm`, and root, to make a host that lacks something.
    KvmAndRoot,
    /// Root, to make a host that lacks something.
    Root,
    /// Root, and a kernel with what containers are made of.
    Containers,
    /// The same, and a usable `/dev/kvm`.
    KvmAndContainers,
    /// Root, a kernel with what containers are made of, and the programs with which users get subordinate ids.
    ContainersOfUsers,
    /// Programs of the host, by their names.
    Programs(&'static [&'static str]),
    /// The same, and a usable `/dev/kvm`.
    KvmAndPrograms(&'static [&'static str]),
    /// The programs of a registry: Debian's docker-registry, skopeo, htpasswd and openssl.
    Registry,
    /// The same, and a usable `/dev/kvm`.
    KvmAndRegistry,
    /// The recipes of images, and what they are made with.
    Recipes,
    /// The same, and the programs of a registry.
    RecipesAndRegistry,
    /// Root, and the programs of a registry.
    RootAndRegistry,
    /// As [`Need::KvmAndServer`], on a KVM with hardware virtualization.
    StandardKvmAndServer {
        /// The image's name.
        image: &'static str,
        /// A program of the host.
        client: &'static str,
    },
    /// As [`Need::Containers`], an image that has a recipe, and a program that speaks with it.
    ContainersAndServer {
        /// The image's name.
        image: &'static str,
        /// A program of the host.
        client: &'static str,
    },
    /// A usable `/dev/kvm`, an image that has a recipe, and a program that speaks with it.
    KvmAndServer {
        /// The image's name.
        image: &'static str,
        /// A program of the host.
        client: &'static str,
    },
}

impl Need {
    /// Why this machine does not offer it, or `None` when it does.
    pub fn missing(self) -> Option<String> {
        let kvm = || {
            let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
            opened.err().map(|error| format!("/dev/kvm: {error}"))
        };
        let root = || (!is_root()).then(|| "not root".to_owned());
        let programs = |names: &[&str]| {
            let missing = names.iter().find(|name| find_program(name).is_none())?;
            Some(format!("no {missing} here"))
        };
        let emulated = || is_emulated().then(|| "KVM is emulated".to_owned());
        let server = |image, client| {
            let image = (!has_image(image)).then(|| format!("no image {image} here"));
            image.or_else(|| programs(&[client]))
        };
        let registry = || programs(&["docker-registry", "skopeo", "htpasswd", "openssl"]);
        match self {
            Self::Nothing => None,
            Self::Kvm => kvm(),
            Self::Root => root(),
            Self::Containers => root().or_else(no_containers),
            Self::ContainersOfUsers => root()
                .or_else(no_containers)
                .or_else(|| programs(&["newuidmap", "newgidmap", "setpriv", "unshare"])),
            Self::KvmAndContainers => kvm().or_else(root).or_else(no_containers),
            Self::KvmAndRoot => kvm().or_else(root),
            Self::Programs(names) => programs(names),
            Self::KvmAndPrograms(names) => kvm().or_else(|| programs(names)),
            Self::Registry => registry(),
            Self::KvmAndRegistry => kvm().or_else(registry),
            Self::Recipes => env::var_os("BRIG_TEST_IMAGES").map(|_| "no recipes here".to_owned()),
            Self::RootAndRegistry => root().or_else(registry),
            Self::RecipesAndRegistry => Self::Recipes.missing().or_else(registry),
            Self::StandardKvm => kvm().or_else(emulated),
            Self::StandardKvmAndServer { image, client } => {
                Self::KvmAndServer { image, client }.missing().or_else(emulated)
            }
            Self::KvmAndServer { image, client } => kvm().or_else(|| server(image, client)),
            Self::ContainersAndServer { image, client } => {
                Self::Containers.missing().or_else(|| server(image, client))
            }
        }
    }
}

/// What this kernel lacks of what containers need.
fn no_containers() -> Option<String> {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.contains("overlay") {
        return Some("no overlayfs in this kernel".to_owned());
    }
    let missing = ["user", "pid", "net", "cgroup"]
        .iter()
        .find(|kind| !Path::new("/proc/self/ns").join(kind).exists())?;
    Some(format!("no {missing} namespaces in this kernel"))
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this is the emulated machine of `tests/rig`, with a standard KVM.
pub fn is_rig() -> bool {
    env::var_os("BRIG_TEST_RIG").is_some()
}

/// Whether KVM interprets the guest's kernel here, as brig says.
pub fn is_emulated() -> bool {
    let info = std::process::Command::new(brig())
        .args(["system", "info"])
        .output();
    info.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("KVM: emulated"))
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

/// The directory of the images' recipes.
pub fn recipes() -> PathBuf {
    top().join("images")
}

/// Whether [`image_archive`] can return an image: all that have a recipe, or those that somebody has put there.
fn has_image(name: &str) -> bool {
    env::var_os("BRIG_TEST_IMAGES").is_none_or(|directory| {
        let archive = Path::new(&directory).join(format!("{name}.tar"));
        archive.exists()
    })
}

/// A program of the host, looked for in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let found = env::split_paths(&path).map(|directory| directory.join(name));
    found.into_iter().find(|program| program.is_file())
}

/// The archive of an image with a recipe under `images`: in `$BRIG_TEST_IMAGES`, or built now.
pub fn image_archive(name: &str) -> PathBuf {
    if let Some(directory) = env::var_os("BRIG_TEST_IMAGES") {
        return Path::new(&directory).join(format!("{name}.tar"));
    }
    let archive = top().join(format!("target/test-images/{name}.tar"));
    let status = std::process::Command::new(recipes().join("build"))
        .arg(name)
        .arg(&archive)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "images/build {name} failed"
    );
    archive
}
