//! Further processes of a sandbox that runs.

use std::{
    fs,
    io::Write,
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use brig_protocol::{
    agent::{ExitStatus, FromAgent, StartFailure, ToAgent},
    spec::CapabilitySet,
    stream::StreamHeader,
};

use crate::supervisor::{Agent, bytes, is_closed, line, text};

const OK: ExitStatus = ExitStatus::Code(0);

/// A sandbox whose first process waits for its end.
fn waiting() -> Agent {
    let mut agent = Agent::new();
    agent.start("exec busybox sleep 1000");
    agent
}

fn failure(answer: FromAgent) -> (StartFailure, String) {
    match answer {
        FromAgent::StartFailed { kind, message, .. } => (kind, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_finds_what_the_first_process_finds() {
    const LOOK: &str = r"
        busybox cut -d' ' -f4- /proc/self/mountinfo | busybox sed 's,/[^ ]*/rootfs /,ROOT /,'
        busybox grep -E 'Cap|NoNewPrivs|Sig(Blk|Ign)|Groups|Seccomp:' /proc/self/status
        busybox cat /proc/self/limits /proc/self/cgroup
        busybox hostname; busybox pwd; busybox env | busybox sort; umask; busybox id
        busybox ls /proc/self/fd; busybox readlink /proc/self/fd/0
        for ns in mnt pid uts ipc net cgroup user; do busybox readlink /proc/self/ns/$ns; done
        busybox wc -c < /proc/timer_list; (echo x > /proc/sys/kernel/domainname) 2>&1; true";
    let mut agent = Agent::new();
    let stdout = agent.stream(StreamHeader::Stdout { process: 0 });
    let mut spec = agent.spec(&format!("{LOOK}; echo over; exec busybox sleep 1000"));
    spec.process.stdin = false;
    agent.start_spec(spec);
    let mut first = String::new();
    loop {
        match line(&stdout).as_str() {
            "over\n" => break,
            line => first += line,
        }
    }
    let (said, complaints, status) = agent.exec_to_end(1, agent.process(LOOK));
    assert_eq!((complaints.as_str(), status), ("", OK));
    assert_eq!(said, first);
}

#[test]
fn it_is_a_process_of_the_sandbox_with_a_session_of_its_own() {
    let mut agent = waiting();
    let script = "echo $$; busybox cut -d' ' -f4-6 /proc/self/stat; busybox ls -d /proc/[0-9]* | busybox wc -l; echo err >&2";
    let stdout = agent.stream(StreamHeader::Stdout { process: 7 });
    let FromAgent::Started { process: 7, pid, .. } = agent.exec(7, agent.process(script)) else {
        panic!("not started")
    };
    let said = text(&stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], pid.to_string());
    // Its parent is outside; it leads its group and its session.
    assert_eq!(lines[1].split(' ').next_back(), Some(lines[0]), "{said}");
    let stderr = agent.stream(StreamHeader::Stderr { process: 7 });
    assert_eq!(text(&stderr), "err\n");
    assert!(matches!(
        agent.receive(),
        FromAgent::Exited {
            process: 7,
            status: OK
        }
    ));
}

#[test]
fn user_directory_environment_and_capabilities_are_its_own() {
    let mut agent = waiting();
    let mut spec =
        agent.process("busybox id -u; busybox pwd; echo $A $HOME; busybox grep CapEff /proc/self/status");
    spec.user = "1000:1000".into();
    spec.cwd = "/etc".into();
    spec.env.push("A=1".into());
    let (said, ..) = agent.exec_to_end(1, spec);
    assert_eq!(said, "1000\n/etc\n1 /\nCapEff:\t0000000000000000\n");
    let all = fs::read_to_string("/proc/self/status").unwrap();
    let all = all.lines().find(|line| line.starts_with("CapEff")).unwrap();
    let mut spec = agent.process("busybox grep CapEff /proc/self/status");
    spec.capabilities = CapabilitySet(u64::MAX);
    assert_eq!(agent.exec_to_end(2, spec).0.trim_end(), all);
}

#[test]
fn standard_input_reaches_it_and_its_end_too() {
    let mut agent = waiting();
    let mut stdin = agent.stream(StreamHeader::Stdin { process: 1 });
    let stdout = agent.stream(StreamHeader::Stdout { process: 1 });
    let mut spec = agent.process("exec busybox cat");
    spec.stdin = true;
    agent.exec(1, spec);
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 / 3) as u8).collect();
    let copy = sent.clone();
    let writer = thread::spawn(move || {
        stdin.write_all(&copy).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
        stdin
    });
    assert!(bytes(&stdout) == sent);
    drop(writer.join().unwrap());
    assert!(matches!(
        agent.receive(),
        FromAgent::Exited {
            process: 1,
            status: OK
        }
    ));
}

#[test]
fn what_cannot_be_started_is_told_as_docker_does() {
    let mut agent = waiting();
    let mut spec = agent.process("");
    spec.args = vec!["nginx".into()];
    assert_eq!(
        failure(agent.exec(1, spec.clone())),
        (
            StartFailure::NotFound,
            "exec: \"nginx\": executable file not found in $PATH".into()
        )
    );
    spec.args = vec!["/etc".into()];
    assert_eq!(failure(agent.exec(1, spec)).0, StartFailure::NotExecutable);
    let mut spec = agent.process("");
    spec.cwd = "/not/there".into();
    let (kind, message) = failure(agent.exec(1, spec));
    assert_eq!(kind, StartFailure::Other);
    assert!(message.starts_with("cannot enter the working directory /not/there: "));
    let mut spec = agent.process("");
    spec.user = "nobody-here".into();
    assert_eq!(failure(agent.exec(1, spec)).0, StartFailure::UnknownUser);
    // None of them is left, nor is a stream that has come for one.
    assert_eq!(agent.children().len(), 1);
    let mut spec = agent.process("");
    spec.args = vec!["nginx".into()];
    let stdin = agent.stream(StreamHeader::Stdin { process: 9 });
    stdin.shutdown(Shutdown::Write).unwrap();
    agent.exec(9, spec);
    assert!(is_closed(&stdin));
    // A number that is another one's.
    agent.exec(1, agent.process("exec busybox sleep 1000"));
    let (_, message) = failure(agent.exec(1, agent.process("true")));
    assert_eq!(message, "there is a process 1 already");
    assert!(
        failure(agent.exec(0, agent.process("true")))
            .1
            .contains("process 0")
    );
}

#[test]
fn without_a_sandbox_there_is_nothing_to_enter() {
    let mut agent = Agent::new();
    let (kind, message) = failure(agent.exec(1, agent.process("true")));
    assert_eq!(
        (kind, message.as_str()),
        (StartFailure::Other, "the sandbox's process does not run")
    );
    agent.start("exit 0");
    assert!(matches!(agent.receive(), FromAgent::Exited { process: 0, .. }));
    assert_eq!(failure(agent.exec(1, agent.process("true"))).1, message);
}

#[test]
fn signals_reach_the_process_that_they_are_for() {
    let mut agent = waiting();
    for process in [1, 2] {
        agent.exec(process, agent.process("exec busybox sleep 1000"));
    }
    agent.send(&ToAgent::Signal {
        process: 2,
        signal: 15,
    });
    assert_eq!(
        agent.receive(),
        FromAgent::Exited {
            process: 2,
            status: ExitStatus::Signal(15)
        }
    );
}

#[test]
fn the_end_of_the_first_process_is_its_end() {
    let mut agent = waiting();
    let stdout = agent.stream(StreamHeader::Stdout { process: 1 });
    agent.exec(1, agent.process("echo on; exec busybox sleep 1000"));
    assert_eq!(line(&stdout), "on\n");
    agent.send(&ToAgent::Signal {
        process: 0,
        signal: 9,
    });
    let mut ends = [agent.receive(), agent.receive()];
    ends.sort_by_key(|end| matches!(end, FromAgent::Exited { process: 1, .. }));
    let status = ExitStatus::Signal(9);
    assert_eq!(ends, [0, 1].map(|process| FromAgent::Exited { process, status }));
    assert_eq!(text(&stdout), "");
}

#[test]
fn one_that_leaves_others_behind_ends_all_the_same() {
    let mut agent = waiting();
    let began = Instant::now();
    // Those have its output still.
    let script = "busybox sleep 1000 & busybox sleep 1000 & echo begun";
    let (said, ..) = agent.exec_to_end(1, agent.process(script));
    assert_eq!(said, "begun\n");
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(20),
        "{took:?}"
    );
    // They go on.
    let (said, ..) = agent.exec_to_end(2, agent.process("busybox pidof busybox | busybox wc -w"));
    assert!(said.trim().parse::<u32>().unwrap() >= 3, "{said}");
}

