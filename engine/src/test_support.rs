//! What tests share: a configuration, an image, and something that plays brig-vmm over the channel.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use brig_image_store::{Image, ImageConfig, ImageId};
use brig_protocol::{
    agent::{FROM_AGENT_BYTES, FromAgent, TO_AGENT_BYTES, ToAgent, VERSION},
    channel, frame,
    stream::{HEADER_BYTES, StreamHeader},
    vmm::{Command, Event, KvmKind},
};
use jiff::Timestamp;
use tempfile::TempDir;

use crate::{
    Error, Paths, SandboxId,
    host::Host,
    resources::{Cpus, MemoryMib},
    sandbox::{Config, config::VERSION as LAYOUT},
    signal::Signal,
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
    for file in [paths.kernel(), paths.initrd()] {
        File::create(file).unwrap();
    }
    (temporary, paths)
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
        memory: MemoryMib::DEFAULT,
        cpus: Cpus::DEFAULT,
        ports: vec![],
        exposed_ports: vec![],
        stop_signal: Signal::TERM,
        auto_remove: false,
        labels: BTreeMap::new(),
    }
}

/// An image with this entrypoint and command.
pub(crate) fn image(entrypoint: &[&str], cmd: &[&str]) -> Image {
    let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    Image {
        id: ImageId(format!("sha256:{}", "0".repeat(64)).parse().unwrap()),
        names: vec![],
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
}

impl FakeVmm {
    pub fn new(script: impl Fn(Player) + Send + Sync + 'static) -> Self {
        Self {
            script: Arc::new(script),
            spawned: AtomicUsize::new(0),
        }
    }

    /// How many have been started.
    pub fn spawned(&self) -> usize {
        self.spawned.load(Ordering::SeqCst)
    }
}

impl Spawn for FakeVmm {
    fn spawn(&self, stderr: OwnedFd) -> Result<Vmm, VmmError> {
        let (ours, theirs) = channel::pair().map_err(channel::ChannelError::Io)?;
        self.spawned.fetch_add(1, Ordering::SeqCst);
        let script = Arc::clone(&self.script);
        thread::spawn(move || {
            script(Player {
                channel: theirs,
                _stderr: stderr,
            });
        });
        Vmm::new(ours, None)
    }
}

impl Host for FakeVmm {
    fn kvm(&self) -> Result<File, Error> {
        Ok(File::open("/dev/null").unwrap())
    }

    fn image(&self, _config: &Config) -> Result<File, Error> {
        Ok(File::open("/dev/null").unwrap())
    }
}

/// The side of a VMM.
pub(crate) struct Player {
    channel: OwnedFd,
    _stderr: OwnedFd,
}

impl Player {
    pub fn answer_probe(self, kvm: KvmKind) {
        let (command, fds): (Command, _) = channel::receive(&self.channel).unwrap();
        assert_eq!((command, fds.len()), (Command::Probe, 1));
        channel::send(&self.channel, &Event::Probed { kvm }, &[]).unwrap();
    }

    /// Answers a probe, or takes a boot command and gives the guest that follows it.
    pub fn boot(self) -> Option<PlayedGuest> {
        let (command, mut fds): (Command, Vec<OwnedFd>) = channel::receive(&self.channel).ok()?;
        let config = match command {
            Command::Probe => {
                channel::send(
                    &self.channel,
                    &Event::Probed {
                        kvm: KvmKind::Standard,
                    },
                    &[],
                )
                .unwrap();
                return None;
            }
            Command::Boot(config) => config,
            other => panic!("{other:?} before the boot"),
        };
        let control = fds.remove(usize::from(config.listeners[0].socket));
        let console = File::from(fds.remove(usize::from(config.console)));
        channel::send(
            &self.channel,
            &Event::Booted {
                main_ns: 1,
                entry_ns: 2,
                workarounds: false,
            },
            &[],
        )
        .unwrap();
        let control = UnixStream::from(control);
        control.set_nonblocking(false).unwrap();
        Some(PlayedGuest {
            vmm: self,
            control,
            console,
        })
    }
}

/// The side of a guest: its agent and the streams that its VMM was handed.
pub(crate) struct PlayedGuest {
    vmm: Player,
    control: UnixStream,
    pub console: File,
}

impl PlayedGuest {
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

    /// Says hello, takes the two output streams and the start, and says that the process runs.
    pub fn start(&mut self) -> (UnixStream, UnixStream) {
        self.hello();
        let (header, stdout) = self.connection().unwrap();
        assert_eq!(header, StreamHeader::Stdout { process: 0 });
        let (header, stderr) = self.connection().unwrap();
        assert_eq!(header, StreamHeader::Stderr { process: 0 });
        assert!(matches!(self.hear(), Some(ToAgent::Start(_))));
        self.say(&FromAgent::Started {
            process: 0,
            pid: 1,
            took_us: 3,
        });
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
