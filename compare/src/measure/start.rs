//! How long a start takes.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
    thread,
};

use serde_json::Value;

use crate::{
    Error,
    report::{Column, Row, Section, html::STAGE},
    subject::Subject,
    ways::{COLD, Way},
    world::World,
};

/// The stages in the order in which they are reached: brig's words for them, and what they mean.
const STAGES: [(&str, &str); 10] = [
    ("request", "the command's main function began"),
    ("supervisor", "the sandbox's supervisor began"),
    ("VMM start", "brig-vmm, or in a container brig-cell, began"),
    (
        "kernel entry",
        "the first vCPU was about to enter the guest's kernel, which boots",
    ),
    (
        "guest resumed",
        "the first vCPU was about to go on in the restored guest",
    ),
    (
        "init",
        "the agent's first instruction, by the guest's clock; in a container the cell was there",
    ),
    (
        "agent ready",
        "the agent's hello, or its word that it is awake, arrived",
    ),
    (
        "process exec",
        "the word that the process has executed its program arrived",
    ),
    ("exit", "the word that the process has ended arrived"),
    ("cleaned up", "nothing was left to do"),
];

/// Rows that all columns have, behind the stages.
const FIRST_BYTE: &str = "first output byte";
const ENDED: &str = "command ended";

/// One start as whoever waits for it sees it.
struct Start {
    /// Milliseconds from before the command was made until something.
    moments: Vec<(String, f64)>,
    /// Until the command had ended.
    whole: f64,
    /// Until the image was unpacked, when that was needed.
    unpacked: Option<f64>,
}

/// `CLOCK_MONOTONIC`, in nanoseconds, as brig's own stages are told.
fn now_ns() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec, which is live.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn start(world: &World<'_>, way: Way, cold: bool) -> Result<Start, Error> {
    let mut more = if way.is_brig() {
        vec!["--timing=json"]
    } else {
        Vec::new()
    };
    more.extend(cold.then_some("--no-template"));
    let (mut command, name) = world.command(way, &world.subject, &world.options.command, &more)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = now_ns();
    let since = |ns: i64| (ns - began) as f64 / 1e6;
    let mut child = command.spawn().map_err(Error::system("start it"))?;
    // Read by another, so that a program that writes much is never held up by it.
    let complaints = child
        .stderr
        .take()
        .map(|stderr| thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).last()));
    let mut first_byte = None;
    if let Some(mut stdout) = child.stdout.take() {
        let mut buffer = [0; 4096];
        while let Ok(1..) = stdout.read(&mut buffer) {
            first_byte.get_or_insert_with(now_ns);
        }
    }
    let last = complaints.and_then(|reader| reader.join().ok()).flatten();
    let status = child.wait().map_err(Error::system("wait for it"))?;
    let ended = now_ns();
    world.forget(way, &name);
    let mut moments = Vec::new();
    let mut unpacked = None;
    if way.is_brig() {
        let line = last.unwrap_or_default();
        let timing: Value = serde_json::from_str(&line).map_err(|_| Error::Program {
            what: "a start failed".into(),
            reason: format!("{} ({status})", line.trim_start_matches("brig: ")),
        })?;
        let stage = |name: &str| timing["stages"][name].as_i64();
        for (name, _) in STAGES {
            moments.extend(stage(name).map(|ns| (name.to_owned(), since(ns))));
        }
        unpacked = stage("image unpacked").map(since);
    } else if !status.success() {
        return Err(Error::Program {
            what: "a start failed".into(),
            reason: last.unwrap_or_else(|| status.to_string()),
        });
    }
    moments.extend(first_byte.map(|ns| (FIRST_BYTE.to_owned(), since(ns))));
    moments.push((ENDED.to_owned(), since(ended)));
    Ok(Start {
        moments,
        whole: since(ended),
        unpacked,
    })
}

/// The columns, each with its way, whether the guest boots, and how often.
fn columns(world: &World<'_>) -> Vec<(Column, Way, bool, usize)> {
    let mut columns = Vec::new();
    for way in &world.ways {
        if !world.can(*way, &world.subject) {
            continue;
        }
        if *way == Way::Vm {
            columns.push((COLD, Way::Vm, true, world.options.cold_runs));
        }
        columns.push((way.column(), *way, false, world.options.runs));
    }
    columns
}

fn stage_rows() -> Vec<Row> {
    let mut rows: Vec<Row> = STAGES
        .iter()
        .map(|(name, how)| {
            Row::new(
                &format!("{STAGE}{name}"),
                name,
                "ms",
                &format!("since the request until {how}"),
            )
        })
        .collect();
    for (name, how) in [
        (
            FIRST_BYTE,
            "the first byte of the process's output came out of the command",
        ),
        (ENDED, "the command had ended and been waited for"),
    ] {
        rows.push(Row::new(
            &format!("{STAGE}{name}"),
            name,
            "ms",
            &format!("since the request until {how}"),
        ));
    }
    rows
}

