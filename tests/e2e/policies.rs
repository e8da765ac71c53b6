//! What a supervisor does when something ends or is full: restart policies, rotation of logs, a full disk, a lack of memory.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    brig::{Brig, COMMAND_LIMIT, finish},
    machine::Need,
    tests,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;

tests! {
    Need::Kvm =>
        a_process_is_started_again_as_its_policy_says,
        a_log_rotates_and_is_followed_through_that;
    // Where KVM interprets the guest's kernel, that looks for memory for many minutes before it gives up.
    Need::StandardKvm => a_lack_of_memory_is_told;
    Need::KvmAndRoot => a_full_disk_stops_the_log_and_nothing_else;
}

/// Waits until `holds`.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < COMMAND_LIMIT, "it did not happen: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn a_process_is_started_again_as_its_policy_says() {
    let brig = Brig::new();
    let status = |name: &str| brig.inspect(name, "/State/Status");
    // Each run fails until the third: its files are there.
    let script = "echo run >>/runs; [ $(wc -l </runs) -ge 3 ] || exit 5; trap 'exit 6' TERM; echo stays; while :; do sleep 1; done";
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "flaky",
        "--restart",
        "on-failure:5",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    wait_until("three runs", || {
        status("flaky") == "running" && brig.ok(&["logs", "flaky"]).contains("stays")
    });
    assert_eq!(brig.inspect("flaky", "/RestartCount"), 2);
    assert_eq!(
        brig.inspect("flaky", "/HostConfig/RestartPolicy"),
        json!({ "Name": "on-failure", "MaximumRetryCount": 5 })
    );
    // A stop is final, whatever the exit code.
    brig.ok(&["stop", "-t", "60", "flaky"]);
    assert_eq!(
        (status("flaky"), brig.inspect("flaky", "/State/ExitCode")),
        (json!("exited"), json!(6))
    );
    brig.ok(&["update", "--restart", "always", "flaky"]);
    assert_eq!(brig.inspect("flaky", "/HostConfig/RestartPolicy/Name"), "always");

    // One that gives up after so many failures.
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "hopeless",
        "--restart",
        "on-failure:1",
        "busybox",
        "sh",
        "-c",
        "exit 7",
    ]);
    wait_until("the last failure", || status("hopeless") == "exited");
    assert_eq!(brig.inspect("hopeless", "/RestartCount"), 1);
    assert_eq!(brig.inspect("hopeless", "/State/ExitCode"), 7);
    assert!(brig.ps_line("hopeless").unwrap().contains("Exited (7)"));
    let dies = brig.ok(&[
        "events",
        "--since",
        "24h",
        "--until",
        "0s",
        "--filter",
        "container=hopeless",
        "--filter",
        "event=die",
    ]);
    assert_eq!(dies.lines().count(), 2, "{dies}");

    // One that always ends is stopped while it rests, and by force removed.
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "restless",
        "--restart",
        "always",
        "busybox",
        "true",
    ]);
    wait_until("a rest", || status("restless") == "restarting");
    assert!(brig.ok(&["ps"]).contains("Restarting (0)") || status("restless") != "restarting");
    brig.ok(&["stop", "restless"]);
    assert_eq!(
        (status("restless"), brig.inspect("restless", "/State/Running")),
        (json!("exited"), json!(false))
    );
    assert!(brig.inspect("restless", "/RestartCount").as_u64().unwrap() >= 1);

    // After a boot of the host: what runs is ended with it, and started again as each policy says.
    let sleeper = [
        "busybox",
        "sh",
        "-c",
        "trap 'exit 0' TERM; echo up; while :; do sleep 1; done",
    ];
    for (name, policy) in [("wanted", "unless-stopped"), ("unwanted", "no")] {
        let mut words = vec!["run", "-d", "--name", name, "--restart", policy];
        words.extend(sleeper);
        brig.ok(&words);
        brig.wait_for_log(name, "up");
    }
    brig.ok(&["update", "--restart", "unless-stopped", "restless"]);
    brig.ok(&["stop", "--shutdown"]);
    assert_eq!(
        (status("wanted"), status("unwanted")),
        (json!("exited"), json!("exited"))
    );
    let mut started: Vec<_> = brig
        .ok(&["start", "--restart-policy"])
        .lines()
        .map(str::to_owned)
        .collect();
    started.sort();
    // Always: also what somebody had stopped. Unless stopped: not that.
    assert_eq!(started, ["flaky", "wanted"]);
    assert_eq!(
        (status("wanted"), status("unwanted")),
        (json!("running"), json!("exited"))
    );
    brig.ok(&["rm", "-f", "flaky", "hopeless", "restless", "wanted", "unwanted"]);
    brig.assert_nothing_left();
}

