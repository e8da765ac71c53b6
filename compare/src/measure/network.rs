//! A published port, as a client on the host sees it.

use std::process::Command;

use serde_json::Value;

use super::micro::{enter, explanations, parse};
use crate::{
    Error,
    report::{Row, Section},
    scratch::ok,
    ways::Way,
    world::{Running, World},
};

/// The program's names of its rows, and what a person reads.
const ROWS: [(&str, &str); 5] = [
    ("connect", "connect until first byte"),
    ("round_trip", "round trip"),
    ("requests", "requests, 8 connections"),
    ("upload", "into the sandbox"),
    ("download", "out of the sandbox"),
];

pub(super) fn section(world: &World<'_>) -> Section {
    let explanations = explanations(world).unwrap_or_default();
    let mut rows: Vec<Row> = ROWS
        .iter()
        .map(|(name, title)| {
            Row::new(
                name,
                title,
                "ns",
                explanations.get(*name).map_or("", String::as_str),
            )
        })
        .collect();
    // Others have no way to publish a port but what a network of their own would be.
    let ways: Vec<Way> = world
        .ways
        .iter()
        .copied()
        .filter(|way| way.runtime().is_none())
        .collect();
    for way in &ways {
        let column = way.column();
        world.tell(&format!("published port, {}", column.title));
        match measure(world, *way) {
            Ok(text) => text
                .lines()
                .filter_map(parse)
                .for_each(|line| enter(world, &mut rows, column, line)),
            Err(e) => world.miss(&format!("published port, {}: {}", column.title, e.line())),
        }
    }
    Section {
        id: "port",
        title: "A published port".into(),
        how: "A client on the host and a server in the sandbox, over TCP on 127.0.0.1; the plain process is reached without anything in \
              between. crun and runc publish no ports themselves."
            .into(),
        columns: ways.iter().map(|way| way.column()).collect(),
        rows,
    }
}

fn measure(world: &World<'_>, way: Way) -> Result<String, Error> {
    let (words, more): (&[&str], &[&str]) = if way.is_brig() {
        (&["server"], &["-p", "127.0.0.1:0:7000"])
    } else {
        (&["--port", "0", "server"], &[])
    };
    let running = world.start(way, words, more)?;
    let measured = address(world, way, &running).and_then(|address| {
        let mut client = Command::new(world.bench_program());
        client
            .args(world.options.bench_options())
            .args(["client", &address]);
        ok(&mut client, "measure the port")
    });
    world.stop(running);
    Ok(String::from_utf8_lossy(&measured?.stdout).into_owned())
}

fn address(world: &World<'_>, way: Way, running: &Running) -> Result<String, Error> {
    if way.is_brig() {
        return world.port(&running.name, "7000/tcp");
    }
    let event: Value = serde_json::from_str(&running.first).map_err(|e| Error::Told(e.to_string()))?;
    Ok(format!("127.0.0.1:{}", event["port"]))
}