/// Starts one after another; the ways take turns, so that what else the host does falls on all of them.
pub(super) fn one_at_a_time(world: &World<'_>) -> Section {
    let columns = columns(world);
    let mut rows = stage_rows();
    let mut whole = Row::new(
        "whole",
        "whole command",
        "ms",
        "from before the command is made until it has ended and been waited for, nothing else being started meanwhile",
    )
    .with_quantiles();
    let mut failed = Vec::new();
    let most = columns.iter().map(|(.., runs)| *runs).max().unwrap_or(0);
    // One more, which is the first and no sample.
    for round in 0..=most {
        for (column, way, cold, runs) in &columns {
            if round > *runs || failed.contains(column) {
                continue;
            }
            world.tell(&format!("start, {}: run {round} of {runs}", column.title));
            match start(world, *way, *cold) {
                Ok(start) => {
                    let put = |row: &mut Row, value: f64| {
                        let cell = row.cell(*column);
                        if round == 0 {
                            &mut cell.first
                        } else {
                            &mut cell.samples
                        }
                        .push(value);
                    };
                    put(&mut whole, start.whole);
                    for (name, moment) in start.moments {
                        if let Some(row) = rows.iter_mut().find(|row| row.title == name) {
                            put(row, moment);
                        }
                    }
                }
                Err(e) => {
                    world.miss(&format!("start, {}: {}", column.title, e.line()));
                    failed.push(*column);
                }
            }
        }
    }
    rows.push(whole);
    Section {
        id: "start",
        title: "Start, one at a time".into(),
        how: "The command runs to its end again and again, the ways in turns; the first run of each is left out. Moments are of \
              CLOCK_MONOTONIC, since just before the command was made. The image is unpacked; all but the cold ones have their template."
            .into(),
        columns: columns.into_iter().map(|(column, ..)| column).collect(),
        rows,
    }
}

/// Starts at once, and one that finds the image not yet unpacked.
pub(super) fn others(world: &World<'_>) -> Section {
    let many = world.options.at_once;
    let mut at_once = Row::new(
        "at_once",
        &format!("whole command, {many} at once"),
        "ms",
        &format!("{many} commands are made at the same moment; each counts from its own beginning to its end. The first {many} of each way are left out"),
    )
    .with_quantiles();
    let mut unpack = Row::new(
        "not_unpacked",
        "whole command, image not unpacked",
        "ms",
        "the image is in the store as it was loaded; the template is there. Each run removes the image and loads it again before",
    );
    let mut unpacking = Row::new(
        "unpacked",
        "  until it is unpacked",
        "ms",
        "in the same runs, from before the command is made until the image's layers are unpacked and in the store",
    );
    let columns: Vec<(Column, Way)> = columns(world)
        .into_iter()
        .filter(|(.., cold, _)| !cold)
        .map(|(column, way, ..)| (column, way))
        .collect();
    for (column, way) in &columns {
        let rounds = world.options.runs.div_ceil(many).clamp(1, 5);
        for round in 0..=rounds {
            world.tell(&format!(
                "{many} starts at once, {}: round {round} of {rounds}",
                column.title
            ));
            match together(world, *way, many) {
                Ok(times) => {
                    let cell = at_once.cell(*column);
                    if round == 0 {
                        &mut cell.first
                    } else {
                        &mut cell.samples
                    }
                    .extend(times);
                }
                Err(e) => {
                    world.miss(&format!("{many} starts at once, {}: {}", column.title, e.line()));
                    break;
                }
            }
        }
    }
    let rounds = world.options.runs.min(3);
    for (column, way) in columns.iter().filter(|(_, way)| way.is_brig()) {
        for round in 0..rounds {
            world.tell(&format!(
                "start with the image not unpacked, {}: run {} of {rounds}",
                column.title,
                round + 1
            ));
            let started = world
                .subject
                .load_again(&world.scratch)
                .and_then(|()| start(world, *way, false));
            match started {
                Ok(start) => {
                    unpack.cell(*column).samples.push(start.whole);
                    unpacking.cell(*column).samples.extend(start.unpacked);
                }
                Err(e) => {
                    world.miss(&format!("image not unpacked, {}: {}", column.title, e.line()));
                    break;
                }
            }
        }
    }
    restore(world, &world.subject);
    Section {
        id: "start",
        title: "Start, many at once and with the image not yet unpacked".into(),
        how: format!("{many} at once share the host's CPUs, so each takes longer than alone."),
        columns: columns.into_iter().map(|(column, _)| column).collect(),
        rows: vec![at_once, unpack, unpacking],
    }
}

/// Unpacks the image again in each isolation, for the measurements that follow.
fn restore(world: &World<'_>, subject: &Subject) {
    for way in world.ways.iter().filter(|way| way.is_brig()) {
        if let Ok((mut command, _)) = world.command(*way, subject, &world.options.command, &[]) {
            let _ = command.output();
        }
    }
}

/// So many at the same time; the time that each took.
fn together(world: &World<'_>, way: Way, many: usize) -> Result<Vec<f64>, Error> {
    let commands: Result<Vec<_>, Error> = (0..many)
        .map(|_| world.command(way, &world.subject, &world.options.command, &[]))
        .collect();
    let threads: Vec<_> = commands?
        .into_iter()
        .map(|(mut command, name)| {
            let thread = thread::spawn(move || {
                let began = now_ns();
                let output = command.output();
                ((now_ns() - began) as f64 / 1e6, output)
            });
            (thread, name)
        })
        .collect();
    let mut times = Vec::new();
    let mut failed = None;
    for (thread, name) in threads {
        let joined = thread
            .join()
            .map_err(|_| Error::Told("a thread has panicked".into()))?;
        world.forget(way, &name);
        match joined {
            (time, Ok(output)) if output.status.code().is_some_and(|code| code != 125) => times.push(time),
            (_, Ok(output)) => failed = Some(Error::ended("one of them failed", &output)),
            (_, Err(e)) => failed = Some(Error::system("start it")(e)),
        }
    }
    failed.map_or(Ok(times), Err)
}
