//! A guest whose kernel (`tests/hostile`) drives the machine wrongly, one misdeed a test. brig-vmm goes on and its devices work
//! afterwards, or it says in one line why the guest cannot go on; and then it ends by itself. It never panics, never stands still, and
//! uses no memory but the guest's.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::PathBuf,
};

use brig_protocol::vmm::{Command, DiskConfig, Event, SegmentConfig, StopReason};
use brig_tests::machine::{self, Need};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::driver::{Guest, Vmm, open_kvm};

#[allow(dead_code)]
#[path = "../../vmm/tests/driver/mod.rs"]
mod driver;

static KERNEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hostile-kernel"));

const MEMORY_MIB: u32 = 64;

/// As many sectors as the kernel takes for granted.
const DISK_BYTES: usize = 16 * 512;

/// Most memory that brig-vmm has of its own: its code, stacks and heap, and what a misdeed makes it allocate.
const OWN_KIB_MAX: u64 = 16 << 10;

/// How long a guest may print nothing. Far longer than any of them takes: a machine that stands still is not waited for forever.
const SILENCE: Timespec = Timespec {
    tv_sec: 300,
    tv_nsec: 0,
};

/// What is to come of a misdeed.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// The guest goes on, and every device works when it is driven well. brig-vmm ends with its supervisor.
    GoesOn,
    /// The guest has switched the machine off.
    Reset,
    /// The vCPU cannot go on; the word that is in brig-vmm's line on why.
    Fails(&'static str),
}

use Outcome::{Fails, GoesOn, Reset};

macro_rules! misdeeds {
    ($($name:ident => $outcome:expr,)+) => {
        $(fn $name() {
            commit(stringify!($name), $outcome);
        })+

        /// The tests of this file.
        pub const TESTS: &[brig_tests::suite::Test] = &[
            $(brig_tests::suite::Test {
                name: concat!("hostile_guest_", stringify!($name)),
                need: Need::Kvm,
                run: $name,
            },)+
        ];
    };
}

misdeeds! {
    // Queues.
    descriptor_loop => GoesOn,
    addresses_out_of_range => GoesOn,
    zero_and_huge_lengths => GoesOn,
    indirect_tables_in_indirect_tables => GoesOn,
    // CVE-2026-5747, queue registers changed after activation.
    queue_changed_while_active => GoesOn,
    // CVE-2026-45782, asynchronous I/O after what it belongs to is free.
    reset_during_io => GoesOn,
    rings_over_unmapped_memory => GoesOn,
    rings_over_each_other => GoesOn,
    available_index_that_makes_no_sense => GoesOn,
    heads_outside_of_the_table => GoesOn,
    status_that_makes_no_sense => GoesOn,
    // Devices.
    // CVE-2026-24834, read-only storage that the guest can write.
    writes_to_a_read_only_disk => GoesOn,
    sectors_out_of_range => GoesOn,
    // CVE-2019-18960, bounds of the descriptors of packets.
    socket_packets_of_wrong_lengths => GoesOn,
    // CVE-2020-16843, a receive queue that stalls for good.
    socket_flood => GoesOn,
    // CVE-2020-27174, memory allocated without bounds by the entropy device and by the serial port.
    entropy_without_end => GoesOn,
    // Whatever it says is free: it has lost that, and nobody else anything.
    reports_of_anything => GoesOn,
    serial_loopback => GoesOn,
    serial_flood => GoesOn,
    // The machine.
    port_scan => GoesOn,
    register_scan => GoesOn,
    msr_scan => GoesOn,
    interrupt_storm => GoesOn,
    odd_instructions_with_bad_operands => GoesOn,
    halt_with_interrupts_off => GoesOn,
    triple_fault => Fails("triple fault"),
    odd_instruction_on_a_device => Fails("KVM_EXIT_INTERNAL_ERROR"),
    jump_into_a_device => Fails("KVM_EXIT_INTERNAL_ERROR"),
    itself_overwritten => Fails(""),
    reset => Reset,
}

/// A brig-vmm whose guest commits `misdeed`, and the disks that it was given.
struct Scene {
    vmm: Vmm,
    console: io::PipeReader,
    read_only: File,
    writable: File,
}

