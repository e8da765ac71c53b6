//! What memory of the host's a sandbox takes.

use std::{collections::BTreeMap, thread, time::Duration};

use crate::{
    Error, processes,
    report::{Better, Row, Section},
    ways::Way,
    world::{Running, World},
};

/// How often it is looked whether memory has come back, and how long in between.
const LOOKS: usize = 20;
const LOOK_REST: Duration = Duration::from_millis(250);

/// What a process is for, by the name of its program: a row's word, its title, and how it is told.
const KINDS: [(&str, &str, &str); 5] = [
    (
        "supervisor",
        "supervisor",
        "brig-supervisor; with crun and runc the runtime's own process, which stays",
    ),
    (
        "vmm",
        "VMM without its guest",
        "brig-vmm without the mappings of the guest's memory",
    ),
    (
        "guest",
        "guest",
        "brig-vmm's mappings of the guest's memory: the guest's kernel, the agent and the process",
    ),
    (
        "cell",
        "cell",
        "brig-cell: the keeper, and the cell with the agent's code",
    ),
    (
        "process",
        "process",
        "the image's process, where it is one of the host's",
    ),
];

/// KiB of each kind.
type Shares = BTreeMap<&'static str, f64>;

fn shares(world: &World<'_>, running: &Running) -> Result<Shares, Error> {
    let mut shares = Shares::new();
    for pid in processes::tree(world.pid(running)?) {
        let Some(pss) = processes::pss(pid)? else {
            continue;
        };
        let kind = match processes::program(pid).as_deref() {
            Some("brig-supervisor" | "crun" | "runc") => "supervisor",
            Some("brig-vmm") => {
                *shares.entry("guest").or_default() += pss.guest;
                *shares.entry("vmm").or_default() += pss.all - pss.guest;
                continue;
            }
            Some("brig-cell") => "cell",
            // Started from a copy in memory where root is the user.
            Some(name) if name.starts_with("memfd:") => "cell",
            _ => "process",
        };
        *shares.entry(kind).or_default() += pss.all;
    }
    Ok(shares)
}

pub(super) fn section(world: &World<'_>) -> Section {
    let many = world.options.at_once;
    let row = |id: &str, title: &str, how: &str| Row::new(id, title, "KiB", how);
    let mut kinds: Vec<Row> = KINDS.iter().map(|(id, title, how)| row(id, title, how)).collect();
    let mut all = row(
        "all",
        "all of it, alone",
        "the sum of these; nothing else of the image runs",
    );
    let mut each = row(
        "each",
        &format!("each of {many}"),
        &format!("the same with {many} that run at once: pages that they share count in parts"),
    );
    let mib = world.options.hold_mib;
    let mut back = Row::new(
        "back",
        &format!("of {mib} MiB given back, host has again"),
        "KiB",
        &format!(
            "the program takes {mib} MiB, writes to each page and gives them back; the sum of all PSS with the memory, less the \
             least in the {} s after",
            (LOOK_REST * LOOKS as u32).as_secs()
        ),
    );
    back.better = Better::Higher;
    for way in &world.ways {
        let column = way.column();
        let result = (|| -> Result<(), Error> {
            for round in 0..world.options.runs.min(5) {
                world.tell(&format!("memory, {}: run {}", column.title, round + 1));
                let running = world.start(*way, &["server"], &[])?;
                let found = shares(world, &running);
                world.stop(running);
                let found = found?;
                for row in &mut kinds {
                    if let Some(kib) = found.get(row.id.as_str()) {
                        row.cell(column).samples.push(*kib);
                    }
                }
                all.cell(column).samples.push(found.values().sum());
            }
            each.cell(column).samples = of_many(world, *way, many)?;
            world.tell(&format!("memory that is given back, {}", column.title));
            back.cell(column).samples.push(given_back(world, *way, mib)?);
            Ok(())
        })();
        if let Err(e) = result {
            world.miss(&format!("memory, {}: {}", column.title, e.line()));
        }
    }
    kinds.extend([all, each, back]);
    Section {
        id: "memory",
        title: "Host memory a sandbox".into(),
        how: "Proportional set size (/proc/PID/smaps) of all processes of a sandbox whose program waits for connections. The kernel's \
              own memory for it is in none of them."
            .into(),
        columns: world.ways.iter().map(|way| way.column()).collect(),
        rows: kinds,
    }
}

fn of_many(world: &World<'_>, way: Way, many: usize) -> Result<Vec<f64>, Error> {
    world.tell(&format!("memory, {many} at once: {}", way.column().title));
    // Processes on the host would all serve one port; the free one is for them, and does no harm elsewhere.
    let started: Result<Vec<Running>, Error> = {
        let mut running = Vec::new();
        let mut failed = None;
        for _ in 0..many {
            match world.start(way, &["--port", "0", "server"], &[]) {
                Ok(one) => running.push(one),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        match failed {
            None => Ok(running),
            Some(e) => {
                stop_all(world, running);
                Err(e)
            }
        }
    };
    let running = started?;
    let sums: Result<Vec<f64>, Error> = running
        .iter()
        .map(|one| Ok(shares(world, one)?.values().sum()))
        .collect();
    stop_all(world, running);
    sums
}

fn stop_all(world: &World<'_>, running: Vec<Running>) {
    for one in running {
        world.stop(one);
    }
}

/// KiB that are the host's again.
fn given_back(world: &World<'_>, way: Way, mib: usize) -> Result<f64, Error> {
    let mib = mib.to_string();
    // The first line says that the memory has been taken.
    let mut running = world.start(way, &["--seconds", "3600", "hold", &mib], &[])?;
    let measured = (|| -> Result<f64, Error> {
        let sum = |running: &Running| Ok::<f64, Error>(shares(world, running)?.values().sum());
        let taken = sum(&running)?;
        world.signal(&running, "USR1")?;
        running.line().ok_or_else(|| Error::Told("it ended".into()))?;
        let mut least = sum(&running)?;
        for _ in 0..LOOKS {
            thread::sleep(LOOK_REST);
            least = least.min(sum(&running)?);
        }
        Ok((taken - least).max(0.0))
    })();
    world.stop(running);
    measured
}
