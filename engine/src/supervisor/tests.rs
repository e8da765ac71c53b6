//! A supervisor against a VMM and an agent that a thread plays.

mod exec;
mod health;
mod snapshot;
mod template;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use brig_protocol::{
    agent::{ExitStatus, FromAgent, StartFailure, ToAgent},
    stream::StreamHeader,
    vmm::{Event, StopReason},
};
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::{
    control::Request,
    frames::FrameReader,
    sandbox::{Sandbox, Status},
    test_support::{FakeVmm, PlayedGuest, config, paths},
};

/// A sandbox whose supervisor runs in a thread, and the connection of the one who starts it.
struct Bench {
    paths: Paths,
    registry: Registry,
    id: SandboxId,
    _temporary: TempDir,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let (temporary, paths) = paths();
        let registry = Registry::new(paths.sandboxes());
        let make = |id, name| {
            let mut config = config(id, name);
            change(&mut config);
            config
        };
        let made = registry
            .create(SandboxId::random().unwrap(), None, make, |directory| {
                std::fs::write(directory.disk(), "").map_err(Error::file("make", &directory.disk()))
            })
            .unwrap();
        Self {
            paths,
            registry,
            id: made.id,
            _temporary: temporary,
        }
    }

    /// Runs a supervisor whose guests follow `script`, and `client` against it, both to their ends.
    fn run<F: Future<Output = ()>>(
        &self,
        script: impl Fn(PlayedGuest) + Send + Sync + 'static,
        client: impl FnOnce(Client) -> F,
    ) {
        self.run_refusing(None, script, client);
    }

    /// As [`Self::run`], with a VMM that answers a restore so.
    fn run_refusing<F: Future<Output = ()>>(
        &self,
        refusal: Option<Event>,
        script: impl Fn(PlayedGuest) + Send + Sync + 'static,
        client: impl FnOnce(Client) -> F,
    ) {
        let walled_in: Arc<AtomicUsize> = Arc::default();
        let closed = Arc::clone(&walled_in);
        let host = FakeVmm::new(move |player| {
            if let Some(guest) = player.begin_unless(refusal.as_ref()) {
                assert_eq!(
                    closed.load(Ordering::SeqCst),
                    1,
                    "a guest says nothing before the walls are closed"
                );
                script(guest);
            }
        });
        self.run_on(host.counting(&walled_in), client);
    }

    /// As [`Self::run`], on another host.
    fn run_on<F: Future<Output = ()>>(&self, host: FakeVmm, client: impl FnOnce(Client) -> F) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (paths, id) = (self.paths.clone(), self.id.clone());
        let supervisor = std::thread::spawn(move || {
            in_runtime(async {
                theirs.set_nonblocking(true).unwrap();
                let starter = UnixStream::from_std(theirs).unwrap();
                supervise(&paths, &id, Likely::Vm(None), starter, &host).await;
            });
        });
        in_runtime(async {
            ours.set_nonblocking(true).unwrap();
            client(Client::new(UnixStream::from_std(ours).unwrap())).await;
        });
        supervisor.join().unwrap();
    }

    async fn connect(&self) -> Client {
        Client::new(control::connect(&self.paths.runtime, &self.id).await.unwrap())
    }

    fn sandbox(&self) -> Sandbox {
        self.registry.load(&self.id).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.registry.directory(&self.id).log()).unwrap()
    }

    /// The names of the sandbox's files, without those that say what happened.
    fn files(&self) -> Vec<String> {
        let directory = self.registry.directory(&self.id);
        let logs = [directory.log(), directory.console(), directory.supervisor_log()];
        let entries = std::fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| !logs.contains(path))
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// Nothing but the sandbox's own files is left.
    fn assert_clean(&self) {
        assert!(!control::socket_path(&self.paths.runtime, &self.id).exists());
        // A process that another test forks has a copy of the lock until its exec.
        let deadline = Instant::now() + Duration::from_secs(20);
        while Lock::try_take(&self.registry.directory(&self.id).lock())
            .unwrap()
            .is_none()
        {
            assert!(Instant::now() < deadline, "the sandbox is still locked");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(super) fn in_runtime(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(LocalSet::new().run_until(future));
}

struct Client {
    replies: FrameReader<tokio::net::unix::OwnedReadHalf, Reply>,
    requests: tokio::net::unix::OwnedWriteHalf,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        let (read, requests) = stream.into_split();
        Self {
            replies: FrameReader::new(read, FRAME_BYTES),
            requests,
        }
    }

    async fn ask(&mut self, request: Request) {
        frames::write(&mut self.requests, &request, FRAME_BYTES)
            .await
            .unwrap();
    }

    async fn hear(&mut self) -> Reply {
        self.replies.next().await.unwrap()
    }

    async fn ask_to_start(&mut self, attach: bool) {
        self.ask(Request::Start {
            attach,
            discard: false,
            cold: false,
            count: false,
            size: None,
        })
        .await;
    }

    /// Starts the sandbox and waits until it runs.
    async fn start(&mut self, attach: bool) {
        self.ask_to_start(attach).await;
        assert_eq!(self.hear().await, Reply::Started);
    }

    async fn exit(&mut self) -> Exit {
        match self.hear().await {
            Reply::Exited(exit) => *exit,
            other => panic!("{other:?}"),
        }
    }
}

fn exited(code: u8) -> FromAgent {
    FromAgent::Exited {
        process: 0,
        status: ExitStatus::Code(code),
    }
}

/// Plays the end of a guest that was told to shut down.
fn shut_down(mut guest: PlayedGuest) {
    assert_eq!(guest.hear(), Some(ToAgent::Shutdown));
    guest.event(&Event::Stopped(StopReason::Reset));
}

#[test]
fn output_status_and_times_come_through() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            let (mut stdout, mut stderr) = guest.start();
            stdout.write_all(b"out\n").unwrap();
            stderr.write_all(b"err\n").unwrap();
            drop((stdout, stderr));
            guest.say(&exited(7));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            let mut output = [client.hear().await, client.hear().await];
            output.sort_by_key(|reply| matches!(reply, Reply::Stderr(_)));
            assert_eq!(
                output,
                [Reply::Stdout(b"out\n".to_vec()), Reply::Stderr(b"err\n".to_vec())]
            );
            let exit = client.exit().await;
            assert_eq!((exit.code, exit.error), (7, None));
            assert_eq!((exit.timing.vmm_ns, exit.timing.entry_ns), (Some(1), Some(2)));
            assert!(exit.timing.exec_ns < exit.timing.exit_ns);
        },
    );
    let state = bench.sandbox().state;
    assert_eq!((state.status, state.exit_code), (Status::Exited, 7));
    assert!(bench.log().contains(r#""log":"out\n","stream":"stdout""#));
    bench.assert_clean();
}

#[test]
fn a_sandbox_with_rm_is_gone_at_its_end_and_its_guest_is_not_asked_to_shut_down() {
    let bench = Bench::new(|config| config.auto_remove = true);
    bench.run(
        |mut guest| {
            drop(guest.start());
            guest.say(&exited(0));
            assert_eq!(guest.hear(), None);
        },
        async |mut client| {
            client.start(true).await;
            assert_eq!(client.exit().await.code, 0);
        },
    );
    assert!(matches!(
        bench.registry.load(&bench.id),
        Err(Error::NoSuchSandbox(_))
    ));
}

#[test]
fn standard_input_reaches_the_process_and_ends() {
    let bench = Bench::new(|config| (config.stdin, config.stdin_once) = (true, true));
    bench.run(
        |mut guest| {
            guest.hello();
            let (header, mut stdin) = guest.connection().unwrap();
            assert_eq!(header, StreamHeader::Stdin { process: 0 });
            let outputs = [guest.connection().unwrap(), guest.connection().unwrap()];
            assert!(matches!(guest.hear(), Some(ToAgent::Start(spec)) if spec.process.stdin));
            guest.say(&FromAgent::Started {
                process: 0,
                pid: 1,
                took_us: 1,
            });
            let mut input = Vec::new();
            stdin.read_to_end(&mut input).unwrap();
            drop(outputs);
            guest.say(&exited(input.len() as u8));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            client.ask(Request::Stdin(b"hello".to_vec())).await;
            client.ask(Request::StdinEnd).await;
            assert_eq!(client.exit().await.code, 5);
        },
    );
}

#[test]
fn a_program_that_is_not_there_leaves_a_created_sandbox_with_127() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            guest.hello();
            assert!(guest.connection().is_some() && guest.connection().is_some());
            assert!(matches!(guest.hear(), Some(ToAgent::Start(_))));
            let message = "exec /nope: no such file or directory\x1b[2J".to_owned();
            guest.say(&FromAgent::StartFailed {
                process: 0,
                kind: StartFailure::NotFound,
                message,
            });
            guest.wait_for_end();
        },
        async |mut client| {
            client.ask_to_start(true).await;
            let message = "exec /nope: no such file or directory [2J".to_owned();
            assert_eq!(client.hear().await, Reply::Failed { code: 127, message });
        },
    );
    let state = bench.sandbox().state;
    assert_eq!((state.status, state.exit_code), (Status::Created, 127));
    bench.assert_clean();
}

