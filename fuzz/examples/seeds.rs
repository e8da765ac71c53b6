//! Writes the corpora of the targets that read what the project's own types encode: `layers`, `agent_messages`, `vmm_commands`
//! and `state_file`. README.md says when to run it.
//!
//! ```text
//! cargo run --example seeds corpus
//! ```

#[path = "../../image-store/tests/common/mod.rs"]
mod common;

use std::{env, fs, io, num::NonZeroU64, path::Path};

use brig_protocol::{
    agent::{ExitStatus, FROM_AGENT_BYTES, FromAgent, StartFailure, UnpackCosts, UnpackFailure},
    frame,
    stream::HEADER_BYTES,
    vmm::{
        BootConfig, Command, DiskConfig, IoLimits, KvmKind, ListenerConfig, RejoinConfig, RestoreConfig, SavedStream,
        SegmentConfig,
    },
};
use brig_vmm::{devices::virtio::vsock::VsockState, snapshot};
use common::{Header, Tar, gzip, pax_records, zstd};

type Seeds = Vec<(String, Vec<u8>)>;

/// The first byte of an input of the target `layers`: see there.
const GZIP: u8 = 0;
const ZSTD: u8 = 1;
const PLAIN: u8 = 2;

fn main() -> io::Result<()> {
    let corpus = env::args_os().nth(1).ok_or(io::ErrorKind::InvalidInput)?;
    for (target, seeds) in [
        ("layers", layers()),
        ("agent_messages", agent_messages()),
        ("vmm_commands", vmm_commands()),
        ("state_file", state_files()),
    ] {
        let directory = Path::new(&corpus).join(target);
        fs::create_dir_all(&directory)?;
        for (name, bytes) in seeds {
            fs::write(directory.join(name), bytes)?;
        }
    }
    Ok(())
}

/// One plain layer.
fn one(name: &str, tar: Tar) -> (String, Vec<u8>) {
    (name.into(), [&[PLAIN], &tar.unfinished()[..]].concat())
}

/// Two layers, each with its compression.
fn two(name: &str, below: (u8, Vec<u8>), above: (u8, Vec<u8>)) -> (String, Vec<u8>) {
    let mut input = vec![0x40 | above.0 << 2 | below.0];
    input.extend((below.1.len() as u16).to_le_bytes());
    input.extend([below.1, above.1].concat());
    (name.into(), input)
}

/// A file with pax records before it.
fn pax(path: &str, data: &[u8], records: &[(&str, &[u8])]) -> Tar {
    let records = records
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_vec()));
    Tar::new().add(&Header {
        data,
        pax: records.collect(),
        ..Header::new(path, b'0')
    })
}

fn node(path: &str, kind: u8) -> Tar {
    Tar::new().add(&Header {
        device: (8, 1),
        ..Header::new(path, kind)
    })
}

fn layers() -> Seeds {
    let lower = || Tar::new().directory("d").file("d/old", b"1").file("d/kept", b"2");
    let upper = || {
        Tar::new()
            .file("d/.wh.old", b"")
            .file("e/.wh..wh..opq", b"")
            .hard_link("h", "d/kept")
    };
    let mut seeds = vec![
        one("empty", Tar::new()),
        one("file", Tar::new().file("a/b", b"hello")),
        one("long-file", Tar::new().file("f", &[b'x'; 3000])),
        one(
            "directories",
            Tar::new().directory("a/").directory("a/b/c").directory("./a"),
        ),
        one(
            "symlinks",
            Tar::new()
                .symlink("l", "d")
                .directory("d")
                .file("l/f", b"1")
                .symlink("l", "../.."),
        ),
        one(
            "circle",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/f", b""),
        ),
        one(
            "hard-links",
            Tar::new().file("a", b"1").hard_link("b", "a").hard_link("c", "b"),
        ),
        one(
            "twice",
            Tar::new()
                .file("a", b"1")
                .directory("a")
                .file("a/b", b"2")
                .file("a", b"3"),
        ),
        one(
            "whiteouts",
            Tar::new()
                .file("a/f", b"1")
                .file("a/.wh.f", b"")
                .file(".wh..wh..opq", b""),
        ),
        one("up", Tar::new().file("../x", b"1")),
        one("absolute", Tar::new().file("/etc/x", b"1")),
        one("character-device", node("c", b'3')),
        one("block-device", node("b", b'4')),
        one("fifo", node("p", b'6')),
        one(
            "long-names",
            Tar::new().symlink(&"n".repeat(150), &"t/".repeat(100)),
        ),
        one(
            "end",
            Tar::new().file("x", b"1").bytes(&[0; 1024]).bytes(b"behind"),
        ),
        two(
            "two-plain",
            (PLAIN, lower().unfinished()),
            (PLAIN, upper().unfinished()),
        ),
        two(
            "two-gzip",
            (GZIP, gzip(&lower().finish())),
            (GZIP, gzip(&upper().finish())),
        ),
        two(
            "gzip-and-zstd",
            (GZIP, gzip(&lower().finish())),
            (ZSTD, zstd(&upper().finish())),
        ),
        ("zstd".into(), [&[ZSTD], &zstd(&lower().finish())[..]].concat()),
        ("gzip".into(), [&[GZIP], &gzip(&lower().finish())[..]].concat()),
        (
            "gzip-members".into(),
            [&[GZIP], &gzip(&lower().unfinished())[..], &gzip(&[0; 1024])].concat(),
        ),
    ];
    seeds.extend(extended());
    seeds
}

