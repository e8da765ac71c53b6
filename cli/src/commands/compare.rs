//! `compare`.

use std::{
    io::{IsTerminal, Write},
    sync::Arc,
};

use brig_compare::{
    Host, Options,
    report::{html, json, table},
    scratch::Installation,
};
use brig_engine::{Engine, error::chain, kvm};

use super::{print, run::Interrupts};
use crate::{arguments::Compare, failure::Failure, output::FileOutput, text};

/// `brig compare`.
pub async fn compare(engine: &Engine, arguments: &Compare) -> Result<i32, Failure> {
    let mut interrupts = Interrupts::new()?;
    let (host, no_vm) = host(engine).await;
    let options = options(arguments, no_vm);
    // What cannot be written is told before minutes are spent.
    let page = arguments.html.as_deref().map(FileOutput::create).transpose()?;
    let scratch = brig_compare::prepare(installation(engine)?).map_err(|e| Failure::command(e.line()))?;
    let work = {
        let scratch = Arc::clone(&scratch);
        tokio::task::spawn_blocking(move || brig_compare::compare(&options, host, scratch, &tell))
    };
    let done = interrupts.end(work).await;
    // A thread that still measures fails from here on, and ends with this process.
    scratch.clean();
    let report = done?.map_err(|e| Failure::command(format!("cannot compare: {e}")))?;
    let report = report.map_err(|e| Failure::command(e.line()))?;
    if std::io::stderr().is_terminal() {
        eprint!("{CLEAR}");
    }
    if let Some(mut page) = page {
        page.writer().write_all(html::render(&report).as_bytes())?;
        page.finish()?;
    }
    let text = if arguments.json {
        format!("{:#}\n", json::render(&report))
    } else {
        table::render(&report, arguments.explain)
    };
    print(&text)?;
    Ok(0)
}

fn options(arguments: &Compare, no_vm: Option<String>) -> Options {
    let quick = arguments.quick;
    let runs = arguments.runs as usize;
    let runs = if quick { runs.min(2) } else { runs };
    let cold_runs = arguments
        .cold_runs
        .map_or_else(|| runs.div_ceil(5), |runs| runs as usize);
    let at_once = arguments.at_once as usize;
    Options {
        image: arguments.image.clone(),
        command: arguments.command.clone(),
        runs,
        cold_runs: if quick { cold_runs.min(1) } else { cold_runs },
        at_once: if quick { at_once.min(2) } else { at_once },
        rounds: if quick { 1 } else { 3 },
        seconds: if quick {
            arguments.seconds.min(0.02)
        } else {
            arguments.seconds
        },
        size_mib: if quick { 2 } else { 32 },
        hold_mib: if quick { 2 } else { 16 },
        only: arguments.only.clone(),
        no_vm,
    }
}

fn installation(engine: &Engine) -> Result<Installation, Failure> {
    let paths = engine.paths();
    Ok(Installation {
        program: std::env::current_exe()
            .map_err(|e| Failure::command(format!("cannot find brig itself: {e}")))?,
        lib: paths.lib.clone(),
        root: paths.root.clone(),
        runtime: paths.runtime.clone(),
    })
}

/// What is known about this host, and why there can be no microVM on it.
async fn host(engine: &Engine) -> (Host, Option<String>) {
    let kind = engine.kvm().await;
    let uname = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let (kvm, no_vm) = match &kind {
        Ok(kind) => (kvm::describe(*kind).to_owned(), None),
        Err(e) => (format!("not usable: {}", chain(e)), Some(chain(e))),
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let facts = [
        ("brig", env!("CARGO_PKG_VERSION").to_owned()),
        ("KVM", kvm),
        ("Host kernel", uname.release().to_string_lossy().into_owned()),
        ("CPUs", cpus.to_string()),
        (
            "Memory",
            text::size(memory.totalram as u64 * u64::from(memory.mem_unit)),
        ),
        (
            "Load at the start",
            format!("{:.2}", memory.loads[0] as f64 / 65536.0),
        ),
    ];
    let host = Host {
        facts: facts.map(|(name, value)| (name.to_owned(), value)).into(),
        emulated_kvm: kind.is_ok_and(kvm::is_emulated),
    };
    (host, no_vm)
}

/// Goes back to the beginning of a terminal's line and empties it.
const CLEAR: &str = "\r\x1b[K";

/// Says what goes on to someone who waits for it.
fn tell(line: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("{CLEAR}{line}");
    }
}