#[test]
fn a_stop_sends_the_signal_and_tells_the_end() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            let streams = guest.start();
            assert_eq!(
                guest.hear(),
                Some(ToAgent::Signal {
                    process: 0,
                    signal: 15
                })
            );
            drop(streams);
            guest.say(&exited(0));
            shut_down(guest);
        },
        async |mut client| {
            client.start(false).await;
            let mut other = bench.connect().await;
            other
                .ask(Request::Stop {
                    signal: 15,
                    timeout_s: Some(100),
                    with_host: false,
                })
                .await;
            assert_eq!(other.exit().await.code, 0);
        },
    );
}

#[test]
fn a_process_that_is_deaf_to_the_stop_signal_is_killed() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            let streams = guest.start();
            assert_eq!(
                guest.hear(),
                Some(ToAgent::Signal {
                    process: 0,
                    signal: 15
                })
            );
            assert_eq!(
                guest.hear(),
                Some(ToAgent::Signal {
                    process: 0,
                    signal: 9
                })
            );
            drop(streams);
            guest.say(&FromAgent::Exited {
                process: 0,
                status: ExitStatus::Signal(9),
            });
            shut_down(guest);
        },
        async |mut client| {
            client.start(false).await;
            let mut other = bench.connect().await;
            other
                .ask(Request::Stop {
                    signal: 15,
                    timeout_s: Some(0),
                    with_host: false,
                })
                .await;
            assert_eq!(other.exit().await.code, 137);
        },
    );
    assert_eq!(bench.sandbox().state.exit_code, 137);
}

