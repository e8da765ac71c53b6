//! What a guest does not need any more is the host's again.

use std::{
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    brig::Brig,
    leftovers::processes_of_sandbox,
    machine::{Need, is_emulated},
    smaps, tests,
};

tests! {
    Need::Kvm => memory_that_a_sandbox_has_freed_goes_back_to_the_host;
}

/// A guest reports blocks two seconds after it has freed them, and goes on until all are. This is for the slowest machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// For a guest that was restored, whose memory is a private mapping, and for one that was booted, whose memory is a memfd.
fn memory_that_a_sandbox_has_freed_goes_back_to_the_host() {
    // Where the guest's kernel is interpreted, each MiB that is written takes half a second.
    let mib: u64 = if is_emulated() { 16 } else { 100 };
    let brig = Brig::new();
    for boot in [&[][..], &["--no-template"]] {
        let options = ["run", "-d", "-m", "256m", "--shm-size", "128m"];
        let id = brig.ok(&[&options, boot, &["busybox", "sleep", "1000000"]].concat());
        let id = id.trim();
        let sh = |script: &str| brig.ok(&["exec", id, "sh", "-c", script]);
        // What stays in use keeps its content.
        let kept = sh("seq 1 20000 > /dev/shm/kept; md5sum /dev/shm/kept");
        let before = guest_kib(&brig, id);
        sh(&format!(
            "dd if=/dev/zero of=/dev/shm/big bs=1M count={mib} 2>/dev/null"
        ));
        let full = guest_kib(&brig, id);
        assert!(
            full > before + mib * 1024 * 9 / 10,
            "{before} KiB, then {full} KiB"
        );
        sh("rm /dev/shm/big");
        let deadline = Instant::now() + PATIENCE;
        let mut left = full;
        while left > before + mib * 1024 / 3 {
            assert!(
                Instant::now() < deadline,
                "{before} KiB, {full} KiB, and then still {left} KiB"
            );
            thread::sleep(Duration::from_millis(500));
            left = guest_kib(&brig, id);
        }
        // What was given back can be used again.
        sh("dd if=/dev/zero of=/dev/shm/again bs=1M count=2 2>/dev/null");
        assert_eq!(sh("md5sum /dev/shm/kept"), kept);
        brig.ok(&["rm", "-f", id]);
    }
    brig.assert_nothing_left();
}

/// What a sandbox's guest has of the host's memory.
fn guest_kib(brig: &Brig, id: &str) -> u64 {
    let vmm = processes_of_sandbox(brig, id)
        .into_iter()
        .find(|process| process.name == "brig-vmm");
    let mappings = vmm.and_then(|process| smaps::of_process(process.pid)).unwrap();
    mappings
        .iter()
        .filter(|mapping| mapping.is_guest)
        .map(|mapping| mapping.pss_kib)
        .sum()
}
