//! From a sandbox that does not run to a process that does: in a guest restored from a template where there is one, in
//! one that boots otherwise.

use std::{
    fs::{self, File, OpenOptions},
    path::Path,
};

use brig_protocol::{
    agent::{FromAgent, ToAgent},
    stream::StreamHeader,
};
use tokio::net::UnixStream;

use crate::{
    Error, Paths,
    clock::{Stage, Timing, monotonic_ns},
    console::Console,
    disk,
    error::{chain, one_line, start_failure_code},
    guest::{Disk, Failure, Guest, Kvm, Origin, Plan, SavedGuest},
    host::Host,
    sandbox::{Config, Directory},
    spec::{FRESH_DISK, USED_DISK, sandbox_spec},
    template::{Cache, Found, Ingredients, Key, Shape, Template, dropped_notice},
    vmm::VmmError,
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
    pub async fn run(&self, timing: &mut Timing) -> Result<(Guest, Streams), Error> {
        let image = self.host.image(self.config)?;
        let kvm = Kvm::open(self.paths, self.host).await?;
        if !self.cold
            && !self.config.no_template
            && let Some((key, template)) = self.template(&kvm)
        {
            let cache = Cache::new(self.paths);
            let image = image.try_clone().map_err(Error::Runtime)?;
            let fresh = !self.directory.disk().exists();
            match self.restore(&kvm, image, template, fresh, timing).await {
                Ok(started) => {
                    cache.worked(&key);
                    return Ok(started);
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
        self.boot(&kvm, image, timing).await
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
