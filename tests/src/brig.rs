//! A brig with directories of its own, and its commands.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Seek, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{leftovers, machine, store, suite::Isolation};

/// Most time that a command may take. A cold boot takes seconds, so several of them at once fit; unpacking a large image in a
/// guest on an emulated KVM takes minutes.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(900);

/// A brig with directories of its own.
pub struct Brig {
    root: PathBuf,
    runtime: PathBuf,
    library: Option<PathBuf>,
    isolation: Isolation,
    /// Removes the directories.
    scratch: Option<TempDir>,
}

/// What a command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + the signal when one killed it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Brig {
    /// A brig that has the images welcome and busybox, unpacked, and no sandbox.
    pub fn new() -> Self {
        let brig = Self::empty();
        store::seed(&brig.root);
        brig
    }

    /// A brig that has nothing.
    pub fn empty() -> Self {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let mut brig = Self::at(scratch.path());
        brig.scratch = Some(scratch);
        brig
    }

    /// A brig in a directory that someone else removes.
    pub fn at(directory: &Path) -> Self {
        Self {
            root: directory.join("root"),
            runtime: directory.join("run"),
            library: None,
            isolation: Isolation::of_this_test(),
            scratch: None,
        }
    }

    /// The same with another directory of programs and files.
    #[must_use]
    pub fn with_library(mut self, library: &Path) -> Self {
        self.library = Some(library.into());
        self
    }

    /// Where its images and sandboxes are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where its sockets are.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// A command of brig's, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(machine::brig());
        command
            .args(arguments)
            .env("BRIG_ROOT", &self.root)
            .env("BRIG_RUNTIME", &self.runtime)
            .env("BRIG_ISOLATION", self.isolation.as_str())
            // Not the one of whoever runs the tests.
            .env("DOCKER_CONFIG", self.root.join("docker"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(library) = &self.library {
            command.env("BRIG_LIBDIR", library);
        }
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started or passes [`COMMAND_LIMIT`].
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        finish(self.command(arguments).spawn().expect("brig starts"))
    }

    /// Loads the image `name`, which has a recipe under `images`.
    ///
    /// # Panics
    /// When it cannot be built or loaded.
    pub fn load(&self, name: &str) {
        let archive = machine::image_archive(name);
        self.ok(&[OsStr::new("load"), OsStr::new("-i"), archive.as_os_str()]);
    }

    /// As [`Brig::run`], with bytes on standard input.
    pub fn run_with_input<S: AsRef<OsStr>>(&self, arguments: &[S], input: Vec<u8>) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("brig starts");
        let mut stdin = child.stdin.take().expect("standard input is a pipe");
        let writer = thread::spawn(move || stdin.write_all(&input));
        let output = finish(child);
        // A command that does not read its input is no failure of the harness.
        let _ = writer.join();
        output
    }

    /// Runs a command that has to succeed, and returns its standard output.
    ///
    /// # Panics
    /// When it does not succeed.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.code, 0, "{:?}: {output:?}", words(arguments));
        output.stdout
    }

    /// Runs a command that has to fail with `code`, and returns its standard error: one line, without a word about
    /// panics.
    ///
    /// # Panics
    /// When it does otherwise.
    pub fn fails<S: AsRef<OsStr>>(&self, code: i32, arguments: &[S]) -> String {
        let output = self.run(arguments);
        output.assert_clear_failure(code, &words(arguments));
        output.stderr
    }

    /// Follows a sandbox's logs until a line has `text` in it.
    ///
    /// # Panics
    /// When the logs end before.
    pub fn wait_for_log(&self, sandbox: &str, text: &str) {
        // A file, so that what it complains about can be shown and never blocks it.
        let mut complaints = tempfile::tempfile().expect("a temporary file");
        let mut child = self
            .command(&["logs", "-f", sandbox])
            .stderr(complaints.try_clone().expect("a descriptor"))
            .spawn()
            .expect("brig starts");
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (sender, receiver) = mpsc::channel();
        let wanted = text.to_owned();
        thread::spawn(move || {
            let found = BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .any(|line| line.contains(&wanted));
            let _ = sender.send(found);
        });
        let found = receiver.recv_timeout(COMMAND_LIMIT);
        if found == Ok(true) {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        if found.is_err() {
            let _ = child.kill();
        }
        let ended = child.wait();
        let mut complaint = String::new();
        let _ = complaints
            .rewind()
            .and_then(|()| complaints.read_to_string(&mut complaint));
        panic!(
            "logs -f of {sandbox} did not show {text:?} but ended ({found:?}, {ended:?}, {complaint:?}); now there are {:?}, {:?}",
            self.run(&["logs", sandbox]),
            self.ps_line(sandbox)
        );
    }

    /// Starts the image welcome with its port published on a free port of 127.0.0.1, and waits until it listens.
    pub fn welcome(&self, name: &str, more: &[&str]) -> SocketAddr {
        let mut arguments = vec!["run", "-d", "--name", name, "-p", "127.0.0.1:0:80"];
        arguments.extend(more);
        arguments.push("welcome");
        self.ok(&arguments);
        self.wait_for_log(name, "listening");
        self.port(name, "80/tcp")
    }

    /// The first address at which a port of a sandbox is published.
    pub fn port(&self, sandbox: &str, port: &str) -> SocketAddr {
        let text = self.ok(&["port", sandbox, port]);
        let line = text.lines().next().expect("a published port");
        line.parse().expect("an address and a port")
    }

    /// One value of `brig inspect`, by its JSON pointer (RFC 6901).
    pub fn inspect(&self, sandbox: &str, pointer: &str) -> serde_json::Value {
        let text = self.ok(&["inspect", sandbox]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("inspect prints JSON");
        let found = value.pointer(&format!("/0{pointer}"));
        found.unwrap_or_else(|| panic!("no {pointer} in {text}")).clone()
    }

    /// The line of `ps -a` that has `name` in it.
    pub fn ps_line(&self, name: &str) -> Option<String> {
        let table = self.ok(&["ps", "-a"]);
        table.lines().find(|line| line.ends_with(name)).map(Into::into)
    }

    /// Asserts that nothing of this brig is left on the host but its images.
    ///
    /// # Panics
    /// When something is.
    pub fn assert_nothing_left(&self) {
        let left = leftovers::find(self);
        assert!(left.is_empty(), "left over: {left:#?}");
    }
}

impl Default for Brig {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Brig {
    /// Takes away what a failed test has left running.
    fn drop(&mut self) {
        if let Ok(sandboxes) = std::fs::read_dir(self.root.join("sandboxes")) {
            for id in sandboxes.flatten().map(|entry| entry.file_name()) {
                let _ = self.run(&[OsStr::new("rm"), OsStr::new("-f"), &id]);
            }
        }
        leftovers::kill_processes(self);
    }
}

impl Output {
    /// Asserts a failure that tells a person one thing: the exit code, and one line, the last on standard error. What
    /// was reported on the way, such as a finished unpack, may stand before it.
    ///
    /// # Panics
    /// When it is not such.
    pub fn assert_clear_failure(&self, code: i32, what: &str) {
        assert_eq!(self.code, code, "{what}: {self:?}");
        let complaints = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("brig: "))
            .count();
        assert_eq!(complaints, 1, "{what}: {self:?}");
        assert!(
            self.stderr
                .lines()
                .last()
                .is_some_and(|line| line.starts_with("brig: ")),
            "{what}: {self:?}"
        );
        assert!(!self.stderr.contains("panicked"), "{what}: {self:?}");
    }
}

/// Waits for a child whose streams are pipes.
///
/// # Panics
/// When it passes [`COMMAND_LIMIT`].
pub fn finish(child: Child) -> Output {
    use std::os::unix::process::ExitStatusExt;
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(child.wait_with_output());
    });
    let Ok(result) = receiver.recv_timeout(COMMAND_LIMIT) else {
        // SAFETY: kill takes two numbers and touches no memory of ours. The child is not yet waited for, so the pid
        // is still its own.
        unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
        panic!("a command took over {COMMAND_LIMIT:?}");
    };
    let output = result.expect("the command can be waited for");
    Output {
        code: output
            .status
            .code()
            .or_else(|| output.status.signal().map(|signal| 128 + signal))
            .unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn words<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.as_ref().to_string_lossy())
        .collect();
    format!("brig {}", words.join(" "))
}
