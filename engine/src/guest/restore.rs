//! In place of a boot: a guest that was saved goes on.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use brig_protocol::{
    agent::{FromAgent, Identity, ToAgent, WakeSpec},
    frame::FrameError,
    stream::CONTROL_PORT,
    vmm::{Command, Event, FdIndex, IoLimits, RejoinConfig, RestoreConfig, SavedStream},
};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Begun, Disk, Failure, Guest, Kvm, Origin, describe_disks, is_idle_talk};
use crate::{
    Error,
    clock::{Timing, monotonic_ns},
    console::Console,
    error::chain,
    host::Host,
    id::random_bytes,
    template::{Cache, Key},
    vmm::VmmError,
};

/// How long the VMM may take to look through the guest's page tables.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// The file of a template that says which pages a start touches.
pub(crate) const PAGES: &str = "pages";

/// The files of a saved guest, open for reading.
#[derive(Debug)]
pub struct Saved {
    /// Its memory.
    pub memory: File,
    /// Everything else.
    pub state: File,
    /// The pages that a start touches, once a start has told.
    pub pages: Option<File>,
}

/// A saved guest that is to go on.
#[derive(Debug)]
pub struct SavedGuest {
    /// What was saved.
    pub saved: Saved,
    /// Its disks, as many as it had.
    pub disks: Vec<Disk>,
    /// How fast they are.
    pub io: IoLimits,
    /// Its connections that go on, beside the agent's, each with the far end of its new host end.
    pub streams: Vec<(SavedStream, OwnedFd)>,
    /// Who the sandbox in it is now; `None` when none ran in it.
    pub identity: Option<Identity>,
    /// Where it comes from.
    pub origin: Origin,
    /// `uname -r` in it.
    pub kernel: String,
}

impl Guest {
    /// Restores a guest and tells its agent so. What the agent is told from here on may already be sent; its
    /// [`FromAgent::Awake`] comes first, see [`Guest::awake`]. Dropping the future kills the guest.
    ///
    /// # Errors
    /// Each means that this saved guest cannot go on, apart from [`VmmError::Spawn`].
    pub async fn restore(
        host: &dyn Host,
        kvm: &Kvm,
        plan: SavedGuest,
        console: Console,
        timing: &mut Timing,
    ) -> Result<Self, Error> {
        timing.kvm = Some(kvm.kind);
        timing.origin = Some(plan.origin);
        let limit = host.wake_timeout(kvm.kind);
        let deadline = Instant::now() + limit;
        let begun = Begun::new(host, &console)?;
        // Before the VMM closes itself to its user: later only root may.
        let unrecorded = plan.origin == Origin::Template && plan.saved.pages.is_none();
        let page_map = unrecorded.then(|| host.page_map(&begun.vmm)).flatten();
        {
            let (config, files) = message(&plan, kvm, &begun);
            begun.vmm.channel.send(&Command::Restore(config), &files).await?;
        }
        let mut guest = Self {
            asleep_until: Some(deadline),
            page_map,
            ..begun.into_guest(console, plan.kernel)
        };
        let wake = match timeout_at(deadline, guest.restored(timing)).await {
            Ok(Ok(wake)) => wake,
            Ok(Err(failure)) => return Err(guest.explain(failure).await),
            Err(_) => {
                guest.vmm.kill().await;
                return Err(VmmError::Timeout(limit.as_secs()).into());
            }
        };
        let wake = WakeSpec {
            seed: random_bytes()?,
            identity: plan.identity,
            ..wake
        };
        // A guest that has just failed says why to the one who waits for its answer.
        let _ = guest.tell(&ToAgent::Wake(wake)).await;
        Ok(guest)
    }

