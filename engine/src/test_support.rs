//! What tests share: a configuration, an image, and something that plays brig-vmm over the channel.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use brig_image_store::{Image, ImageConfig, ImageId};
use brig_protocol::{
    agent::{FROM_AGENT_BYTES, FromAgent, TO_AGENT_BYTES, ToAgent, VERSION, WakeSpec},
    channel, frame,
    spec::{RootSpec, SandboxSpec},
    stream::{CONTROL_PORT, HEADER_BYTES, StreamHeader},
    vmm::{Command, Counters, DiskConfig, Event, KvmKind, SavedStream},
};
use jiff::Timestamp;
use tempfile::TempDir;

use crate::{
    Error, Isolation, Paths, SandboxId,
    device_rate::DeviceRates,
    guest::Origin,
    host::Host,
    options::HostOptions,
    resources::{Cpus, MemoryMib},
    sandbox::{
        Config,
        config::{Limits, VERSION as LAYOUT},
        state::Live,
    },
    signal::Signal,
    supervisor::Needs,
    vmm::{Spawn, Vmm, VmmError},
};

/// Paths in a temporary directory, with files in the places of the kernel and the initrd.
pub(crate) fn paths() -> (TempDir, Paths) {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let paths = Paths {
        root: at("root"),
        runtime: at("run"),
        lib: at("lib"),
    };
    paths.make().unwrap();
    std::fs::create_dir(&paths.lib).unwrap();
    for file in [paths.kernel(), paths.initrd(), paths.vmm()] {
        File::create(file).unwrap();
    }
    (temporary, paths)
}

/// Puts a file in the place of the blank disk, so that no mke2fs is needed.
pub(crate) fn blank_disk(paths: &Paths) {
    std::fs::write(paths.templates().join(crate::disk::blank_name()), "blank").unwrap();
}

/// What a VMM says that has failed.
pub(crate) fn failed(message: &str) -> Event {
    Event::Failed {
        message: message.to_owned(),
    }
}

/// What is known of a sandbox that runs, as little as there can be.
pub(crate) fn live() -> Live {
    Live {
        supervisor_pid: 1,
        vmm_pid: None,
        ports: Vec::new(),
        kernel: String::new(),
        origin: Origin::Boot,
        workarounds: false,
        unconfined: None,
    }
}

/// A configuration that runs `/bin/true`.
pub(crate) fn config(id: SandboxId, name: String) -> Config {
    Config {
        version: LAYOUT,
        hostname: id.short().to_owned(),
        id,
        name,
        created: Timestamp::UNIX_EPOCH,
        image_id: "sha256:0".into(),
        image: "test".into(),
        entrypoint: vec![],
        command: vec!["/bin/true".into()],
        env: vec![],
        working_dir: "/".into(),
        user: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        isolation: Isolation::Vm,
        limits: Limits::default(),
        device_rates: DeviceRates::default(),
        memory: MemoryMib::DEFAULT,
        cpus: Cpus::DEFAULT,
        ports: vec![],
        exposed_ports: vec![],
        stop_signal: Signal::TERM,
        auto_remove: false,
        no_template: false,
        snapshot: None,
        health: None,
        volumes: vec![],
        mounts: vec![],
        options: HostOptions::default(),
        labels: BTreeMap::new(),
    }
}

/// An image with this entrypoint and command.
pub(crate) fn image(entrypoint: &[&str], cmd: &[&str]) -> Image {
    let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    Image {
        id: ImageId(format!("sha256:{}", "0".repeat(64)).parse().unwrap()),
        names: vec![],
        digests: vec![],
        manifest: None,
        config: ImageConfig {
            entrypoint: texts(entrypoint),
            cmd: texts(cmd),
            ..ImageConfig::default()
        },
        layers: vec![],
        created: None,
        size: 0,
        architecture: "amd64".into(),
        os: "linux".into(),
    }
}

