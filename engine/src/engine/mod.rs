//! What a command line or an API server asks for.
//!
//! | module | job |
//! |---|---|
//! | here | images, making, finding, stopping, waiting for and removing sandboxes |
//! | [`images`] | removing images, which sandboxes may be using |
//! | [`create`] | from an image's and a user's wishes to a [`Config`] |
//! | [`session`] | starting a sandbox and staying attached to it |
//! | [`copy`] | files into and out of sandboxes |
//! | [`attach`] | being attached to one that runs, and starting other processes in it |
//! | [`snapshots`] | saving running sandboxes, and making others of them |
//! | [`pack`] | a sandbox's files: exporting, comparing, making an image of them |
//! | [`tools`] | what runs in a sandbox, and what it takes |
//! | [`update`] | what can be changed of a sandbox that is there |
//! | [`usage`] | what everything takes from the disk |
//! | [`follow`] | a log that is still being written |
//!
//! Futures of this module need a current-thread runtime with a [`tokio::task::LocalSet`], except where noted.

mod attach;
mod copy;
mod create;
mod follow;
mod images;
mod pack;
mod session;
mod snapshots;
mod tools;
mod update;
mod usage;

use std::{io, task::Poll, time::Duration};

use brig_image_store::{Image, Store};
use brig_protocol::frame::FrameError;
use jiff::Timestamp;
use serde_json::Value;
use tokio::net::UnixStream;

pub use self::{
    copy::Pipes,
    create::{CheckedOptions, CreateOptions, Draft},
    follow::{EventFollower, LogFollower},
    pack::CommitOptions,
    session::{Message, Session, SessionInput, SessionOutput, StartOptions, Summoned},
    snapshots::SnapshotOptions,
    tools::{Measured, Meter},
    update::Changes,
    usage::DiskUsage,
};
use crate::{
    Error, Isolation, Paths, SandboxId,
    cell::{HostIds, cgroups},
    control::{self, Exit, FRAME_BYTES, REQUEST_BYTES, Reply, Request},
    disk,
    error::CODE_BRIG,
    events::{self, Event, Journal, Kind},
    frames::{self, FrameReader},
    host::Machine,
    log::{LineReader, LogOptions, LogReader},
    sandbox::{
        Config, Registry, Sandbox,
        lock::{self, Lock},
    },
    signal::Signal,
    supervisor::Likely,
    template::{self, Cache, Ensured, Shape},
    unpack,
    volume::{self, VolumeMount, Volumes},
};

/// The image that ships with brig.
const WELCOME: [&str; 2] = ["welcome", "welcome:latest"];

/// How often, and after what rests, the lock or socket of a sandbox is tried whose supervisor is about to end or to begin.
const LOCK_TRIES: u32 = 200;
const LOCK_REST: Duration = Duration::from_millis(25);

/// One brig installation: its images and its sandboxes.
#[derive(Debug)]
pub struct Engine {
    paths: Paths,
    registry: Registry,
    store: Store,
    host: Machine,
}

impl Engine {
    /// With the files at `paths`; directories that are missing are made.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Image`].
    pub fn open(paths: Paths) -> Result<Self, Error> {
        paths.make()?;
        brig_image_store::removal::set_helper(crate::cell::empty);
        Ok(Self {
            registry: Registry::new(paths.sandboxes()),
            store: Store::open(&paths.images())?.telling(Journal::new(paths.events())),
            host: Machine::new(&paths),
            paths,
        })
    }

    /// Where its files are.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Its images.
    pub fn images(&self) -> &Store {
        &self.store
    }

    /// The image with this name or id. `welcome` is loaded when it is asked for the first time.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Image`].
    pub fn find_image(&self, name: &str) -> Result<Image, Error> {
        if let Some(image) = self.store.resolve(name)? {
            return Ok(image);
        }
        if WELCOME.contains(&name) && self.paths.welcome().exists() {
            self.store.load_path(&self.paths.welcome(), &mut |_| {})?;
        }
        self.store
            .resolve(name)?
            .ok_or_else(|| Error::NoSuchImage(name.to_owned()))
    }

