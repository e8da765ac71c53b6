//! From a sandbox that does not run to a process that does: in a guest restored from a template where there is one, in
//! one that boots otherwise. A sandbox of a snapshot goes on from that at its first start.

use std::{
    fs::{self, File, OpenOptions},
    os::fd::OwnedFd,
    path::Path,
};

use brig_protocol::{
    agent::{FromAgent, Identity, ToAgent},
    stream::StreamHeader,
    vmm::SavedStream,
};
use tokio::net::UnixStream;

use crate::{
    Error, Paths,
    clock::{Stage, Timing, monotonic_ns},
    console::Console,
    disk::{self, DISK_BYTES},
    error::{chain, one_line, start_failure_code},
    guest::{Disk, Failure, Guest, Kvm, Origin, Plan, SavedGuest, stream_pair},
    host::Host,
    sandbox::{Config, Directory},
    snapshot::{Layout, Snapshot, Snapshots},
    spec::{FRESH_DISK, USED_DISK, files, sandbox_spec},
    template::{Cache, Found, Ingredients, Key, Shape, Template, dropped_notice},
    turns,
    vmm::VmmError,
};

/// Most characters of an agent's message that a user sees.
const AGENT_TEXT: usize = 1000;

/// Most characters of a kernel's release.
const KERNEL_TEXT: usize = 64;

/// A start and what it needs.
pub(super) struct Start<'a> {
    pub paths: &'a Paths,
    pub host: &'a dyn Host,
    pub config: &'a Config,
    pub directory: &'a Directory,
    /// Whether the guest shall boot, template or not.
    pub cold: bool,
    /// Whether what the guest costs is counted.
    pub count: bool,
    /// Takes a line for the user.
    pub notice: &'a dyn Fn(String),
}

/// A process that runs.
pub(super) struct Started {
    pub guest: Guest,
    pub streams: Streams,
    /// The guest's disks.
    pub layout: Layout,
    /// Bytes of the image.
    pub image_bytes: u64,
}

/// The near ends of the process's streams.
pub(super) struct Streams {
    pub stdin: Option<UnixStream>,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

/// Why a start from a template did not succeed.
enum Trouble {
    /// The template is to blame: a boot may succeed.
    Template(String),
    /// A boot would fail in the same way.
    Start(Error),
}

impl Start<'_> {
    /// Gets a guest and starts the process in it. Dropping the future kills the guest.
    pub async fn run(&self, timing: &mut Timing) -> Result<Started, Error> {
        let image = self.host.image(self.config)?;
        let image_bytes = image.metadata().map_err(Error::Runtime)?.len();
        // Held until the process runs.
        let _turn = turns::take(self.paths).await;
        let kvm = Kvm::open(self.paths, self.host).await?;
        let fresh = !self.directory.disk().exists();
        let (guest, streams, layout) = match &self.config.snapshot {
            Some(name) if fresh => self.resume(name, &kvm, image, timing).await?,
            _ => self.restore_or_boot(&kvm, image, fresh, timing).await?,
        };
        Ok(Started {
            guest,
            streams,
            layout,
            image_bytes,
        })
    }

    async fn restore_or_boot(
        &self,
        kvm: &Kvm,
        image: File,
        fresh: bool,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams, Layout), Error> {
        if !self.cold
            && !self.config.no_template
            && let Some((key, template)) = self.template(kvm)
        {
            let cache = Cache::new(self.paths);
            let image = image.try_clone().map_err(Error::Runtime)?;
            match self.restore(kvm, image, template, fresh, timing).await {
                Ok((mut guest, streams)) => {
                    cache.worked(&key);
                    guest.record_pages(&cache.path(&key)).await;
                    let layout = if fresh { Layout::Fresh } else { Layout::Used };
                    return Ok((guest, streams, layout));
                }
                Err(Trouble::Start(e)) => return Err(e),
                Err(Trouble::Template(reason)) => {
                    self.give_up(&cache, &key, &reason);
                    if fresh {
                        // What the guest made of it is nothing that anyone asked for.
                        let _ = fs::remove_file(self.directory.disk());
                    }
                    *timing = Timing {
                        supervisor_ns: timing.supervisor_ns,
                        ..Timing::default()
                    };
                }
            }
        }
        let (guest, streams) = self.boot(kvm, image, timing).await?;
        Ok((guest, streams, Layout::Booted))
    }

