//! `brig run` in the foreground: streams, exit codes, and what the process finds around it.

use std::{
    io::{BufRead, BufReader},
    process::Child,
};

use brig_tests::{
    brig::{Brig, finish},
    machine::Need,
    suite::Isolation,
    tests,
};

tests! {
    Need::Nothing =>
        help_is_brigs_before_the_image;
    Need::Kvm =>
        streams_are_apart_and_the_exit_code_is_the_processs,
        standard_input_reaches_the_process_byte_for_byte,
        a_process_without_i_reads_an_empty_input,
        options_of_run_reach_the_process,
        an_entrypoint_replaces_the_images,
        a_missing_program_gives_127_and_one_that_cannot_run_126,
        an_interrupt_is_forwarded,
        a_signal_that_ends_the_process_gives_128_and_its_number;
}

pub(crate) fn streams_are_apart_and_the_exit_code_is_the_processs() {
    let brig = Brig::new();
    let output = brig.run(&[
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo to-out; echo to-err >&2; exit 42",
    ]);
    assert_eq!(output.stdout, "to-out\n");
    assert_eq!(output.stderr, "to-err\n");
    assert_eq!(output.code, 42);
    brig.assert_nothing_left();
}

pub(crate) fn standard_input_reaches_the_process_byte_for_byte() {
    let brig = Brig::new();
    let mut input = vec![0; 300_000];
    brig_welcome::pattern::fill(0, &mut input);
    let expected = brig_tests::archive::sha256(&input);
    let output = brig.run_with_input(&["run", "--rm", "-i", "busybox", "sha256sum"], input);
    assert_eq!(output.stdout, format!("{expected}  -\n"), "{}", output.stderr);
    assert_eq!(output.code, 0);
}

pub(crate) fn a_process_without_i_reads_an_empty_input() {
    let brig = Brig::new();
    let output = brig.run_with_input(&["run", "--rm", "busybox", "wc", "-c"], b"not for it".to_vec());
    assert_eq!(output.stdout.trim(), "0", "{}", output.stderr);
}

pub(crate) fn options_of_run_reach_the_process() {
    let brig = Brig::new();
    let script = "echo $A,$FROM_HOST; pwd; id -u; id -g; hostname; cat /etc/hostname; \
                  grep -c ship /etc/hosts; grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo";
    let mut command = brig.command(&[
        "run",
        "--rm",
        "-e",
        "A=1 2",
        "-e",
        "FROM_HOST",
        "-w",
        "/tmp/deeper",
        "-u",
        "www-data",
        "--hostname",
        "ship",
        "-m",
        "200m",
        "--cpus",
        "2",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let output = finish(command.env("FROM_HOST", "here").spawn().unwrap());
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(
        lines[..7],
        ["1 2,here", "/tmp/deeper", "33", "33", "ship", "ship", "1"],
        "{output:?}"
    );
    if Isolation::of_this_test() == Isolation::Container {
        // It sees this machine's.
        return;
    }
    let kib: u64 = lines[7].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((150 << 10..=200 << 10).contains(&kib), "{kib} KiB of 200 MiB");
    assert_eq!(lines[8], "2");
}

fn help_is_brigs_before_the_image() {
    let brig = Brig::empty();
    let help = brig.ok(&["run", "--help", "no-such-image"]);
    assert!(help.contains("Usage: brig run [OPTIONS] IMAGE"), "{help}");
    let message = brig.fails(125, &["run", "no-such-image", "--help"]);
    assert!(message.contains("no-such-image"), "{message}");
}

pub(crate) fn an_entrypoint_replaces_the_images() {
    let brig = Brig::new();
    // What follows the image is the program's, also when brig has an option of that name.
    let output = brig.run(&[
        "run",
        "--rm",
        "--entrypoint",
        "echo",
        "busybox",
        "--rm",
        "--name",
        "-d",
    ]);
    assert_eq!(
        (output.stdout.as_str(), output.code),
        ("--rm --name -d\n", 0),
        "{}",
        output.stderr
    );
}

pub(crate) fn a_missing_program_gives_127_and_one_that_cannot_run_126() {
    let brig = Brig::new();
    let message = brig.fails(127, &["run", "--rm", "busybox", "no-such-program"]);
    assert!(message.contains("no-such-program"), "{message}");
    let message = brig.fails(126, &["run", "--rm", "busybox", "/etc/passwd"]);
    assert!(message.contains("/etc/passwd"), "{message}");
    brig.assert_nothing_left();
}

pub(crate) fn an_interrupt_is_forwarded() {
    let brig = Brig::new();
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 1; done";
    let mut child = brig
        .command(&["run", "--rm", "busybox", "sh", "-c", script])
        .spawn()
        .unwrap();
    wait_for_line(&mut child, "ready");
    signal(&child, libc::SIGINT);
    assert_eq!(finish(child).code, 7);
    brig.assert_nothing_left();
}

pub(crate) fn a_signal_that_ends_the_process_gives_128_and_its_number() {
    let brig = Brig::new();
    // PID 1 of a namespace cannot be killed from inside of it, so another command kills it.
    let mut child = brig
        .command(&[
            "run",
            "--name",
            "victim",
            "busybox",
            "sh",
            "-c",
            "echo ready; while :; do sleep 1; done",
        ])
        .spawn()
        .unwrap();
    wait_for_line(&mut child, "ready");
    brig.ok(&["kill", "victim"]);
    assert_eq!(finish(child).code, 137);
    let line = brig.ps_line("victim").unwrap();
    assert!(line.contains("Exited (137)"), "{line}");
    brig.ok(&["rm", "victim"]);
    brig.assert_nothing_left();
}

/// Reads a child's standard output until a line is `text`.
fn wait_for_line(child: &mut Child, text: &str) {
    let stdout = child.stdout.take().expect("standard output is a pipe");
    let found = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .any(|line| line == text);
    assert!(found, "{text:?} did not come");
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory of ours. The child is not yet waited for, so the pid is
    // still its own.
    let result = unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    assert_eq!(result, 0);
}