#[test]
fn a_slow_reader_of_what_it_left_loses_nothing() {
    let mut agent = waiting();
    let stdout = agent.stream(StreamHeader::Stdout { process: 1 });
    let script = "busybox sleep 1000 & busybox head -c 200000 /dev/zero";
    agent.exec(1, agent.process(script));
    thread::sleep(Duration::from_secs(3));
    assert_eq!(bytes(&stdout).len(), 200_000);
}

#[test]
fn a_stream_whose_process_never_comes_goes_with_its_other_end() {
    let mut agent = waiting();
    let before = agent.descriptors();
    for process in 5..25 {
        drop(agent.stream(StreamHeader::Stdout { process }));
    }
    // The agent has seen to them once it has answered this.
    assert_eq!(agent.exec_to_end(1, agent.process("true")).2, OK);
    assert!(agent.descriptors() <= before + 3, "{before}");
    // A process that is there gives each of its outputs once.
    agent.exec(2, agent.process("exec busybox sleep 1000"));
    let header = StreamHeader::Stdout { process: 2 };
    let _first = agent.stream(header);
    assert!(is_closed(&agent.stream(header)));
}

#[test]
fn a_hundred_of_them_leave_nothing() {
    let mut agent = waiting();
    let memory = |agent: &Agent| -> u64 {
        let path = format!("/proc/{}/statm", agent.child.id());
        let statm = fs::read_to_string(path).unwrap();
        // Data and stack, in pages.
        statm.split(' ').nth(5).unwrap().parse().unwrap()
    };
    let large = "x".repeat(50_000);
    let mut number = 0;
    let mut once = |agent: &mut Agent| {
        number += 1;
        let mut spec = agent.process("echo $0");
        spec.args.push(number.to_string());
        spec.env.push(format!("LARGE={large}"));
        let (said, _, status) = agent.exec_to_end(number, spec);
        assert_eq!((said, status), (format!("{number}\n"), OK));
    };
    for _ in 0..10 {
        once(&mut agent);
    }
    let before = (agent.descriptors(), memory(&agent));
    for _ in 0..100 {
        once(&mut agent);
    }
    let after = (agent.descriptors(), memory(&agent));
    assert_eq!(agent.children().len(), 1);
    // The last one's streams may not be closed yet. A hundred times 50 kB are over 1,200 pages.
    assert!(
        after.0 <= before.0 + 2 && after.1 <= before.1 + 64,
        "{before:?} {after:?}"
    );
}