/// A host whose VMMs are threads that follow `script`; each ends with its channel.
pub(crate) struct FakeVmm {
    script: Arc<dyn Fn(Player) + Send + Sync>,
    spawned: AtomicUsize,
    walled_in: Arc<AtomicUsize>,
    wake_timeout: Duration,
}

/// Longer than any guest that wakes up takes.
const PATIENCE: Duration = Duration::from_secs(600);

impl FakeVmm {
    pub fn new(script: impl Fn(Player) + Send + Sync + 'static) -> Self {
        Self {
            script: Arc::new(script),
            spawned: AtomicUsize::new(0),
            walled_in: Arc::default(),
            wake_timeout: PATIENCE,
        }
    }

    /// With no patience for guests that do not wake up.
    pub fn impatient(self) -> Self {
        Self {
            wake_timeout: Duration::from_secs(2),
            ..self
        }
    }

    /// Has `walled_in` count how often a supervisor has closed its walls.
    pub fn counting(self, walled_in: &Arc<AtomicUsize>) -> Self {
        Self {
            walled_in: Arc::clone(walled_in),
            ..self
        }
    }

    /// How many have been started.
    pub fn spawned(&self) -> usize {
        self.spawned.load(Ordering::SeqCst)
    }
}

impl Spawn for FakeVmm {
    fn spawn(&self) -> Result<Vmm, VmmError> {
        let (ours, theirs) = channel::pair().map_err(channel::ChannelError::Io)?;
        let (said, stderr) = std::io::pipe().map_err(channel::ChannelError::Io)?;
        self.spawned.fetch_add(1, Ordering::SeqCst);
        let script = Arc::clone(&self.script);
        thread::spawn(move || {
            script(Player {
                channel: theirs,
                _stderr: stderr.into(),
            });
        });
        Vmm::new(ours, said.into(), None)
    }
}

impl Host for FakeVmm {
    fn kvm(&self) -> Result<File, Error> {
        Ok(File::open("/dev/null").unwrap())
    }

    fn image(&self, _config: &Config) -> Result<File, Error> {
        Ok(File::open("/dev/null").unwrap())
    }

    fn complain_to(&self, _log: File) -> Result<(), Error> {
        Ok(())
    }

    fn wall_in(&self, _needs: &Needs) -> Result<(), Error> {
        self.walled_in.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn wake_timeout(&self, _kvm: KvmKind) -> Duration {
        self.wake_timeout
    }
}

/// What becomes of a VMM that is told to restore a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AtRestore {
    /// It ends, as one that is killed.
    Dies,
    /// It says nothing more.
    Hangs,
}

/// The side of a VMM.
pub(crate) struct Player {
    channel: OwnedFd,
    _stderr: OwnedFd,
}

