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
    spec::FileSpec,
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
fn a_running_sandbox_is_given_its_new_name_and_files() {
    for is_prepared in [false, true] {
        let mut agent = Agent::new();
        let mut spec = agent.spec(
            "busybox cat /etc/hostname; read line; busybox hostname; busybox cat /etc/hostname; exec busybox sleep 1000",
        );
        let file = |content: &str| FileSpec {
            path: "/etc/hostname".into(),
            content: content.into(),
            mode: 0o644,
        };
        spec.files = vec![file("cell\n")];
        if is_prepared {
            agent.prepare(agent.spec(""));
        }
        let (mut stdin, stdout) = (agent.stream(crate::supervisor::STDIN), agent.stream(STDOUT));
        agent.start_spec(spec);
        assert_eq!(line(&stdout), "cell\n");
        let mut unknown = file("nobody reads this");
        unknown.path = "/etc/unknown".into();
        agent.send(&ToAgent::Wake(now(Some(Identity {
            hostname: "copy-of-cell".into(),
            files: vec![unknown, file("copy\n")],
        }))));
        assert_eq!(agent.receive(), FromAgent::Awake);
        std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
        assert_eq!(line(&stdout), "copy-of-cell\n");
        assert_eq!(line(&stdout), "copy\n");
        assert_ne!(rustix::system::uname().nodename().to_bytes(), b"copy-of-cell");
    }
}
