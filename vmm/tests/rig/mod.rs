//! A real kernel, an init of a few hundred bytes and the real brig-vmm, for the tests that boot.

use std::{
    env,
    fs::{self, File},
    io::{self, BufRead},
    path::Path,
    process::Command as Process,
};

use brig_protocol::vmm::KvmKind;

use crate::driver::{Guest, Vmm, open_kvm};

/// What a test needs, when it can run at all.
pub struct Rig {
    /// `/dev/kvm`.
    pub kvm: File,
    kernel: File,
    initrd: File,
    _directory: tempfile::TempDir,
}

/// The guest's init; built by the system's C compiler without a C library, so that it is a few hundred bytes.
const INIT: &str = include_str!("../init.c");

/// `None`, with the reason on standard output, when a test cannot run.
pub fn rig() -> Option<Rig> {
    let skip = |why: &str| {
        println!("skipped: {why}");
        None
    };
    let Some(kernel) = env::var_os("BRIG_TEST_KERNEL") else {
        return skip("BRIG_TEST_KERNEL is not set");
    };
    let kvm = match open_kvm() {
        Ok(kvm) => kvm,
        Err(e) => return skip(&format!("/dev/kvm: {e}")),
    };
    let directory = tempfile::tempdir().unwrap();
    let Ok(initrd) = build_initrd(directory.path()) else {
        return skip("no C compiler (cc) to build the guest's init");
    };
    Some(Rig {
        kvm,
        kernel: File::open(kernel).expect("the kernel of BRIG_TEST_KERNEL"),
        initrd,
        _directory: directory,
    })
}

/// A cpio archive with /init and /dev/console.
fn build_initrd(directory: &Path) -> io::Result<File> {
    let (source, binary) = (directory.join("init.c"), directory.join("init"));
    fs::write(&source, INIT)?;
    let status = Process::new("cc")
        .args([
            "-static",
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
            "-Os",
            "-o",
        ])
        .args([&binary, &source])
        .status()?;
    assert!(status.success(), "the guest's init does not compile");
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o040_755, (0, 0), &[]);
    entry(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
    entry(&mut archive, "init", 0o100_755, (0, 0), &fs::read(&binary)?);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    let path = directory.join("initrd.cpio");
    fs::write(&path, archive)?;
    File::open(path)
}

/// One entry of a "newc" archive (cpio(5)).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let inode = archive.len() as u32 + 1;
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        content.len() as u32,
        0,
        0,
        device.0,
        device.1,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// A brig-vmm.
pub fn spawn() -> Vmm {
    Vmm::spawn(Path::new(env!("CARGO_BIN_EXE_brig-vmm"))).unwrap()
}

impl Rig {
    /// A guest of one vCPU and 128 MiB, its console, and the kind of KVM.
    pub fn guest(&self, vmm: &Vmm) -> (Guest, io::PipeReader, KvmKind) {
        let kind = vmm.probe(&self.kvm).unwrap();
        let (guest, console) = Guest::new(
            &self.kvm,
            kind,
            self.kernel.try_clone().unwrap(),
            self.initrd.try_clone().unwrap(),
        )
        .unwrap();
        (guest, console, kind)
    }
}

/// Waits for a line of the guest's init.
pub fn wait_for(console: &mut impl BufRead, text: &str) {
    let mut log = String::new();
    loop {
        let start = log.len();
        let bytes = console.read_line(&mut log).unwrap();
        assert!(bytes > 0, "the guest ended without saying {text:?}:\n{log}");
        if log[start..].contains(text) {
            return;
        }
    }
}
