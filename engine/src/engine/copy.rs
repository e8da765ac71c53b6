//! Files into and out of sandboxes, running or not.
//!
//! A tool of the agent's does the work at the sandbox's end ([`brig_protocol::tool`]). Of a sandbox that does not run a guest with its disks, or a
//! cell with its directories, is started for that alone, and the sandbox's lock is held meanwhile. What comes out is a
//! stream that the sandbox may have chosen, byte by byte.

use std::{fs::File, time::Duration};

use brig_protocol::{
    agent::{FromAgent, ToAgent},
    spec::RootSpec,
    tool::Tool,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    time::timeout,
};

use super::{Engine, LOCK_REST, LOCK_TRIES, Message, Session};
use crate::{
    Error, Isolation,
    cell::HostIds,
    clock::Timing,
    console::Console,
    control::CHUNK_BYTES,
    disk,
    error::{chain, one_line, start_failure_code},
    guest::{CellPlan, Disk, Failure, Guest, is_idle_talk},
    host::Machine,
    sandbox::{Sandbox, lock::Lock},
    supervisor::{Streams, make_layer},
    unpack::{self, Report, failure_of, guest_for},
};

/// Most bytes of an agent's complaint that are kept.
const COMPLAINT_BYTES: usize = 4096;

/// How long a guest may take to write everything to its disk and stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// The number of the tool in a guest that does nothing else.
const TOOL: u32 = 1;

/// What goes in, and who takes what comes out. Dropping the input's sender ends it.
pub struct Pipes<'a> {
    /// For standard input, in pieces.
    pub input: mpsc::Receiver<Vec<u8>>,
    /// Takes standard output.
    pub output: &'a mut dyn FnMut(&[u8]) -> Result<(), Error>,
}

impl Engine {
    /// Has the agent of a sandbox, which runs or not, do what `tool` says. Dropping the future ends that.
    ///
    /// # Errors
    /// [`Error::Copy`] with what the agent says; those of starting a guest; those of the output.
    pub async fn copy(
        &self,
        reference: &str,
        tool: Tool,
        cold: bool,
        report: &mut dyn FnMut(Report),
        mut pipes: Pipes<'_>,
    ) -> Result<(), Error> {
        let sandbox = self.find(reference)?;
        let action = match tool {
            Tool::Write { .. } => "extract-to-dir",
            _ => "archive-path",
        };
        let writes = matches!(tool, Tool::Write { .. });
        for _ in 0..LOCK_TRIES {
            let sandbox = self.registry.load(sandbox.id())?;
            let lock = if sandbox.is_running() {
                let session = self.begin_tool(&sandbox, reference, tool).await?;
                self.note(&sandbox, action, &[]);
                return in_running(reference, session, &mut pipes).await;
            } else {
                Lock::try_take(&self.registry.directory(sandbox.id()).lock())?
            };
            if let Some(_held) = lock {
                let (guest, root) = self.stopped(reference, &sandbox, writes, cold, report).await?;
                self.note(&sandbox, action, &[]);
                return in_stopped(reference, guest, root, tool, &mut pipes).await;
            }
            // It is just starting or ending.
            tokio::time::sleep(LOCK_REST).await;
        }
        Err(Error::AlreadyRunning(reference.to_owned()))
    }

    /// A guest or cell with the files of a sandbox that does not run, whose lock the caller holds.
    async fn stopped(
        &self,
        reference: &str,
        sandbox: &Sandbox,
        writes: bool,
        cold: bool,
        report: &mut dyn FnMut(Report),
    ) -> Result<(Guest, RootSpec), Error> {
        let image = self.image_of(sandbox)?;
        let options = unpack::Options {
            cold,
            ..unpack::Options::default()
        };
        let directory = self.registry.directory(sandbox.id());
        if sandbox.config.isolation == Isolation::Container {
            let ids = HostIds::look_up();
            ids.check()?;
            let (image, _) =
                unpack::ensure_directory(&self.host, &self.store, &image, options, report).await?;
            let plan = CellPlan {
                image,
                layer: make_layer(&directory, &ids)?,
                ids: ids.map().clone(),
                devices: Vec::new(),
                volumes: Vec::new(),
                cgroups: None,
            };
            let host = Machine::new(&self.paths).of_sandbox(sandbox.id());
            let guest = Guest::enter(&host, plan, Console::default(), &mut Timing::default()).await?;
            return Ok((guest, RootSpec::Cell));
        }
        let (image, _) =
            unpack::ensure(&self.paths, &self.host, &self.store, &image, options, report).await?;
        let path = directory.disk();
        if !path.exists() {
            // What its process goes on from at its first start has a disk of its own.
            if sandbox.config.snapshot.is_some() {
                return Err(Error::Copy {
                    name: reference.to_owned(),
                    reason: "it goes on from a snapshot and has not been started: start it before".to_owned(),
                });
            }
            let blank = disk::open_blank(&self.paths.templates())?;
            if writes {
                disk::copy_whole(&blank, &path)?;
            } else {
                let unnamed = disk::copy_unnamed(&blank, &self.paths.templates())?;
                return self.guest_of(&image, &|| unnamed.try_clone(), cold, report).await;
            }
        }
        let open = || File::options().read(true).write(true).open(&path);
        self.guest_of(&image, &open, cold, report).await
    }

