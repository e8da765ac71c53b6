//! What a cold start tells about its time. How long it takes is measured by `tests/bench/start`.

use brig_tests::{brig::Brig, machine::Need, tests};

tests! {
    Need::Kvm =>
        timing_tells_where_the_time_of_a_cold_start_went;
}

fn timing_tells_where_the_time_of_a_cold_start_went() {
    let brig = Brig::new();
    let output = brig.run(&["run", "--rm", "--timing", "busybox", "true"]);
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
    let mut last = 0.0;
    for stage in stages {
        let line = output.stderr.lines().find_map(|line| line.strip_prefix(stage));
        let at: f64 = line
            .and_then(|columns| columns.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {stage:?} in {output:?}"));
        assert!(at >= last, "{stage:?} comes too early in {output:?}");
        last = at;
    }
    brig.assert_nothing_left();
}
