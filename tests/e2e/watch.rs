//! What is seen of a sandbox from outside while it runs: `events`, `stats`, `top`; and `pause`.

use std::{
    fs,
    io::{BufRead, BufReader},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use brig_tests::{
    archive::Image,
    brig::{Brig, COMMAND_LIMIT},
    machine::Need,
    suite::Isolation,
    tests,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

tests! {
    Need::Kvm =>
        what_happens_is_told_and_what_runs_is_shown,
        a_guest_that_is_wrong_about_the_time_is_set_right;
    Need::Nothing => what_happens_to_images_is_told;
}

pub(crate) fn what_happens_is_told_and_what_runs_is_shown() {
    let brig = Brig::new();
    let isolation = Isolation::of_this_test().as_str();
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let began = format!("{}.{:09}", began.as_secs(), began.subsec_nanos());
    let mut follower = brig
        .command(&["events", "--since", &began, "--filter", "container=watched"])
        .spawn()
        .unwrap();
    let script = "trap 'exit 3' TERM; sleep 100000 & echo up; wait";
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "watched",
        "-l",
        "team=blue",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    brig.wait_for_log("watched", "up");
    brig.ok(&["exec", "watched", "true"]);

    let table = brig.ok(&["top", "watched"]);
    let mut lines = table.lines();
    let heading: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        heading,
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    );
    let first: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!((first[0], first[1], first[2]), ("0", "1", "0"), "{table}");
    assert!(
        table.lines().any(|line| line.ends_with("sleep 100000")),
        "{table}"
    );
    assert_eq!(table.lines().count(), 3, "{table}");
    let names = brig.ok(&["top", "watched", "-o", "pid,comm"]);
    assert!(names.lines().nth(1).unwrap().starts_with("1 "), "{names}");
    assert!(
        brig.fails(1, &["top", "watched", "-o", "colour"])
            .contains("colour")
    );

    let line = brig.ok(&["stats", "--no-stream", "--format", "json", "watched"]);
    let stats: Value = serde_json::from_str(&line).unwrap();
    let text = |name: &str| {
        stats[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {line}"))
            .to_owned()
    };
    assert_eq!(
        (text("Name"), text("Isolation"), text("PIDs")),
        ("watched".into(), isolation.into(), "2".into())
    );
    assert!(text("CPUPerc").ends_with('%'), "{line}");
    let (used, limit) = (text("MemUsage"), text("MemPerc"));
    assert!(
        used.contains("iB / ") && !used.starts_with("0B") && limit != "0.00%" || isolation == "container",
        "{line}"
    );
    assert!(brig.ok(&["stats", "--no-stream"]).contains("watched"));

    stands_still_and_goes_on(&brig);
    brig.ok(&["stop", "-t", "60", "watched"]);
    assert!(brig.fails(1, &["top", "watched"]).contains("not running"));
    let table = brig.ok(&["stats", "--no-stream", "-a"]);
    assert!(
        table
            .lines()
            .any(|line| line.contains("watched") && line.contains("-- / --")),
        "{table}"
    );
    brig.ok(&["rm", "watched"]);

    // The one that has been following all the time ends with a reader that has seen enough.
    let followed: Vec<String> = BufReader::new(follower.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.contains(" destroy "))
        .collect();
    follower.kill().unwrap();
    follower.wait().unwrap();
    let told = |more: &[&str]| -> Vec<Value> {
        let mut words = vec!["events", "--since", &began, "--until", "0s", "--format", "json"];
        words.extend(more);
        let lines = brig.ok(&words);
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let all = told(&[]);
    let actions: Vec<&str> = all
        .iter()
        .map(|event| event["Action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        [
            "create",
            "start",
            "exec_create: true",
            "exec_start: true",
            "exec_die",
            "top",
            "top",
            "exec_create: sh -c while :; do :; done",
            "exec_start: sh -c while :; do :; done",
            "pause",
            "unpause",
            "exec_die",
            "die",
            "stop",
            "destroy"
        ]
    );
    assert_eq!(followed.len(), actions.len() - 1, "{followed:#?}");
    for (line, action) in followed.iter().zip(&actions) {
        assert!(line.contains(&format!(" container {action} ")), "{line}");
        assert!(
            line.contains(&format!("isolation={isolation}")) && line.contains("team=blue"),
            "{line}"
        );
    }
    let die = told(&["--filter", "event=die", "--filter", "label=team=blue"]);
    assert_eq!(die.len(), 1);
    assert_eq!(die[0]["Actor"]["Attributes"]["exitCode"], "3");
    assert_eq!(die[0]["from"], "busybox");
    assert_eq!(told(&["--filter", "container=other"]), Vec::<Value>::new());
    assert_eq!(told(&["--filter", "isolation=neither"]), Vec::<Value>::new());
    brig.assert_nothing_left();
}

/// With a process in it that never rests.
fn stands_still_and_goes_on(brig: &Brig) {
    brig.ok(&["exec", "-d", "watched", "sh", "-c", "while :; do :; done"]);
    let supervisor = brig.inspect("watched", "/State/Pid").as_u64().unwrap() as u32;
    // In hundredths of a second.
    let grows = |wanted: u64| {
        let before = ticks_below(supervisor);
        thread::sleep(Duration::from_secs(1));
        ticks_below(supervisor) - before >= wanted
    };
    brig.ok(&["pause", "watched"]);
    assert!(brig.ps_line("watched").unwrap().contains("(Paused)"));
    assert_eq!(brig.inspect("watched", "/State/Status"), "paused");
    assert!(brig.ok(&["ps", "--filter", "status=paused"]).contains("watched"));
    assert!(!brig.ok(&["ps", "--filter", "status=running"]).contains("watched"));
    assert!(!grows(30), "it works although it is paused");
    assert!(brig.fails(1, &["exec", "watched", "true"]).contains("is paused"));
    assert!(brig.fails(1, &["pause", "watched"]).contains("paused already"));
    brig.ok(&["unpause", "watched"]);
    assert_eq!(brig.inspect("watched", "/State/Status"), "running");
    assert!(brig.fails(1, &["unpause", "watched"]).contains("is not paused"));
    let begin = Instant::now();
    while !grows(10) {
        assert!(begin.elapsed() < COMMAND_LIMIT, "it does not go on");
    }
}

/// CPU time of a process's children and of everything below them.
fn ticks_below(root: u32) -> u64 {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // proc(5): the parent is field 4, utime and stime are 14 and 15.
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .map(|word| word.parse().unwrap_or(0))
            .collect();
        all.push((pid, fields[1] as u32, fields[11] + fields[12]));
    }
    let mut below = vec![root];
    let mut ticks = 0;
    while let Some(parent) = below.pop() {
        for (pid, _, took) in all.iter().filter(|(_, above, _)| *above == parent) {
            below.push(*pid);
            ticks += took;
        }
    }
    ticks
}

/// As after a sleep of the host's, which no test can have: its clock is set by somebody else.
fn a_guest_that_is_wrong_about_the_time_is_set_right() {
    let brig = Brig::new();
    let wrong_by = |name: &str| -> u64 {
        let inside = brig.ok(&["exec", name, "date", "+%s"]);
        let inside: u64 = inside.trim().parse().unwrap();
        let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        here.abs_diff(inside)
    };
    let set = |name: &str| {
        brig.ok(&["exec", "--privileged", name, "date", "-s", "2001-02-03 04:05:06"]);
        assert!(wrong_by(name) > 500_000_000);
        brig.ok(&["pause", name]);
        brig.ok(&["unpause", name]);
    };
    brig.ok(&[
        "run", "-d", "--rm", "--name", "late", "busybox", "sleep", "100000",
    ]);
    set("late");
    let deadline = Instant::now() + Duration::from_secs(60);
    while wrong_by("late") > 5 {
        assert!(Instant::now() < deadline, "it is still wrong");
    }
    // One that may set it keeps what it has set. It would have been asked before it answers this.
    let own = [
        "run",
        "-d",
        "--rm",
        "--name",
        "own",
        "--cap-add",
        "SYS_TIME",
        "busybox",
    ];
    brig.ok(&[&own[..], &["sleep", "100000"]].concat());
    set("own");
    assert!(wrong_by("own") > 500_000_000);
    brig.ok(&["rm", "-f", "late", "own"]);
    brig.assert_nothing_left();
}

fn what_happens_to_images_is_told() {
    let brig = Brig::empty();
    let image = Image::of_files(
        "team/app",
        json!({"Cmd": ["/x"], "Labels": {"team": "blue"}}),
        &[("x", 0o755, b"x")],
    );
    let archive = NamedTempFile::new().unwrap();
    fs::write(archive.path(), image.to_oci()).unwrap();
    let archive = archive.path().to_str().unwrap();
    brig.ok(&["load", "-q", "-i", archive]);
    let id = brig.ok(&["images", "-q", "--no-trunc"]).trim().to_owned();
    brig.ok(&["tag", "team/app:latest", "other:2"]);
    brig.ok(&["save", "-o", "/dev/null", "other:2"]);
    brig.ok(&["rmi", "other:2"]);
    let files = NamedTempFile::new().unwrap();
    fs::write(files.path(), tar_of("file", b"content")).unwrap();
    let made = brig.ok(&["import", files.path().to_str().unwrap(), "files:1"]);
    let made = made.trim();
    brig.ok(&["rmi", "team/app:latest"]);
    brig.ok(&["image", "prune", "-af"]);
    brig.fails(1, &["rmi", "team/app:latest"]);

    let told = |filters: &[&str]| -> Vec<Value> {
        let mut words = vec!["events", "--since", "1h", "--until", "0s", "--format", "json"];
        words.extend(filters.iter().flat_map(|filter| ["--filter", filter]));
        let lines = brig.ok(&words);
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let all: Vec<(String, String, String)> = told(&["type=image"])
        .iter()
        .map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let actor = &event["Actor"];
            (
                text(&event["Action"]),
                text(&actor["ID"]),
                text(&actor["Attributes"]["name"]),
            )
        })
        .collect();
    let expected = [
        ("load", id.as_str(), "team/app:latest"),
        ("tag", &id, "other:2"),
        ("save", &id, "other:2"),
        ("untag", &id, "other:2"),
        ("import", made, made),
        ("tag", made, "files:1"),
        ("untag", &id, "team/app:latest"),
        ("delete", &id, &id),
        ("untag", made, "files:1"),
        ("delete", made, made),
        ("prune", "", ""),
    ]
    .map(|(action, id, name)| (action.to_owned(), id.to_owned(), name.to_owned()));
    assert_eq!(all, expected);

    let actions = |filters: &[&str]| -> Vec<String> {
        told(filters)
            .iter()
            .map(|event| event["Action"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(actions(&["event=tag", "image=other:2"]), ["tag"]);
    // A repository means its tags, an id all that has happened to the image.
    assert_eq!(actions(&["image=team/app"]), ["load", "untag"]);
    assert_eq!(
        actions(&[&format!("image={made}")]),
        ["import", "tag", "untag", "delete"]
    );
    assert_eq!(actions(&["label=team=blue", "event=delete"]), ["delete"]);
    assert_eq!(actions(&["type=container"]), Vec::<String>::new());
    let reclaimed = &told(&["event=prune"])[0]["Actor"]["Attributes"]["reclaimed"];
    assert!(reclaimed.as_str().unwrap().parse::<u64>().unwrap() > 0);
}

/// A tar archive of one file.
fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, content).unwrap();
    archive.into_inner().unwrap()
}
