//! Processes beside the first, and terminals.

use std::os::unix::net::UnixStream as Socket;

use brig_protocol::spec::{ProcessSpec, WindowSize};

use super::*;
use crate::control::ExecRequest;

fn request(args: &[&str]) -> ExecRequest {
    ExecRequest {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        ..ExecRequest::default()
    }
}

/// Takes an exec: its number, its spec, and its streams in the order of their headers.
pub(super) fn begun(guest: &mut PlayedGuest) -> (u32, ProcessSpec, Vec<Socket>) {
    let mut streams = Vec::new();
    let Some(ToAgent::Exec { process, spec }) = guest.hear() else {
        panic!("no exec")
    };
    let mut wanted = vec![StreamHeader::Stdout { process }];
    if spec.stdin {
        wanted.insert(0, StreamHeader::Stdin { process });
    }
    if spec.tty.is_none() {
        wanted.push(StreamHeader::Stderr { process });
    }
    for header in wanted {
        let (found, socket) = guest.connection().unwrap();
        assert_eq!(found, header);
        streams.push(socket);
    }
    (process, *spec, streams)
}

fn started(process: u32) -> FromAgent {
    FromAgent::Started {
        process,
        pid: 9,
        took_us: 1,
    }
}

fn ended(process: u32, code: u8) -> FromAgent {
    FromAgent::Exited {
        process,
        status: ExitStatus::Code(code),
    }
}

/// Says that the first process ended, and plays the guest to its end.
fn finish(mut guest: PlayedGuest, streams: (Socket, Socket)) {
    drop(streams);
    guest.say(&exited(0));
    shut_down(guest);
}

#[test]
fn a_process_beside_the_first_has_streams_and_an_end_of_its_own() {
    let bench = Bench::new(|config| config.user = "web".into());
    bench.run(
        |mut guest| {
            let first = guest.start();
            let (process, spec, mut streams) = begun(&mut guest);
            assert_eq!((process, spec.user.as_str()), (1, "web"));
            guest.say(&started(1));
            let mut input = Vec::new();
            streams[0].read_to_end(&mut input).unwrap();
            streams[1].write_all(&input).unwrap();
            streams[2].write_all(b"err").unwrap();
            drop(streams);
            guest.say(&ended(1, 3));
            // The next one has another number.
            let (process, ..) = begun(&mut guest);
            assert_eq!(process, 2);
            guest.say(&FromAgent::StartFailed {
                process,
                kind: StartFailure::NotFound,
                message: "exec: not there".into(),
            });
            finish(guest, first);
        },
        async |mut client| {
            client.start(true).await;
            let mut exec = bench.connect().await;
            exec.ask(Request::Exec(Box::new(request(&[])))).await;
            assert!(matches!(exec.hear().await, Reply::Failed { code: 125, .. }));
            let mut exec = bench.connect().await;
            exec.ask(Request::Exec(Box::new(ExecRequest {
                stdin: true,
                ..request(&["cat"])
            })))
            .await;
            assert_eq!(exec.hear().await, Reply::ExecStarted { took_us: 1 });
            exec.ask(Request::Stdin(b"in".to_vec())).await;
            exec.ask(Request::StdinEnd).await;
            let mut output = [exec.hear().await, exec.hear().await];
            output.sort_by_key(|reply| matches!(reply, Reply::Stderr(_)));
            assert_eq!(
                output,
                [Reply::Stdout(b"in".to_vec()), Reply::Stderr(b"err".to_vec())]
            );
            assert_eq!(exec.hear().await, Reply::Ended { code: 3 });
            let mut exec = bench.connect().await;
            exec.ask(Request::Exec(Box::new(request(&["nope"])))).await;
            let message = "exec: not there".to_owned();
            assert_eq!(exec.hear().await, Reply::Failed { code: 127, message });
            assert_eq!(client.exit().await.code, 0);
        },
    );
    // None of it is the sandbox's own output.
    assert_eq!(bench.log(), "");
    bench.assert_clean();
}

#[test]
fn the_end_of_the_sandbox_is_the_end_of_all_processes() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            let first = guest.start();
            let (process, _, mut streams) = begun(&mut guest);
            guest.say(&started(process));
            streams[0].write_all(b"last").unwrap();
            drop(streams);
            finish(guest, first);
        },
        async |mut client| {
            client.start(true).await;
            let mut exec = bench.connect().await;
            exec.ask(Request::Exec(Box::new(request(&["sleep"])))).await;
            assert_eq!(exec.hear().await, Reply::ExecStarted { took_us: 1 });
            assert_eq!(exec.hear().await, Reply::Stdout(b"last".to_vec()));
            assert_eq!(exec.hear().await, Reply::Ended { code: 137 });
            assert_eq!(client.exit().await.code, 0);
        },
    );
    bench.assert_clean();
}