    /// Goes on from a snapshot: the process runs already.
    async fn resume(
        &self,
        name: &str,
        kvm: &Kvm,
        image: File,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams, Layout), Error> {
        let snapshot = Snapshots::new(self.paths).open(name)?;
        let layout = snapshot.record.layout;
        if image.metadata().map_err(Error::Runtime)?.len() != snapshot.record.image_bytes {
            let reason = format!("needs the image {} as it was unpacked then", self.config.image);
            return Err(Error::snapshot(name, reason));
        }
        disk::copy_whole(&snapshot.disk, &self.directory.disk())?;
        let gone_on = self.go_on(snapshot, kvm, image, timing).await;
        if gone_on.is_err() {
            // The next start is the first again.
            let _ = fs::remove_file(self.directory.disk());
        }
        match gone_on {
            Ok((guest, streams)) => Ok((guest, streams, layout)),
            Err(e @ Error::Vmm(VmmError::Spawn { .. })) => Err(e),
            Err(e) => Err(Error::snapshot(name, format!("cannot go on here: {}", chain(&e)))),
        }
    }

    async fn go_on(
        &self,
        snapshot: Snapshot,
        kvm: &Kvm,
        image: File,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams), Error> {
        let disks = self.snapshot_disks(image, snapshot.record.layout)?;
        let (near, far) = Streams::pairs(self.config.stdin)?;
        let plan = SavedGuest {
            saved: snapshot.saved,
            disks,
            streams: far,
            identity: Some(Identity {
                hostname: self.config.hostname.clone(),
                files: files(&self.config.hostname),
            }),
            origin: Origin::Snapshot,
            kernel: one_line(&snapshot.record.kernel, KERNEL_TEXT),
        };
        let mut guest = Guest::restore(self.host, kvm, plan, self.console()?, timing).await?;
        if let Err(failure) = guest.awake(timing).await {
            return Err(guest.explain(failure).await);
        }
        if self.count {
            guest.count(Stage::Ready, timing).await;
        }
        Ok((guest, near))
    }

    fn snapshot_disks(&self, image: File, layout: Layout) -> Result<Vec<Disk>, Error> {
        let image = whole(image, false)?;
        let own = whole(open_disk(&self.directory.disk())?, true)?;
        Ok(match layout {
            Layout::Booted => vec![image, own],
            Layout::Fresh => vec![image.in_slot(), own, Disk::empty_slot(true)],
            Layout::Used => {
                // The guest has it mounted, and nothing in it uses it: its length is all that has to be right.
                let directory = self.directory.path();
                let make = || {
                    let file = tempfile::tempfile_in(directory)?;
                    file.set_len(DISK_BYTES)?;
                    Disk::whole(file, true)
                };
                let mounted = make().map_err(Error::file("make a file in", directory))?;
                vec![image.in_slot(), mounted, own.in_slot()]
            }
        })
    }

    /// The template that this sandbox can start from.
    fn template(&self, kvm: &Kvm) -> Option<(Key, Template)> {
        let cache = Cache::new(self.paths);
        // What is missing of the installation is told by the boot.
        let ingredients = Ingredients::gather(self.paths, kvm.kind, Shape::of(self.config)).ok()?;
        let key = ingredients.key();
        match cache.find(&ingredients) {
            Found::Template(template) => {
                cache.touch(&key);
                Some((key, *template))
            }
            Found::Nothing => None,
            Found::Broken(reason) => {
                self.give_up(&cache, &key, &reason);
                None
            }
        }
    }

    fn give_up(&self, cache: &Cache, key: &Key, reason: &str) {
        cache.drop_broken(key);
        (self.notice)(dropped_notice(key, reason));
    }

    async fn restore(
        &self,
        kvm: &Kvm,
        image: File,
        template: Template,
        fresh: bool,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams), Trouble> {
        let disks = self
            .restored_disks(image, &template, fresh)
            .map_err(Trouble::Start)?;
        let plan = SavedGuest {
            saved: template.saved,
            disks,
            streams: Vec::new(),
            identity: None,
            origin: Origin::Template,
            kernel: template.kernel,
        };
        let console = self.console().map_err(Trouble::Start)?;
        let mut guest = Guest::restore(self.host, kvm, plan, console, timing)
            .await
            .map_err(|e| match e {
                Error::Vmm(VmmError::Spawn { .. }) => Trouble::Start(e),
                _ => Trouble::Template(chain(&e)),
            })?;
        let writable = if fresh { FRESH_DISK } else { USED_DISK };
        match start_process(&mut guest, self.config, writable, self.count, timing).await {
            Ok(Ok(streams)) => Ok((guest, streams)),
            Ok(Err(failed)) => {
                guest.vmm.kill().await;
                Err(Trouble::Start(failed))
            }
            Err(failure) => {
                let asleep = guest.asleep_until.is_some();
                let error = guest.explain(failure).await;
                Err(if asleep {
                    Trouble::Template(chain(&error))
                } else {
                    Trouble::Start(error)
                })
            }
        }
    }

