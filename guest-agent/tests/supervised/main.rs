//! The agent served by a test that plays the supervisor.

mod disks;
mod exec;
mod prepared;
mod supervisor;
mod terminal;
mod wake;

use std::{fs, io::Write, net::Shutdown, thread};

use brig_protocol::{
    agent::{ExitStatus, FromAgent, StartFailure, ToAgent},
    stream::StreamHeader,
};
use supervisor::{Agent, STDERR, STDIN, STDOUT, bytes, is_closed, line, text};

const HTTP: StreamHeader = StreamHeader::Tcp { port: 80 };
const REQUEST: &[u8] = b"GET /file HTTP/1.0\r\n\r\n";

const fn exited(status: ExitStatus) -> FromAgent {
    FromAgent::Exited { process: 0, status }
}

const EXITED_0: FromAgent = exited(ExitStatus::Code(0));

#[test]
fn output_streams_are_apart_and_whole_before_the_exit_is_said() {
    let mut agent = Agent::new();
    let (stdout, stderr) = (agent.stream(STDOUT), agent.stream(STDERR));
    agent.start("echo out; echo err >&2; exit 3");
    assert_eq!(agent.receive(), exited(ExitStatus::Code(3)));
    assert_eq!((text(&stdout), text(&stderr)), ("out\n".into(), "err\n".into()));
}

#[test]
fn the_exit_is_not_said_before_a_stream_has_come_for_the_output() {
    let mut agent = Agent::new();
    agent.start("echo late");
    let stdout = agent.stream(STDOUT);
    assert_eq!(text(&stdout), "late\n");
    assert_eq!(agent.receive(), EXITED_0);
}

#[test]
fn standard_input_reaches_the_process_and_its_end_too() {
    let mut agent = Agent::new();
    let (mut stdin, stdout) = (agent.stream(STDIN), agent.stream(STDOUT));
    agent.start("busybox tr a-z A-Z; echo over");
    stdin.write_all(b"hello\n").unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(&stdout), "HELLO\nover\n");
    assert_eq!(agent.receive(), EXITED_0);
}

#[test]
fn a_large_input_and_output_pass_without_a_wrong_byte() {
    let mut agent = Agent::new();
    let (mut stdin, stdout) = (agent.stream(STDIN), agent.stream(STDOUT));
    agent.start("busybox cat");
    let sent: Vec<u8> = (0..5_000_000u32).map(|i| (i * 7 / 3) as u8).collect();
    let copy = sent.clone();
    let writer = thread::spawn(move || stdin.write_all(&copy));
    assert!(bytes(&stdout) == sent);
    writer.join().unwrap().unwrap();
    assert_eq!(agent.receive(), EXITED_0);
}

#[test]
fn the_exit_waits_for_a_slow_reader_of_the_output() {
    let mut agent = Agent::new();
    let stdout = agent.stream(STDOUT);
    agent.start("busybox head -c 2000000 /dev/zero");
    assert_eq!(bytes(&stdout).len(), 2_000_000);
    assert_eq!(agent.receive(), EXITED_0);
}

#[test]
fn the_end_of_the_first_process_is_the_end_of_all() {
    let mut agent = Agent::new();
    let stdout = agent.stream(STDOUT);
    // The other process holds standard output open.
    agent.start("(busybox sleep 1000; echo never) & exit 5");
    assert_eq!(agent.receive(), exited(ExitStatus::Code(5)));
    assert_eq!(text(&stdout), "");
}

#[test]
fn signals_are_passed_on_and_numbers_that_are_none_are_not() {
    let mut agent = Agent::new();
    let stdout = agent.stream(STDOUT);
    agent.start("trap 'echo caught; exit 7' TERM; echo ready; while :; do busybox sleep 0.1; done");
    assert_eq!(line(&stdout), "ready\n");
    for signal in [0, 65, 255] {
        agent.send(&ToAgent::Signal { process: 0, signal });
    }
    agent.send(&ToAgent::Signal {
        process: 1,
        signal: 9,
    });
    agent.send(&ToAgent::Signal {
        process: 0,
        signal: 15,
    });
    assert_eq!(agent.receive(), exited(ExitStatus::Code(7)));
    assert_eq!(text(&stdout), "caught\n");
    // One that comes too late does nothing.
    agent.send(&ToAgent::Signal {
        process: 0,
        signal: 9,
    });
}

#[test]
fn a_process_that_is_killed_says_by_which_signal() {
    let mut agent = Agent::new();
    agent.start("exec busybox sleep 1000");
    agent.send(&ToAgent::Signal {
        process: 0,
        signal: 9,
    });
    assert_eq!(agent.receive(), exited(ExitStatus::Signal(9)));
}

#[test]
fn a_start_that_fails_says_why_and_another_may_follow() {
    let mut agent = Agent::new();
    let mut spec = agent.spec("");
    spec.process.args = vec!["nginx".into()];
    agent.send(&ToAgent::Start(Box::new(spec)));
    assert_eq!(
        agent.receive(),
        FromAgent::StartFailed {
            process: 0,
            kind: StartFailure::NotFound,
            message: "exec: \"nginx\": executable file not found in $PATH".into()
        }
    );
    agent.start("exit 0");
    assert_eq!(agent.receive(), EXITED_0);
    agent.send(&ToAgent::Start(Box::new(agent.spec("true"))));
    assert!(matches!(
        agent.receive(),
        FromAgent::StartFailed {
            kind: StartFailure::Other,
            ..
        }
    ));
}

