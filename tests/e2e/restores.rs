//! Sandboxes that are copies of one saved guest: what each must have of its own, and that none is held up by another.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use brig_tests::{
    brig::{Brig, finish},
    http, leftovers,
    machine::{self, Need},
    tests,
};

tests! {
    Need::Kvm =>
        restores_of_one_saved_guest_share_no_random_number_and_know_the_time,
        busy_copies_of_one_saved_guest_go_on_where_it_was,
        hundreds_start_at_once_from_one_saved_guest;
}

/// How often a template is restored; `$BRIG_TEST_RESTORES` when that is set.
fn restores() -> usize {
    wanted("BRIG_TEST_RESTORES").unwrap_or(if machine::is_rig() { 40 } else { 200 })
}

/// A count that a variable of the environment asks for: docs/rig.md.
fn wanted(variable: &str) -> Option<usize> {
    let count = env::var(variable).ok()?;
    Some(
        count
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={count} is no number")),
    )
}

/// Starts that are made at once: as many as the machine has processors.
const AT_ONCE: usize = 2;

/// How often each is asked for the time.
const QUESTIONS: usize = 3;

/// The most nanoseconds that a clock may be wrong. In the rig 20 ms have been seen where the machine under it had six times the work
/// that it has processors for: docs/rig.md.
fn clock_ns() -> i128 {
    if machine::is_rig() { 50_000_000 } else { 10_000_000 }
}

/// Members of the line that the image identity prints whose values must all differ. A TCP port is one of 28,232 and repeats
/// by chance.
const UNIQUE: [&str; 6] = ["random", "at_random", "stack", "uuid", "boot_id", "sequence"];

fn restores_of_one_saved_guest_share_no_random_number_and_know_the_time() {
    let brig = Brig::new();
    brig.load("identity");
    let seen: Mutex<HashMap<(String, String), usize>> = Mutex::default();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < restores() {
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
        assert_eq!(values.len(), restores(), "{name} was not printed by each");
    }
    brig.assert_nothing_left();
}

/// Runs one, checks its clock, and returns what it printed first.
fn ask(brig: &Brig) -> String {
    let mut child = brig
        .command(&["run", "--rm", "-i", "identity"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
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
            guest >= before - clock_ns(),
            "the clock is {} ns late",
            before - guest
        );
        assert!(
            guest <= after + clock_ns(),
            "the clock is {} ns early",
            guest - after
        );
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    first
}

/// Starts at once; `$BRIG_TEST_AT_ONCE` when that is set. With a process of three megabytes each for the command, the rig's usual
/// memory holds fewer.
fn crowd() -> usize {
    wanted("BRIG_TEST_AT_ONCE").unwrap_or(if machine::is_rig() { 16 } else { 200 })
}

fn hundreds_start_at_once_from_one_saved_guest() {
    let brig = Brig::new();
    let running: Vec<_> = (0..crowd())
        .map(|number| {
            let script = format!("exit {}", number % 100);
            let words = ["run", "--rm", "busybox", "sh", "-c", &script];
            (number, brig.command(&words).spawn().unwrap())
        })
        .collect();
    for (number, child) in running {
        let output = finish(child);
        assert_eq!(
            (output.code, output.stderr.as_str()),
            (number as i32 % 100, ""),
            "{output:?}"
        );
    }
    assert_eq!(brig.ok(&["template", "ls", "-q"]).lines().count(), 1);
    brig.assert_nothing_left();
}

/// Writes to the disk without end, counts how often, and serves the count.
const BUSY: &str = "
mkdir /www; cd /www
dd if=/dev/zero of=large bs=1M count=4 2>/dev/null
echo 0 >count
while :; do
	dd if=/dev/zero of=/blob bs=64k count=4 conv=fsync 2>/dev/null
	read n <count; echo $((n + 1)) >next; mv next count; sync
done &
exec httpd -f -p 80 -h /www
";

/// Bytes of the file `large`.
const LARGE: u64 = 4 << 20;

/// How often the busy sandbox is copied; `$BRIG_TEST_COPIES` when that is set.
const COPIES: usize = 12;

fn busy_copies_of_one_saved_guest_go_on_where_it_was() {
    let copies = wanted("BRIG_TEST_COPIES").unwrap_or(COPIES);
    let brig = Brig::new();
    let port = ["-p", "127.0.0.1:0:80"];
    let busy = [
        &["run", "-d", "--name", "busy", "--cpus", "2"],
        &port[..],
        &["busybox", "sh", "-c", BUSY],
    ];
    brig.ok(&busy.concat());
    let original = brig.port("busy", "80/tcp");
    let id = brig.inspect("busy", "/Id");
    let original = (original, id.as_str().unwrap());
    let mut count = wait_for_count(&brig, original, 1);
    // A stream that is open while the guest is saved: it stays the original's, and is reset in the copies.
    let mut open = http::connect(original.0).unwrap();
    http::ask(&mut open, "/large").unwrap();
    for _ in 0..copies {
        brig.ok(&["snapshot", "create", "busy", "now"]);
        let copy = brig.ok(&[&["run", "-d", "--snapshot", "now"], &port[..]].concat());
        let copy = copy.trim();
        let address = (brig.port(copy, "80/tcp"), copy);
        let begin = wait_for_count(&brig, address, count);
        wait_for_count(&brig, address, begin + 1);
        brig.ok(&["kill", copy]);
        brig.ok(&["wait", copy]);
        assert_consistent(&brig.root().join("sandboxes").join(copy).join("disk.ext4"));
        brig.ok(&["rm", copy]);
        brig.ok(&["snapshot", "rm", "now"]);
        count = wait_for_count(&brig, original, count);
    }
    assert_eq!(http::hash_answer(&mut open).unwrap().0, LARGE);
    wait_for_count(&brig, original, count + 1);
    brig.ok(&["rm", "-f", "busy"]);
    brig.assert_nothing_left();
}

/// Waits until the web server of a sandbox says at least `least`.
fn wait_for_count(brig: &Brig, (address, id): (SocketAddr, &str), least: u64) -> u64 {
    let begin = Instant::now();
    loop {
        let answer = http::get(address, "/count");
        let count = answer
            .as_ref()
            .ok()
            .and_then(|answer| answer.text().trim().parse().ok());
        match count {
            Some(count) if count >= least => return count,
            _ => assert!(
                begin.elapsed() < count_limit(),
                "{id} at {address} says {answer:?} after {:?}, not {least}\n{}",
                begin.elapsed(),
                leftovers::describe(brig, id)
            ),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A guest that does nothing more for so long hangs. Each count takes two programs, and an interpreted guest of two processors
/// may get half of one.
fn count_limit() -> Duration {
    Duration::from_secs(if machine::is_rig() { 120 } else { 600 })
}

/// Whether e2fsck(8) finds nothing to mend on a disk whose guest has shut down.
fn assert_consistent(disk: &Path) {
    let output = Command::new("e2fsck")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-f", "-n"])
        .arg(disk)
        .output()
        .expect("e2fsck of e2fsprogs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn now_ns() -> i128 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    now.as_nanos() as i128
}
