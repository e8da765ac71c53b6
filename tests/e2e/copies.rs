//! Copies of running sandboxes: what each has of its own, and what is left when some cannot be made.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    archive::Image,
    brig::{Brig, finish},
    host, http,
    machine::{self, Need},
    tests,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::NamedTempFile;

tests! {
    Need::Kvm =>
        a_copy_has_a_machine_id_of_its_own_and_the_clock_of_its_save,
        an_image_without_a_machine_id_gets_none,
        a_fork_starts_as_many_copies_as_asked_for,
        a_fork_that_is_interrupted_leaves_no_copy_half_way;
    Need::KvmAndRoot =>
        copies_that_do_not_fit_leave_nothing,
        a_start_from_a_snapshot_that_does_not_fit_leaves_nothing;
}

/// The machine id of the image `fixed`.
const OF_IMAGE: &str = "0123456789abcdef0123456789abcdef";

fn a_copy_has_a_machine_id_of_its_own_and_the_clock_of_its_save() {
    let brig = Brig::new();
    let image = Image::of_busybox("fixed", json!({ "Cmd": ["sh"] }));
    let image = image.with_file("etc/machine-id", 0o444, format!("{OF_IMAGE}\n").as_bytes());
    let archive = NamedTempFile::new().unwrap();
    fs::write(archive.path(), image.to_oci()).unwrap();
    brig.ok(&["load", "-i", archive.path().to_str().unwrap()]);

    let mut seen = BTreeSet::from([OF_IMAGE.to_owned()]);
    let mut see = |text: &str| {
        let id = text.trim_end();
        assert!(
            id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{text}"
        );
        assert!(seen.insert(id.to_owned()), "{id} repeats");
    };
    let cat = ["fixed", "cat", "/etc/machine-id"];
    for _ in 0..2 {
        see(&brig.ok(&[&["run", "--rm"], &cat[..]].concat()));
    }
    // One that is started again keeps its own.
    let first = brig.ok(&[&["run", "--name", "kept"], &cat[..]].concat());
    see(&first);
    assert_eq!(brig.ok(&["start", "-a", "kept"]), first);
    brig.ok(&["rm", "kept"]);
    // A copy of a running one has another, and keeps that.
    let server = [
        "--name", "server", "fixed", "httpd", "-f", "-p", "80", "-h", "/etc",
    ];
    brig.ok(&[&["run", "-d", "-p", "127.0.0.1:0:80"], &server[..]].concat());
    let ask = |name: &str| served(brig.port(name, "80/tcp"));
    see(&ask("server"));
    let uptime = |name: &str| {
        let text = brig.ok(&["exec", name, "cat", "/proc/uptime"]);
        Duration::from_secs_f64(text.split_whitespace().next().unwrap().parse().unwrap())
    };
    let (asked, saved_at) = (Instant::now(), uptime("server"));
    brig.ok(&["snapshot", "create", "server", "now"]);
    let saved = Instant::now();
    // Long against the hundredths of a second in which the guest tells it.
    thread::sleep(Duration::from_secs(2));
    let stood = saved.elapsed();
    for name in ["one", "other"] {
        let copy = [
            "run",
            "-d",
            "-p",
            "127.0.0.1:0:80",
            "--name",
            name,
            "--snapshot",
            "now",
        ];
        brig.ok(&copy);
        let id = ask(name);
        see(&id);
        // Its monotonic clock stood still meanwhile: no timer of a program has run out before its time.
        let (uptime, passed) = (uptime(name), asked.elapsed());
        assert!(
            uptime + stood <= saved_at + passed + Duration::from_millis(20),
            "{saved_at:?} to {uptime:?} in {passed:?}, {stood:?} of them saved"
        );
        brig.ok(&["kill", name]);
        brig.ok(&["wait", name]);
        brig.ok(&["start", name]);
        assert_eq!(ask(name), id);
    }
    brig.ok(&["rm", "-f", "server", "one", "other"]);
    brig.ok(&["snapshot", "rm", "now"]);
    brig.assert_nothing_left();
}

/// How long the server may take until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(120);

