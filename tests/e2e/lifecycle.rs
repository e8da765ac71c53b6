//! The life of a sandbox: run, ps, inspect, stop, start, wait, kill, rm.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    brig::Brig,
    leftovers,
    machine::{self, Need},
    suite::Isolation,
    tests,
};

tests! {
    Need::Kvm =>
        a_created_sandbox_waits_for_its_start,
        files_survive_stop_and_start,
        a_stopped_server_exits_as_it_chose,
        stop_kills_what_does_not_listen,
        names_ids_and_prefixes_find_a_sandbox,
        wait_prints_the_exit_code,
        kill_sends_the_signal_that_it_is_told,
        a_running_sandbox_is_removed_by_force_only,
        nothing_is_left_after_many_runs;
}

pub(crate) fn a_created_sandbox_waits_for_its_start() {
    let brig = Brig::new();
    let words = [
        "create",
        "-i",
        "--name",
        "later",
        "-p",
        "127.0.0.1:0:80",
        "busybox",
        "sh",
        "-c",
        "wc -c; exit 3",
    ];
    let id = brig.ok(&words);
    assert_eq!(id.trim().len(), 64, "{id}");
    assert!(!brig.ok(&["ps"]).contains("later"));
    let line = brig.ps_line("later").unwrap();
    assert!(line.contains(" Created "), "{line}");
    assert_eq!(
        brig.ok(&["ps", "-q", "--no-trunc", "--filter", "status=created"]),
        id
    );
    assert_eq!(brig.inspect("later", "/State/Status"), "created");
    assert_eq!(brig.inspect("later", "/State/StartedAt"), "0001-01-01T00:00:00Z");
    // What has not been started is neither an error to look at nor to stop; it has no process to reach.
    assert_eq!(brig.ok(&["logs", "later"]), "");
    assert_eq!(brig.ok(&["wait", "later"]), "0\n");
    brig.ok(&["stop", "later"]);
    for (words, reason) in [
        (&["kill", "later"][..], "not running"),
        (&["exec", "later", "true"], "not running"),
        (&["attach", "later"], "start it first"),
    ] {
        let message = brig.fails(1, words);
        assert!(message.contains(reason), "{message}");
    }
    let message = brig.fails(1, &["rmi", "busybox"]);
    assert!(message.contains("(later)"), "{message}");
    let message = brig.fails(1, &["create", "--name", "later", "busybox"]);
    assert!(message.contains("in use"), "{message}");
    brig.fails(1, &["create", "--pull", "never", "no-such-image"]);
    brig.fails(125, &["create", "--name", "other", "-e", "=x", "-d", "busybox"]);

    let output = brig.run_with_input(&["start", "-ai", "later"], b"hello".to_vec());
    assert_eq!((output.stdout.trim(), output.code), ("5", 3), "{output:?}");
    assert!(brig.ps_line("later").unwrap().contains("Exited (3)"));
    brig.ok(&["rm", "later"]);
    brig.ok(&["create", "--name", "never", "busybox"]);
    assert_eq!(brig.ok(&["rm", "never"]), "never\n");
    brig.ok(&["create", "--name", "pruned", "busybox"]);
    brig.ok(&["system", "prune", "-f"]);
    assert_eq!(brig.ps_line("pruned"), None);
    brig.assert_nothing_left();
}

pub(crate) fn files_survive_stop_and_start() {
    let brig = Brig::new();
    let script = "echo run >>/root/runs; wc -l </root/runs; mkdir -p /var/deep/er && ln -sf x /var/deep/er/link; exit 3";
    let first = brig.run(&["run", "--name", "keeper", "busybox", "sh", "-c", script]);
    assert_eq!((first.stdout.trim(), first.code), ("1", 3), "{first:?}");
    brig.ok(&["start", "keeper"]);
    assert_eq!(brig.ok(&["wait", "keeper"]).trim(), "3");
    let logs = brig.ok(&["logs", "keeper"]);
    assert_eq!(logs.split_whitespace().collect::<Vec<_>>(), ["1", "2"]);
    brig.ok(&["rm", "keeper"]);
    brig.assert_nothing_left();
}

pub(crate) fn a_stopped_server_exits_as_it_chose() {
    let brig = Brig::new();
    brig.welcome("server", &[]);
    assert_eq!(brig.ok(&["stop", "-t", "60", "server"]).trim(), "server");
    // Not 137: the stop signal was enough.
    let line = brig.ps_line("server").unwrap();
    assert!(line.contains("Exited (0)"), "{line}");
    assert!(
        !brig.ok(&["ps"]).contains("server"),
        "ps without -a shows what runs"
    );
    // Stopping what is stopped is no error, as with Docker.
    brig.ok(&["stop", "server"]);
    brig.ok(&["rm", "server"]);
    brig.assert_nothing_left();
}

pub(crate) fn stop_kills_what_does_not_listen() {
    let brig = Brig::new();
    let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
    brig.ok(&["run", "-d", "--name", "deaf", "busybox", "sh", "-c", script]);
    brig.wait_for_log("deaf", "ready");
    let begin = Instant::now();
    brig.ok(&["stop", "-t", "2", "deaf"]);
    assert!(
        begin.elapsed() >= Duration::from_secs(2),
        "killed before its time: {:?}",
        begin.elapsed()
    );
    assert_eq!(brig.inspect("deaf", "/State/ExitCode"), 137);
    let line = brig.ps_line("deaf").unwrap();
    assert!(line.contains("Exited (137)"), "{line}");
}

