//! The rows of the benchmarks' program: latencies, CPU and disk.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

use crate::{
    Error,
    report::{Better, Cell, Column, Row, Section},
    scratch::text,
    ways::Way,
    world::World,
};

/// The sections and the rows of each, by the program's names for them, with what a person reads.
const ROWS: [(&str, &[(&str, &str)]); 3] = [
    (
        "latency",
        &[
            ("getppid", "getppid"),
            ("open_close", "open + close"),
            ("page_fault", "page fault"),
            ("mmap_munmap", "mmap + munmap"),
            ("context_switch", "context switches"),
            ("wake_up", "wake-up, round trip"),
            ("fork_exec", "fork + exec"),
            ("pipe_latency", "pipe, a byte"),
            ("pipe_throughput", "pipe, throughput"),
            ("memory_copy", "memory, copied"),
            ("memory_read", "memory, read"),
        ],
    ),
    (
        "cpu",
        &[("cpu_integer", "integers"), ("cpu_float", "floating point")],
    ),
    (
        "disk",
        &[
            ("sequential_write", "sequential write"),
            ("sequential_read", "sequential read"),
            ("random_write", "4 KiB random writes"),
            ("random_read", "4 KiB random reads"),
            ("fsync", "write + fsync"),
            ("create", "create a file"),
            ("unlink", "unlink a file"),
        ],
    ),
];

/// A row as the program prints it.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    name: String,
    unit: &'static str,
    better: Better,
    cell: Measured,
}

/// What came of it.
#[derive(Debug, PartialEq)]
enum Measured {
    Figures {
        first: Vec<f64>,
        samples: Vec<f64>,
        notes: BTreeMap<String, Value>,
    },
    Failed(String),
}

/// Reads a line of the program's; `None` for one that is no row.
pub(super) fn parse(line: &str) -> Option<Line> {
    let mut value: Value = serde_json::from_str(line).ok()?;
    let row = value.as_object_mut()?;
    let mut take = |name: &str| row.remove(name);
    let name = take("name")?.as_str()?.to_owned();
    // A sandbox's program is not believed to have another unit than those.
    let unit = ["ns", "MiB/s", "1/s"]
        .into_iter()
        .find(|unit| take_is(&value, unit))?;
    let row = value.as_object_mut()?;
    let mut take = |name: &str| row.remove(name);
    take("unit");
    let better = match take("better")?.as_str()? {
        "higher" => Better::Higher,
        _ => Better::Lower,
    };
    let numbers = |value: Option<Value>| -> Vec<f64> {
        let values = value
            .and_then(|value| value.as_array().cloned())
            .unwrap_or_default();
        values.iter().filter_map(Value::as_f64).collect()
    };
    let cell = match take("error") {
        Some(error) => Measured::Failed(error.as_str().unwrap_or("it failed").to_owned()),
        None => Measured::Figures {
            first: numbers(take("warm_up")),
            samples: numbers(take("samples")),
            notes: row.clone().into_iter().collect(),
        },
    };
    Some(Line {
        name,
        unit,
        better,
        cell,
    })
}

fn take_is(value: &Value, unit: &str) -> bool {
    value["unit"].as_str() == Some(unit)
}

/// Enters a line into its row.
pub(super) fn enter(world: &World<'_>, rows: &mut [Row], column: Column, line: Line) {
    let Some(row) = rows.iter_mut().find(|row| row.id == line.name) else {
        return;
    };
    row.unit = line.unit;
    row.better = line.better;
    match line.cell {
        Measured::Figures {
            first,
            samples,
            notes,
        } => {
            let cell = row.cell(column);
            cell.first.extend(first);
            cell.samples.extend(samples);
            cell.notes.extend(notes);
        }
        Measured::Failed(reason) => world.miss(&format!("{}, {}: {reason}", row.title, column.title)),
    }
}

/// How the program says that it measures each of its rows.
pub(super) fn explanations(world: &World<'_>) -> Result<BTreeMap<String, String>, Error> {
    let listed = text(
        Command::new(world.bench_program()).arg("list"),
        "list the benchmarks",
    )?;
    let rows = listed
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(rows
        .filter_map(|row| Some((row["name"].as_str()?.to_owned(), row["how"].as_str()?.to_owned())))
        .collect())
}

