//! `system …`, `info` and `version`.

mod disk;

pub use self::disk::report;
use brig_engine::{Engine, error::chain, kvm};
use brig_image_store::Platform;
use serde_json::json;

use super::{described, print, print_lines};
use crate::{
    arguments::{Info, System, Version},
    failure::Failure,
    text,
};

/// `brig system …`.
pub async fn dispatch(engine: &Engine, command: &System) -> Result<i32, Failure> {
    match command {
        System::Info(options) => info(engine, options).await,
        System::Events(options) => super::events::events(engine, options).await,
        System::Df(options) => disk::usage(engine, options),
        System::Prune(options) => disk::prune(engine, options).await,
        System::Check => disk::check(engine),
    }
}

/// `brig info`.
pub async fn info(engine: &Engine, options: &Info) -> Result<i32, Failure> {
    let sandboxes = engine.list()?;
    let count = |wanted: &str| {
        sandboxes
            .iter()
            .filter(|sandbox| sandbox.state.word() == wanted)
            .count()
    };
    let kvm = match engine.kvm().await {
        Ok(kind) => kvm::describe(kind).to_owned(),
        Err(e) => format!("not usable: {}", chain(&e)),
    };
    let host = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let memory = memory.totalram as u64 * u64::from(memory.mem_unit);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let images = engine.images().list()?.len();
    let paths = engine.paths();
    if let Some(format) = &options.format {
        // Docker's names of these.
        let all = json!({
            "ServerVersion": env!("CARGO_PKG_VERSION"),
            "Name": host.nodename().to_string_lossy(),
            "OSType": "linux",
            "Architecture": std::env::consts::ARCH,
            "KernelVersion": host.release().to_string_lossy(),
            "NCPU": cpus,
            "MemTotal": memory,
            "Containers": sandboxes.len(),
            "ContainersRunning": count("running"),
            "ContainersPaused": count("paused"),
            "ContainersStopped": sandboxes.len() - count("running") - count("paused"),
            "Images": images,
            "LoggingDriver": "json-file",
            "DockerRootDir": paths.root,
            "Brig": { "Kvm": kvm, "Runtime": paths.runtime, "Programs": paths.lib },
        });
        return described::show_one(format, &all);
    }
    let lines = [
        ("Version", env!("CARGO_PKG_VERSION").to_owned()),
        ("KVM", kvm),
        ("Host kernel", host.release().to_string_lossy().into_owned()),
        ("CPUs", cpus.to_string()),
        ("Memory", text::size(memory)),
        ("Sandboxes", sandboxes.len().to_string()),
        ("  running", count("running").to_string()),
        ("  paused", count("paused").to_string()),
        ("  restarting", count("restarting").to_string()),
        ("  exited", count("exited").to_string()),
        ("  created", count("created").to_string()),
        ("Images", images.to_string()),
        ("Root", paths.root.display().to_string()),
        ("Runtime directory", paths.runtime.display().to_string()),
        ("Programs", paths.lib.display().to_string()),
    ];
    print_lines(lines.iter().map(|(name, value)| format!("{name}: {value}")))?;
    Ok(0)
}

/// `brig version`.
pub fn version(options: &Version) -> Result<i32, Failure> {
    let Some(format) = &options.format else {
        print(&format!("brig {}\n", env!("CARGO_PKG_VERSION")))?;
        return Ok(0);
    };
    // There is no daemon that could be another version.
    let this = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Os": std::env::consts::OS,
        "Arch": Platform::host().architecture,
    });
    described::show_one(format, &json!({ "Client": this, "Server": this }))
}