pub(crate) fn a_log_rotates_and_is_followed_through_that() {
    let brig = Brig::new();
    let lines = 3000;
    let script = format!(
        "echo begins; sleep 2; i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done; echo ends"
    );
    let id = brig.ok(&[
        "run",
        "-d",
        "--name",
        "talker",
        "--log-opt",
        "max-size=50k",
        "--log-opt",
        "max-file=3",
        "busybox",
        "sh",
        "-c",
        &script,
    ]);
    let follower = brig.command(&["logs", "-f", "talker"]).spawn().unwrap();
    brig.ok(&["wait", "talker"]);
    let followed = finish(follower);
    assert_eq!(followed.code, 0, "{followed:?}");
    // A follower that is kept from reading may lose what has been dropped, and nothing in between: it was there in time here.
    let expected: Vec<_> = (0..lines).map(|number| format!("line {number}")).collect();
    let seen: Vec<_> = followed
        .stdout
        .lines()
        .filter(|line| line.starts_with("line"))
        .collect();
    assert_eq!(seen.last(), expected.last().map(String::as_str).as_ref());
    let begin = expected.iter().position(|line| line == seen[0]).unwrap();
    assert!(
        expected.len() - begin == seen.len() || seen.len() > 600,
        "{} lines",
        seen.len()
    );
    // What is kept is within the limits, and whole.
    let directory = brig.root().join("sandboxes").join(id.trim());
    for name in ["log.json", "log.json.1", "log.json.2"] {
        let bytes = fs::metadata(directory.join(name)).unwrap().len();
        assert!(bytes <= 50 << 10, "{name}: {bytes}");
    }
    assert!(!directory.join("log.json.3").exists());
    let kept = brig.ok(&["logs", "talker"]);
    let kept: Vec<_> = kept.lines().filter(|line| line.starts_with("line")).collect();
    assert_eq!(kept, expected[expected.len() - kept.len()..]);
    assert!(kept.len() > 500, "{} lines", kept.len());
    assert_eq!(
        brig.inspect("talker", "/HostConfig/LogConfig/Config"),
        json!({ "max-size": "51200", "max-file": "3" })
    );
    brig.ok(&["rm", "talker"]);
    brig.assert_nothing_left();
}

/// A tmpfs in the place of a sandbox's directory, with what was in it.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn over(directory: &'a Path, bytes: u64) -> Self {
        let before: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.path(), fs::read(entry.path()).unwrap()))
            .collect();
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount(
            "small",
            directory,
            "tmpfs",
            MountFlags::empty(),
            Some(size.as_c_str()),
        )
        .unwrap();
        for (path, bytes) in before {
            fs::write(path, bytes).unwrap();
        }
        Self(directory)
    }

    /// Writes until there is no room.
    fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).unwrap();
        let piece = [7; 4096];
        loop {
            match filler.write_all(&piece) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::StorageFull => break,
                Err(e) => panic!("{e}"),
            }
        }
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

pub(crate) fn a_full_disk_stops_the_log_and_nothing_else() {
    let brig = Brig::new();
    let script = "
        say() { i=0; while [ $i -lt 300 ]; do echo $1 $i; i=$((i+1)); done; touch /run/$1; }
        trap 'say lost' USR1
        trap 'echo after' USR2
        trap 'exit 9' TERM
        echo before
        while :; do sleep 0.2; done";
    let id = brig.ok(&[
        "create", "--name", "full", "--tmpfs", "/run", "busybox", "sh", "-c", script,
    ]);
    let directory = brig.root().join("sandboxes").join(id.trim());
    let small = Small::over(&directory, 48 << 20);
    brig.ok(&["start", "full"]);
    brig.wait_for_log("full", "before");
    small.fill();
    brig.ok(&["kill", "-s", "USR1", "full"]);
    wait_until("all of it written", || {
        brig.run(&["exec", "full", "test", "-e", "/run/lost"]).code == 0
    });
    assert_eq!(brig.inspect("full", "/State/Running"), true);
    fs::remove_file(directory.join("filler")).unwrap();
    brig.ok(&["kill", "-s", "USR2", "full"]);
    brig.wait_for_log("full", "after");
    let log = brig.ok(&["logs", "full"]);
    let lines: Vec<_> = log.lines().collect();
    assert_eq!((lines.first(), lines.last()), (Some(&"before"), Some(&"after")));
    assert!(lines.len() < 302, "nothing was lost: the disk was not full");
    // What is there is whole.
    let text = fs::read_to_string(directory.join("log.json")).unwrap();
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
    brig.ok(&["stop", "-t", "60", "full"]);
    assert_eq!(brig.inspect("full", "/State/ExitCode"), 9);
    drop(small);
    brig.ok(&["rm", "-f", "full"]);
    brig.assert_nothing_left();
}

pub(crate) fn a_lack_of_memory_is_told() {
    let brig = Brig::new();
    // One line without an end, which tail keeps.
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "greedy",
        "-m",
        "64m",
        "busybox",
        "sh",
        "-c",
        "tail /dev/zero",
    ]);
    assert_eq!(brig.ok(&["wait", "greedy"]).trim(), "137");
    assert_eq!(brig.inspect("greedy", "/State/OOMKilled"), true);
    assert_eq!(brig.inspect("greedy", "/State/ExitCode"), 137);
    let told = brig.ok(&[
        "events",
        "--since",
        "24h",
        "--until",
        "0s",
        "--filter",
        "container=greedy",
        "--filter",
        "event=oom",
    ]);
    assert_eq!(told.lines().count(), 1, "{told}");
    // It is forgotten with the next start; a signal is no lack of memory.
    brig.ok(&["run", "-d", "--name", "killed", "busybox", "sleep", "1000"]);
    brig.ok(&["kill", "killed"]);
    brig.ok(&["wait", "killed"]);
    assert_eq!(brig.inspect("killed", "/State/OOMKilled"), false);
    brig.ok(&["rm", "greedy", "killed"]);
    brig.assert_nothing_left();
}
