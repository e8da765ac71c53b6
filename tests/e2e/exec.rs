//! `brig exec`: further processes in a sandbox that runs.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    archive::Image,
    brig::{Brig, finish},
    http,
    leftovers::{self, processes_of_sandbox},
    machine::{Need, is_rig},
    smaps, tests,
};
use sha2::{Digest, Sha256};

tests! {
    Need::Kvm =>
        a_command_in_a_running_sandbox_finds_what_its_first_process_finds,
        many_commands_leave_nothing_behind,
        a_lot_goes_through_exec_and_logs_and_no_process_grows,
        the_health_the_ports_and_the_volumes_of_an_image_are_honoured;
}

/// How many commands are run one after the other: `$BRIG_TEST_EXECS`, or as many as an emulated KVM does in a while.
fn count() -> usize {
    wanted("BRIG_TEST_EXECS").unwrap_or(20)
}

/// MiB that go through exec and through the log: `$BRIG_TEST_STREAM_MIB`, one number for both or two (`1,1024`), or as many as
/// an emulated KVM moves in a while.
fn stream_mib() -> (usize, usize) {
    let Ok(text) = env::var("BRIG_TEST_STREAM_MIB") else {
        return (32, 2);
    };
    let (exec, logs) = text.split_once(',').unwrap_or((&text, &text));
    (exec.parse().unwrap(), logs.parse().unwrap())
}

fn wanted(variable: &str) -> Option<usize> {
    env::var(variable).ok()?.parse().ok()
}

pub(crate) fn a_command_in_a_running_sandbox_finds_what_its_first_process_finds() {
    let brig = Brig::new();
    let first = "echo $A $HOSTNAME > /about; hostname >> /about; pwd >> /about; readlink /proc/self/ns/mnt >> /about; \
                 echo up; exec sleep 100000";
    let arguments = [
        "run", "-d", "--name", "box", "-e", "A=first", "-w", "/srv", "-u", "0", "busybox", "sh", "-c", first,
    ];
    brig.ok(&arguments);
    brig.wait_for_log("box", "up");
    let about = "cat /about; echo $A $HOSTNAME; hostname; pwd; readlink /proc/self/ns/mnt";
    let said = brig.ok(&["exec", "box", "sh", "-c", about]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..4], lines[4..], "{said}");

    // Its own user, directory and environment; streams apart; its own exit code.
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "# a comment\nB=from a file\n").unwrap();
    let file = file.path().to_str().unwrap();
    let script = "echo $A,$B,$C; pwd; id -u; tr '\\0' ' ' < /proc/1/cmdline; echo err >&2; exit 42";
    let output = brig.run(&[
        "exec",
        "--env-file",
        file,
        "-e",
        "C=3",
        "-u",
        "www-data",
        "-w",
        "/tmp",
        "box",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(output.stdout, "first,from a file,3\n/tmp\n33\nsleep 100000 ");
    assert_eq!((output.stderr.as_str(), output.code), ("err\n", 42));
    let bounds = "grep -c 'CapEff:.00000000a80425fb' /proc/self/status";
    assert_eq!(
        brig.run(&["exec", "--privileged", "box", "sh", "-c", bounds])
            .stdout,
        "0\n"
    );
    assert_eq!(brig.ok(&["exec", "box", "sh", "-c", bounds]), "1\n");

    // What cannot be.
    let line = brig.fails(127, &["exec", "box", "no-such-program"]);
    assert!(line.contains("executable file not found in $PATH"), "{line}");
    brig.fails(126, &["exec", "box", "/etc"]);
    brig.fails(126, &["exec", "-w", "/no/such", "box", "true"]);
    brig.fails(126, &["exec", "-u", "nobody-here", "box", "true"]);
    brig.fails(1, &["exec", "box"]);
    brig.fails(1, &["exec", "no-such-sandbox", "true"]);
    assert_eq!(brig.run(&["exec", "box", "sh", "-c", "kill -9 $$"]).code, 137);
    let line = brig.fails(1, &["exec", "-it", "box", "true"]);
    assert_eq!(line, "brig: the input device is not a TTY\n");

    // Without -i there is none.
    let output = brig.run_with_input(&["exec", "box", "wc", "-c"], b"not for it".to_vec());
    assert_eq!(output.stdout.trim(), "0");

    // In the background; nothing of it is shown anywhere.
    assert_eq!(
        brig.ok(&[
            "exec",
            "-d",
            "box",
            "sh",
            "-c",
            "echo hidden; echo done > /tmp/done"
        ]),
        ""
    );
    wait_until(|| brig.run(&["exec", "box", "cat", "/tmp/done"]).stdout == "done\n");
    assert_eq!(brig.ok(&["logs", "box"]), "up\n");

    // A client that is killed takes the process's streams along.
    let mut child = brig
        .command(&[
            "exec",
            "-i",
            "box",
            "sh",
            "-c",
            "echo begun; cat; echo ended > /tmp/ended",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said, "begun\n");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until(|| brig.run(&["exec", "box", "cat", "/tmp/ended"]).stdout == "ended\n");

    // The end of the sandbox is the end of what runs in it.
    let exec = brig.command(&["exec", "box", "sleep", "100000"]).spawn().unwrap();
    wait_until(|| {
        brig.ok(&["exec", "box", "pidof", "sleep"])
            .split_whitespace()
            .count()
            == 2
    });
    brig.ok(&["kill", "box"]);
    assert_eq!(finish(exec).code, 137);
    brig.ok(&["wait", "box"]);
    let line = brig.fails(1, &["exec", "box", "true"]);
    assert!(line.contains("not running"), "{line}");
    brig.fails(1, &["attach", "box"]);
    brig.ok(&["rm", "box"]);
    brig.assert_nothing_left();
}

pub(crate) fn a_lot_goes_through_exec_and_logs_and_no_process_grows() {
    let brig = Brig::new();
    // Lines of 64 bytes, none like another.
    let (through_exec, logged) = stream_mib();
    let lines = logged << 14;
    // Of busybox's programs these two write many lines at a time.
    let zeros = "0".repeat(63 - lines.to_string().len());
    let script = format!(
        "until [ -e /go ]; do sleep 1; done; seq -w 1 {lines} | sed s/^/{zeros}/; until [ -e /end ]; do sleep 1; done"
    );
    let id = brig.ok(&["run", "-d", "--name", "box", "busybox", "sh", "-c", &script]);
    let id = id.trim();
    // What a first process and a first stream need stays.
    let (sent, received) = echo(&brig, id, 1);
    assert_eq!(sent, received);
    let before = footprint(&brig, id);
    // Standard input byte for byte, both ways, and its end.
    let (sent, received) = echo(&brig, id, through_exec);
    assert_eq!(sent, received);
    assert_small(&before, &footprint(&brig, id));

    let mut logs = brig.command(&["logs", "-f", "box"]).spawn().unwrap();
    brig.ok(&["exec", "box", "touch", "/go"]);
    let mut output = BufReader::new(logs.stdout.take().unwrap());
    let mut line = String::new();
    for number in 1..=lines {
        line.clear();
        assert!(
            output.read_line(&mut line).unwrap() > 0,
            "the log ends before line {number}: {:?}\n{}",
            finish(logs),
            leftovers::describe(&brig, id)
        );
        assert_eq!(line, format!("{number:063}\n"));
    }
    assert_small(&before, &footprint(&brig, id));
    brig.ok(&["exec", "box", "touch", "/end"]);
    assert_eq!(output.read_line(&mut line).unwrap(), 0);
    assert!(logs.wait().unwrap().success());
    brig.ok(&["wait", "box"]);
    brig.ok(&["rm", "box"]);
    brig.assert_nothing_left();
}

/// The hash of so many MiB, and of what `cat` in the sandbox gives back for them.
fn echo(brig: &Brig, id: &str, mib: usize) -> (String, String) {
    let mut child = brig
        .command(&["exec", "-i", id, "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || {
        let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
        for number in 0..mib {
            brig_welcome::pattern::fill((number as u64) << 20, &mut piece);
            hash.update(&piece);
            // The command's end says why it takes no more.
            if stdin.write_all(&piece).is_err() {
                break;
            }
        }
        hash
    });
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 16]);
    let mut stdout = child.stdout.take().unwrap();
    loop {
        match stdout.read(&mut piece).unwrap() {
            0 => break,
            count => hash.update(&piece[..count]),
        }
    }
    let sent = writer.join().unwrap();
    let output = finish(child);
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (0, ""),
        "{}",
        leftovers::describe(brig, id)
    );
    (http::hex(&sent.finalize()), http::hex(&hash.finalize()))
}

