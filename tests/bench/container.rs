//! How long a container takes, against crun and runc with the same namespaces on the same root filesystem, and against podman, which runs
//! crun.
//!
//! ```text
//! bench-container [--rounds N]
//!   --rounds N   runs of each (40)
//! ```
//! `busybox true` each time, in turns, so that what else the machine does falls on all of them. The others get a copy of the files
//! that brig has unpacked, a user namespace with the same ids, and the mounts, masked paths and capabilities of Docker's default; no cgroup, as
//! brig makes none without a limit. They get no writable layer, which brig puts over the image, and no system call filter.
//! Nothing is compared with a limit: a benchmark does not fail.

mod figures;

use std::{
    env, fs, io,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use brig_tests::{
    brig::{Brig, Output},
    machine,
    suite::in_containers,
};
use rustix::{
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};
use serde_json::{Value, json};

use crate::figures::{Figures, quantile, table};

/// What is compared, in the order of a round.
const BRIG: &str = "brig run, whole";
const BRIG_CELL: &str = "brig, create to exit";
const CRUN: &str = "crun run";
const RUNC: &str = "runc run";
const PODMAN: &str = "podman run";

fn main() -> ExitCode {
    let mut words = env::args().skip(1);
    let rounds = match (
        words.next().as_deref(),
        words.next().and_then(|word| word.parse().ok()),
    ) {
        (None, _) => 40,
        (Some("--rounds"), Some(rounds)) => rounds,
        _ => {
            eprintln!("bench-container: takes --rounds N");
            return ExitCode::from(2);
        }
    };
    if let Some(reason) = machine::Need::Containers.missing() {
        eprintln!("bench-container: skipped, {reason}");
        return ExitCode::SUCCESS;
    }
    RUNS.with(|runs| runs.set(rounds));
    if let Err(e) = hide_second_hierarchy() {
        println!("crun may fail where cgroups of both versions are mounted: cannot hide one of them: {e}");
    }
    in_containers(bench);
    ExitCode::SUCCESS
}

/// crun gives up where cgroups of both versions are mounted and it is to use none. In a mount namespace of its own this process, and all
/// that it runs, has those of the first version alone.
fn hide_second_hierarchy() -> io::Result<()> {
    const HIERARCHY: &str = "/sys/fs/cgroup/unified";
    if !Path::new(HIERARCHY).exists() {
        return Ok(());
    }
    // SAFETY: this process has one thread, and shares no file descriptors or working directory with another.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(unmount(HIERARCHY, UnmountFlags::DETACH)?)
}

thread_local! {
    static RUNS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn bench() {
    let brig = Brig::new();
    brig.ok(&["run", "--rm", "busybox", "true"]);
    let bundle = tempfile::tempdir().expect("a temporary directory");
    let image = unpacked(&brig);
    write_bundle(bundle.path(), &image);
    let others: Vec<(&str, &str)> = [(CRUN, "crun"), (RUNC, "runc"), (PODMAN, "podman")]
        .into_iter()
        .filter(|(_, program)| {
            let is_there = machine::find_program(program).is_some();
            if !is_there {
                println!("{program} is not here: apt-get install {program}");
            }
            is_there
        })
        .collect();
    let mut figures = Figures::new();
    for round in 0..RUNS.with(std::cell::Cell::get) {
        time_brig(&brig, &mut figures);
        for &(name, program) in &others {
            if let Some(took) = time_other(program, bundle.path(), round) {
                figures.entry(name).or_default().push(took);
            }
        }
    }
    table(
        "busybox true, milliseconds",
        &[BRIG, BRIG_CELL, CRUN, RUNC, PODMAN],
        &figures,
    );
    let median = |name: &str| figures.get(name).map(|values| quantile(values, 0.5));
    for (own, other) in [
        (BRIG_CELL, CRUN),
        (BRIG, CRUN),
        (BRIG_CELL, RUNC),
        (BRIG, RUNC),
        (BRIG, PODMAN),
    ] {
        if let (Some(a), Some(b)) = (median(own), median(other)) {
            println!("{own} / {other}: {:.2}", a / b);
        }
    }
    brig.assert_nothing_left();
}

/// The directory that the image is unpacked to.
fn unpacked(brig: &Brig) -> std::path::PathBuf {
    let directories = fs::read_dir(brig.root().join("images/directories")).expect("an unpacked image");
    directories
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.is_dir())
        .expect("an unpacked image")
}

fn time_brig(brig: &Brig, figures: &mut Figures) {
    let began = Instant::now();
    let Output { code, stderr, .. } = brig.run(&["run", "--rm", "--timing", "busybox", "true"]);
    let took = began.elapsed().as_secs_f64() * 1e3;
    assert_eq!(code, 0, "{stderr}");
    figures.entry(BRIG).or_default().push(took);
    let stage = |name: &str| -> Option<f64> {
        let line = stderr.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    if let (Some(begin), Some(end)) = (stage("init"), stage("exit")) {
        figures.entry(BRIG_CELL).or_default().push(end - begin);
    }
}

/// `None` when it does not run here at all.
fn time_other(program: &str, bundle: &Path, round: usize) -> Option<f64> {
    let mut command = Command::new(program);
    if program == "podman" {
        // It raises what it does not know to be there already.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
        command
            .args(["run", "--rm", "--cgroups=disabled", "--network=none"])
            .args(limits)
            .arg("--rootfs")
            .arg(bundle.join("root"))
            .arg("true");
    } else {
        // As brig makes no cgroup.
        command
            .args((program == "crun").then_some("--cgroup-manager=disabled"))
            .arg("run")
            .arg("--bundle")
            .arg(bundle)
            .arg(format!("bench-{program}-{}-{round}", std::process::id()));
    }
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output().ok()?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    if !output.status.success() {
        if round == 0 {
            println!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        return None;
    }
    Some(took)
}

/// A bundle (OCI runtime specification, config.md) like what brig runs.
fn write_bundle(at: &Path, image: &Path) {
    let owner = fs::metadata(image).expect("an unpacked image").uid();
    // Others' ids have no way through brig's directories.
    let root = at.join("root");
    let copied = Command::new("cp").arg("-a").arg(image).arg(&root).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp");
    // The runtimes go through it as the namespace's root.
    chown(at, Some(owner), Some(owner)).expect("root");
    let capabilities = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SYS_CHROOT",
        "MKNOD",
        "AUDIT_WRITE",
        "SETFCAP",
    ]
    .map(|name| format!("CAP_{name}"));
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    let namespaces: Vec<Value> = ["user", "mount", "pid", "uts", "ipc", "network", "cgroup"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    let map = json!([{"containerID": 0, "hostID": owner, "size": 65536}]);
    let config = json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": root, "readonly": false},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "uidMappings": map,
            "gidMappings": map,
            "namespaces": namespaces,
            "cgroupsPath": "",
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    fs::write(at.join("config.json"), config.to_string()).expect("a file in a temporary directory");
}