#[test]
fn a_kill_ends_a_guest_that_answers_nothing() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            let _streams = guest.start();
            guest.wait_for_end();
        },
        async |mut client| {
            client.start(true).await;
            let mut other = bench.connect().await;
            other.ask(Request::Kill).await;
            assert_eq!(other.exit().await.code, 137);
            assert_eq!(client.exit().await.code, 137);
        },
    );
    bench.assert_clean();
}

#[test]
fn a_signal_is_passed_on_and_confirmed() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            drop(guest.start());
            assert_eq!(
                guest.hear(),
                Some(ToAgent::Signal {
                    process: 0,
                    signal: 10
                })
            );
            guest.say(&exited(1));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            let mut other = bench.connect().await;
            other.ask(Request::Signal(10)).await;
            assert_eq!(other.hear().await, Reply::Done);
            assert_eq!(client.exit().await.code, 1);
        },
    );
}

#[test]
fn a_vmm_that_vanishes_ends_the_sandbox_with_255_and_the_kernels_last_words() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            let _streams = guest.start();
            guest
                .console
                .write_all(b"[ 1.0] Kernel panic - not syncing: Fatal exception\n")
                .unwrap();
            guest.event(&Event::Stopped(StopReason::Reset));
        },
        async |mut client| {
            client.start(true).await;
            let exit = client.exit().await;
            assert_eq!(exit.code, 255);
            assert!(
                exit.error
                    .unwrap()
                    .contains("Kernel panic - not syncing: Fatal exception")
            );
        },
    );
    assert_eq!(bench.sandbox().state.exit_code, 255);
    bench.assert_clean();
}

