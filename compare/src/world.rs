//! What all measurements need: the image in each of its ways, and where to tell what is going on.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use crate::{
    Error, Options,
    scratch::{Scratch, ok, text},
    subject::{Root, Subject},
    ways::{Way, find_program},
};

/// What all measurements need.
pub struct World<'a> {
    /// What is wanted.
    pub options: &'a Options,
    /// The comparison's own brig.
    pub scratch: Arc<Scratch>,
    /// The image of the user's, or the benchmarks'.
    pub subject: Subject,
    /// The benchmarks' image.
    pub bench: Subject,
    /// Those that there are here.
    pub ways: Vec<Way>,
    /// Root filesystems for others than brig, by image.
    roots: BTreeMap<String, Root>,
    missing: RefCell<Vec<String>>,
    progress: &'a dyn Fn(&str),
}

/// A sandbox that runs, or a process.
pub struct Running {
    way: Way,
    /// Its name, or the other runtime's word for it.
    pub name: String,
    /// The first line that the program printed.
    pub first: String,
    child: Child,
    lines: std::io::Lines<BufReader<Box<dyn Read>>>,
}

impl<'a> World<'a> {
    /// Loads the images, sees which ways there are, and runs the image once in each, by which templates and unpacked files are
    /// made.
    ///
    /// # Errors
    /// Those of loading the images; no way at all.
    pub fn make(
        options: &'a Options,
        scratch: Arc<Scratch>,
        progress: &'a dyn Fn(&str),
    ) -> Result<Self, Error> {
        progress("loading the image");
        let bench = Subject::bench(&scratch)?;
        let subject = match &options.image {
            Some(name) => Subject::users(&scratch, name)?,
            None => bench.clone(),
        };
        let mut world = Self {
            options,
            scratch,
            subject,
            bench,
            ways: Vec::new(),
            roots: BTreeMap::new(),
            missing: RefCell::new(Vec::new()),
            progress,
        };
        for way in Way::ALL {
            match world.prepare(way) {
                Ok(()) => world.ways.push(way),
                Err(e) => world.miss(&format!("{}: {}", way.column().title, e.line())),
            }
        }
        if !world.ways.iter().any(|way| way.is_brig()) {
            return Err(Error::Told(format!(
                "nothing can be compared: {}",
                world.missing().join("; ")
            )));
        }
        Ok(world)
    }

    fn prepare(&mut self, way: Way) -> Result<(), Error> {
        self.tell(&format!("preparing {}", way.column().title));
        match way {
            Way::Vm | Way::Container => {
                if let (Way::Vm, Some(reason)) = (way, &self.options.no_vm) {
                    return Err(Error::Told(reason.clone()));
                }
                let exit = ["exit".to_owned()];
                self.once(way, &self.bench, &exit)?;
                if way == Way::Container && is_root() {
                    let root = Root::copy(&self.scratch, &self.bench)?;
                    self.roots.insert(self.bench.id.clone(), root);
                }
                if !self.subject.is_bench {
                    self.once(way, &self.subject, &self.options.command)?;
                    if way == Way::Container && is_root() {
                        let root = Root::copy(&self.scratch, &self.subject)?;
                        self.roots.insert(self.subject.id.clone(), root);
                    }
                }
                Ok(())
            }
            Way::Crun | Way::Runc => {
                let name = way.runtime().unwrap_or_default();
                find_program(name).ok_or_else(|| Error::Told("is not installed".into()))?;
                if !is_root() {
                    return Err(Error::Told("is compared by root only, who has ids for it".into()));
                }
                if self.roots.is_empty() {
                    return Err(Error::Told(
                        "there are no files for it without container isolation".into(),
                    ));
                }
                self.once(way, &self.bench, &["exit".to_owned()])
            }
            Way::Process => {
                let program = self.bench_program();
                if program.exists() {
                    Ok(())
                } else {
                    Err(Error::Told(format!(
                        "{} is missing: install brig again",
                        program.display()
                    )))
                }
            }
        }
    }

    /// Runs a command to its end.
    fn once(&self, way: Way, subject: &Subject, command: &[String]) -> Result<(), Error> {
        let (mut command, name) = self.command(way, subject, command, &[])?;
        let ended = command.output().map_err(Error::system("start it"))?;
        self.forget(way, &name);
        // An image's own command may well fail: what counts is that brig or the runtime has run it.
        let status = ended.status.code().unwrap_or(125);
        if ended.status.success() || (!subject.is_bench && status != 125) {
            Ok(())
        } else {
            Err(Error::ended("the first run failed", &ended))
        }
    }

    /// The program of the benchmarks, as the host has it: the same bytes as in the image.
    pub fn bench_program(&self) -> PathBuf {
        self.scratch.installation().lib.join("brig-bench")
    }

    /// Whether this way can run the image at all.
    pub fn can(&self, way: Way, subject: &Subject) -> bool {
        // Nobody's program runs on the host without a wall, but our own.
        way != Way::Process || subject.is_bench
    }

