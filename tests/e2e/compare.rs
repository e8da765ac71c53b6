//! `brig compare`: the same image behind both walls.

use std::fs;

use brig_tests::{
    brig::{Brig, finish},
    host::{self, KvmDevice},
    machine::{self, Need},
    tests,
};
use serde_json::Value;

tests! {
    Need::Containers => compare_measures_whatever_a_container_is_like;
    Need::KvmAndContainers => compare_measures_both_walls;
}

/// The rows of a section.
fn section<'r>(report: &'r Value, id: &'r str) -> impl Iterator<Item = &'r Value> {
    let sections = report["sections"].as_array().unwrap().iter();
    let sections = sections.filter(move |found| found["id"] == id);
    sections.flat_map(|found| found["rows"].as_array().unwrap())
}

/// The words for the rows of a section that have figures, or words, in all of `columns`.
fn rows(report: &Value, id: &str, columns: &[&str]) -> Vec<String> {
    let has = |row: &Value, column: &str| {
        let cell = &row["cells"][column];
        cell["median"].as_f64().is_some_and(|median| median >= 0.0) || cell["text"].is_string()
    };
    section(report, id)
        .filter(|row| columns.iter().all(|column| has(row, column)))
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect()
}

/// A row by the words for its section and itself.
fn row<'r>(report: &'r Value, of: &'r str, id: &str) -> &'r Value {
    section(report, of).find(|row| row["id"] == id).unwrap()
}

fn compare_measures_whatever_a_container_is_like() {
    let brig = Brig::empty();
    let page = brig.root().join("page.html");
    let words = ["compare", "--quick", "--json", "--html", page.to_str().unwrap()];
    let mut command = brig.command(&words);
    host::with_kvm_device(&mut command, KvmDevice::Missing);
    let output = finish(command.spawn().unwrap());
    assert_eq!(output.code, 0, "{output:?}");
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    for (section, some_of_its_rows) in [
        (
            "start",
            &["stage.process exec", "whole", "at_once", "not_unpacked"][..],
        ),
        ("memory", &["all", "back"]),
        ("latency", &["getppid", "fork_exec"]),
        ("cpu", &["cpu_integer"]),
        ("port", &["connect", "requests", "upload"]),
        ("disk", &["fsync"]),
        ("space", &["own"]),
        ("surface", &["calls"]),
    ] {
        let found = rows(&report, section, &["container"]);
        for row in some_of_its_rows {
            assert!(found.iter().any(|id| id == row), "{section}: {row} of {found:?}");
        }
    }
    // That there is no microVM is told, and nothing is in its place.
    let missing = report["missing"].to_string();
    assert!(missing.contains("/dev/kvm"), "{missing}");
    assert_eq!(rows(&report, "start", &["vm"]), [""; 0]);
    // First runs are in no median.
    let whole = row(&report, "start", "whole");
    assert_eq!(whole["cells"]["container"]["first"].as_array().unwrap().len(), 1);
    assert_eq!(whole["cells"]["container"]["runs"], 2);
    // The page needs nothing but itself.
    let page = fs::read_to_string(&page).unwrap();
    assert!(
        page.contains("<svg")
            && !page.contains("http:")
            && !page.contains("https:")
            && !page.contains("<script src")
    );
    // Nothing of it is left.
    assert_eq!(brig.ok(&["ps", "-aq"]), "");
    brig.assert_nothing_left();
}

fn compare_measures_both_walls() {
    let brig = Brig::new();
    let report = brig.ok(&["compare", "--quick", "--json", "--only", "port,surface,space"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    for (section, id) in [
        ("port", "round_trip"),
        ("space", "own"),
        ("surface", "calls"),
        ("surface", "kernel"),
    ] {
        let found = rows(&report, section, &["vm", "container"]);
        assert!(found.iter().any(|row| row == id), "{section}: {id} of {found:?}");
    }
    // What a wall leaves: the VMM's filter lets less through than a container's.
    let allowed = &row(&report, "surface", "allowed")["cells"];
    let of = |way: &str| allowed[way]["median"].as_f64().unwrap();
    assert!(
        of("vm") < of("container") && of("container") < of("process"),
        "{allowed}"
    );
    let notices = report["notices"].to_string();
    assert_eq!(
        notices.contains("no hardware virtualization"),
        machine::is_emulated(),
        "{notices}"
    );
    assert_eq!(brig.ok(&["ps", "-aq"]), "");
    brig.assert_nothing_left();
}
