//! From a sandbox that does not run to a process that does: in a guest restored from a template where there is one, in
//! one that boots otherwise. A sandbox of a snapshot goes on from that at its first start.

use std::{
    fs::{self, File, OpenOptions},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use brig_protocol::{
    agent::{FromAgent, ToAgent},
    spec::{SandboxSpec, WindowSize},
    stream::StreamHeader,
    vmm::SavedStream,
};
use tokio::net::UnixStream;

use crate::{
    Error, Isolation, Paths,
    clock::{Stage, Timing, monotonic_ns},
    console::Console,
    disk,
    error::{chain, one_line, start_failure_code},
    guest::{self, Disk, Failure, Guest, Kvm, Origin, Plan, SavedGuest, stream_pair},
    host::Host,
    sandbox::{Config, Directory},
    snapshot::Layout,
    spec::sandbox_spec,
    template::{Cache, Found, Ingredients, Key, Shape, Template, VOLUME_SLOTS, dropped_notice, with_volumes},
    turns,
    vmm::VmmChannel,
    volume::{Held, VolumeMount, Volumes},
};

/// Most characters of an agent's message that a user sees.
const AGENT_TEXT: usize = 1000;

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
    /// The size of the process's terminal.
    pub size: Option<WindowSize>,
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
#[derive(Debug)]
pub(crate) struct Streams {
    pub stdin: Option<UnixStream>,
    pub stdout: UnixStream,
    /// None with a terminal.
    pub stderr: Option<UnixStream>,
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
        if self.config.isolation == Isolation::Container {
            return self.enter(timing).await;
        }
        let image = self.host.image(self.config)?;
        let image_bytes = image.metadata().map_err(Error::Runtime)?.len();
        let fresh = !self.directory.disk().exists();
        let snapshot = match &self.config.snapshot {
            Some(name) if fresh => Some((name, self.open_snapshot(name)?)),
            _ => None,
        };
        // Held until the process runs.
        let _turn = turns::take(self.paths).await;
        let kvm = Kvm::open(self.paths, self.host).await?;
        let (guest, streams, layout) = if let Some((name, (snapshot, volumes))) = snapshot {
            self.resume(name, snapshot, volumes, &kvm, image, timing).await?
        } else {
            let volumes = self.open_volumes(&[])?;
            self.restore_or_boot(&kvm, image, fresh, volumes, timing).await?
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
        volumes: Vec<Held>,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams, Layout), Error> {
        if !self.cold
            && volumes.len() <= VOLUME_SLOTS
            && !self.config.no_template
            && let Some((key, template)) = self.template(kvm)
        {
            let cache = Cache::new(self.paths);
            let image = image.try_clone().map_err(Error::Runtime)?;
            let layout = if fresh { Layout::Fresh } else { Layout::Used };
            match self.restore(kvm, image, &volumes, template, layout, timing).await {
                Ok((mut guest, streams)) => {
                    guest.vmm.keep_volumes(volumes);
                    self.host.template_worked(&cache, &key);
                    guest.record_pages(self.host, &cache, &key).await;
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
        let (guest, streams) = self.boot(kvm, image, volumes, timing).await?;
        Ok((guest, streams, Layout::Booted))
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
        self.host.drop_template(cache, key);
        (self.notice)(dropped_notice(key, reason));
    }

    async fn restore(
        &self,
        kvm: &Kvm,
        image: File,
        volumes: &[Held],
        template: Template,
        layout: Layout,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams), Trouble> {
        let disks = self
            .restored_disks(image, volumes, &template, layout)
            .map_err(Trouble::Start)?;
        let plan = SavedGuest {
            saved: template.saved,
            disks,
            io: self.config.device_rates.of_guest(),
            streams: Vec::new(),
            identity: None,
            origin: Origin::Template,
            kernel: template.kernel,
        };
        let console = self.console().map_err(Trouble::Start)?;
        let mut guest = Guest::restore(self.host, kvm, plan, console, timing)
            .await
            .map_err(|e| match e {
                Error::Vmm(ref vmm) if vmm.is_of_host() => Trouble::Start(e),
                _ => Trouble::Template(chain(&e)),
            })?;
        let spec = sandbox_spec(self.config, layout, self.size);
        match self.start_process(&mut guest, spec, self.count, timing).await {
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
    fn restored_disks(
        &self,
        image: File,
        volumes: &[Held],
        template: &Template,
        layout: Layout,
    ) -> Result<Vec<Disk>, Error> {
        let path = self.directory.disk();
        let (mounted, used) = if layout == Layout::Fresh {
            disk::copy_whole(&template.disk, &path)?;
            (open_disk(&path)?, Disk::empty_slot(true))
        } else {
            let throwaway = disk::copy_unnamed(&template.disk, self.directory.path())?;
            (throwaway, whole(open_disk(&path)?, true)?.in_slot())
        };
        let own = vec![whole(image, false)?.in_slot(), whole(mounted, true)?, used];
        Ok(with_volumes(own, self.volume_disks(volumes)?))
    }

    /// Opens the volumes that the guest gets, in the order of the configuration's; each becomes a copy of the one of `content`
    /// that is in its place, if there is one.
    pub(super) fn open_volumes(&self, content: &[File]) -> Result<Vec<Held>, Error> {
        let volumes = Volumes::new(&self.paths.root);
        let open = |(index, mount): (usize, &VolumeMount)| match mount.volume() {
            Some(name) => volumes.open(name, self.config, mount.read_only, content.get(index)),
            // They are refused when the sandbox is made.
            None => Err(Error::option("--volume", "a guest cannot have it")),
        };
        self.config.mounts.iter().enumerate().map(open).collect()
    }

    /// The block devices of `volumes`, which are those of the configuration.
    pub(super) fn volume_disks(&self, volumes: &[Held]) -> Result<Vec<Disk>, Error> {
        let disk = |(held, mount): (&Held, &VolumeMount)| {
            whole(held.disk.try_clone().map_err(Error::Runtime)?, !mount.read_only)
        };
        volumes.iter().zip(&self.config.mounts).map(disk).collect()
    }

    async fn boot(
        &self,
        kvm: &Kvm,
        image: File,
        volumes: Vec<Held>,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams), Error> {
        let path = self.directory.disk();
        if !path.exists() {
            let blank = disk::open_blank(&self.paths.templates())?;
            disk::copy_whole(&blank, &path)?;
        }
        let mut disks = vec![whole(image, false)?, whole(open_disk(&path)?, true)?];
        disks.extend(self.volume_disks(&volumes)?);
        let plan = Plan {
            vcpus: self.config.cpus.vcpus(),
            memory: self.config.memory,
            disks,
            io: self.config.device_rates.of_guest(),
        };
        let mut guest = Guest::boot(self.paths, self.host, kvm, plan, self.console()?, timing).await?;
        guest.vmm.keep_volumes(volumes);
        let spec = sandbox_spec(self.config, Layout::Booted, self.size);
        match self.start_process(&mut guest, spec, self.count, timing).await {
            Ok(Ok(streams)) => Ok((guest, streams)),
            Ok(Err(failed)) => {
                guest.vmm.kill().await;
                Err(failed)
            }
            Err(failure) => Err(guest.explain(failure).await),
        }
    }

    /// Starts the process in a guest. Everything is sent before the first answer is waited for. What the agent says against
    /// it is the inner error.
    pub(super) async fn start_process(
        &self,
        guest: &mut Guest,
        spec: SandboxSpec,
        count: bool,
        timing: &mut Timing,
    ) -> Result<Result<Streams, Error>, Failure> {
        let config = self.config;
        let Ok(streams) = Streams::connect(&guest.vmm.channel, 0, config.stdin, config.tty).await else {
            return Err(guest.last_event().await);
        };
        // A guest that has just failed says why below.
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

    pub(super) fn console(&self) -> Result<Console, Error> {
        let path = self.directory.console();
        Console::with_file(&path).map_err(Error::file("make", &path))
    }
}

pub(super) fn open_disk(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(Error::file("open", path))
}

pub(super) fn whole(file: File, writable: bool) -> Result<Disk, Error> {
    Disk::whole(file, writable).map_err(Error::Runtime)
}

impl Streams {
    /// Those of the first process: the near ends, and the far ends with the names of the saved connections that they belong to.
    pub(super) fn pairs(stdin: bool, tty: bool) -> Result<(Self, Vec<(SavedStream, OwnedFd)>), Error> {
        let mut far = Vec::new();
        let near = Self::each(0, stdin, tty, |header| {
            let (ours, theirs) = stream_pair()?;
            let header = header.encode();
            far.push((SavedStream::ToGuest { header }, theirs));
            Ok(ours)
        })?;
        Ok((near, far))
    }

    /// Connects those of a process to the agent.
    pub(crate) async fn connect(
        vmm: &VmmChannel,
        process: u32,
        stdin: bool,
        tty: bool,
    ) -> Result<Self, Error> {
        let mut far = Vec::new();
        let near = Self::each(process, stdin, tty, |header| {
            let (ours, theirs) = stream_pair()?;
            far.push((header, theirs));
            Ok(ours)
        })?;
        for (header, socket) in far {
            guest::connect(vmm, header, socket.as_fd()).await?;
        }
        Ok(near)
    }

    fn each(
        process: u32,
        stdin: bool,
        tty: bool,
        mut make: impl FnMut(StreamHeader) -> Result<UnixStream, Error>,
    ) -> Result<Self, Error> {
        let stdin = if stdin {
            Some(make(StreamHeader::Stdin { process })?)
        } else {
            None
        };
        let stdout = make(StreamHeader::Stdout { process })?;
        let stderr = if tty {
            None
        } else {
            Some(make(StreamHeader::Stderr { process })?)
        };
        Ok(Self {
            stdin,
            stdout,
            stderr,
        })
    }
}