impl Scene {
    fn new(misdeed: &str) -> Self {
        let vmm = Vmm::spawn(&brig_vmm()).unwrap();
        let kvm = open_kvm().unwrap();
        let kind = vmm.probe(&kvm).unwrap();
        let (mut guest, console) = Guest::new(&kvm, kind, file(KERNEL), file(b"no initrd")).unwrap();
        guest.config.memory_mib = MEMORY_MIB;
        guest.config.extra_command_line = format!("misdeed={misdeed}");
        let (read_only, writable) = (file(&[b'r'; DISK_BYTES]), file(&[b'w'; DISK_BYTES]));
        for (file, writable) in [(&read_only, false), (&writable, true)] {
            let file = guest.add(file.try_clone().unwrap());
            guest.config.disks.push(DiskConfig {
                segments: vec![SegmentConfig {
                    file,
                    length: DISK_BYTES as u64,
                }],
                writable,
                shown_bytes: None,
            });
        }
        let booted = vmm.boot(guest).unwrap();
        assert!(matches!(booted, Event::Booted { .. }), "{booted:?}");
        Self {
            vmm,
            console,
            read_only,
            writable,
        }
    }

    /// Reads what the guest prints until it says that it has done it.
    fn wait_until_done(&mut self, misdeed: &str) {
        let wanted = format!("done {misdeed}\n");
        let mut log = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let mut ready = [PollFd::new(&self.console, PollFlags::IN)];
            assert_eq!(
                poll(&mut ready, Some(&SILENCE)),
                Ok(1),
                "it stands still: {}",
                end(&log)
            );
            let count = self.console.read(&mut chunk).unwrap();
            assert!(count > 0, "{:?}: {}", self.vmm.event(), end(&log));
            log.extend_from_slice(&chunk[..count]);
            // What is printed is bounded by what a guest can print before it says that it is done.
            if log.windows(wanted.len()).any(|part| part == wanted.as_bytes()) {
                return;
            }
        }
    }

    /// Memory that is neither the guest's nor a file's.
    fn own_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.vmm.child.pid.as_raw_nonzero());
        let status = fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn assert_disks_are_whole(&self) {
        let read = |file: &File| {
            let mut content = vec![0; 2 * DISK_BYTES];
            let bytes = std::os::unix::fs::FileExt::read_at(file, &mut content, 0).unwrap();
            content.truncate(bytes);
            content
        };
        assert!(
            read(&self.read_only) == [b'r'; DISK_BYTES],
            "a read-only disk was written to"
        );
        assert_eq!(read(&self.writable).len(), DISK_BYTES);
    }
}

fn commit(misdeed: &str, outcome: Outcome) {
    let mut scene = Scene::new(misdeed);
    let ended = |scene: &Scene| match scene.vmm.event().unwrap() {
        Event::Stopped(reason) => reason,
        other => panic!("{other:?}"),
    };
    match outcome {
        GoesOn => {
            scene.wait_until_done(misdeed);
            let own = scene.own_kib();
            assert!(own <= OWN_KIB_MAX, "{own} KiB");
            // Its main thread answers, whatever the others have been through.
            scene.vmm.send(&Command::Count, &[]).unwrap();
            let counted = scene.vmm.event().unwrap();
            assert!(matches!(counted, Event::Counted(_)), "{counted:?}");
            scene.vmm.close_channel();
        }
        Reset => assert_eq!(ended(&scene), StopReason::Reset),
        Fails(word) => match ended(&scene) {
            StopReason::VcpuFailed(why) => {
                assert!(why.contains(word) && why.lines().count() == 1, "{why}");
            }
            StopReason::Reset => panic!("{}", printed(&mut scene)),
        },
    }
    // A panic is an exit by a signal.
    let status = scene.vmm.child.wait().unwrap();
    assert!(status.success(), "{status}");
    scene.assert_disks_are_whole();
}

fn printed(scene: &mut Scene) -> String {
    let mut log = Vec::new();
    scene.console.read_to_end(&mut log).unwrap();
    end(&log)
}

/// The last words of a log.
fn end(log: &[u8]) -> String {
    String::from_utf8_lossy(&log[log.len().saturating_sub(400)..]).into_owned()
}

fn brig_vmm() -> PathBuf {
    machine::lib_directory().join("brig-vmm")
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}