#[test]
fn a_guest_that_panics_in_its_boot_is_a_failed_start() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            guest
                .console
                .write_all(b"[ 0.1] Kernel panic - not syncing: No working init found.\n")
                .unwrap();
            guest.event(&Event::Stopped(StopReason::Reset));
        },
        async |mut client| {
            client
                .ask(Request::Start {
                    attach: true,
                    discard: false,
                    cold: false,
                    count: false,
                    size: None,
                })
                .await;
            let Reply::Failed { code: 125, message } = client.hear().await else {
                panic!("it failed")
            };
            assert!(message.contains("No working init found."), "{message}");
        },
    );
}

#[test]
fn an_exit_that_was_told_before_the_vmm_ended_counts() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            drop(guest.start());
            guest.event(&Event::Stopped(StopReason::Reset));
            guest.say(&exited(3));
        },
        async |mut client| {
            client.start(true).await;
            assert_eq!(client.exit().await.code, 3);
        },
    );
}

#[test]
fn an_agent_that_breaks_the_protocol_ends_its_sandbox_only() {
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        b"\x01\x00\x00\x00\xff",
        b"\x00\x00\x00\x00",
    ] {
        let bench = Bench::new(|_| {});
        bench.run(
            move |mut guest| {
                let _streams = guest.start();
                guest.say_bytes(bytes);
                guest.wait_for_end();
            },
            async |mut client| {
                client.start(true).await;
                let exit = client.exit().await;
                assert_eq!(exit.code, 255);
                assert!(exit.error.unwrap().contains("broke the protocol"));
            },
        );
        bench.assert_clean();
    }
}

#[test]
fn a_starter_that_leaves_gives_the_start_up_and_may_take_the_sandbox_along() {
    for discard in [true, false] {
        let bench = Bench::new(|_| {});
        bench.run(PlayedGuest::never_ready, async |mut client| {
            client
                .ask(Request::Start {
                    attach: true,
                    discard,
                    cold: false,
                    count: false,
                    size: None,
                })
                .await;
            drop(client);
        });
        assert_eq!(bench.registry.load(&bench.id).is_err(), discard);
    }
}

#[test]
fn a_starter_that_leaves_before_it_asks_has_done_nothing() {
    let bench = Bench::new(|_| {});
    bench.run(|_| panic!("no guest is needed"), async |client| drop(client));
    assert_eq!(bench.sandbox().state, State::created());
    assert!(!bench.registry.directory(&bench.id).log().exists());
    bench.assert_clean();
}

#[test]
fn a_stop_gives_up_a_start() {
    let bench = Bench::new(|_| {});
    let begun = Arc::new(Notify::new());
    let begin = Arc::clone(&begun);
    let script = move |guest: PlayedGuest| {
        begin.notify_one();
        guest.never_ready();
    };
    bench.run(script, async |mut client| {
        client.ask_to_start(true).await;
        // There is a control socket by then.
        begun.notified().await;
        let mut other = bench.connect().await;
        other
            .ask(Request::Stop {
                signal: 15,
                timeout_s: Some(10),
                with_host: false,
            })
            .await;
        assert_eq!(other.exit().await.code, 125);
        assert_eq!(client.exit().await.code, 125);
    });
    assert_eq!(bench.sandbox().state.status, Status::Created);
}

#[test]
fn a_second_supervisor_is_refused() {
    let bench = Bench::new(|_| {});
    let _lock = Lock::try_take(&bench.registry.directory(&bench.id).lock()).unwrap();
    bench.run(drop, async |mut client| {
        client.ask_to_start(true).await;
        let Reply::Failed { code: 125, message } = client.hear().await else {
            panic!("it is refused")
        };
        assert!(message.contains("already running"), "{message}");
    });
}