    async fn guest_of(
        &self,
        image: &File,
        disk: &dyn Fn() -> std::io::Result<File>,
        cold: bool,
        report: &mut dyn FnMut(Report),
    ) -> Result<(Guest, RootSpec), Error> {
        let disks = || {
            let image = image.try_clone().and_then(|file| Disk::whole(file, false));
            let disk = disk().and_then(|file| Disk::whole(file, true));
            Ok([image.map_err(Error::Runtime)?, disk.map_err(Error::Runtime)?])
        };
        let (guest, writable) = guest_for(&self.paths, &self.host, &disks, cold, report).await?;
        Ok((guest, RootSpec::Disks { image: 0, writable }))
    }
}

/// What a tool has said against its work.
#[derive(Default)]
struct Complaint(Vec<u8>);

impl Complaint {
    fn add(&mut self, bytes: &[u8]) {
        let room = COMPLAINT_BYTES.saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// What came of the tool, which ended with this exit code.
    fn result(self, reference: &str, code: i32) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&self.0).trim().to_owned();
        let reason = if said.is_empty() {
            "the sandbox has ended".to_owned()
        } else {
            one_line(&said, COMPLAINT_BYTES)
        };
        Err(Error::Copy {
            name: reference.to_owned(),
            reason,
        })
    }
}

async fn in_running(reference: &str, session: Session, pipes: &mut Pipes<'_>) -> Result<(), Error> {
    let Session {
        mut input,
        mut output,
    } = session;
    let mut complaint = Complaint::default();
    let mut more = true;
    loop {
        tokio::select! {
            piece = pipes.input.recv(), if more => {
                // Why it takes no more is said below.
                more = if let Some(bytes) = piece {
                    input.write_stdin(&bytes).await.is_ok()
                } else {
                    let _ = input.close_stdin().await;
                    false
                };
            }
            message = output.next() => match message? {
                Message::Stdout(bytes) => (pipes.output)(&bytes)?,
                Message::Stderr(bytes) => complaint.add(&bytes),
                Message::Ended(code) => return complaint.result(reference, code),
                Message::Exited(_) => return complaint.result(reference, 1),
            },
        }
    }
}

async fn in_stopped(
    reference: &str,
    mut guest: Guest,
    root: RootSpec,
    tool: Tool,
    pipes: &mut Pipes<'_>,
) -> Result<(), Error> {
    let is_cell = root == RootSpec::Cell;
    let done = match at_work(reference, &mut guest, root, tool, pipes).await {
        Ok(done) => done,
        Err(failure) => {
            let error = guest.explain(failure).await;
            return Err(Error::Copy {
                name: reference.to_owned(),
                reason: chain(&error),
            });
        }
    };
    if !is_cell {
        let _ = timeout(SHUTDOWN_TIMEOUT, guest.shut_down()).await;
    }
    guest.vmm.kill().await;
    done
}

async fn at_work(
    reference: &str,
    guest: &mut Guest,
    root: RootSpec,
    tool: Tool,
    pipes: &mut Pipes<'_>,
) -> Result<Result<(), Error>, Failure> {
    let Ok(streams) = Streams::connect(&guest.vmm.channel, TOOL, true, false).await else {
        return Err(guest.last_event().await);
    };
    let message = ToAgent::Tool {
        process: TOOL,
        tool,
        root: Some(root),
    };
    // A guest that has just failed says why below.
    let _ = guest.tell(&message).await;
    let Streams {
        mut stdin,
        mut stdout,
        mut stderr,
    } = streams;
    let (mut out, mut err) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut complaint = Complaint::default();
    let (mut more, mut stdout_open, mut code) = (true, true, None);
    // Its end is told once everything that it wrote is on its way.
    while code.is_none() || stdout_open || stderr.is_some() {
        tokio::select! {
            piece = pipes.input.recv(), if more && code.is_none() => match (piece, &mut stdin) {
                (Some(bytes), Some(socket)) => {
                    // Why it takes no more is said below.
                    more = socket.write_all(&bytes).await.is_ok();
                }
                (Some(_), None) => more = false,
                (None, Some(socket)) => {
                    let _ = socket.shutdown().await;
                    // It stays open until the agent has taken what is on its way.
                    more = false;
                }
                (None, None) => more = false,
            },
            read = stdout.read(&mut out), if stdout_open => match read {
                Ok(count) if count > 0 => {
                    if let Err(error) = (pipes.output)(&out[..count]) {
                        return Ok(Err(error));
                    }
                }
                _ => stdout_open = false,
            },
            read = next(&mut stderr, &mut err) => match read {
                0 => stderr = None,
                count => complaint.add(&err[..count]),
            },
            message = guest.from_agent.next(), if code.is_none() => match message {
                Ok(FromAgent::Exited { process: TOOL, status }) => code = Some(status.code()),
                Ok(FromAgent::StartFailed { process: TOOL, kind, message }) => {
                    complaint.add(message.as_bytes());
                    return Ok(complaint.result(reference, start_failure_code(kind)));
                }
                Ok(_) => {}
                Err(_) => return Err(guest.last_event().await),
            },
            event = guest.vmm.channel.event() => match event {
                Ok(event) if is_idle_talk(&event) => {}
                event => return Err(failure_of(event)),
            },
        }
    }
    Ok(complaint.result(reference, code.unwrap_or(1)))
}

async fn next(socket: &mut Option<UnixStream>, buffer: &mut [u8]) -> usize {
    match socket {
        Some(socket) => socket.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}