#[test]
fn a_client_that_leaves_takes_the_streams_along_and_one_that_detaches_does_not() {
    let bench = Bench::new(|_| {});
    let size = WindowSize { rows: 1, columns: 2 };
    let other = WindowSize { rows: 3, columns: 4 };
    bench.run(
        move |mut guest| {
            let first = guest.start();
            let (process, spec, mut streams) = begun(&mut guest);
            assert_eq!((process, spec.tty), (1, Some(size)));
            guest.say(&started(1));
            assert_eq!(
                guest.hear(),
                Some(ToAgent::Resize {
                    process: 1,
                    size: other
                })
            );
            let mut rest = Vec::new();
            for stream in &mut streams {
                stream.read_to_end(&mut rest).unwrap();
            }
            guest.say(&ended(1, 129));
            let (process, _, mut streams) = begun(&mut guest);
            guest.say(&started(process));
            // It goes on, and what it writes is taken.
            streams[1].write_all(&vec![7; 1 << 20]).unwrap();
            streams[0].set_nonblocking(true).unwrap();
            let open = streams[0].read(&mut [0]).unwrap_err();
            assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
            drop(streams);
            guest.say(&ended(process, 0));
            // Nothing is written to one that was begun without a client.
            let (process, _, mut streams) = begun(&mut guest);
            guest.say(&started(process));
            streams[0].write_all(&vec![7; 1 << 20]).unwrap();
            drop(streams);
            finish(guest, first);
        },
        async |mut client| {
            client.start(true).await;
            let with_terminal = ExecRequest {
                stdin: true,
                tty: Some(size),
                ..request(&["sh"])
            };
            let mut exec = bench.connect().await;
            exec.ask(Request::Exec(Box::new(with_terminal.clone()))).await;
            assert_eq!(exec.hear().await, Reply::ExecStarted { took_us: 1 });
            exec.ask(Request::Resize(other)).await;
            drop(exec);
            let mut exec = bench.connect().await;
            exec.ask(Request::Exec(Box::new(with_terminal))).await;
            assert_eq!(exec.hear().await, Reply::ExecStarted { took_us: 1 });
            exec.ask(Request::Detach).await;
            drop(exec);
            let mut exec = bench.connect().await;
            let detach = ExecRequest {
                detach: true,
                ..request(&["x"])
            };
            exec.ask(Request::Exec(Box::new(detach))).await;
            assert_eq!(exec.hear().await, Reply::ExecStarted { took_us: 1 });
            assert!(exec.replies.next().await.is_err());
            assert_eq!(client.exit().await.code, 0);
        },
    );
    bench.assert_clean();
}

#[test]
fn a_client_that_takes_nothing_holds_its_own_process_and_nobody_else() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            let first = guest.start();
            let (process, _, mut streams) = begun(&mut guest);
            guest.say(&started(process));
            streams[0].set_nonblocking(true).unwrap();
            let mut written = 0;
            let block = vec![1; 64 << 10];
            let mut still = 0;
            // More than all buffers on the way hold is never taken.
            while still < 20 {
                if let Ok(count) = streams[0].write(&block) {
                    (written, still) = (written + count, 0);
                } else {
                    still += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
                assert!(written < 8 << 20);
            }
            let (other, _, mut more) = begun(&mut guest);
            guest.say(&started(other));
            more[0].write_all(b"quick").unwrap();
            drop(more);
            guest.say(&ended(other, 0));
            // The client of the first has left by the time that this is read.
            assert!(matches!(streams[0].set_nonblocking(false), Ok(())));
            assert_eq!(streams[0].read(&mut [0]).unwrap_or(0), 0);
            finish(guest, first);
        },
        async |mut client| {
            client.start(true).await;
            let mut stalled = bench.connect().await;
            stalled.ask(Request::Exec(Box::new(request(&["yes"])))).await;
            assert_eq!(stalled.hear().await, Reply::ExecStarted { took_us: 1 });
            let mut quick = bench.connect().await;
            quick.ask(Request::Exec(Box::new(request(&["x"])))).await;
            assert_eq!(quick.hear().await, Reply::ExecStarted { took_us: 1 });
            assert_eq!(quick.hear().await, Reply::Stdout(b"quick".to_vec()));
            assert_eq!(quick.hear().await, Reply::Ended { code: 0 });
            drop(stalled);
            assert_eq!(client.exit().await.code, 0);
        },
    );
}

#[test]
fn a_first_process_with_a_terminal_has_one_output_and_keeps_its_input() {
    let bench = Bench::new(|config| (config.stdin, config.stdin_once, config.tty) = (true, true, true));
    let size = WindowSize { rows: 5, columns: 6 };
    bench.run(
        move |mut guest| {
            guest.hello();
            let (header, mut stdin) = guest.connection().unwrap();
            assert_eq!(header, StreamHeader::Stdin { process: 0 });
            let (header, mut stdout) = guest.connection().unwrap();
            assert_eq!(header, StreamHeader::Stdout { process: 0 });
            assert!(matches!(guest.hear(), Some(ToAgent::Start(spec)) if spec.process.tty == Some(size)));
            guest.say(&FromAgent::Started {
                process: 0,
                pid: 1,
                took_us: 1,
            });
            assert_eq!(guest.hear(), Some(ToAgent::Resize { process: 0, size }));
            // From the second client: the first has left, which ends nothing.
            let mut typed = [0; 4];
            stdin.read_exact(&mut typed).unwrap();
            stdout.write_all(&typed).unwrap();
            drop(stdout);
            guest.say(&exited(0));
            shut_down(guest);
        },
        async |mut client| {
            client
                .ask(Request::Start {
                    attach: true,
                    discard: false,
                    cold: false,
                    count: false,
                    size: Some(size),
                })
                .await;
            assert_eq!(client.hear().await, Reply::Started);
            client.ask(Request::StdinEnd).await;
            drop(client);
            let mut second = bench.connect().await;
            second.ask(Request::Attach).await;
            second.ask(Request::Resize(size)).await;
            second.ask(Request::Stdin(b"ls -".to_vec())).await;
            assert_eq!(second.hear().await, Reply::Stdout(b"ls -".to_vec()));
            assert_eq!(second.exit().await.code, 0);
        },
    );
}
