//! `pull`, `push`, `login`, `logout` and `search` are another program's, so that what speaks to a network is a process of
//! its own and `brig` stays small; and images that are pulled since `run` or `create` needs them.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use brig_engine::{Engine, Error, Paths};
use brig_image_store::{Image, Platform, Reference};

use crate::{
    arguments::{Create, PullPolicy, Registry},
    failure::Failure,
};

/// How long an interrupted pull may take to say what is left of it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Becomes the program that has the command. Returns only when that fails.
pub fn hand_over(engine: &Engine, command: Registry) -> Failure {
    let (name, handed) = match command {
        Registry::Pull(handed) => ("pull", handed),
        Registry::Push(handed) => ("push", handed),
        Registry::Login(handed) => ("login", handed),
        Registry::Logout(handed) => ("logout", handed),
        Registry::Search(handed) => ("search", handed),
    };
    let error = program(engine.paths()).arg(name).args(handed.words).exec();
    Failure::command(not_started(engine.paths(), &error))
}

/// The image that a sandbox is to be made of, pulled first if it is missing or the newest is wanted.
pub async fn image(engine: &Engine, options: &Create) -> Result<Image, Failure> {
    check_platform(options)?;
    let name = options.image();
    if options.pull != PullPolicy::Always {
        match engine.find_image(name) {
            Err(Error::NoSuchImage(_)) if options.pull == PullPolicy::Missing => {}
            other => return other.map_err(Failure::of_run),
        }
        if !options.quiet
            && let Ok(reference) = name.parse::<Reference>()
        {
            let shown = match reference.digest {
                Some(digest) => format!("{}@{digest}", reference.repository),
                None => reference.name().to_string(),
            };
            eprintln!("Unable to find image '{shown}' locally");
        }
    }
    pull(engine, options).await?;
    engine.find_image(name).map_err(Failure::of_run)
}

/// brig runs images for one platform; asking for it is no error.
fn check_platform(options: &Create) -> Result<(), Failure> {
    let host = Platform::host();
    match &options.platform {
        Some(platform) if !platform.fits(&host) => Err(Failure::usage(format!(
            "brig runs images for {host} only, not for {platform}"
        ))),
        _ => Ok(()),
    }
}

/// Runs `pull`, which tells what it does and what is wrong.
async fn pull(engine: &Engine, options: &Create) -> Result<(), Failure> {
    let mut command = program(engine.paths());
    command.args(["pull", "--progress", "stderr", "--max-image-size"]);
    command.arg(options.max_image_size.bytes().to_string());
    if options.quiet {
        command.arg("--quiet");
    }
    command.arg("--").arg(options.image()).stdin(Stdio::null());
    let child = tokio::process::Command::from(command).kill_on_drop(true).spawn();
    let mut child = Pulling(child.map_err(|e| Failure::usage(not_started(engine.paths(), &e)))?);
    let status = child.0.wait().await?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::told_of_run())
    }
}

/// A pull that goes on. Dropped before its end, since this command was interrupted, it is asked to end as well, and to say
/// what is left of it, before it is killed.
struct Pulling(tokio::process::Child);

impl Drop for Pulling {
    fn drop(&mut self) {
        let Some(pid) = self
            .0
            .id()
            .and_then(|id| rustix::process::Pid::from_raw(id as i32))
        else {
            return;
        };
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + LAST_WORDS;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub(super) fn program(paths: &Paths) -> Command {
    let mut command = Command::new(paths.registry());
    command.env("BRIG_ROOT", &paths.root);
    command
}

pub(super) fn not_started(paths: &Paths, error: &io::Error) -> String {
    format!(
        "cannot start {}: {error}: install brig again",
        paths.registry().display()
    )
}
