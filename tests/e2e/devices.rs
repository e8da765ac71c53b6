//! `--device-write-bps` and its relatives. What is measured is the least time that bytes must have taken: no machine is too slow
//! for that.

use std::time::{Duration, Instant};

use brig_tests::{brig::Brig, machine::Need, suite::Test, tests, tests_in_containers};

use crate::devices;

tests! {
    Need::Kvm => a_guest_writes_no_faster_than_it_may_nor_do_copies_of_it;
    Need::Nothing => limits_of_devices_that_make_no_sense_are_refused;
}

/// In containers.
pub const SHARED: &[Test] = &tests_in_containers! {
    Need::Containers => devices::a_container_writes_no_faster_than_it_may;
};

/// 2 MiB at 256 KiB a second, less what may be written at once and what a start has to write.
const COPY: [&str; 4] = ["dd", "if=/dev/zero", "bs=64k", "count=32"];
const LEAST: Duration = Duration::from_secs(7);

/// How long it takes to write them to a file in a sandbox and onto its disk.
fn written(brig: &Brig, name: &str) -> Duration {
    let began = Instant::now();
    let mut words = vec!["exec", name];
    words.extend(COPY);
    words.extend(["of=/file", "conv=fsync"]);
    brig.ok(&words);
    began.elapsed()
}

fn a_guest_writes_no_faster_than_it_may_nor_do_copies_of_it() {
    let brig = Brig::new();
    let wait = ["busybox", "sleep", "1000"];
    let mut words = vec!["run", "-d", "--name", "slow", "--device-write-bps", "/:256kb"];
    words.extend(["--device-read-iops", "/:100000"]);
    words.extend(wait);
    brig.ok(&words);
    let host = |pointer: &str| brig.inspect("slow", &format!("/HostConfig{pointer}"));
    assert_eq!(host("/BlkioDeviceWriteBps/0/Path"), "/");
    assert_eq!(host("/BlkioDeviceWriteBps/0/Rate"), 256 << 10);
    assert_eq!(host("/BlkioDeviceReadIOps/0/Rate"), 100_000);
    assert!(written(&brig, "slow") >= LEAST);
    // Stopped and started, it is restored from a template with another disk; a copy goes on from a snapshot.
    brig.ok(&["snapshot", "create", "slow", "saved"]);
    brig.ok(&["run", "-d", "--name", "copy", "--snapshot", "saved"]);
    assert_eq!(
        brig.inspect("copy", "/HostConfig/BlkioDeviceWriteBps/0/Rate"),
        256 << 10
    );
    assert!(written(&brig, "copy") >= LEAST);
    brig.ok(&["stop", "-t", "0", "slow"]);
    brig.ok(&["start", "slow"]);
    assert!(written(&brig, "slow") >= LEAST);
    brig.ok(&["rm", "-f", "slow", "copy"]);
    brig.ok(&["snapshot", "rm", "saved"]);
    brig.assert_nothing_left();
}

pub fn a_container_writes_no_faster_than_it_may() {
    let brig = Brig::new();
    let mut words = vec!["run", "-d", "--name", "slow", "--device-write-bps", "/:256kb"];
    words.extend(["busybox", "sleep", "1000"]);
    let output = brig.run(&words);
    if output.code == 0 {
        assert!(written(&brig, "slow") >= LEAST);
        brig.ok(&["rm", "-f", "slow"]);
    } else {
        // No such controller, or brig's files are on no disk.
        output.assert_clear_failure(125, "limit");
        brig.ok(&["rm", "-f", "slow"]);
    }
    brig.assert_nothing_left();
}

fn limits_of_devices_that_make_no_sense_are_refused() {
    let brig = Brig::new();
    for (option, value, what) in [
        ("--device-read-bps", "/:0", "DEVICE:RATE"),
        ("--device-write-bps", "1mb", "DEVICE:RATE"),
        ("--device-read-iops", "/:1mb", "DEVICE:RATE"),
    ] {
        let output = brig.run(&["run", "--rm", option, value, "busybox", "true"]);
        assert_ne!(output.code, 0);
        assert!(output.stderr.contains(what), "{output:?}");
    }
    for isolation in ["vm", "container"] {
        let words = [
            "run",
            "--rm",
            "--isolation",
            isolation,
            "--device-write-iops",
            "/dev/null:5",
            "busybox",
            "true",
        ];
        brig.run(&words).assert_clear_failure(125, "/dev/null");
    }
    assert!(brig.ps_line("busybox").is_none());
}