pub(crate) fn names_ids_and_prefixes_find_a_sandbox() {
    let brig = Brig::new();
    let id = brig.ok(&[
        "run",
        "-d",
        "--name",
        "mary_celeste",
        "-p",
        "127.0.0.1:0:80",
        "welcome",
    ]);
    let id = id.trim();
    assert_eq!(id.len(), 64, "{id}");
    let format = "{{.State.Status}} {{.Config.Image}}{{range .Mounts}} {{.Type}}{{end}}";
    let said = brig.ok(&["inspect", "--format", format, "mary_celeste"]);
    assert_eq!(said, "running welcome\n");
    assert!(brig.ok(&["inspect", "-f", "json", "mary_celeste"]).contains(id));
    for name in [id, &id[..12], &id[..4], "mary_celeste"] {
        assert_eq!(brig.inspect(name, "/Id"), id);
    }
    let table = brig.ok(&["ps"]);
    let mut lines = table.lines();
    let head: Vec<_> = lines
        .next()
        .unwrap()
        .split("  ")
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    assert_eq!(
        head,
        [
            "CONTAINER ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "ISOLATION",
            "PORTS",
            "NAMES"
        ]
    );
    let line = lines.next().unwrap();
    let port = brig.port("mary_celeste", "80/tcp");
    for part in [
        &id[..12],
        "welcome",
        "\"/welcome\"",
        " ago ",
        " Up ",
        "mary_celeste",
        &format!("{port}->80/tcp"),
    ] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert_eq!(brig.ok(&["ps", "-q"]).trim(), &id[..12]);
    assert_eq!(brig.inspect("mary_celeste", "/Name"), "/mary_celeste");
    assert_eq!(brig.inspect("mary_celeste", "/State/Status"), "running");
    assert!(
        brig.fails(125, &["run", "--name", "mary_celeste", "busybox", "true"])
            .contains("in use")
    );
    assert_eq!(brig.ok(&["rm", "-f", &id[..12]]).trim(), &id[..12]);
    brig.assert_nothing_left();
}

pub(crate) fn wait_prints_the_exit_code() {
    let brig = Brig::new();
    brig.ok(&["run", "-d", "--name", "brief", "busybox", "sh", "-c", "exit 9"]);
    assert_eq!(brig.ok(&["wait", "brief"]).trim(), "9");
    // Again, now that it has ended.
    assert_eq!(brig.ok(&["wait", "brief"]).trim(), "9");
}

pub(crate) fn kill_sends_the_signal_that_it_is_told() {
    let brig = Brig::new();
    let script = "trap 'echo one' USR1; trap 'exit 5' HUP; echo ready; while :; do sleep 1; done";
    brig.ok(&["run", "-d", "--name", "target", "busybox", "sh", "-c", script]);
    brig.wait_for_log("target", "ready");
    brig.ok(&["kill", "-s", "USR1", "target"]);
    brig.wait_for_log("target", "one");
    brig.ok(&["kill", "--signal", "SIGHUP", "target"]);
    assert_eq!(brig.ok(&["wait", "target"]).trim(), "5");
    assert!(brig.fails(1, &["kill", "target"]).contains("not running"));
    assert!(
        brig.fails(1, &["kill", "-s", "NOSUCH", "target"])
            .contains("NOSUCH")
    );
}

pub(crate) fn a_running_sandbox_is_removed_by_force_only() {
    let brig = Brig::new();
    brig.welcome("busy", &[]);
    assert!(brig.fails(1, &["rm", "busy"]).contains("busy"));
    assert!(brig.ps_line("busy").unwrap().contains(" Up "), "it runs on");
    brig.ok(&["rm", "-f", "busy"]);
    assert_eq!(brig.ps_line("busy"), None);
    brig.assert_nothing_left();
}

pub(crate) fn nothing_is_left_after_many_runs() {
    let brig = Brig::new();
    if Isolation::of_this_test() == Isolation::Container {
        // The image is unpacked by the first run.
        brig.ok(&["run", "-d", "--name", "first", "welcome"]);
        brig.ok(&["rm", "-f", "first"]);
    }
    // What has happened is remembered.
    let listing = || {
        let mut listing = leftovers::listing(brig.root()).unwrap();
        listing.retain(|path| !path.starts_with(brig.root().join("events")));
        listing
    };
    let before = listing();
    // Twenty in all where a start is quick; where KVM interprets the guest's kernel, each takes ten seconds and more.
    let rounds = if machine::is_rig() { 10 } else { 3 };
    thread::scope(|scope| {
        // Two at a time, which also lets their supervisors meet.
        for lane in ["left", "right"] {
            let brig = &brig;
            scope.spawn(move || {
                for round in 0..rounds {
                    let name = format!("{lane}{round}");
                    brig.ok(&["run", "-d", "--name", &name, "-p", "127.0.0.1:0:80", "welcome"]);
                    brig.ok(&["stop", &name]);
                    brig.ok(&["rm", &name]);
                }
            });
        }
    });
    brig.assert_nothing_left();
    assert_eq!(listing(), before);
    assert_eq!(stray_guest_memory(), Vec::<String>::new());
}

/// Processes that have a guest's memory file open and are no brig-vmm: nobody else is ever to get one, and a brig-vmm that
/// is left has been found already.
fn stray_guest_memory() -> Vec<String> {
    let has_guest_memory = |process: &Path| {
        let links = std::fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        links
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|target| target.to_string_lossy().starts_with("/memfd:guest-memory"))
    };
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    processes
        .filter(|process| has_guest_memory(process))
        .filter_map(|process| std::fs::read_to_string(process.join("comm")).ok())
        .filter(|name| name.trim() != "brig-vmm")
        .collect()
}