pub(super) fn sections(world: &World<'_>) -> Vec<Section> {
    let wanted: Vec<_> = ROWS
        .iter()
        .filter(|(section, _)| world.options.wants(section))
        .collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let explanations = explanations(world).unwrap_or_else(|e| {
        world.miss(&e.line());
        BTreeMap::new()
    });
    let mut rows: Vec<Row> = wanted
        .iter()
        .flat_map(|(_, rows)| rows.iter())
        .map(|(name, title)| {
            Row::new(
                name,
                title,
                "ns",
                explanations.get(*name).map_or("", String::as_str),
            )
        })
        .collect();
    let names: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
    for round in 1..=world.options.rounds {
        for way in &world.ways {
            let column = way.column();
            world.tell(&format!(
                "benchmarks, {}: round {round} of {}",
                column.title, world.options.rounds
            ));
            match run(world, *way, &names) {
                Ok(lines) => lines
                    .into_iter()
                    .for_each(|line| enter(world, &mut rows, column, line)),
                Err(e) => world.miss(&format!("benchmarks, {}: {}", column.title, e.line())),
            }
        }
    }
    let columns: Vec<Column> = world.ways.iter().map(|way| way.column()).collect();
    wanted
        .into_iter()
        .map(|(id, names)| {
            let mut own = Vec::new();
            for (name, _) in *names {
                own.extend(rows.iter().find(|row| row.id == *name).cloned());
            }
            let (title, how) = heading(id);
            if *id == "cpu" {
                own = own
                    .into_iter()
                    .flat_map(|row| [against_process(&row), Some(row)])
                    .flatten()
                    .collect();
            }
            Section {
                id,
                title: title.into(),
                how: how.into(),
                columns: columns.clone(),
                rows: own,
            }
        })
        .collect()
}

fn heading(section: &str) -> (&'static str, &'static str) {
    match section {
        "latency" => (
            "In the sandbox: latencies",
            "The same static program in each way, the ways in turns. A sample is the mean of a batch that lasts a millisecond or more; \
             batches before, while caches fill, are no samples.",
        ),
        "cpu" => (
            "In the sandbox: CPU-bound work",
            "The same instructions in each way; in a guest they run on the processor, not in an emulation.",
        ),
        _ => (
            "In the sandbox: disk",
            "In the sandbox's writable layer, past the page cache where the file system can: a sparse ext4 file through virtio-blk in a \
             microVM, overlayfs in a container, the host's file system elsewhere. On a fast disk the host's page cache takes part.",
        ),
    }
}

/// How many times as long it takes as the plain process.
fn against_process(row: &Row) -> Option<Row> {
    let process = row.cells.get(Way::Process.column().id)?.summary()?.median;
    let mut ratio = Row::new(
        &format!("{}_ratio", row.id),
        &format!("{}, against the process", row.title),
        "×",
        &format!("{}; divided by the plain process's median", row.how),
    );
    for (column, cell) in &row.cells {
        let divided = |values: &[f64]| values.iter().map(|value| value / process).collect();
        ratio.cells.insert(
            column,
            Cell {
                first: divided(&cell.first),
                samples: divided(&cell.samples),
                ..Cell::default()
            },
        );
    }
    Some(ratio)
}

fn run(world: &World<'_>, way: Way, names: &[String]) -> Result<Vec<Line>, Error> {
    let mut words = world.options.bench_options();
    words.push("run".into());
    words.extend(names.iter().cloned());
    let (mut command, name) = world.command(way, &world.bench, &words, &[])?;
    let output = command.output().map_err(Error::system("start it"))?;
    world.forget(way, &name);
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Line> = text.lines().filter_map(parse).collect();
    // A row that failed has a line of its own, and a program that has printed nothing has not run.
    if lines.is_empty() {
        return Err(Error::ended("the program has measured nothing", &output));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_program_is_read() {
        let line = parse(
            r#"{"name":"fsync","unit":"ns","better":"lower","warm_up":[9],"samples":[1,2.5],"operations":4,"direct":true}"#,
        );
        let line = line.unwrap();
        assert_eq!(
            (line.name.as_str(), line.unit, line.better),
            ("fsync", "ns", Better::Lower)
        );
        let Measured::Figures {
            first,
            samples,
            notes,
        } = line.cell
        else {
            panic!("no figures");
        };
        assert_eq!((first, samples), (vec![9.0], vec![1.0, 2.5]));
        assert_eq!(notes["direct"], true);
    }

    #[test]
    fn a_row_that_failed_says_why_and_what_is_no_row_is_none() {
        let line = parse(r#"{"name":"fsync","unit":"ns","better":"lower","error":"no space"}"#).unwrap();
        assert_eq!(line.cell, Measured::Failed("no space".into()));
        for line in [
            "",
            "hello",
            "[1]",
            r#"{"name":"x","unit":"parsec","better":"lower"}"#,
            r#"{"unit":"ns"}"#,
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_ratio_is_that_of_the_plain_process() {
        let mut row = Row::new("cpu_integer", "integers", "ns", "");
        assert!(against_process(&row).is_none());
        row.cell(Way::Process.column()).samples = vec![2.0];
        row.cell(Way::Vm.column()).samples = vec![3.0, 5.0];
        let ratio = against_process(&row).unwrap();
        assert_eq!(ratio.cells["vm"].samples, [1.5, 2.5]);
        assert_eq!(ratio.cells["process"].samples, [1.0]);
    }
}
