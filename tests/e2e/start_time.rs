//! How long a cold start takes.

use std::time::{Duration, Instant};

use brig_tests::{
    brig::Brig,
    machine::{self, Need},
    tests,
};

tests! {
    Need::KvmAlone =>
        a_cold_run_of_a_trivial_command_is_quick;
}

fn a_cold_run_of_a_trivial_command_is_quick() {
    let brig = Brig::new();
    let limit = Duration::from_millis(if machine::is_rig() { 2_500 } else { 12_000 });
    // The best of three: other programs of the host only make it longer.
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let begin = Instant::now();
        let output = brig.run(&["run", "--rm", "--timing", "busybox", "true"]);
        let took = begin.elapsed();
        assert_eq!(output.code, 0, "{output:?}");
        println!("cold run of a trivial command: {took:.2?}\n{}", output.stderr);
        for stage in [
            "VMM start",
            "kernel entry",
            "init",
            "agent ready",
            "process exec",
            "exit",
            "cleaned up",
        ] {
            assert!(output.stderr.contains(stage), "no {stage:?} in {output:?}");
        }
        best = best.min(took);
    }
    assert!(best <= limit, "{best:?} is over {limit:?}");
    brig.assert_nothing_left();
}