    /// Makes sure that `image` can be run. See [`unpack::ensure`].
    ///
    /// # Errors
    /// Those of [`unpack::ensure`].
    pub async fn unpack(
        &self,
        image: &Image,
        options: unpack::Options,
        report: &mut dyn FnMut(unpack::Report),
    ) -> Result<Option<unpack::Timing>, Error> {
        let (_, timing) =
            unpack::ensure(&self.paths, &self.host, &self.store, image, options, report).await?;
        Ok(timing)
    }

    /// As [`Self::unpack`], for sandboxes on the host's kernel. See [`unpack::ensure_directory`].
    ///
    /// # Errors
    /// Those of [`unpack::ensure_directory`].
    pub async fn unpack_directory(
        &self,
        image: &Image,
        options: unpack::Options,
        report: &mut dyn FnMut(unpack::Report),
    ) -> Result<Option<unpack::Timing>, Error> {
        let (_, timing) = unpack::ensure_directory(&self.host, &self.store, image, options, report).await?;
        Ok(timing)
    }

    /// Whether `image` can be run in this isolation at once.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn is_unpacked(&self, image: &Image, isolation: Isolation) -> Result<bool, Error> {
        Ok(match isolation {
            Isolation::Vm => self.store.unpacked(image)?.is_some(),
            Isolation::Container => {
                let key = HostIds::look_up().key();
                self.store.unpacked_directory(image, &key).is_some()
            }
        })
    }

    /// Its templates.
    pub fn templates(&self) -> Cache {
        Cache::new(&self.paths)
    }

    /// Makes sure that there is a template for guests of `shape`. See [`template::ensure`].
    ///
    /// # Errors
    /// Those of [`template::ensure`].
    pub async fn ensure_template(
        &self,
        shape: Shape,
        again: bool,
        begin: &mut dyn FnMut(),
    ) -> Result<Ensured, Error> {
        template::ensure(&self.paths, &self.host, shape, again, begin).await
    }

    /// Checks what can be wrong with a user's choices whatever the image is, so that it is told before that is pulled.
    ///
    /// # Errors
    /// Those of the options' checks, [`Error::NameInUse`].
    pub fn check(&self, options: CreateOptions) -> Result<CheckedOptions, Error> {
        options.device_rates.check(options.isolation, &self.paths.root)?;
        if let Some(name) = &options.name {
            self.registry.check_name(name)?;
        }
        let options = CheckedOptions::new(options)?;
        for name in options.volumes() {
            if let Ok(record) = self.volumes().find(name) {
                volume::check_isolation(&record, options.isolation())?;
            }
        }
        Ok(options)
    }

    /// Checks what can be wrong with them for this image, so that it is told before that is unpacked.
    ///
    /// # Errors
    /// Those of the image's platform, command, environment and health check.
    pub fn draft(&self, image: &Image, options: &CheckedOptions) -> Result<Draft, Error> {
        create::draft(image, options)
    }

    /// Makes the sandbox `id`.
    ///
    /// # Errors
    /// [`Error::NameInUse`], those of making its disk. Nothing is left then.
    pub fn create(&self, id: SandboxId, mut draft: Draft) -> Result<Config, Error> {
        // Its disk is made at its first start; what that needs is told now.
        if draft.isolation() == Isolation::Vm {
            disk::blank(&self.paths.templates())?;
        }
        let wanted = draft.mounts().to_vec();
        self.with_volumes(&wanted, |mounts| {
            draft.set_mounts(mounts.to_vec());
            let wanted = draft.wanted_name().map(ToOwned::to_owned);
            let (image_id, image) = (draft.image_id(), draft.image().to_owned());
            let make = || {
                let finish = |id, name| draft.finish(id, name);
                self.registry.create(id, wanted.as_deref(), finish, |_| Ok(()))
            };
            // Somebody may have removed it since it was found; from here on the sandbox keeps it.
            let kept = self.store.keeping(&image_id, make);
            kept.and_then(|made| made.ok_or(Error::NoSuchImage(image)))
        })
    }

    /// Makes the volumes of `mounts`, and what `make` makes of their names. Those without a name that anybody chose go when
    /// that fails.
    fn with_volumes<T>(
        &self,
        mounts: &[VolumeMount],
        make: impl FnOnce(&[VolumeMount]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let volumes = self.volumes();
        let mounts = volumes.make(mounts)?;
        let made = make(&mounts);
        if made.is_err() {
            volumes.forget_anonymous(&mounts, &[]);
        }
        made
    }

    /// Its volumes.
    pub fn volumes(&self) -> Volumes {
        Volumes::new(&self.paths.root)
    }

    /// Removes a volume that no sandbox has.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::VolumeInUse`], [`Error::File`].
    pub fn remove_volume(&self, name: &str) -> Result<(), Error> {
        self.volumes().remove(name, &self.list()?)
    }

    /// Removes the volumes that no sandbox has and that `wanted` agrees to: those that nobody has named, or `all`. Gives their names
    /// and the bytes that they took.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn prune_volumes(
        &self,
        all: bool,
        wanted: impl Fn(&volume::Record) -> bool,
    ) -> Result<(Vec<String>, u64), Error> {
        let (volumes, sandboxes) = (self.volumes(), self.list()?);
        let (mut gone, mut bytes) = (Vec::new(), 0);
        for record in volumes
            .list()?
            .into_iter()
            .filter(|record| (all || record.anonymous) && wanted(record))
        {
            let took = self.volume_usage(&record.name);
            // One that is in use stays.
            if volumes.remove(&record.name, &sandboxes).is_ok() {
                bytes += took;
                gone.push(record.name);
            }
        }
        let reclaimed = bytes.to_string();
        Journal::new(self.paths.events()).note(
            Kind::Volume,
            "prune",
            "",
            [("reclaimed", reclaimed.as_str())],
        );
        Ok((gone, bytes))
    }

    /// Removes the sandboxes that do not run and that `wanted` agrees to. Gives their ids and the bytes that they took.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn prune_sandboxes(
        &self,
        wanted: impl Fn(&Sandbox) -> bool,
    ) -> Result<(Vec<String>, u64), Error> {
        let (mut gone, mut bytes) = (Vec::new(), 0);
        for sandbox in self.list()? {
            if sandbox.supervised || !wanted(&sandbox) {
                continue;
            }
            let took = self.sandbox_usage(&sandbox);
            // One that has been started meanwhile stays.
            if self.remove(sandbox.id().as_str(), false).await.is_ok() {
                bytes += took;
                gone.push(sandbox.id().to_string());
            }
        }
        let reclaimed = bytes.to_string();
        Journal::new(self.paths.events()).note(
            Kind::Container,
            "prune",
            "",
            [("reclaimed", reclaimed.as_str())],
        );
        Ok((gone, bytes))
    }

    /// All sandboxes, the newest first.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn list(&self) -> Result<Vec<Sandbox>, Error> {
        self.registry.list()
    }

    /// The sandbox with this id, name or unique prefix of an id.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::AmbiguousPrefix`].
    pub fn find(&self, reference: &str) -> Result<Sandbox, Error> {
        self.registry.find(reference)
    }

    /// The sandbox as Docker's API describes a container.
    ///
    /// # Errors
    /// Those of [`Self::find`].
    pub fn inspect(&self, reference: &str) -> Result<Value, Error> {
        Ok(crate::inspect::inspect(&self.paths, &self.find(reference)?))
    }

    /// The walls around the brig-vmm of a running sandbox, as the kernel tells them.
    ///
    /// # Errors
    /// Those of [`Self::find`]; [`Error::NotRunning`].
    pub fn security(&self, reference: &str) -> Result<Value, Error> {
        crate::security::security(&self.find(reference)?)
    }

    /// Spawns the supervisor of the sandbox `id`, which need not be there before the supervisor is told to start it by
    /// [`Summoned::start`]: it gets ready meanwhile, and has its VMM prepare the template of `shape`, if that is likely to be
    /// used.
    ///
    /// # Errors
    /// [`Error::Installation`] when the program is not there.
    pub fn summon(&self, id: &SandboxId, shape: Option<Shape>) -> Result<Summoned, Error> {
        Summoned::new(&self.paths, id, Likely::Vm(shape))
    }

    /// As [`Self::summon`], for a sandbox on the host's kernel.
    ///
    /// # Errors
    /// [`Error::Installation`] when the program is not there.
    pub fn summon_cell(&self, id: &SandboxId) -> Result<Summoned, Error> {
        Summoned::new(&self.paths, id, Likely::Cell)
    }

    /// Spawns the supervisor of a sandbox that is not running and asks it to start; [`SessionOutput::started`] tells how that
    /// went.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`], those of [`Self::summon`].
    pub async fn start(&self, id: &SandboxId, options: StartOptions) -> Result<Session, Error> {
        let sandbox = self.registry.load(id)?;
        if sandbox.supervised {
            return Err(Error::AlreadyRunning(id.short().to_owned()));
        }
        if sandbox.config.isolation == Isolation::Container {
            return self.summon_cell(id)?.start(options).await;
        }
        let booted = options.cold || sandbox.config.no_template || sandbox.config.snapshot.is_some();
        let shape = (!booted).then(|| Shape::of(&sandbox.config));
        self.summon(id, shape)?.start(options).await
    }

    /// Gives a sandbox another name, be it running or not.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::InvalidName`], [`Error::NameInUse`], [`Error::File`].
    pub fn rename(&self, reference: &str, name: &str) -> Result<(), Error> {
        self.registry.rename(self.find(reference)?.id(), name)
    }

    /// Sends a signal to the process of a running sandbox.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub async fn kill(&self, reference: &str, signal: Signal) -> Result<(), Error> {
        let sandbox = self.find(reference)?;
        let not_running = || Error::NotRunning(reference.to_owned());
        if !sandbox.is_running() {
            return Err(not_running());
        }
        match self.ask(sandbox.id(), &Request::Signal(signal.number())).await? {
            Some(Reply::Done) => {
                let told = [("signal", signal.number().to_string())];
                self.note(&sandbox, "kill", &told);
                Ok(())
            }
            _ => Err(not_running()),
        }
    }

    /// Lets all processes of a running sandbox stand still, or go on.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Pause`].
    pub async fn pause(&self, reference: &str, still: bool) -> Result<(), Error> {
        let sandbox = self.find(reference)?;
        let not_running = || Error::NotRunning(reference.to_owned());
        if !sandbox.is_running() {
            return Err(not_running());
        }
        let (request, action) = if still {
            (Request::Pause, "pause")
        } else {
            (Request::Unpause, "unpause")
        };
        match self.ask(sandbox.id(), &request).await? {
            Some(Reply::Done) => {
                self.note(&sandbox, action, &[]);
                Ok(())
            }
            Some(Reply::Failed { message, .. }) => Err(Error::Pause {
                name: reference.to_owned(),
                action,
                reason: message,
            }),
            _ => Err(not_running()),
        }
    }

    /// Sends the stop signal (or another), SIGKILL after `seconds` (negative: never; `None`: what the sandbox was made with), and
    /// waits for the end. A sandbox that is not running is left as it is.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::Control`].
    pub async fn stop(
        &self,
        reference: &str,
        signal: Option<Signal>,
        seconds: Option<i32>,
    ) -> Result<(), Error> {
        let sandbox = self.find(reference)?;
        let timeout_s = sandbox.config.stop_timeout(seconds);
        if sandbox.supervised {
            let signal = signal.unwrap_or(sandbox.config.stop_signal).number();
            let request = Request::Stop {
                signal,
                timeout_s,
                with_host: false,
            };
            self.ask(sandbox.id(), &request).await?;
            self.note(&sandbox, "stop", &[]);
        } else if sandbox.state.interrupted {
            // It is not to be started after a boot either.
            self.registry.set_stopped(sandbox.id())?;
        }
        Ok(())
    }

    /// Stops what runs, all at the same time, because the host goes down: what a restart policy says of it is done by
    /// [`Self::wanted_after_boot`] after the next boot.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn stop_with_host(&self) -> Result<(), Error> {
        let running = self.list()?.into_iter().filter(|sandbox| sandbox.supervised);
        let stops = running.map(|sandbox| async move {
            let request = Request::Stop {
                signal: sandbox.config.stop_signal.number(),
                timeout_s: sandbox.config.stop_timeout(None),
                with_host: true,
            };
            if self.ask(sandbox.id(), &request).await.is_ok() {
                self.note(&sandbox, "stop", &[]);
            }
        });
        let mut stops: Vec<_> = stops.map(Box::pin).collect();
        // None waits for another.
        std::future::poll_fn(|context| {
            stops.retain_mut(|stop| stop.as_mut().poll(context).is_pending());
            if stops.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        Ok(())
    }

    /// The sandboxes that do not run and are to be started after a boot, by what their restart policies say; the oldest first.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn wanted_after_boot(&self) -> Result<Vec<Sandbox>, Error> {
        let mut all = self.list()?;
        all.reverse();
        all.retain(|sandbox| {
            let (state, policy) = (&sandbox.state, sandbox.config.options.restart);
            !sandbox.supervised
                && state.started.is_some()
                && policy.after_boot(state.interrupted, state.stopped, state.exit_code, state.restarts)
        });
        Ok(all)
    }

    /// Changes what can be changed of a sandbox, see [`Changes`].
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`]; [`Error::Option`] with what cannot be changed, or not while it runs.
    pub fn update(&self, reference: &str, changes: &Changes) -> Result<(), Error> {
        let sandbox = self.find(reference)?;
        update::check(&sandbox, changes)?;
        let config = self
            .registry
            .change(sandbox.id(), |config| update::apply(config, changes))?;
        if sandbox.supervised && config.isolation == Isolation::Container {
            cgroups::change(&config.id, &config.limits)?;
        }
        self.note(&sandbox, "update", &[]);
        Ok(())
    }

    /// Notes that something has happened to a sandbox, see [`crate::events`].
    pub fn note(&self, sandbox: &Sandbox, action: &str, more: &[(&str, String)]) {
        self.registry.directory(sandbox.id()).note(action, more);
    }

    /// What has happened so far, the oldest first.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn events(&self, since: Option<Timestamp>) -> Result<LineReader<Event>, Error> {
        events::read(&self.paths.events(), since)
    }

    /// What has happened since then and what will.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn follow_events(&self, since: Option<Timestamp>) -> Result<EventFollower, Error> {
        EventFollower::open(&self.paths.events(), since)
    }

    /// Waits for the end of a sandbox's process and gives its exit code; of one that does not run, the last.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`]; [`Error::SupervisorLost`] when nobody knows any more.
    pub async fn wait(&self, reference: &str) -> Result<i32, Error> {
        let sandbox = self.find(reference)?;
        if sandbox.supervised {
            match self.ask(sandbox.id(), &Request::Wait).await? {
                Some(Reply::Exited(exit)) => return Ok(exit.code),
                Some(Reply::Failed { code, .. }) => return Ok(code),
                _ => {}
            }
        }
        match self.registry.load(sandbox.id()) {
            Ok(sandbox) => Ok(sandbox.state.exit_code),
            Err(Error::NoSuchSandbox(_)) => Err(Error::SupervisorLost(sandbox.id().short().to_owned())),
            Err(e) => Err(e),
        }
    }

    /// Removes a sandbox; with `force` one that runs is killed before.
    ///
    /// # Errors
    /// [`Error::RunningCannotRemove`], [`Error::NoSuchSandbox`].
    pub async fn remove(&self, reference: &str, force: bool) -> Result<(), Error> {
        self.remove_with(reference, force, false).await
    }

    /// The same, and the sandbox's volumes that nobody has named, when they are to go too.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub async fn remove_with(&self, reference: &str, force: bool, volumes: bool) -> Result<(), Error> {
        let id = self.find(reference)?.config.id;
        for _ in 0..LOCK_TRIES {
            let sandbox = match self.registry.load(&id) {
                Ok(sandbox) => sandbox,
                // A sandbox with --rm goes with its end.
                Err(Error::NoSuchSandbox(_)) => return Ok(()),
                Err(e) => return Err(e),
            };
            if sandbox.supervised {
                if !force {
                    return Err(Error::RunningCannotRemove(reference.to_owned()));
                }
                self.ask(&id, &Request::Kill).await?;
            }
            match Lock::try_take(&self.registry.directory(&id).lock()) {
                Ok(Some(lock)) => {
                    // A supervisor that was killed has left it.
                    let _ = std::fs::remove_file(control::socket_path(&self.paths.runtime, &id));
                    cgroups::forget_when_empty(&id).await;
                    return self
                        .registry
                        .remove(&id, &lock, volumes || sandbox.config.auto_remove);
                }
                // Its supervisor is just starting or ending, or somebody looks it up.
                Ok(None) => tokio::time::sleep(LOCK_REST).await,
                // It went meanwhile, which the next round sees.
                Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::RunningCannotRemove(reference.to_owned()))
    }

    /// What a sandbox has written so far.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::File`].
    pub fn logs(&self, reference: &str, options: LogOptions) -> Result<LogReader, Error> {
        let sandbox = self.find(reference)?;
        let path = self.registry.directory(sandbox.id()).log();
        LogReader::open(&path, options).map_err(Error::file("read", &path))
    }

    /// What a sandbox has written and will write until its end.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::File`].
    pub async fn follow(&self, reference: &str, options: LogOptions) -> Result<LogFollower, Error> {
        let sandbox = self.find(reference)?;
        let directory = self.registry.directory(sandbox.id());
        let end = if sandbox.supervised {
            self.connect(sandbox.id(), &Request::Wait).await?
        } else {
            None
        };
        LogFollower::open(&directory, options, end)
    }

    /// What kind of KVM this host has.
    ///
    /// # Errors
    /// Those of opening `/dev/kvm` and of the probe.
    pub async fn kvm(&self) -> Result<brig_protocol::vmm::KvmKind, Error> {
        let device = crate::kvm::open()?;
        crate::kvm::kind(&self.paths, &device, &self.host).await
    }

    /// A connection to a supervisor. `None` when there is none, or it is ending.
    async fn reach(&self, id: &SandboxId) -> Result<Option<UnixStream>, Error> {
        for _ in 0..LOCK_TRIES {
            match control::connect(&self.paths.runtime, id).await {
                Ok(stream) => return Ok(Some(stream)),
                Err(Error::NotRunning(_)) => {}
                Err(e) => return Err(e),
            }
            // A supervisor has the lock before it has its socket, and gives the socket up first. One that has only the
            // lock may just be starting, and must not be taken for none.
            if !lock::is_held(&self.registry.directory(id).lock())? {
                break;
            }
            tokio::time::sleep(LOCK_REST).await;
        }
        Ok(None)
    }

    /// Sends a request to a supervisor. `None` when there is none.
    async fn connect(&self, id: &SandboxId, request: &Request) -> Result<Option<UnixStream>, Error> {
        let Some(mut stream) = self.reach(id).await? else {
            return Ok(None);
        };
        match frames::write(&mut stream, request, REQUEST_BYTES).await {
            Ok(()) => Ok(Some(stream)),
            Err(FrameError::Io(_)) => Ok(None),
            Err(source) => Err(Error::Control {
                id: id.short().to_owned(),
                source,
            }),
        }
    }

    /// Sends a request to a supervisor and waits for the reply. `None` when there is no supervisor, or it ended without
    /// one.
    async fn ask(&self, id: &SandboxId, request: &Request) -> Result<Option<Reply>, Error> {
        let Some(stream) = self.connect(id, request).await? else {
            return Ok(None);
        };
        match FrameReader::new(stream, FRAME_BYTES).next().await {
            Ok(reply) => Ok(Some(reply)),
            Err(FrameError::Closed | FrameError::Io(_)) => Ok(None),
            Err(source) => Err(Error::Control {
                id: id.short().to_owned(),
                source,
            }),
        }
    }

    /// How a sandbox ended whose supervisor did not say so.
    pub fn lost(&self, id: &SandboxId) -> Exit {
        let state = self.registry.load(id).ok().map(|sandbox| sandbox.state);
        Exit {
            code: state.as_ref().map_or(CODE_BRIG, |state| state.exit_code),
            error: Some(
                state
                    .and_then(|state| state.error)
                    .unwrap_or_else(|| Error::SupervisorLost(id.short().to_owned()).to_string()),
            ),
            ..Exit::default()
        }
    }
}
