//! What a restored agent is told, and what it does with that.

// clippy does not take a module beside the tests for a test.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use brig_agent::wake::time_stamp_counter;
use brig_protocol::{
    agent::{FromAgent, Identity, ToAgent, WakeSpec},
    spec::{FileImages, FileSpec},
};

use crate::supervisor::{Agent, STDOUT, line};

/// A counter that stood still at this moment, so that the frequency of this machine's does not matter.
fn now(identity: Option<Identity>) -> WakeSpec {
    WakeSpec {
        tsc: time_stamp_counter(),
        realtime_ns: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        tsc_khz: u32::MAX,
        seed: *b"thirty-two bytes of randomness!!",
        identity,
    }
}

#[test]
fn the_clock_and_the_random_numbers_are_set_before_the_answer() {
    let mut agent = Agent::new();
    agent.prepare(agent.spec(""));
    let spec = now(None);
    let told = Duration::from_nanos(spec.realtime_ns);
    agent.send(&ToAgent::Wake(spec));
    assert_eq!(agent.receive(), FromAgent::Awake);
    let clock = fs::read_to_string(agent.directory.path().join("clock")).unwrap();
    let (seconds, nanoseconds) = clock.split_once('.').unwrap();
    let set = Duration::new(seconds.parse().unwrap(), nanoseconds.parse().unwrap());
    assert!(
        set >= told && set < told + Duration::from_secs(60),
        "{told:?} {set:?}"
    );
    let seed = fs::read(agent.directory.path().join("seed")).unwrap();
    assert_eq!(seed, b"thirty-two bytes of randomness!!");
    agent.start("exit 0");
}

#[test]
fn the_time_is_told_and_moved() {
    let mut agent = Agent::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let before = now();
    agent.send(&ToAgent::Clock);
    let FromAgent::Clock { realtime_ns } = agent.receive() else {
        panic!("another answer")
    };
    assert!((before..=now()).contains(&u128::from(realtime_ns)));
    agent.send(&ToAgent::ShiftClock { ns: -1_500_000_000 });
    // The answer to the next question comes after that.
    agent.send(&ToAgent::Clock);
    assert!(matches!(agent.receive(), FromAgent::Clock { .. }));
    let moved = fs::read_to_string(agent.directory.path().join("shift")).unwrap();
    assert_eq!(moved, "-1500000000");
}

fn file(path: &str, content: &str, images: FileImages) -> FileSpec {
    FileSpec {
        path: path.into(),
        content: content.into(),
        mode: 0o444,
        images,
    }
}

/// A sandbox's own files, those of `who`.
fn files(who: &str) -> Vec<FileSpec> {
    vec![
        file("/etc/hostname", &format!("{who}\n"), FileImages::All),
        file("/etc/machine-id", &format!("id of {who}\n"), FileImages::WithFile),
    ]
}

#[test]
fn a_running_sandbox_is_given_its_new_name_and_files() {
    for is_prepared in [false, true] {
        let mut agent = Agent::new();
        fs::write(
            agent.directory.path().join("rootfs/etc/machine-id"),
            "the image's\n",
        )
        .unwrap();
        let mut spec = agent.spec(
            "look() { busybox hostname; busybox cat /etc/hostname /etc/machine-id; }
             look; echo looked; read line; look; exec busybox sleep 1000",
        );
        spec.hostname = "cell".into();
        spec.files = files("cell");
        if is_prepared {
            let mut template = agent.spec("");
            template.files = files("template");
            agent.prepare(template);
        }
        let (mut stdin, stdout) = (agent.stream(crate::supervisor::STDIN), agent.stream(STDOUT));
        agent.start_spec(spec);
        let look = || [line(&stdout), line(&stdout), line(&stdout)];
        assert_eq!(look(), ["cell\n", "cell\n", "id of cell\n"]);
        // Whoever reads the files has read their end, too.
        assert_eq!(line(&stdout), "looked\n");
        let mut files = files("copy-of-cell");
        files.insert(0, file("/etc/unknown", "nobody reads this", FileImages::All));
        agent.send(&ToAgent::Wake(now(Some(Identity {
            hostname: "copy-of-cell".into(),
            files,
        }))));
        assert_eq!(agent.receive(), FromAgent::Awake);
        std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
        assert_eq!(
            look(),
            ["copy-of-cell\n", "copy-of-cell\n", "id of copy-of-cell\n"]
        );
        assert_ne!(rustix::system::uname().nodename().to_bytes(), b"copy-of-cell");
    }
}

#[test]
fn a_running_sandbox_of_an_image_without_a_machine_id_is_given_none() {
    let mut agent = Agent::new();
    let mut spec = agent.spec("echo runs; read line; busybox ls /etc; exec busybox sleep 1000");
    spec.files = files("cell");
    let (mut stdin, stdout) = (agent.stream(crate::supervisor::STDIN), agent.stream(STDOUT));
    agent.start_spec(spec);
    assert_eq!(line(&stdout), "runs\n");
    agent.send(&ToAgent::Wake(now(Some(Identity {
        hostname: "copy".into(),
        files: files("copy"),
    }))));
    assert_eq!(agent.receive(), FromAgent::Awake);
    std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
    assert_eq!(line(&stdout), "hostname\n");
}