/// What the server says its machine id is, once it listens.
fn served(address: SocketAddr) -> String {
    let deadline = Instant::now() + LISTEN_LIMIT;
    loop {
        match http::get(address, "/machine-id") {
            Ok(answer) if answer.status == 200 => return answer.text(),
            other => assert!(Instant::now() < deadline, "{address} says {other:?}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn an_image_without_a_machine_id_gets_none() {
    let brig = Brig::new();
    let script = "test -e /etc/machine-id || echo none";
    assert_eq!(brig.ok(&["run", "--rm", "busybox", "sh", "-c", script]), "none\n");
    // One that the sandbox made itself stays.
    let script = "test -e /etc/machine-id || echo its own >/etc/machine-id; cat /etc/machine-id";
    let run = ["run", "--name", "own", "busybox", "sh", "-c", script];
    assert_eq!(brig.ok(&run), "its own\n");
    assert_eq!(brig.ok(&["start", "-a", "own"]), "its own\n");
    brig.ok(&["rm", "own"]);
    brig.assert_nothing_left();
}

/// A sandbox that does nothing.
fn idle(brig: &Brig) {
    brig.ok(&["run", "-d", "--name", "idle", "busybox", "sleep", "100000"]);
}

/// The ids of all sandboxes but one named `idle`, which run or do not.
fn others(brig: &Brig, which: &[&str]) -> BTreeSet<String> {
    let all = brig.ok(&[&["ps", "-q", "--no-trunc"], which].concat());
    let idle = brig.inspect("idle", "/Id");
    all.lines()
        .filter(|id| *id != idle.as_str().unwrap())
        .map(Into::into)
        .collect()
}

/// Copies that a fork makes here: more than come up at a time.
const COPIES: usize = 6;

fn a_fork_starts_as_many_copies_as_asked_for() {
    let brig = Brig::new();
    idle(&brig);
    let printed = brig.ok(&["fork", "idle", "-n", &COPIES.to_string()]);
    let printed: BTreeSet<_> = printed.lines().map(String::from).collect();
    assert_eq!(printed.len(), COPIES);
    assert_eq!(others(&brig, &[]), printed);
    assert_eq!(brig.ok(&["snapshot", "ls", "-q"]), "");
    let ids: Vec<_> = printed.iter().map(String::as_str).collect();
    brig.ok(&[&["rm", "-f", "idle"], &ids[..]].concat());
    brig.assert_nothing_left();
}

fn a_fork_that_is_interrupted_leaves_no_copy_half_way() {
    let brig = Brig::new();
    idle(&brig);
    let mut child = brig
        .command(&["fork", "idle", "-n", "100"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut printed = String::new();
    stdout.read_line(&mut printed).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    stdout.read_to_string(&mut printed).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let printed: BTreeSet<_> = printed.lines().map(String::from).collect();
    assert!(!printed.is_empty() && printed.len() < 100, "{}", printed.len());
    assert_eq!(others(&brig, &["-a"]), printed);
    assert_eq!(brig.ok(&["snapshot", "ls", "-q"]), "");
    let ids: Vec<_> = printed.iter().map(String::as_str).collect();
    brig.ok(&[&["rm", "-f", "idle"], &ids[..]].concat());
    brig.assert_nothing_left();
}

/// A sandbox with four megabytes on its disk, and more copies of it than there is room for. What it prints first is how many
/// said that they run, then how many do, and then the exit code of the fork.
const FORK: &str = r#"
"$0" run -d --name large busybox sh -c 'dd if=/dev/zero of=/file bs=1M count=4 && sync && echo ready; exec sleep 100000' >/dev/null &&
until "$0" logs large | grep -q ready; do :; done
"$0" fork large -n 50 >"$BRIG_ROOT/ids"
code=$?
wc -l <"$BRIG_ROOT/ids"
"$0" ps -aq | wc -l
echo $code
"$0" rm -f $("$0" ps -aq) >/dev/null
ls "$BRIG_ROOT/sandboxes"
"#;

fn copies_that_do_not_fit_leave_nothing() {
    let brig = Brig::new();
    let output = with_little_space(&brig, FORK, 24);
    let mut lines = output.stdout.lines();
    let mut number = || lines.next().unwrap().trim().parse::<usize>().unwrap();
    let (printed, there, code) = (number(), number(), number());
    assert!(printed < 50, "{output:?}");
    // The one that was copied is there, too.
    assert_eq!((there, code), (printed + 1, 1), "{output:?}");
    assert!(
        output
            .stderr
            .contains(&format!("{printed} of 50 copies run, no more are started: "))
            && output.stderr.contains("No space left"),
        "{output:?}"
    );
    assert_eq!(lines.next(), None, "{output:?}");
    brig.assert_nothing_left();
}

/// The same with a start from a snapshot whose disk is larger than the space.
const RUN: &str = r#"
"$0" run --rm --snapshot large
echo $?
ls "$BRIG_ROOT/sandboxes"
"#;

fn a_start_from_a_snapshot_that_does_not_fit_leaves_nothing() {
    let brig = Brig::new();
    let script = "dd if=/dev/zero of=/file bs=1M count=4 && sync && echo ready; exec sleep 100000";
    brig.ok(&["run", "-d", "--name", "large", "busybox", "sh", "-c", script]);
    brig.wait_for_log("large", "ready");
    brig.ok(&["snapshot", "create", "large", "large"]);
    let output = with_little_space(&brig, RUN, 2);
    assert_eq!(output.stdout, "125\n", "{output:?}");
    assert!(
        output.stderr.contains("No space left") && output.stderr.lines().count() == 1,
        "{output:?}"
    );
    brig.ok(&["rm", "-f", "large"]);
    brig.ok(&["snapshot", "rm", "large"]);
    brig.assert_nothing_left();
}

/// Runs a script in which sandboxes have `mebibytes` for their files.
fn with_little_space(brig: &Brig, script: &str, mebibytes: u32) -> brig_tests::brig::Output {
    let sandboxes = brig.root().join("sandboxes");
    fs::create_dir_all(&sandboxes).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(machine::brig())
        .env("BRIG_ROOT", brig.root())
        .env("BRIG_RUNTIME", brig.runtime())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    host::with_little_space(&mut command, &sandboxes, mebibytes);
    finish(command.spawn().unwrap())
}
