//! Terminals of processes.

use std::{io::Write, os::unix::net::UnixStream};

use brig_protocol::{
    agent::{ExitStatus, FromAgent, ToAgent},
    spec::{ProcessSpec, WindowSize},
    stream::StreamHeader,
};

use crate::supervisor::{Agent, line, text};

const SIZE: WindowSize = WindowSize {
    rows: 33,
    columns: 111,
};

fn with_terminal(spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        stdin: true,
        tty: Some(SIZE),
        ..spec
    }
}

/// The streams of a process with a terminal.
fn streams(agent: &Agent, process: u32) -> (UnixStream, UnixStream) {
    (
        agent.stream(StreamHeader::Stdin { process }),
        agent.stream(StreamHeader::Stdout { process }),
    )
}

fn exited(process: u32, status: ExitStatus) -> FromAgent {
    FromAgent::Exited { process, status }
}

const ABOUT: &str = "busybox tty; busybox stty size; busybox stat -c '%u:%g %a' $(busybox tty); \
    for fd in 0 1 2; do busybox readlink /proc/self/fd/$fd; done; busybox cut -d' ' -f6-7 /proc/self/stat; echo $$";

#[test]
fn the_first_process_has_one_that_is_its_console_too() {
    for prepared in [false, true] {
        let mut agent = Agent::new();
        if prepared {
            agent.prepare(agent.spec(""));
        }
        let (_stdin, stdout) = streams(&agent, 0);
        let mut spec = agent.spec(&format!("{ABOUT}; echo here > /dev/console; busybox cut -d' ' -f5 /proc/self/mountinfo | busybox grep console"));
        spec.process = with_terminal(spec.process);
        agent.start_spec(spec);
        // Session 1, and device 136:0, which is pts/0.
        assert_eq!(
            text(&stdout),
            "/dev/pts/0\r\n33 111\r\n0:5 620\r\n/dev/pts/0\r\n/dev/pts/0\r\n/dev/pts/0\r\n1 34816\r\n1\r\n\
             here\r\n/dev/console\r\n",
            "{prepared}"
        );
        assert_eq!(agent.receive(), exited(0, ExitStatus::Code(0)));
    }
}

#[test]
fn a_further_process_has_one_of_the_same_filesystem() {
    let mut agent = Agent::new();
    let (_stdin, _stdout) = streams(&agent, 0);
    let mut spec = agent.spec("exec busybox sleep 1000");
    spec.process = with_terminal(spec.process);
    agent.start_spec(spec);
    let (_stdin, stdout) = streams(&agent, 1);
    let mut spec = with_terminal(agent.process(ABOUT));
    spec.user = "1000".into();
    agent.exec(1, spec);
    let said = text(&stdout);
    assert!(
        said.starts_with("/dev/pts/1\r\n33 111\r\n1000:5 620\r\n/dev/pts/1\r\n"),
        "{said}"
    );
    assert_eq!(agent.receive(), exited(1, ExitStatus::Code(0)));
}

#[test]
fn what_is_typed_is_echoed_and_signals_come_from_keys() {
    let mut agent = Agent::new();
    agent.start("exec busybox sleep 1000");
    let (mut stdin, stdout) = streams(&agent, 1);
    let script = "trap 'echo interrupted' INT; trap 'echo changed; busybox stty size' WINCH; echo ready; \
        read line; echo got $line; while :; do busybox sleep 0.1; done";
    agent.exec(1, with_terminal(agent.process(script)));
    assert_eq!(line(&stdout), "ready\r\n");
    stdin.write_all(b"hello\r").unwrap();
    assert_eq!(
        (line(&stdout), line(&stdout)),
        ("hello\r\n".into(), "got hello\r\n".into())
    );
    stdin.write_all(b"\x03").unwrap();
    assert!(line(&stdout).ends_with("interrupted\r\n"));
    let size = WindowSize {
        rows: 50,
        columns: 132,
    };
    agent.send(&ToAgent::Resize { process: 1, size });
    assert_eq!(
        (line(&stdout), line(&stdout)),
        ("changed\r\n".into(), "50 132\r\n".into())
    );
    // Others do not mind.
    agent.send(&ToAgent::Resize { process: 0, size });
    agent.send(&ToAgent::Resize { process: 9, size });
    agent.send(&ToAgent::Signal {
        process: 1,
        signal: 9,
    });
    assert_eq!(agent.receive(), exited(1, ExitStatus::Signal(9)));
}

#[test]
fn whoever_leaves_hangs_up() {
    let mut agent = Agent::new();
    agent.start("exec busybox sleep 1000");
    let before = agent.descriptors();
    let (stdin, stdout) = streams(&agent, 1);
    agent.exec(
        1,
        with_terminal(agent.process("echo ready; exec busybox sleep 1000")),
    );
    assert_eq!(line(&stdout), "ready\r\n");
    drop((stdin, stdout));
    assert_eq!(agent.receive(), exited(1, ExitStatus::Signal(1)));
    assert!(agent.descriptors() <= before + 5);
    assert_eq!(agent.children().len(), 1);
}

#[test]
fn whoever_says_no_more_and_reads_no_more_hangs_up_too() {
    let mut agent = Agent::new();
    agent.start("exec busybox sleep 1000");
    let (stdin, stdout) = streams(&agent, 1);
    agent.exec(
        1,
        with_terminal(agent.process("echo ready; exec busybox sleep 1000")),
    );
    assert_eq!(line(&stdout), "ready\r\n");
    // What a guest sees of a socket that was closed on the host.
    for stream in [&stdin, &stdout] {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    assert_eq!(agent.receive(), exited(1, ExitStatus::Signal(1)));
}

#[test]
fn a_long_output_is_whole() {
    let mut agent = Agent::new();
    agent.start("exec busybox sleep 1000");
    let (_stdin, stdout) = streams(&agent, 1);
    agent.exec(1, with_terminal(agent.process("busybox seq 100000")));
    let said = text(&stdout);
    let wanted = (1..=100_000)
        .flat_map(|n: u32| [n.to_string(), "\r\n".to_owned()])
        .collect::<String>();
    assert_eq!(said.len(), wanted.len());
    assert!(said == wanted);
    assert_eq!(agent.receive(), exited(1, ExitStatus::Code(0)));
}