#[test]
fn a_port_in_use_fails_the_start_before_there_is_a_guest() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let bench = Bench::new(|config| {
        config.ports = crate::port::parse(&format!("127.0.0.1:{port}:80")).unwrap();
    });
    bench.run(
        |_| panic!("no guest is needed"),
        async |mut client| {
            client.ask_to_start(true).await;
            let Reply::Failed { code: 125, message } = client.hear().await else {
                panic!("it fails")
            };
            assert!(message.contains("already in use"), "{message}");
        },
    );
    assert!(bench.sandbox().state.error.unwrap().contains("already in use"));
}

#[test]
fn an_answer_about_ports_is_for_all_who_wait_and_nobody_waits_for_ever() {
    let bench = Bench::new(|_| {});
    let traffic = Traffic {
        received: 5,
        sent: u64::MAX,
    };
    bench.run(
        move |mut guest| {
            let streams = guest.start();
            // Nobody has asked.
            guest.say(&FromAgent::Traffic(Traffic::default()));
            assert_eq!(guest.hear(), Some(ToAgent::Traffic));
            assert_eq!(guest.hear(), Some(ToAgent::Traffic));
            guest.say(&FromAgent::Traffic(traffic));
            assert_eq!(guest.hear(), Some(ToAgent::Traffic));
            guest.wait_for_end();
            drop(streams);
        },
        async |mut client| {
            client.start(false).await;
            let [mut one, mut other] = [bench.connect().await, bench.connect().await];
            one.ask(Request::Traffic).await;
            other.ask(Request::Traffic).await;
            assert_eq!(one.hear().await, Reply::Traffic(traffic));
            assert_eq!(other.hear().await, Reply::Traffic(traffic));
            // The same connection asks again.
            one.ask(Request::Traffic).await;
            let silent = one.hear().await;
            assert!(
                matches!(&silent, Reply::Failed { message, .. } if message.contains("does not answer")),
                "{silent:?}"
            );
            other.ask(Request::Kill).await;
        },
    );
}

#[test]
fn an_accepted_connection_is_handed_to_the_vmm_as_it_is() {
    let bench = Bench::new(|config| config.ports = crate::port::parse("127.0.0.1::80").unwrap());
    let echoed = Arc::new(Mutex::new(Vec::new()));
    bench.run(
        |mut guest| {
            let streams = guest.start();
            let (header, mut socket) = guest.connection().unwrap();
            assert_eq!(header, StreamHeader::Tcp { port: 80 });
            let mut request = Vec::new();
            socket.read_to_end(&mut request).unwrap();
            request.reverse();
            socket.write_all(&request).unwrap();
            drop((socket, streams));
            guest.say(&exited(0));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            let address = bench.sandbox().state.ports[0].host;
            let mut socket = TcpStream::connect(address).unwrap();
            socket.write_all(b"abc").unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            socket.read_to_end(&mut echoed.lock().unwrap()).unwrap();
            assert_eq!(client.exit().await.code, 0);
            assert!(TcpStream::connect(address).is_err(), "the port is closed");
        },
    );
    assert_eq!(*echoed.lock().unwrap(), b"cba");
    assert!(bench.sandbox().state.ports.is_empty());
}

#[test]
fn a_stopped_sandbox_starts_again_and_its_log_goes_on() {
    let bench = Bench::new(|_| {});
    for _ in 0..2 {
        bench.run(
            |mut guest| {
                guest.start().0.write_all(b"again\n").unwrap();
                guest.say(&exited(0));
                shut_down(guest);
            },
            async |mut client| {
                client.start(true).await;
                assert_eq!(client.hear().await, Reply::Stdout(b"again\n".to_vec()));
                assert_eq!(client.exit().await.code, 0);
            },
        );
    }
    assert_eq!(bench.log().matches("again").count(), 2);
}
