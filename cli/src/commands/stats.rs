//! `stats`: what sandboxes take, once or again and again.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use brig_engine::{
    Engine, Error, SandboxId,
    engine::{Measured, Meter},
    sandbox::Sandbox,
    stats::{Sample, cpu_percent},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::print;
use crate::{arguments::Stats, failure::Failure, listing, text};

/// Time from one sample to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a guest may take to say what it takes: it may be paused.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is shown in the place of what nobody knows.
const UNKNOWN: &str = "--";

/// Puts the cursor at the beginning, and takes away what is below it (ECMA-48).
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

const FIELDS: [(&str, &str); 10] = [
    ("ID", "CONTAINER ID"),
    ("Container", "CONTAINER"),
    ("Name", "NAME"),
    ("Isolation", "ISOLATION"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

const TABLE: &str = "table {{.ID}}\t{{.Name}}\t{{.Isolation}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

/// `brig stats`.
pub async fn stats(engine: &Engine, options: &Stats) -> Result<i32, Failure> {
    let format = options.format.as_deref().filter(|format| *format != "table");
    let format = format.unwrap_or(TABLE);
    // What is asked for by name has to be there.
    for reference in &options.sandboxes {
        engine.find(reference)?;
    }
    let live = !options.no_stream;
    let in_place = live && io::stdout().is_terminal();
    let mut meters = Meters::default();
    if in_place {
        print(&format!("{HOME}{CLEAR_BELOW}"))?;
    }
    let mut first = true;
    loop {
        let next = Instant::now() + INTERVAL;
        let sandboxes = wanted(engine, options)?;
        if first {
            // A share of the CPU is one of the time between two samples.
            meters.sample(engine, &sandboxes).await;
            first = false;
            if !in_place {
                sleep_until(next).await;
                continue;
            }
        } else {
            meters.sample(engine, &sandboxes).await;
        }
        let rows: Vec<Value> = sandboxes
            .iter()
            .map(|sandbox| row(sandbox, meters.shown(sandbox), options.no_trunc))
            .collect();
        let table = listing::render(format, &FIELDS, &rows)?;
        if in_place {
            let lines = table.replace('\n', &format!("{CLEAR_LINE}\n"));
            print(&format!("{HOME}{lines}{CLEAR_BELOW}"))?;
        } else {
            print(&table)?;
        }
        io::stdout().flush()?;
        if !live {
            return Ok(0);
        }
        sleep_until(next).await;
    }
}

fn wanted(engine: &Engine, options: &Stats) -> Result<Vec<Sandbox>, Failure> {
    if options.sandboxes.is_empty() {
        let mut all = engine.list()?;
        all.retain(|sandbox| options.all || sandbox.is_running());
        return Ok(all);
    }
    let mut found = Vec::new();
    for reference in &options.sandboxes {
        match engine.find(reference) {
            Ok(sandbox) => found.push(sandbox),
            // It has gone since it was asked for.
            Err(Error::NoSuchSandbox(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// What measures each sandbox that runs, and the last two samples of each.
#[derive(Default)]
struct Meters(BTreeMap<SandboxId, Known>);

struct Known {
    meter: Meter,
    last: Option<Measured>,
    before: Option<Sample>,
}

impl Meters {
    async fn sample(&mut self, engine: &Engine, sandboxes: &[Sandbox]) {
        self.0.retain(|id, _| {
            sandboxes
                .iter()
                .any(|sandbox| sandbox.id() == id && sandbox.is_running())
        });
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.is_running()) {
            let id = sandbox.id();
            if !self.0.contains_key(id) {
                // One that ends meanwhile is shown without figures.
                let Ok(Ok(meter)) = timeout(PATIENCE, engine.meter(id.as_str())).await else {
                    continue;
                };
                let (last, before) = (None, None);
                self.0.insert(id.clone(), Known { meter, last, before });
            }
            if let Some(known) = self.0.get_mut(id) {
                match timeout(PATIENCE, known.meter.measure(engine)).await {
                    Ok(Ok(measured)) => {
                        known.before = known.last.take().map(|last| last.sample);
                        known.last = Some(measured);
                    }
                    _ => {
                        self.0.remove(id);
                    }
                }
            }
        }
    }

    fn shown(&self, sandbox: &Sandbox) -> Option<(&Measured, Option<&Sample>)> {
        let known = self.0.get(sandbox.id())?;
        Some((known.last.as_ref()?, known.before.as_ref()))
    }
}

fn row(sandbox: &Sandbox, known: Option<(&Measured, Option<&Sample>)>, whole: bool) -> Value {
    let config = &sandbox.config;
    let pair = |pair: Option<(u64, u64)>| match pair {
        Some((one, other)) => format!("{} / {}", text::size(one), text::size(other)),
        None => format!("{UNKNOWN} / {UNKNOWN}"),
    };
    let unknown = || UNKNOWN.to_owned();
    let sample = known.map(|(measured, _)| measured.sample);
    let cpu = known.and_then(|(measured, before)| Some(cpu_percent(before?, &measured.sample)));
    let part = |sample: &Sample| sample.memory as f64 * 100.0 / sample.memory_limit.max(1) as f64;
    let id = if whole {
        config.id.as_str()
    } else {
        config.id.short()
    };
    json!({
        "ID": id,
        "Container": id,
        "Name": config.name,
        "Isolation": config.isolation.as_str(),
        "CPUPerc": cpu.map_or_else(unknown, |percent| format!("{percent:.2}%")),
        "MemUsage": sample.map_or_else(
            || pair(None),
            |sample| format!("{} / {}", text::binary_size(sample.memory), text::binary_size(sample.memory_limit)),
        ),
        "MemPerc": sample.as_ref().map_or_else(unknown, |sample| format!("{:.2}%", part(sample))),
        "NetIO": pair(known.and_then(|(measured, _)| measured.traffic).map(|traffic| (traffic.received, traffic.sent))),
        "BlockIO": pair(sample.and_then(|sample| sample.read.zip(sample.written))),
        "PIDs": known
            .and_then(|(measured, _)| measured.threads)
            .map_or_else(unknown, |threads| threads.to_string()),
    })
}
