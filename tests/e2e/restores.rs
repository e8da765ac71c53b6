//! Sandboxes that are copies of one saved guest: what each must have of its own, and that none is held up by another.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::SystemTime,
};

use brig_tests::{brig::Brig, machine::Need, tests};

tests! {
    Need::Kvm =>
        two_hundred_restores_share_no_random_number_and_know_the_time;
}

const RESTORES: usize = 200;

/// Starts that are made at once: as many as the machine has processors.
const AT_ONCE: usize = 2;

/// How often each is asked for the time.
const QUESTIONS: usize = 3;

/// The most that a clock may be wrong.
const CLOCK_NS: i128 = 10_000_000;

/// Members of the line that the image identity prints whose values must all differ. A TCP port is one of 28,232 and repeats
/// by chance.
const UNIQUE: [&str; 6] = ["random", "at_random", "stack", "uuid", "boot_id", "sequence"];

fn two_hundred_restores_share_no_random_number_and_know_the_time() {
    let brig = Brig::new();
    brig.load("identity");
    let seen: Mutex<HashMap<(String, String), usize>> = Mutex::default();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < RESTORES {
                    let line = ask(&brig);
                    let mut seen = seen.lock().unwrap();
                    for (name, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
                        *seen.entry((name.to_owned(), value.to_owned())).or_default() += 1;
                    }
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    for name in UNIQUE {
        let values: Vec<_> = seen.iter().filter(|((found, _), _)| found == name).collect();
        let twice: Vec<_> = values.iter().filter(|&&(_, &count)| count > 1).collect();
        assert!(twice.is_empty(), "{name} repeats: {twice:?}");
        assert_eq!(values.len(), RESTORES, "{name} was not printed by each");
    }
    brig.assert_nothing_left();
}

/// Runs one, checks its clock, and returns what it printed first.
fn ask(brig: &Brig) -> String {
    let mut child = brig
        .command(&["run", "--rm", "-i", "identity"])
        .stdin(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line
    };
    let first = line();
    for _ in 0..QUESTIONS {
        let before = now_ns();
        stdin.write_all(b"?").unwrap();
        let guest: i128 = line().trim().parse().unwrap();
        let after = now_ns();
        // It read its clock at some moment between the two.
        assert!(
            guest >= before - CLOCK_NS,
            "the clock is {} ns late",
            before - guest
        );
        assert!(
            guest <= after + CLOCK_NS,
            "the clock is {} ns early",
            guest - after
        );
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    first
}

fn now_ns() -> i128 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    now.as_nanos() as i128
}