/// What `exec --timing` tells, in milliseconds.
struct Times {
    first_byte: f64,
    exit: f64,
    inside: f64,
}

impl Times {
    fn of(table: &str) -> Self {
        let number = |start: &str| {
            let rest = table.lines().find_map(|line| line.strip_prefix(start));
            let number = rest.and_then(|rest| rest.split_whitespace().next());
            number
                .and_then(|number| number.parse().ok())
                .unwrap_or_else(|| panic!("no {start:?} in {table:?}"))
        };
        Self {
            first_byte: number("first output byte"),
            exit: number("exit"),
            inside: number("from the request to the exec in the sandbox:"),
        }
    }
}

/// No process has grown by more than what may be on its way.
fn assert_small(before: &[Footprint], after: &[Footprint]) {
    for before in before {
        let after = after.iter().find(|after| after.name == before.name).unwrap();
        println!("{before:?} -> {after:?}");
        assert!(
            after.anonymous_kib <= before.anonymous_kib + 2048,
            "{before:?} {after:?}"
        );
    }
}

pub(crate) fn many_commands_leave_nothing_behind() {
    let brig = Brig::new();
    let id = brig.ok(&[
        "run", "-d", "--rm", "--name", "many", "busybox", "sleep", "100000",
    ]);
    let id = id.trim();
    // By the shell alone: how many of a pipe's programs run already is a matter of chance.
    let processes = "set -- /proc/[0-9]*; echo $#";
    let inside = || -> usize {
        brig.ok(&["exec", "many", "sh", "-c", processes])
            .trim()
            .parse()
            .unwrap()
    };
    for _ in 0..3 {
        inside();
    }
    let before = (inside(), footprint(&brig, id));
    let mut times = Vec::new();
    for number in 0..count() {
        let word = format!("word-{number}");
        let output = brig.run(&["exec", "--timing", "many", "echo", &word]);
        assert_eq!((output.code, output.stdout), (0, format!("{word}\n")));
        times.push(Times::of(&output.stderr));
    }
    let after = (inside(), footprint(&brig, id));
    let median = |of: fn(&Times) -> f64| {
        let mut all: Vec<f64> = times.iter().map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!(
        "exec of echo, medians of {}: first byte {} ms, exit {} ms, in the sandbox to the exec {} ms",
        times.len(),
        median(|times| times.first_byte),
        median(|times| times.exit),
        median(|times| times.inside)
    );
    assert_eq!(before.0, after.0);
    for (before, after) in before.1.iter().zip(&after.1) {
        println!("{before:?} -> {after:?}");
        // A page here and there is no leak; one for each of them would be, and a descriptor is.
        assert!(
            after.descriptors <= before.descriptors + 1,
            "{before:?} {after:?}"
        );
        assert!(
            after.anonymous_kib <= before.anonymous_kib + 1024 + 2 * count() as u64,
            "{before:?} {after:?}"
        );
    }
    brig.ok(&["kill", "many"]);
    brig.run(&["wait", "many"]);
    brig.assert_nothing_left();
}

pub(crate) fn the_health_the_ports_and_the_volumes_of_an_image_are_honoured() {
    let brig = Brig::new();
    let config = serde_json::json!({
        "Cmd": ["sh", "-c", "touch /ok; ls -d /data/deep; httpd -f -p 80 -h /"],
        "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
        "Volumes": { "/data/deep": {} },
        "Shell": ["sh", "-ec"],
        "Healthcheck": {
            "Test": ["CMD-SHELL", "case $- in *e*) echo checked;; esac; ls /ok"],
            "Interval": 1_000_000_000u64, "Retries": 1
        },
    });
    let archive = tempfile::NamedTempFile::new().unwrap();
    fs::write(archive.path(), Image::of_busybox("checked", config).to_oci()).unwrap();
    brig.ok(&["load", "-i", archive.path().to_str().unwrap()]);
    brig.ok(&[
        "run",
        "-d",
        "-P",
        "--health-timeout",
        "1m",
        "--name",
        "well",
        "checked",
    ]);
    brig.wait_for_log("well", "/data/deep");
    let status = |wanted: &str| brig.ps_line("well").is_some_and(|line| line.contains(wanted));
    wait_until(|| status("(healthy)"));
    let first = brig.inspect("well", "/State/Health/Log/0");
    assert_eq!(
        (&first["ExitCode"], &first["Output"]),
        (&0.into(), &"checked\n/ok\n".into())
    );
    assert_eq!(
        brig.inspect("well", "/Config/Healthcheck/Timeout"),
        60_000_000_000u64
    );
    // The port that the image exposes answers, once the server listens: the check asks for the file alone.
    let address = brig.port("well", "80/tcp");
    wait_until(|| http::get(address, "/ok").is_ok_and(|answer| answer.status == 200));
    brig.ok(&["exec", "well", "rm", "/ok"]);
    wait_until(|| status("(unhealthy)"));
    assert!(brig.inspect("well", "/State/Health/FailingStreak").as_u64() >= Some(1));
    brig.ok(&["exec", "well", "touch", "/ok"]);
    wait_until(|| status("(healthy)"));
    brig.ok(&["rm", "-f", "well"]);
    brig.assert_nothing_left();
}

/// What a process of brig's takes.
#[derive(Debug)]
struct Footprint {
    name: String,
    descriptors: usize,
    anonymous_kib: u64,
}

/// Supervisor and VMM of a sandbox.
fn footprint(brig: &Brig, id: &str) -> Vec<Footprint> {
    let mut all = processes_of_sandbox(brig, id);
    all.sort_by(|one, other| one.name.cmp(&other.name));
    let found: Vec<Footprint> = all
        .into_iter()
        .map(|process| {
            let directory = format!("/proc/{}", process.pid);
            // Not the pages that the guest wrote to: those are bounded by the guest's size.
            let own = smaps::of_process(process.pid).unwrap().into_iter();
            let anonymous = own
                .filter(|mapping| !mapping.is_guest)
                .map(|mapping| mapping.anonymous_kib);
            Footprint {
                name: process.name,
                descriptors: fs::read_dir(format!("{directory}/fd")).unwrap().count(),
                anonymous_kib: anonymous.sum(),
            }
        })
        .collect();
    assert!(!found.is_empty());
    found
}

/// Waits for what another command of brig's brings about.
fn wait_until(mut there: impl FnMut() -> bool) {
    let patience = Duration::from_secs(if is_rig() { 600 } else { 300 });
    let deadline = Instant::now() + patience;
    while !there() {
        assert!(Instant::now() < deadline, "it does not come");
        thread::sleep(Duration::from_millis(50));
    }
}