#[test]
fn standard_input_is_the_null_device_when_none_will_come() {
    let mut agent = Agent::new();
    let stdout = agent.stream(STDOUT);
    let mut spec = agent.spec("busybox cat; busybox readlink /proc/self/fd/0");
    spec.process.stdin = false;
    agent.send(&ToAgent::Start(Box::new(spec)));
    assert!(matches!(agent.receive(), FromAgent::Started { .. }));
    assert_eq!(text(&stdout), "/dev/null\n");
}

#[test]
fn a_port_is_reached_on_either_loopback_address() {
    for address in ["127.0.0.1:80", "[::1]:80", "80"] {
        let mut agent = Agent::new();
        agent.serve_http(address, b"page\n");
        let mut client = agent.stream(HTTP);
        client.write_all(REQUEST).unwrap();
        let answer = text(&client);
        assert!(
            answer.starts_with("HTTP/1.") && answer.ends_with("\r\n\r\npage\n"),
            "{address}: {answer}"
        );
    }
}

#[test]
fn a_port_that_nobody_listens_on_closes_the_connection() {
    let mut agent = Agent::new();
    assert!(is_closed(&agent.stream(HTTP)));
    agent.start("exec busybox sleep 1000");
    assert!(is_closed(&agent.stream(HTTP)));
}

#[test]
fn a_client_that_stalls_stalls_nobody_else() {
    let mut agent = Agent::new();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 5) as u8).collect();
    agent.serve_http("80", &content);
    let mut stalled = agent.stream(HTTP);
    stalled.write_all(REQUEST).unwrap();
    for _ in 0..3 {
        let mut client = agent.stream(HTTP);
        client.write_all(REQUEST).unwrap();
        assert!(bytes(&client).ends_with(&content));
    }
    assert!(bytes(&stalled).ends_with(&content));
}

#[test]
fn each_direction_of_a_connection_ends_by_itself() {
    let mut agent = Agent::new();
    let stdout = agent.stream(STDOUT);
    // The server speaks only when the client has finished.
    agent.start(
        "busybox nc -l -p 90 -e sh -c 'n=$(busybox wc -c); echo got $n' & \
        until busybox netstat -ltn | busybox grep -q :90; do :; done; echo ready; wait",
    );
    assert_eq!(line(&stdout), "ready\n");
    let mut client = agent.stream(StreamHeader::Tcp { port: 90 });
    client.write_all(&vec![b'x'; 100_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(&client), "got 100000\n");
}

#[test]
fn fifty_connections_at_once_are_all_served() {
    let mut agent = Agent::new();
    let content: Vec<u8> = (0..50_000u32).map(|i| (i / 7) as u8).collect();
    agent.serve_http("80", &content);
    let clients: Vec<_> = (0..50).map(|_| agent.stream(HTTP)).collect();
    for mut client in &clients {
        client.write_all(REQUEST).unwrap();
    }
    for client in clients.iter().rev() {
        assert!(bytes(client).ends_with(&content));
    }
}

#[test]
fn no_descriptor_is_left_of_streams_that_have_ended() {
    let mut agent = Agent::new();
    agent.serve_http("80", b"page\n");
    let descriptors = format!("/proc/{}/fd", agent.child.id());
    let count = || fs::read_dir(&descriptors).unwrap().count();
    let request = || {
        let mut client = agent.stream(HTTP);
        client.write_all(REQUEST).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(text(&client).ends_with("page\n"));
    };
    request();
    let before = count();
    for _ in 0..100 {
        request();
    }
    // The last one's may not be closed yet.
    assert!(count() <= before + 6, "{} descriptors, {before} before", count());
}

#[test]
fn a_stream_that_makes_no_sense_is_closed() {
    let mut agent = Agent::new();
    agent.start("exec busybox sleep 1000");
    assert!(is_closed(&agent.raw_stream(&[0xff; 8])));
    // A second stream for the same output.
    let _first = agent.stream(STDOUT);
    assert!(is_closed(&agent.stream(STDOUT)));
}

#[test]
fn a_shutdown_ends_what_runs_and_then_the_agent() {
    let mut agent = Agent::new();
    agent.start("trap '' TERM; while :; do busybox sleep 1000; done");
    agent.send(&ToAgent::Shutdown);
    assert_eq!(agent.receive(), exited(ExitStatus::Signal(9)));
    assert_eq!(agent.wait_for_end(), Some(0));
}

#[test]
fn the_agent_ends_when_the_supervisor_is_gone_or_talks_nonsense() {
    let mut agent = Agent::new();
    agent.control.shutdown(Shutdown::Both).unwrap();
    assert_eq!(agent.wait_for_end(), Some(2));
    let mut agent = Agent::new();
    agent.control.write_all(&[0xff; 64]).unwrap();
    assert_eq!(agent.wait_for_end(), Some(1));
}
