//! What a start tells about its time. How long it takes is measured by `tests/bench/start.rs`.

use brig_tests::{brig::Brig, machine::Need, tests};

tests! {
    Need::Kvm =>
        timing_tells_where_the_time_of_a_cold_start_went,
        timing_tells_a_restore_from_a_cold_start_and_what_it_cost;
}

fn timing_tells_where_the_time_of_a_cold_start_went() {
    let brig = Brig::new();
    let output = brig.run(&["run", "--rm", "--timing", "--no-template", "busybox", "true"]);
    assert_eq!(output.code, 0, "{output:?}");
    let stages = [
        "VMM start",
        "kernel entry",
        "init",
        "agent ready",
        "process exec",
        "exit",
        "cleaned up",
    ];
    assert_in_order(&output.stderr, &stages);
    assert!(
        output.stderr.lines().any(|line| line == "cold boot"),
        "{output:?}"
    );
    brig.assert_nothing_left();
}

fn timing_tells_a_restore_from_a_cold_start_and_what_it_cost() {
    let brig = Brig::new();
    let output = brig.run(&["run", "--rm", "--timing=full", "busybox", "true"]);
    assert_eq!(output.code, 0, "{output:?}");
    let stages = [
        "VMM start",
        "guest resumed",
        "agent ready",
        "process exec",
        "exit",
        "cleaned up",
    ];
    assert_in_order(&output.stderr, &stages);
    let says = |line: &str| output.stderr.lines().any(|said| said == line);
    assert!(says("restored from a template"), "{output:?}");
    // The second table: what had been counted grows from stage to stage.
    let costs = output
        .stderr
        .lines()
        .skip_while(|line| !line.starts_with("UNTIL"))
        .skip(1);
    let exits: Vec<u64> = costs
        .take(3)
        .map(|line| {
            let name = ["agent ready", "process exec", "exit"]
                .into_iter()
                .find_map(|stage| line.strip_prefix(stage));
            let columns = name.unwrap_or_else(|| panic!("{line:?} in {output:?}"));
            columns.split_whitespace().next().unwrap().parse().unwrap()
        })
        .collect();
    assert_eq!(exits.len(), 3, "{output:?}");
    assert!(exits.is_sorted() && exits[2] > 0, "{output:?}");
    assert_host_counted(&output.stderr);
    brig.assert_nothing_left();
}

/// The third table: system calls and page faults of all processes, which grow; or one line that says why there is none.
fn assert_host_counted(text: &str) {
    let table = text
        .lines()
        .skip_while(|line| !line.contains("HOST SYSTEM CALLS"));
    let rows: Vec<Vec<u64>> = table
        .skip(1)
        .take(2)
        .map(|line| {
            let columns = ["process exec", "cleaned up"]
                .into_iter()
                .find_map(|stage| line.strip_prefix(stage))
                .unwrap_or_else(|| panic!("{line:?} in {text}"));
            columns.split_whitespace().map(|n| n.parse().unwrap()).collect()
        })
        .collect();
    if rows.is_empty() {
        assert!(text.contains("of the host: not counted: no "), "{text}");
        return;
    }
    // Three programs are executed, so there are hundreds of either.
    assert!(
        rows.len() == 2 && rows[0].iter().all(|&count| count > 100),
        "{text}"
    );
    assert!(
        rows[0].iter().zip(&rows[1]).all(|(exec, end)| exec < end),
        "{text}"
    );
}

/// The stages stand in the first table of `--timing`, at times that do not go back.
fn assert_in_order(text: &str, stages: &[&str]) {
    let mut last = 0.0;
    for stage in stages {
        let line = text.lines().find_map(|line| line.strip_prefix(stage));
        let at: f64 = line
            .and_then(|columns| columns.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {stage:?} in {text}"));
        assert!(at >= last, "{stage:?} comes too early in {text}");
        last = at;
    }
}