/// Layers with pax records, or with what GNU tar writes in their place.
fn extended() -> Seeds {
    let long_name = Header {
        data: &[b'n'; 120],
        ..Header::new("././@LongLink", b'L')
    };
    let global = pax_records(&[("mtime".into(), b"1.5".to_vec())]);
    let global = Header {
        data: &global,
        ..Header::new("g", b'g')
    };
    let map = [&b"1\n4096\n5\n"[..], &[0; 512 - 9], b"hello"].concat();
    let acl: &[u8] = &[2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255];
    vec![
        one("gnu-long-name", Tar::new().add(&long_name).file("short", b"1")),
        one("pax-global", Tar::new().add(&global).file("x", b"1")),
        one(
            "pax-path",
            pax(
                "x",
                b"1",
                &[("path", b"p/q"), ("mtime", b"-1.25"), ("uid", b"4000000000")],
            ),
        ),
        one("pax-size", pax("x", b"hello", &[("size", b"5")])),
        one(
            "pax-attributes",
            pax(
                "x",
                b"",
                &[
                    ("SCHILY.xattr.user.a", b"1"),
                    ("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 4, 0, 0]),
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                    ("SCHILY.xattr.system.posix_acl_access", acl),
                ],
            ),
        ),
        one(
            "pax-sparse-0.0",
            pax(
                "x",
                b"hello",
                &[
                    ("GNU.sparse.size", b"8192"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.offset", b"4096"),
                    ("GNU.sparse.numbytes", b"5"),
                ],
            ),
        ),
        one(
            "pax-sparse-0.1",
            pax(
                "x",
                b"hello",
                &[
                    ("GNU.sparse.name", b"s"),
                    ("GNU.sparse.size", b"8192"),
                    ("GNU.sparse.map", b"4096,5"),
                ],
            ),
        ),
        one(
            "pax-sparse-1.0",
            pax(
                "x",
                &map,
                &[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"s"),
                    ("GNU.sparse.realsize", b"8192"),
                ],
            ),
        ),
    ]
}

fn agent_messages() -> Seeds {
    let text = || "what the agent says".to_owned();
    let failed = |kind| FromAgent::StartFailed {
        process: 1,
        kind,
        message: text(),
    };
    let messages = [
        (
            "hello",
            FromAgent::Hello {
                version: 3,
                kernel: "6.12.1".into(),
                init_us: 9_000_000,
                ready_us: 9_100_000,
            },
        ),
        ("prepared", FromAgent::Prepared),
        ("awake", FromAgent::Awake),
        (
            "started",
            FromAgent::Started {
                process: 1,
                pid: 7,
                took_us: 1000,
            },
        ),
        ("not-found", failed(StartFailure::NotFound)),
        ("start-failed", failed(StartFailure::Other)),
        (
            "exited",
            FromAgent::Exited {
                process: 1,
                status: ExitStatus::Code(42),
            },
        ),
        (
            "killed",
            FromAgent::Exited {
                process: 300,
                status: ExitStatus::Signal(9),
            },
        ),
        ("unpacking", FromAgent::Unpacking { bytes: 1 << 40 }),
        (
            "unpacked",
            FromAgent::Unpacked {
                bytes: 1 << 20,
                inodes: 100,
                costs: UnpackCosts::default(),
            },
        ),
        (
            "unpack-failed",
            FromAgent::UnpackFailed {
                kind: UnpackFailure::NoSpace,
                message: text(),
            },
        ),
        ("packed", FromAgent::Packed { bytes: u64::MAX }),
        ("pack-failed", FromAgent::PackFailed { message: text() }),
        ("frozen", FromAgent::Frozen { failure: None }),
        (
            "not-frozen",
            FromAgent::Frozen {
                failure: Some(text()),
            },
        ),
    ];
    let frames = messages.into_iter().map(|(name, message)| {
        let frame = frame::encode(&message, FROM_AGENT_BYTES).expect("a short message");
        (name.into(), frame)
    });
    frames
        .chain([("too-long".into(), u32::MAX.to_le_bytes().into())])
        .collect()
}

fn vmm_commands() -> Seeds {
    let disk = |writable, shown_bytes| DiskConfig {
        segments: vec![
            SegmentConfig {
                file: 3,
                length: 4096,
            },
            SegmentConfig { file: 4, length: 512 },
        ],
        writable,
        shown_bytes,
    };
    let boot = BootConfig {
        vcpus: 2,
        memory_mib: 256,
        kvm: KvmKind::Emulated,
        kernel: 0,
        initrd: 1,
        console: 2,
        extra_command_line: "quiet".into(),
        disks: vec![disk(false, None), disk(true, Some(1 << 40))],
        io: IoLimits {
            read_bytes: NonZeroU64::new(1 << 20),
            write_operations: NonZeroU64::new(100),
            ..IoLimits::default()
        },
        listeners: vec![ListenerConfig { port: 1, socket: 5 }],
    };
    let least = BootConfig {
        vcpus: 0,
        memory_mib: 0,
        disks: Vec::new(),
        listeners: Vec::new(),
        ..boot.clone()
    };
    let streams = [
        SavedStream::ToHost { port: 1 },
        SavedStream::ToGuest {
            header: [1; HEADER_BYTES],
        },
    ];
    let restore = RestoreConfig {
        kvm: KvmKind::Standard,
        memory: 0,
        state: 1,
        console: 2,
        disks: vec![disk(true, None)],
        io: IoLimits::default(),
        streams: streams.map(|stream| RejoinConfig { stream, socket: 6 }).into(),
        prefetch: Some(8),
    };
    let commands = [
        ("probe", Command::Probe),
        ("boot", Command::Boot(boot)),
        ("boot-least", Command::Boot(least)),
        ("restore", Command::Restore(restore)),
        ("map-ahead", Command::MapAhead),
        ("save", Command::Save),
        ("resume", Command::Resume),
        ("record-pages", Command::RecordPages),
        ("count", Command::Count),
        (
            "connect",
            Command::Connect {
                port: 1024,
                header: [2; HEADER_BYTES],
            },
        ),
    ];
    commands
        .into_iter()
        .map(|(name, command)| (name.into(), postcard::to_stdvec(&command).expect("a command")))
        .collect()
}

fn state_files() -> Seeds {
    let version = [&[snapshot::VERSION.len() as u8], snapshot::VERSION.as_bytes()].concat();
    // A connection between two ports, without a name.
    let connection = vec![1, 1, 2, 0];
    let machine = padded(version, |bytes| snapshot::parse(bytes).is_ok());
    let connected = padded(connection, |bytes| {
        postcard::from_bytes::<VsockState>(bytes).is_ok()
    });
    let mut pages = b"brig-pg\n".to_vec();
    for (first, count) in [(0u32, 1u32), (5, 3 | 1 << 31)] {
        pages.extend([first.to_le_bytes(), count.to_le_bytes()].concat());
    }
    vec![
        ("machine".into(), machine),
        ("connection".into(), connected),
        (
            "no-connections".into(),
            postcard::to_stdvec(&VsockState::default()).expect("a state"),
        ),
        ("pages".into(), pages),
    ]
}

/// With a zero for each number and each length that are still missing.
fn padded(mut start: Vec<u8>, whole: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    while !whole(&start) {
        assert!(start.len() < 4096, "no state is that long");
        start.push(0);
    }
    start
}
