//! `brig logs`.

use std::fmt::Write;

use brig_tests::{
    brig::{Brig, finish},
    machine::Need,
    tests,
};

tests! {
    Need::Kvm =>
        logs_keep_streams_order_and_time,
        following_ends_with_the_sandbox,
        a_lot_of_output_is_logged_whole;
}

pub(crate) fn logs_keep_streams_order_and_time() {
    let brig = Brig::new();
    let script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done; printf 'no newline'";
    brig.ok(&["run", "-d", "--name", "talker", "busybox", "sh", "-c", script]);
    brig.ok(&["wait", "talker"]);
    let all = brig.run(&["logs", "talker"]);
    assert_eq!(all.stdout, "out 1\nout 2\nout 3\nout 4\nout 5\nno newline");
    assert_eq!(all.stderr, "err 1\nerr 2\nerr 3\nerr 4\nerr 5\n");

    let tail = brig.run(&["logs", "--tail", "1", "talker"]);
    assert_eq!(
        tail.stdout.lines().count() + tail.stderr.lines().count(),
        1,
        "{tail:?}"
    );
    let tail = brig.run(&["logs", "--tail", "0", "talker"]);
    assert_eq!((tail.stdout.as_str(), tail.stderr.as_str()), ("", ""));

    let stamped = brig.run(&["logs", "--timestamps", "talker"]);
    for line in stamped.stdout.lines().chain(stamped.stderr.lines()) {
        let (time, _) = line.split_once(' ').unwrap();
        // RFC 3339 with nanoseconds, in UTC: 2026-11-21T11:00:20.123456789Z
        assert_eq!((time.len(), &time[10..11], &time[29..]), (30, "T", "Z"), "{line}");
    }
    brig.ok(&["rm", "talker"]);
    assert!(brig.fails(1, &["logs", "talker"]).contains("talker"));
}

pub(crate) fn following_ends_with_the_sandbox() {
    let brig = Brig::new();
    let script = "trap 'echo last; exit' TERM; echo first; while :; do sleep 1; done";
    brig.ok(&["run", "-d", "--name", "story", "busybox", "sh", "-c", script]);
    let follower = brig.command(&["logs", "-f", "story"]).spawn().unwrap();
    brig.wait_for_log("story", "first");
    brig.ok(&["stop", "-t", "120", "story"]);
    let followed = finish(follower);
    assert_eq!((followed.stdout.as_str(), followed.code), ("first\nlast\n", 0));
}

pub(crate) fn a_lot_of_output_is_logged_whole() {
    let brig = Brig::new();
    let output = brig.run(&["run", "--name", "long", "busybox", "seq", "60000"]);
    let mut expected = String::new();
    for number in 1..=60_000 {
        writeln!(expected, "{number}").unwrap();
    }
    assert!(
        output.stdout == expected,
        "the foreground lost something: {} bytes",
        output.stdout.len()
    );
    assert!(brig.ok(&["logs", "long"]) == expected, "the log lost something");
}