    /// The image, the disk that the saved guest has mounted, and the slot for a disk of another content. A sandbox that
    /// starts for the first time gets a copy of the first as its own; the guest of any other gets one that goes with it.
    fn restored_disks(&self, image: File, template: &Template, fresh: bool) -> Result<Vec<Disk>, Error> {
        let path = self.directory.disk();
        let (mounted, used) = if fresh {
            disk::copy_whole(&template.disk, &path)?;
            (open_disk(&path)?, Disk::empty_slot(true))
        } else {
            let throwaway = disk::copy_unnamed(&template.disk, self.directory.path())?;
            (throwaway, whole(open_disk(&path)?, true)?.in_slot())
        };
        Ok(vec![whole(image, false)?.in_slot(), whole(mounted, true)?, used])
    }

    async fn boot(&self, kvm: &Kvm, image: File, timing: &mut Timing) -> Result<(Guest, Streams), Error> {
        let path = self.directory.disk();
        if !path.exists() {
            let blank = disk::blank(self.paths)?;
            let blank = File::open(&blank).map_err(Error::file("open", &blank))?;
            disk::copy_whole(&blank, &path)?;
        }
        let plan = Plan {
            vcpus: self.config.cpus.vcpus(),
            memory: self.config.memory,
            disks: vec![whole(image, false)?, whole(open_disk(&path)?, true)?],
        };
        let mut guest = Guest::boot(self.paths, self.host, kvm, plan, self.console()?, timing).await?;
        match start_process(&mut guest, self.config, FRESH_DISK, self.count, timing).await {
            Ok(Ok(streams)) => Ok((guest, streams)),
            Ok(Err(failed)) => {
                guest.vmm.kill().await;
                Err(failed)
            }
            Err(failure) => Err(guest.explain(failure).await),
        }
    }

    fn console(&self) -> Result<Console, Error> {
        let path = self.directory.console();
        Console::with_file(&path).map_err(Error::file("make", &path))
    }
}

fn open_disk(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(Error::file("open", path))
}

fn whole(file: File, writable: bool) -> Result<Disk, Error> {
    Disk::whole(file, writable).map_err(Error::Runtime)
}

/// Starts the process in a guest. Everything is sent before the first answer is waited for. What the agent says against
/// it is the inner error.
async fn start_process(
    guest: &mut Guest,
    config: &Config,
    writable: u8,
    count: bool,
    timing: &mut Timing,
) -> Result<Result<Streams, Error>, Failure> {
    let Ok(streams) = Streams::connect(guest, config.stdin).await else {
        return Err(guest.last_event().await);
    };
    // A guest that has just failed says why below.
    let spec = sandbox_spec(config, writable);
    let _ = guest.tell(&ToAgent::Start(Box::new(spec))).await;
    guest.awake(timing).await?;
    if count {
        guest.count(Stage::Ready, timing).await;
    }
    match guest.heard().await? {
        FromAgent::Started { process: 0, .. } => {
            timing.exec_ns = Some(monotonic_ns());
            if count {
                guest.count(Stage::Exec, timing).await;
            }
            Ok(Ok(streams))
        }
        FromAgent::StartFailed {
            process: 0,
            kind,
            message,
        } => Ok(Err(Error::Start {
            code: start_failure_code(kind),
            message: one_line(&message, AGENT_TEXT),
        })),
        _ => Err(Failure::Agent("did not answer the start".into())),
    }
}

impl Streams {
    /// The near ends, and the far ends with the names of the saved connections that they belong to.
    fn pairs(stdin: bool) -> Result<(Self, Vec<(SavedStream, OwnedFd)>), Error> {
        let mut far = Vec::new();
        let mut pair = |header: StreamHeader| -> Result<UnixStream, Error> {
            let (ours, theirs) = stream_pair()?;
            let header = header.encode();
            far.push((SavedStream::ToGuest { header }, theirs));
            Ok(ours)
        };
        let near = Self {
            stdin: stdin
                .then(|| pair(StreamHeader::Stdin { process: 0 }))
                .transpose()?,
            stdout: pair(StreamHeader::Stdout { process: 0 })?,
            stderr: pair(StreamHeader::Stderr { process: 0 })?,
        };
        Ok((near, far))
    }

    async fn connect(guest: &Guest, stdin: bool) -> Result<Self, Error> {
        Ok(Self {
            stdin: if stdin {
                Some(guest.connect(StreamHeader::Stdin { process: 0 }).await?)
            } else {
                None
            },
            stdout: guest.connect(StreamHeader::Stdout { process: 0 }).await?,
            stderr: guest.connect(StreamHeader::Stderr { process: 0 }).await?,
        })
    }
}