    /// Waits for the VMM's word, and gives the clock that came with it.
    async fn restored(&mut self, timing: &mut Timing) -> Result<WakeSpec, Failure> {
        match self.vmm.channel.event().await {
            Ok(Event::Restored {
                main_ns,
                entry_ns,
                workarounds,
                tsc,
                realtime_ns,
                tsc_khz,
            }) => {
                timing.vmm_ns = Some(main_ns);
                timing.entry_ns = Some(entry_ns);
                timing.workarounds = workarounds;
                Ok(WakeSpec {
                    tsc,
                    realtime_ns,
                    tsc_khz,
                    seed: [0; 32],
                    identity: None,
                })
            }
            Ok(event) => Err(Failure::Event(event)),
            Err(_) => Err(Failure::Ended),
        }
    }

    /// Waits until the agent of a restored guest is awake. Cancel safe.
    pub(crate) async fn awake(&mut self, timing: &mut Timing) -> Result<(), Failure> {
        let Some(deadline) = self.asleep_until else {
            return Ok(());
        };
        match timeout_at(deadline, self.heard()).await {
            Ok(Ok(FromAgent::Awake)) => {
                timing.ready_ns = Some(monotonic_ns());
                self.asleep_until = None;
                Ok(())
            }
            Ok(Ok(_)) => Err(Failure::Agent("did not say that it is awake".into())),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::Agent("did not wake up in time".into())),
        }
    }

    /// Has the VMM write down which pages the guest has touched so far, when nothing is known about that yet. What goes wrong
    /// here costs later starts a little time and nothing else.
    pub(crate) async fn record_pages(&mut self, host: &dyn Host, cache: &Cache, key: &Key) {
        let Some(page_map) = self.page_map.take() else {
            return;
        };
        let Ok(file) = memfd_create(PAGES, MemfdFlags::CLOEXEC) else {
            return;
        };
        let files = [page_map.as_fd(), file.as_fd()];
        let recorded = async {
            self.vmm.channel.send(&Command::RecordPages, &files).await.ok()?;
            loop {
                match self.vmm.channel.event().await.ok()? {
                    Event::Recorded { pages } => return pages,
                    event if is_idle_talk(&event) => {}
                    _ => return None,
                }
            }
        };
        if let Ok(Some(_)) = timeout(RECORD_TIMEOUT, recorded).await {
            host.keep_pages(cache, key, file.into());
        }
    }

    /// The agent's next message, or how the guest failed before it. Cancel safe.
    pub(crate) async fn heard(&mut self) -> Result<FromAgent, Failure> {
        loop {
            tokio::select! {
                biased;
                message = self.from_agent.next() => return match message {
                    Ok(message) => Ok(message),
                    Err(FrameError::Closed | FrameError::Io(_)) => Err(self.last_event().await),
                    Err(e) => Err(Failure::Agent(format!("broke the protocol: {}", chain(&e)))),
                },
                event = self.vmm.channel.event() => match event {
                    Ok(event) if is_idle_talk(&event) => {}
                    Ok(event) => return Err(Failure::Event(event)),
                    Err(_) => return Err(Failure::Ended),
                },
            }
        }
    }
}

/// The restore command for `plan` and the descriptors that go with it.
fn message<'a>(plan: &'a SavedGuest, kvm: &'a Kvm, begun: &'a Begun) -> (RestoreConfig, Vec<BorrowedFd<'a>>) {
    let Saved { memory, state, pages } = &plan.saved;
    let mut files = vec![
        kvm.device.as_fd(),
        memory.as_fd(),
        state.as_fd(),
        begun.log.as_fd(),
        begun.control.as_fd(),
    ];
    let disks = describe_disks(&plan.disks, &mut files);
    let mut streams = vec![RejoinConfig {
        stream: SavedStream::ToHost { port: CONTROL_PORT },
        socket: 4,
    }];
    for (stream, socket) in &plan.streams {
        streams.push(RejoinConfig {
            stream: *stream,
            socket: files.len() as FdIndex,
        });
        files.push(socket.as_fd());
    }
    let prefetch = pages.as_ref().map(|pages| {
        files.push(pages.as_fd());
        (files.len() - 1) as FdIndex
    });
    let config = RestoreConfig {
        kvm: kvm.kind,
        memory: 1,
        state: 2,
        console: 3,
        disks,
        io: plan.io,
        streams,
        prefetch,
    };
    (config, files)
}
