//! `system …` and `version`.

mod disk;

use brig_engine::{
    Engine,
    error::chain,
    kvm,
    sandbox::{Sandbox, Status},
};

use super::{print, print_lines};
use crate::{arguments::System, failure::Failure, text};

/// `brig system …`.
pub async fn dispatch(engine: &Engine, command: &System) -> Result<i32, Failure> {
    match command {
        System::Info => info(engine).await,
        System::Df(options) => disk::usage(engine, options),
        System::Prune(options) => disk::prune(engine, options).await,
        System::Check => disk::check(engine),
    }
}

async fn info(engine: &Engine) -> Result<i32, Failure> {
    let sandboxes = engine.list()?;
    let count = |status| {
        sandboxes
            .iter()
            .filter(|sandbox: &&Sandbox| sandbox.state.status == status)
            .count()
    };
    let kvm = match engine.kvm().await {
        Ok(kind) => kvm::describe(kind).to_owned(),
        Err(e) => format!("not usable: {}", chain(&e)),
    };
    let host = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let paths = engine.paths();
    let lines = [
        ("Version", env!("CARGO_PKG_VERSION").to_owned()),
        ("KVM", kvm),
        ("Host kernel", host.release().to_string_lossy().into_owned()),
        (
            "CPUs",
            std::thread::available_parallelism()
                .map_or(1, usize::from)
                .to_string(),
        ),
        (
            "Memory",
            text::size(memory.totalram as u64 * u64::from(memory.mem_unit)),
        ),
        ("Sandboxes", sandboxes.len().to_string()),
        ("  running", count(Status::Running).to_string()),
        ("  restarting", count(Status::Restarting).to_string()),
        ("  exited", count(Status::Exited).to_string()),
        ("  created", count(Status::Created).to_string()),
        ("Images", engine.images().list()?.len().to_string()),
        ("Root", paths.root.display().to_string()),
        ("Runtime directory", paths.runtime.display().to_string()),
        ("Programs", paths.lib.display().to_string()),
    ];
    print_lines(lines.iter().map(|(name, value)| format!("{name}: {value}")))?;
    Ok(0)
}

/// `brig version`.
pub fn version() -> Result<i32, Failure> {
    print(&format!("brig {}\n", env!("CARGO_PKG_VERSION")))?;
    Ok(0)
}
