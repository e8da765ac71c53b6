//! A small image and a way to run something in it. Needs root and Debian's busybox-static, as all of these tests do.

// Each test program uses a part of this; clippy does not take a module beside the tests for a test.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use brig_launcher::{Kernel, Launch, LaunchError, Root, Stdio, network, start};
use brig_protocol::{
    agent::ExitStatus,
    spec::{
        CapabilitySet, CgroupSpec, Extras, FileImages, FileSpec, ProcessSpec, RootSpec, SandboxSpec, Seccomp,
    },
};
use rustix::process::{Pid, WaitOptions, waitpid};
use tempfile::TempDir;

/// What a process of a sandbox did.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A directory with busybox, for a root filesystem.
pub struct Image {
    directory: TempDir,
    files: TempDir,
}

impl Image {
    pub fn new() -> Self {
        let image = Self {
            directory: tempfile::tempdir().unwrap(),
            files: tempfile::tempdir().unwrap(),
        };
        fs::set_permissions(image.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["bin", "etc", "tmp"] {
            fs::create_dir(image.path().join(directory)).unwrap();
        }
        install("/bin/busybox".as_ref(), &image.path().join("bin/busybox"));
        for applet in [
            "sh", "cat", "id", "ls", "hostname", "stat", "mount", "touch", "pwd", "readlink", "sleep",
        ] {
            symlink("busybox", image.path().join("bin").join(applet)).unwrap();
        }
        image.write(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n",
        );
        image.write("etc/group", "root:x:0:\nweb:x:34:\nextra:x:77:web\n");
        image
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn write(&self, path: &str, content: &str) -> PathBuf {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.path().join(path);
        let _ = fs::remove_file(&path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// As Docker's defaults have it.
    pub fn spec(&self, args: &[&str]) -> SandboxSpec {
        let file = |path: &str, content: &str| FileSpec {
            path: path.into(),
            content: content.into(),
            mode: 0o644,
            images: FileImages::All,
        };
        SandboxSpec {
            id: "0".repeat(64),
            hostname: "cell".into(),
            root: RootSpec::Directory {
                path: self.path().to_str().unwrap().into(),
            },
            mounts: SandboxSpec::default_mounts(1 << 20)
                .into_iter()
                // A host may have no cgroup2 hierarchy to show.
                .filter(|mount| mount.kind != "cgroup2")
                .collect(),
            files: vec![
                file("/etc/hosts", "127.0.0.1 localhost\n"),
                file("/etc/hostname", "cell\n"),
                file("/etc/resolv.conf", "nameserver 192.0.2.1\n"),
            ],
            directories: vec![],
            masked_paths: SandboxSpec::default_masked_paths(),
            readonly_paths: SandboxSpec::default_readonly_paths(),
            cgroup: CgroupSpec::default(),
            extras: Extras::default(),
            process: ProcessSpec {
                args: args.iter().map(|&arg| arg.into()).collect(),
                env: vec!["PATH=/usr/bin:/bin".into()],
                cwd: "/".into(),
                user: String::new(),
                groups: vec![],
                capabilities: CapabilitySet::DOCKER_DEFAULT,
                no_new_privileges: false,
                seccomp: Seccomp::Default,
                init: false,
                rlimits: vec![],
                stdin: false,
                tty: None,
            },
        }
    }

    /// Starts `spec` in the image and waits for its end.
    pub fn run(&self, spec: &SandboxSpec) -> Result<Finished, LaunchError> {
        self.run_in(&Root::Directory(self.path().into()), spec)
    }

    pub fn run_in(&self, root: &Root, spec: &SandboxSpec) -> Result<Finished, LaunchError> {
        let (stdout, stdout_write) = io::pipe().unwrap();
        let (stderr, stderr_write) = io::pipe().unwrap();
        let null: OwnedFd = File::open("/dev/null").unwrap().into();
        // Only this test's thread changes its network.
        network::enter_new()?;
        let started = start(
            Launch {
                spec,
                root,
                files: self.files.path(),
                cgroup: None,
                kernel: Kernel::Own,
                filter: None,
                stdio: Stdio::Given([null, stdout_write.into(), stderr_write.into()]),
            },
            None,
        )?;
        let stderr = thread::spawn(move || text(stderr));
        Ok(Finished {
            stdout: text(stdout),
            stderr: stderr.join().unwrap(),
            status: wait(started.pid),
        })
    }

    /// What a shell script says in the image.
    pub fn shell(&self, script: &str) -> String {
        self.shell_of(&self.spec(&["sh", "-c", script]))
    }

    /// What `spec` says on standard output; it must succeed.
    pub fn shell_of(&self, spec: &SandboxSpec) -> String {
        let finished = self.run(spec).unwrap();
        assert_eq!(finished.status, ExitStatus::Code(0), "{finished:?}");
        finished.stdout
    }
}

/// Puts a program at `to`. A process of its own writes it: what another test forks meanwhile would keep a descriptor of
/// ours open for writing, and the kernel executes no file that somebody writes.
pub fn install(from: &Path, to: &Path) {
    let status = Command::new("install")
        .args(["-m", "755"])
        .args([from, to])
        .status()
        .unwrap();
    assert!(
        status.success(),
        "these tests need root and busybox: apt-get install busybox-static"
    );
}

fn text(mut pipe: io::PipeReader) -> String {
    let mut text = String::new();
    pipe.read_to_string(&mut text).unwrap();
    text
}

fn wait(pid: Pid) -> ExitStatus {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    match status.exit_status() {
        Some(code) => ExitStatus::Code(code as u8),
        None => ExitStatus::Signal(status.terminating_signal().unwrap() as u8),
    }
}

/// The causes of an error in one line.
pub fn chain(error: &LaunchError) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
