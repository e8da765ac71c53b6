//! A sandbox on real block devices: loop devices in the place of a guest's disks. Needs root, loop devices, and a kernel with
//! EROFS, ext4 and overlayfs; skipped where one is missing.

// clippy does not take a module beside the tests for a test.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use brig_protocol::{
    agent::{ExitStatus, FromAgent, ToAgent},
    spec::{RootSpec, SandboxSpec},
};

use crate::supervisor::{Agent, STDIN, STDOUT, line};

/// What a sandbox's disk is at first.
const DISK_BYTES: u64 = 8 << 20;

/// Loop devices that go with this.
#[derive(Default)]
struct Loops(Vec<String>);

impl Loops {
    fn add(&mut self, file: &Path, read_only: bool) -> Option<String> {
        let file = file.to_str().unwrap();
        let options: &[&str] = if read_only { &["-r"] } else { &[] };
        let device = said("losetup", &[&["-f", "--show"], options, &[file]].concat())?;
        self.0.push(device.trim().to_owned());
        self.0.last().cloned()
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            let _ = said("losetup", &["-d", device]);
        }
    }
}

/// What a program of the system's says when it succeeds.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(arguments)
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A blank ext4, with one file in the writable layer.
fn ext4(agent: &Agent, name: &str) -> Option<PathBuf> {
    let (content, file) = (
        agent.directory.path().join(name),
        agent.directory.path().join(format!("{name}.ext4")),
    );
    for directory in ["upper", "work"] {
        fs::create_dir_all(content.join(directory)).unwrap();
    }
    fs::write(content.join("upper/name"), format!("{name}\n")).unwrap();
    fs::File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
    let paths = [content.to_str().unwrap(), file.to_str().unwrap()];
    said("mke2fs", &["-q", "-F", "-t", "ext4", "-d", paths[0], paths[1]])?;
    Some(file)
}

/// An agent in a mount namespace of its own, with an image and two writable disks.
struct Machine {
    agent: Agent,
    disks: [PathBuf; 2],
    // After the agent: it has them mounted.
    _loops: Loops,
}

impl Machine {
    fn new() -> Option<Self> {
        let agent = Agent::with_own_mounts();
        let at = |name: &str| agent.directory.path().join(name);
        for place in ["image", "disk", "root"] {
            fs::create_dir_all(at(place)).unwrap();
        }
        let (image, tree) = (at("image.erofs"), at("rootfs"));
        said("mkfs.erofs", &[image.to_str().unwrap(), tree.to_str().unwrap()])?;
        let disks = [ext4(&agent, "first")?, ext4(&agent, "other")?];
        let mut loops = Loops::default();
        for (node, file) in [("vda", &image), ("vdb", &disks[0]), ("vdc", &disks[1])] {
            let device = loops.add(file, node == "vda")?;
            symlink(device, at("dev").join(node)).unwrap();
        }
        Some(Self {
            agent,
            disks,
            _loops: loops,
        })
    }

    fn spec(&self, writable: u8, script: &str) -> SandboxSpec {
        SandboxSpec {
            root: RootSpec::Disks { image: 0, writable },
            ..self.agent.spec(script)
        }
    }

    /// Everything that is on a disk.
    fn bytes(&self, disk: usize) -> Vec<u8> {
        fs::read(&self.disks[disk]).unwrap()
    }
}

fn machine() -> Option<Machine> {
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    let has = |kind: &str| known.lines().any(|line| line.ends_with(&format!("\t{kind}")));
    let machine = ["erofs", "ext4", "overlay"]
        .into_iter()
        .all(has)
        .then(Machine::new)
        .flatten();
    if machine.is_none() {
        println!("skipped: no loop devices, EROFS, ext4 or overlayfs, or no programs that make them");
    }
    machine
}

#[test]
fn a_start_with_another_writable_disk_leaves_the_prepared_one_alone() {
    let Some(mut machine) = machine() else { return };
    let spec = machine.spec(1, "");
    let zygote = machine.agent.prepare(spec);
    let prepared = machine.bytes(0);
    let spec = machine.spec(
        2,
        "busybox cat /name; echo new >/new; busybox sync; echo synced; read line; exit 5",
    );
    let (stdin, stdout) = (machine.agent.stream(STDIN), machine.agent.stream(STDOUT));
    machine.agent.start_spec(spec);
    assert_eq!(machine.agent.children(), [zygote], "the one that waited is used");
    assert_eq!(line(&stdout), "other\n");
    assert_eq!(line(&stdout), "synced\n");
    assert!(machine.bytes(0) == prepared, "the first disk was written to");
    drop(stdin);
    let status = ExitStatus::Code(5);
    assert_eq!(machine.agent.receive(), FromAgent::Exited { process: 0, status });
    machine.agent.send(&ToAgent::Shutdown);
    assert_eq!(machine.agent.wait_for_end(), Some(0));
    let other = machine.disks[1].to_str().unwrap();
    assert_eq!(
        said("debugfs", &["-R", "cat /upper/new", other]).unwrap(),
        "new\n"
    );
    assert!(
        said("e2fsck", &["-f", "-n", other]).is_some(),
        "it was not unmounted"
    );
}

#[test]
fn a_start_with_the_prepared_disk_goes_on_with_it() {
    let Some(mut machine) = machine() else { return };
    let spec = machine.spec(1, "");
    let zygote = machine.agent.prepare(spec);
    let other = machine.bytes(1);
    let spec = machine.spec(1, "busybox cat /name; echo new >/new");
    let stdout = machine.agent.stream(STDOUT);
    machine.agent.start_spec(spec);
    assert_eq!(machine.agent.children(), [zygote]);
    assert_eq!(line(&stdout), "first\n");
    drop(stdout);
    assert!(matches!(machine.agent.receive(), FromAgent::Exited { .. }));
    machine.agent.send(&ToAgent::Shutdown);
    assert_eq!(machine.agent.wait_for_end(), Some(0));
    let first = machine.disks[0].to_str().unwrap();
    assert_eq!(
        said("debugfs", &["-R", "cat /upper/new", first]).unwrap(),
        "new\n"
    );
    assert!(machine.bytes(1) == other, "the other disk was written to");
}