    /// A command that stays until the image's has ended, and the name by which it can be found. `more` are options of `brig run`.
    ///
    /// # Errors
    /// Those of making a bundle.
    pub fn command(
        &self,
        way: Way,
        subject: &Subject,
        command: &[String],
        more: &[&str],
    ) -> Result<(Command, String), Error> {
        let name = self.scratch.name();
        let built = match way {
            Way::Vm | Way::Container => {
                let mut built = self
                    .scratch
                    .brig(&["run", "--rm", "--name", &name, "--isolation"]);
                built
                    .arg(way.column().id)
                    .args(more)
                    .arg("--")
                    .arg(&subject.id)
                    .args(command);
                built
            }
            Way::Crun | Way::Runc => {
                let root = self
                    .roots
                    .get(&subject.id)
                    .ok_or_else(|| Error::Told("no root filesystem".into()))?;
                let bundle = root.bundle(&self.scratch, subject, command)?;
                let mut built = Command::new(way.runtime().unwrap_or_default());
                // A host with cgroups of both versions is too much for crun otherwise.
                built.args((way == Way::Crun).then_some("--cgroup-manager=disabled"));
                built.arg("run").arg("--bundle").arg(bundle).arg(&name);
                built
            }
            Way::Process => {
                let mut built = Command::new(self.bench_program());
                built.args(command).current_dir(self.scratch.root());
                built
            }
        };
        let mut built = built;
        built.stdin(Stdio::null());
        Ok((built, name))
    }

    /// Removes what another runtime leaves of a command that has ended.
    pub fn forget(&self, way: Way, name: &str) {
        if way.runtime().is_some() {
            let _ = std::fs::remove_dir_all(self.scratch.bundles().join(name));
        }
    }

    /// Starts the benchmarks' program in a way and waits for its first line, by which it says that it is where it is wanted.
    ///
    /// # Errors
    /// [`Error::Program`] when it ends before.
    pub fn start(&self, way: Way, words: &[&str], more: &[&str]) -> Result<Running, Error> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let (mut command, name) = self.command(way, &self.bench, &words, more)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::system("start it"))?;
        let stdout = child.stdout.take().ok_or_else(|| Error::Told("no pipe".into()))?;
        let stdout: Box<dyn Read> = Box::new(stdout);
        let mut running = Running {
            way,
            name,
            first: String::new(),
            child,
            lines: BufReader::new(stdout).lines(),
        };
        match running.line() {
            Some(line) => {
                running.first = line;
                Ok(running)
            }
            None => Err(running.end_of_failed()),
        }
    }

    /// Ends what runs.
    pub fn stop(&self, mut running: Running) {
        match running.way {
            Way::Vm | Way::Container => {
                let _ = self.scratch.brig(&["rm", "-f", &running.name]).output();
            }
            Way::Crun | Way::Runc => {
                let runtime = running.way.runtime().unwrap_or_default();
                let _ = Command::new(runtime)
                    .args(["kill", &running.name, "KILL"])
                    .output();
            }
            Way::Process => {
                let _ = running.child.kill();
            }
        }
        let _ = running.child.wait();
        if let Some(runtime) = running.way.runtime() {
            let _ = Command::new(runtime)
                .args(["delete", "-f", &running.name])
                .output();
        }
        self.forget(running.way, &running.name);
    }

    /// One value of `brig inspect`, by its JSON pointer.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn inspect(&self, name: &str, pointer: &str) -> Result<serde_json::Value, Error> {
        let text = text(&mut self.scratch.brig(&["inspect", name]), "inspect a sandbox")?;
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::Told(e.to_string()))?;
        let found = value.pointer(&format!("/0{pointer}"));
        found
            .cloned()
            .ok_or_else(|| Error::Told(format!("inspect has no {pointer}")))
    }

    /// Where a port of a sandbox is published.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn port(&self, name: &str, port: &str) -> Result<String, Error> {
        let text = text(&mut self.scratch.brig(&["port", name, port]), "look up a port")?;
        let line = text.lines().next().map(str::to_owned);
        line.ok_or_else(|| Error::Told("the port is not published".into()))
    }

    /// The first process of what runs: that of the sandbox's supervisor, or the one that was started.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn pid(&self, running: &Running) -> Result<u32, Error> {
        if !running.way.is_brig() {
            return Ok(running.child.id());
        }
        let pid = self.inspect(&running.name, "/State/Pid")?;
        let pid = pid
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid > 0);
        pid.ok_or_else(|| Error::Told("the sandbox has no supervisor".into()))
    }

    /// Sends a signal to the program of what runs.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn signal(&self, running: &Running, name: &str) -> Result<(), Error> {
        let what = "send a signal";
        match running.way {
            Way::Vm | Way::Container => {
                let words = ["kill", "-s", name, &running.name];
                ok(&mut self.scratch.brig(&words), what).map(drop)
            }
            Way::Crun | Way::Runc => {
                let runtime = running.way.runtime().unwrap_or_default();
                ok(Command::new(runtime).args(["kill", &running.name, name]), what).map(drop)
            }
            Way::Process => {
                let pid = running.child.id().to_string();
                ok(Command::new("kill").args(["-s", name, &pid]), what).map(drop)
            }
        }
    }

    /// Something could not be measured.
    pub fn miss(&self, line: &str) {
        self.missing.borrow_mut().push(line.to_owned());
    }

    /// What could not be measured.
    pub fn missing(&self) -> Vec<String> {
        self.missing.borrow().clone()
    }

    /// Tells whoever waits.
    pub fn tell(&self, line: &str) {
        (self.progress)(line);
    }
}

impl Running {
    /// The next line that the program prints.
    pub fn line(&mut self) -> Option<String> {
        self.lines.next()?.ok()
    }

    fn end_of_failed(self) -> Error {
        let Self { child, lines, .. } = self;
        drop(lines);
        match child.wait_with_output() {
            Ok(output) => Error::ended("it ended at once", &output),
            Err(e) => Error::system("wait for it")(e),
        }
    }
}

/// Whether this user may do what other runtimes need.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
