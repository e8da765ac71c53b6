//! What is left when a process of brig's is killed, or the guest's kernel dies.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use brig_tests::{
    brig::{Brig, finish},
    host, http, leftovers,
    machine::{self, Need},
    tests,
};
use rustix::process::{Pid, Signal, kill_process};

tests! {
    Need::Kvm =>
        a_killed_supervisor_takes_its_sandbox_along_and_no_other,
        a_killed_vmm_ends_its_sandbox,
        a_panic_of_the_guest_shows_the_kernels_last_words;
    Need::KvmAndRoot => a_full_disk_loses_no_exit_code;
}

pub(crate) fn a_killed_supervisor_takes_its_sandbox_along_and_no_other() {
    let brig = Brig::new();
    let other = brig.welcome("other", &[]);
    let address = brig.welcome("victim", &[]);
    kill(&brig, "victim", "/State/Pid");
    assert_gone(&brig, "victim");
    drop(TcpListener::bind(address).expect("its port is free"));
    assert_eq!(http::get(other, "/healthz").unwrap().text(), "ok\n");
    brig.ok(&["rm", "victim"]);
    brig.ok(&["rm", "-f", "other"]);
    brig.assert_nothing_left();
}

pub(crate) fn a_killed_vmm_ends_its_sandbox() {
    let brig = Brig::new();
    let address = brig.welcome("victim", &[]);
    kill(&brig, "victim", "/State/VmmPid");
    brig.ok(&["wait", "victim"]);
    assert_gone(&brig, "victim");
    drop(TcpListener::bind(address).expect("its port is free"));
    // Its files are there, and it starts again.
    brig.ok(&["start", "victim"]);
    brig.wait_for_log("victim", "listening");
    brig.ok(&["rm", "-f", "victim"]);
    brig.assert_nothing_left();
}

fn a_panic_of_the_guest_shows_the_kernels_last_words() {
    // An initrd without an init: the kernel finds nothing to run, and panics.
    let library = tempfile::tempdir().unwrap();
    for file in ["brig-supervisor", "brig-vmm", "vmlinux", "welcome.tar"] {
        symlink(
            machine::lib_directory().canonicalize().unwrap().join(file),
            library.path().join(file),
        )
        .unwrap();
    }
    fs::write(library.path().join("initrd.cpio"), empty_cpio()).unwrap();
    let brig = Brig::new().with_library(library.path());
    let output = brig.run(&["run", "--name", "doomed", "busybox", "true"]);
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains("Kernel panic"), "{output:?}");
    assert!(output.stderr.contains("brig: "), "{output:?}");
    brig.run(&["rm", "-f", "doomed"]);
    brig.assert_nothing_left();
}

/// Writes until nothing more fits, in a sandbox and in what brig itself writes down.
const FILL: &str = r#"
    "$0" run --name full busybox sh -c 'dd if=/dev/zero of=/large bs=256k count=20 conv=fsync 2>/dev/null; exit 7'
    echo "exits $?"
    dd if=/dev/zero of="$BRIG_ROOT/sandboxes/rest" bs=4k 2>/dev/null
    "$0" wait full
    "$0" ps -a | grep -o 'Exited (7)'
    "$0" start full >/dev/null 2>&1
    "$0" wait full >/dev/null
    "$0" rm full
    ls "$BRIG_ROOT/sandboxes"
"#;

pub(crate) fn a_full_disk_loses_no_exit_code() {
    let brig = Brig::new();
    let sandboxes = brig.root().join("sandboxes");
    fs::create_dir_all(&sandboxes).unwrap();
    let command = brig.command(&[""; 0]);
    let program = command.get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(FILL).arg(program);
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell.stdout(Stdio::piped()).stderr(Stdio::piped());
    host::with_little_space(&mut shell, &sandboxes, 4);
    let output = finish(shell.spawn().unwrap());
    let said: Vec<_> = output.stdout.lines().collect();
    assert_eq!(said, ["exits 7", "7", "Exited (7)", "full", "rest"], "{output:?}");
    brig.assert_nothing_left();
}

/// The trailer that every archive ends with, and nothing before it (Linux, Documentation/driver-api/early-userspace/
/// buffer-format.rst).
fn empty_cpio() -> Vec<u8> {
    let name = b"TRAILER!!!\0";
    let mut archive = b"070701".to_vec();
    for field in 0..13 {
        let value = match field {
            4 => 1,
            11 => name.len(),
            _ => 0,
        };
        archive.extend_from_slice(format!("{value:08x}").as_bytes());
    }
    archive.extend_from_slice(name);
    archive.resize(512, 0);
    archive
}

fn kill(brig: &Brig, sandbox: &str, pointer: &str) {
    let pid = brig.inspect(sandbox, pointer).as_i64().expect("a pid");
    let pid = Pid::from_raw(pid as i32).expect("a pid");
    kill_process(pid, Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    assert!(leftovers::wait_for_end(
        pid.as_raw_nonzero().get() as u32,
        deadline
    ));
}

/// Asserts that a sandbox is shown as exited, and that no process of its is there.
fn assert_gone(brig: &Brig, sandbox: &str) {
    let line = brig.ps_line(sandbox).unwrap();
    assert!(line.contains("Exited ("), "{line}");
    let id = brig.inspect(sandbox, "/Id");
    let id = id.as_str().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for process in leftovers::processes_of_sandbox(brig, id) {
        assert!(
            leftovers::wait_for_end(process.pid, deadline),
            "{process:?} is left"
        );
    }
}
