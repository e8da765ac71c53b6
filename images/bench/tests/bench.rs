//! The program as it is used: as a process of its own.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

fn bench(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brig-bench"));
    command.args(words).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    bench(words).output().unwrap()
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Starts it and returns it with the lines that it is going to print.
fn start(words: &[&str]) -> (Child, impl Iterator<Item = Value> + use<>) {
    let mut child = bench(words).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (
        child,
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()),
    )
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: kill takes two numbers; the child has not been waited for, so the pid is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

fn assert_row(line: &Value) {
    let numbers = |name: &str| {
        let values = line[name]
            .as_array()
            .unwrap_or_else(|| panic!("no {name} in {line}"));
        assert!(!values.is_empty(), "{line}");
        assert!(values.iter().all(|value| value.as_f64().unwrap() > 0.0), "{line}");
        values.len()
    };
    numbers("warm_up");
    assert!(numbers("samples") <= 5, "{line}");
    assert!(line["operations"].as_u64().unwrap() > 0, "{line}");
}

#[test]
fn all_rows_of_a_run_come_in_the_order_of_the_list() {
    let scratch = tempfile::tempdir().unwrap();
    let output = run(&[
        "--seconds",
        "0.02",
        "--samples",
        "5",
        "--size",
        "2",
        "--directory",
        scratch.path().to_str().unwrap(),
        "run",
    ]);
    assert!(output.status.success(), "{output:?}");
    let rows = lines(&output.stdout);
    rows.iter().for_each(assert_row);
    let listed = lines(&run(&["list"]).stdout);
    let names = |lines: &[Value]| lines.iter().map(|line| line["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&rows), names(&listed)[..rows.len()]);
    assert!(rows.len() > 15);
    assert!(
        listed
            .iter()
            .all(|line| !line["how"].as_str().unwrap().is_empty())
    );
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_server_serves_a_client_until_it_is_told_to_end() {
    let (mut server, mut events) = start(&["--port", "0", "server"]);
    let listening = events.next().unwrap();
    assert_eq!(listening["event"], "listening");
    let address = format!("127.0.0.1:{}", listening["port"]);
    let output = run(&["--seconds", "0.02", "--samples", "5", "client", &address]);
    assert!(output.status.success(), "{output:?}");
    let rows = lines(&output.stdout);
    rows.iter().for_each(assert_row);
    assert_eq!(rows.len(), 5);
    signal(&server, libc::SIGTERM);
    assert!(server.wait().unwrap().success());
}

#[test]
fn memory_is_given_back_on_a_signal() {
    let (mut child, mut events) = start(&["--seconds", "3600", "hold", "8"]);
    assert_eq!(
        events.next().unwrap(),
        serde_json::json!({"event": "taken", "mib": 8})
    );
    let resident = |child: &Child| {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", child.id())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let held = resident(&child);
    assert!(held >= 8 << 20, "{held}");
    signal(&child, libc::SIGUSR1);
    assert_eq!(events.next().unwrap()["event"], "given back");
    assert!(resident(&child) <= held - (8 << 20));
    signal(&child, libc::SIGTERM);
    assert!(child.wait().unwrap().success());
}

#[test]
fn memory_is_given_back_when_the_time_is_over() {
    let (mut child, events) = start(&["--seconds", "0", "hold", "1"]);
    let events: Vec<_> = events.take(2).map(|event| event["event"].clone()).collect();
    assert_eq!(events, ["taken", "given back"]);
    signal(&child, libc::SIGINT);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_row_that_fails_does_not_keep_others_from_being_measured() {
    let output = run(&[
        "--directory",
        "/nowhere",
        "--seconds",
        "0",
        "run",
        "fsync",
        "getppid",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let rows = lines(&output.stdout);
    assert!(
        rows[0]["error"].as_str().unwrap().contains("/nowhere"),
        "{rows:?}"
    );
    assert_row(&rows[1]);
}

#[test]
fn wrong_words_are_one_line_and_code_2() {
    let output = run(&["run", "nothing"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "bench: unknown row \"nothing\"; see bench help\n"
    );
}