impl Player {
    /// Answers a probe; a VMM that is to run a guest takes its command and does no more than `end` says.
    pub fn fail_at_restore(self, end: AtRestore) {
        let (command, _fds): (Command, Vec<OwnedFd>) = channel::receive(&self.channel).unwrap();
        match (command, end) {
            (Command::Probe, _) => {
                let kvm = KvmKind::Standard;
                channel::send(&self.channel, &Event::Probed { kvm }, &[]).unwrap();
            }
            (Command::Restore(_), AtRestore::Dies) => {}
            (Command::Restore(_), AtRestore::Hangs) => {
                while channel::receive::<Command>(&self.channel).is_ok() {}
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    pub fn answer_probe(self, kvm: KvmKind) {
        let (command, fds): (Command, _) = channel::receive(&self.channel).unwrap();
        assert_eq!((command, fds.len()), (Command::Probe, 1));
        channel::send(&self.channel, &Event::Probed { kvm }, &[]).unwrap();
    }

    /// Takes the command to map a template's memory ahead, and gives what is in the two files.
    pub fn mapped_ahead(self) -> [String; 2] {
        let (command, fds): (Command, Vec<OwnedFd>) = channel::receive(&self.channel).unwrap();
        assert_eq!(command, Command::MapAhead);
        let contents = fds
            .into_iter()
            .map(|fd| std::io::read_to_string(File::from(fd)).unwrap());
        contents.collect::<Vec<_>>().try_into().unwrap()
    }

    /// Answers a probe, or takes a boot or restore command and gives the guest that follows it.
    pub fn begin(self) -> Option<PlayedGuest> {
        self.begin_unless(None)
    }

    /// As [`Self::begin`], but restores are answered so.
    pub fn begin_unless(self, refusal: Option<&Event>) -> Option<PlayedGuest> {
        let (command, fds): (Command, Vec<OwnedFd>) = channel::receive(&self.channel).ok()?;
        let mut files: Vec<Option<File>> = fds.into_iter().map(|fd| Some(File::from(fd))).collect();
        let (event, control, console, disks) = match &command {
            Command::Probe => {
                let kvm = KvmKind::Standard;
                channel::send(&self.channel, &Event::Probed { kvm }, &[]).unwrap();
                return None;
            }
            Command::Boot(config) => {
                let event = Event::Booted {
                    main_ns: 1,
                    entry_ns: 2,
                    workarounds: false,
                };
                (
                    event,
                    config.listeners[0].socket,
                    config.console,
                    config.disks.clone(),
                )
            }
            Command::Restore(_) if refusal.is_some() => {
                channel::send(&self.channel, refusal.unwrap(), &[]).unwrap();
                return None;
            }
            Command::Restore(config) => {
                let event = Event::Restored {
                    main_ns: 1,
                    entry_ns: 2,
                    workarounds: false,
                    tsc: 77,
                    realtime_ns: 88,
                    tsc_khz: 99,
                };
                assert_eq!(
                    config.streams[0].stream,
                    SavedStream::ToHost { port: CONTROL_PORT }
                );
                (
                    event,
                    config.streams[0].socket,
                    config.console,
                    config.disks.clone(),
                )
            }
            other => panic!("{other:?} before the guest"),
        };
        let mut take = |index: u8| files[usize::from(index)].take().unwrap();
        let (control, console) = (UnixStream::from(OwnedFd::from(take(control))), take(console));
        control.set_nonblocking(false).unwrap();
        channel::send(&self.channel, &event, &[]).unwrap();
        Some(PlayedGuest {
            vmm: self,
            control,
            console,
            began: command,
            disks,
            files,
            spec: None,
            woken: None,
        })
    }
}

/// The side of a guest: its agent and the streams that its VMM was handed.
pub(crate) struct PlayedGuest {
    vmm: Player,
    control: UnixStream,
    pub console: File,
    /// The command that it began with.
    pub began: Command,
    pub disks: Vec<DiskConfig>,
    /// What came with that command and was not taken.
    pub files: Vec<Option<File>>,
    /// The spec that its process was started with.
    pub spec: Option<Box<SandboxSpec>>,
    /// What it was woken with.
    pub woken: Option<WakeSpec>,
}

impl PlayedGuest {
    pub fn is_restored(&self) -> bool {
        matches!(self.began, Command::Restore(_))
    }

    /// Everything that is in a file that came with the first command.
    pub fn content(&mut self, index: u8) -> Vec<u8> {
        let file = self.files[usize::from(index)].as_mut().unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// The only file of a disk.
    pub fn disk(&mut self, position: usize) -> &mut File {
        let index = self.disks[position].segments[0].file;
        self.files[usize::from(index)].as_mut().unwrap()
    }

    /// What its agent does when it is woken: takes what it is told, and says that it is awake.
    pub fn wake(&mut self) -> WakeSpec {
        let Some(ToAgent::Wake(wake)) = self.hear() else {
            panic!("a restored guest is woken first")
        };
        self.say(&FromAgent::Awake);
        wake
    }

    /// Takes the next command; says meanwhile that nothing happens in the guest.
    fn command(&mut self) -> (Command, Vec<OwnedFd>) {
        loop {
            match channel::receive(&self.vmm.channel).unwrap() {
                (Command::Count, _) => self.event(&Event::Counted(Counters::default())),
                command => return command,
            }
        }
    }

    /// Takes the next save command, and writes these files.
    pub fn save(&mut self, memory: &[u8], state: &[u8]) {
        let (command, fds) = self.command();
        assert_eq!((command, fds.len()), (Command::Save, 2));
        for (fd, bytes) in fds.into_iter().zip([memory, state]) {
            File::from(fd).write_all(bytes).unwrap();
        }
        self.event(&Event::Saved { memory_bytes: 4096 });
    }

    /// Takes the next command, and tells whether the guest may go on.
    pub fn resumed(&mut self) -> bool {
        let command: (Command, Vec<OwnedFd>) = channel::receive(&self.vmm.channel).unwrap();
        command.0 == Command::Resume
    }

    /// Takes the next save command, and answers with `event`.
    pub fn fail_to_save(&mut self, event: &Event) {
        assert_eq!(self.command().0, Command::Save);
        self.event(event);
    }

    /// Plays the guest that a template is made of, to its end. Its disk is written to.
    pub fn become_template(mut self) {
        self.hello();
        let Some(ToAgent::Prepare(spec)) = self.hear() else {
            panic!("a template is prepared")
        };
        assert_eq!(
            spec.root,
            RootSpec::Disks {
                image: 0,
                writable: 1
            }
        );
        self.disk(1).write_all(b"mounted").unwrap();
        self.say(&FromAgent::Prepared);
        self.save(b"memory", b"state");
        self.wait_for_end();
    }

    pub fn say(&mut self, message: &FromAgent) {
        // The supervisor may be gone already.
        let _ = frame::write(&mut self.control, message, FROM_AGENT_BYTES);
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.control.write_all(bytes);
    }

    pub fn hello(&mut self) {
        self.say(&FromAgent::Hello {
            version: VERSION,
            kernel: "6.12-test".into(),
            init_us: 1,
            ready_us: 2,
        });
    }

    pub fn hear(&mut self) -> Option<ToAgent> {
        frame::read(&mut self.control, TO_AGENT_BYTES).ok()
    }

    /// The next connection that the VMM is asked to make.
    pub fn connection(&mut self) -> Option<(StreamHeader, UnixStream)> {
        let (command, mut fds): (Command, Vec<OwnedFd>) = channel::receive(&self.vmm.channel).ok()?;
        let Command::Connect { header, .. } = command else {
            panic!("{command:?}")
        };
        let socket = UnixStream::from(fds.remove(0));
        socket.set_nonblocking(false).unwrap();
        Some((decode(header), socket))
    }

    /// Comes up, takes the two output streams and the start, and says that the process runs.
    pub fn start(&mut self) -> (UnixStream, UnixStream) {
        let streams = self.almost_start();
        self.say(&FromAgent::Started {
            process: 0,
            pid: 1,
            took_us: 3,
        });
        streams
    }

    /// As [`Self::start`], up to the agent's last word.
    pub fn almost_start(&mut self) -> (UnixStream, UnixStream) {
        if self.is_restored() {
            self.woken = Some(self.wake());
        } else {
            self.hello();
        }
        let (header, stdout) = self.connection().unwrap();
        assert_eq!(header, StreamHeader::Stdout { process: 0 });
        let (header, stderr) = self.connection().unwrap();
        assert_eq!(header, StreamHeader::Stderr { process: 0 });
        match self.hear() {
            Some(ToAgent::Start(spec)) => self.spec = Some(spec),
            other => panic!("{other:?}"),
        }
        (stdout, stderr)
    }

    pub fn event(&self, event: &Event) {
        let _ = channel::send(self.vmm.channel.as_fd(), event, &[]);
    }

    /// A guest that never comes up.
    pub fn never_ready(self) {
        self.wait_for_end();
    }

    /// Waits until the supervisor has ended this VMM.
    pub fn wait_for_end(self) {
        while channel::receive::<Command>(&self.vmm.channel).is_ok() {}
    }
}

fn decode(header: [u8; HEADER_BYTES]) -> StreamHeader {
    StreamHeader::decode(header).unwrap()
}
