//! The system calls of each kind of thread: the one list of them, each with its reason. What is not here kills the process.
//!
//! A thread begins under the filter of the one that makes it, [`Kind::Setup`], which has what is needed to build a machine, and
//! adds its own before it touches anything of the guest's; filters only ever take away. `docs/security.md` says how the lists
//! were found and counts them.

use brig_jail::{
    WallError,
    seccomp::{Arguments, Call, Filter, any, checked},
};
use libc::*;

use Arguments::{OneOf, Pairs, Without};

/// The kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The main thread until the guest runs: it probes, loads or restores, and makes the others.
    Setup,
    /// The main thread from then on.
    Main,
    /// A vCPU's.
    Vcpu,
    /// That of the disks.
    Disks,
    /// That of the other devices and of all streams.
    Streams,
    /// The one that maps pages ahead.
    Prefetch,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Setup,
        Self::Main,
        Self::Vcpu,
        Self::Disks,
        Self::Streams,
        Self::Prefetch,
    ];

    fn lists(self) -> &'static [&'static [Call]] {
        match self {
            // The later filters are put on under this one, so it has what they have.
            Self::Setup => &[SETUP, COMMON, ENDING, MAIN, VCPU, DISKS, STREAMS, PREFETCH],
            Self::Main => &[COMMON, MAIN],
            Self::Vcpu => &[COMMON, ENDING, VCPU],
            Self::Disks => &[COMMON, DISKS],
            Self::Streams => &[COMMON, STREAMS],
            Self::Prefetch => &[COMMON, ENDING, PREFETCH],
        }
    }

    /// What threads of this kind may do. A call may be in it more than once, with different arguments.
    pub fn calls(self) -> Vec<Call> {
        let mut calls = self.lists().concat();
        if cfg!(debug_assertions) {
            calls.extend_from_slice(CHECKS);
        }
        calls
    }

    /// The filter.
    ///
    /// # Errors
    /// [`WallError`] on a processor that is not known.
    pub fn filter(self) -> Result<Filter, WallError> {
        let filter = Filter::allowing(&self.calls())?;
        match self {
            // Its arguments are in memory, where no filter looks: clone(2) it is.
            Self::Setup => filter.denying(SYS_clone3),
            _ => Ok(filter),
        }
    }
}

/// What the allocator, locks, time and panics need in every thread.
const COMMON: &[Call] = &[
    any(SYS_futex, "locks and condition variables"),
    checked(SYS_mmap, Without(2, PROT_EXEC as u32), "large allocations"),
    any(SYS_munmap, "large allocations are given back"),
    any(SYS_brk, "small allocations"),
    any(
        SYS_write,
        "interrupts and stops are eventfds; the console; a panic's last words",
    ),
    any(SYS_close, "descriptors of a reset device; of commands"),
    any(SYS_getrandom, "keys of hash maps"),
    any(
        SYS_clock_gettime,
        "where the clock cannot be read without the kernel",
    ),
    any(
        SYS_sched_yield,
        "channels between threads, while another one is half-way",
    ),
    any(
        SYS_rt_sigreturn,
        "after the signal that takes a vCPU out of the guest, which any thread may get",
    ),
    any(SYS_exit_group, "the end of the process"),
];

/// What the standard library needs to check itself in a build for tests; a release does not have it.
const CHECKS: &[Call] = &[checked(
    SYS_fcntl,
    OneOf(1, &[F_GETFD as u32]),
    "a descriptor that is closed was open",
)];

/// What a thread needs to end.
const ENDING: &[Call] = &[
    any(SYS_exit, "the end of a thread"),
    any(SYS_sigaltstack, "the standard library's stack for overflows goes"),
    any(SYS_rt_sigprocmask, "no signal in a thread that ends"),
    checked(
        SYS_madvise,
        OneOf(2, &[MADV_DONTNEED as u32]),
        "the stack's pages go",
    ),
];

/// KVM's requests (linux/kvm.h), as the filters see them.
mod kvm {
    pub const GET_API_VERSION: u32 = 0xae00;
    pub const CREATE_VM: u32 = 0xae01;
    pub const GET_MSR_INDEX_LIST: u32 = 0xc004_ae02;
    pub const CHECK_EXTENSION: u32 = 0xae03;
    pub const GET_VCPU_MMAP_SIZE: u32 = 0xae04;
    pub const GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
    pub const CREATE_VCPU: u32 = 0xae41;
    pub const SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
    pub const SET_TSS_ADDR: u32 = 0xae47;
    pub const SET_IDENTITY_MAP_ADDR: u32 = 0x4008_ae48;
    pub const CREATE_IRQCHIP: u32 = 0xae60;
    pub const GET_IRQCHIP: u32 = 0xc208_ae62;
    pub const SET_IRQCHIP: u32 = 0x8208_ae63;
    pub const IRQFD: u32 = 0x4020_ae76;
    pub const IOEVENTFD: u32 = 0x4040_ae79;
    pub const SET_CLOCK: u32 = 0x4030_ae7b;
    pub const GET_CLOCK: u32 = 0x8030_ae7c;
    pub const RUN: u32 = 0xae80;
    pub const GET_REGS: u32 = 0x8090_ae81;
    pub const SET_REGS: u32 = 0x4090_ae82;
    pub const GET_SREGS: u32 = 0x8138_ae83;
    pub const SET_SREGS: u32 = 0x4138_ae84;
    pub const GET_MSRS: u32 = 0xc008_ae88;
    pub const SET_MSRS: u32 = 0x4008_ae89;
    pub const GET_FPU: u32 = 0x81a0_ae8c;
    pub const SET_FPU: u32 = 0x41a0_ae8d;
    pub const GET_LAPIC: u32 = 0x8400_ae8e;
    pub const SET_LAPIC: u32 = 0x4400_ae8f;
    pub const SET_CPUID2: u32 = 0x4008_ae90;
    pub const GET_MP_STATE: u32 = 0x8004_ae98;
    pub const SET_MP_STATE: u32 = 0x4004_ae99;
    pub const GET_VCPU_EVENTS: u32 = 0x8040_ae9f;
    pub const SET_VCPU_EVENTS: u32 = 0x4040_aea0;
    pub const GET_DEBUGREGS: u32 = 0x8080_aea1;
    pub const SET_DEBUGREGS: u32 = 0x4080_aea2;
    pub const SET_TSC_KHZ: u32 = 0xaea2;
    pub const GET_TSC_KHZ: u32 = 0xaea3;
    pub const GET_XSAVE: u32 = 0x9000_aea4;
    pub const SET_XSAVE: u32 = 0x5000_aea5;
    pub const GET_XCRS: u32 = 0x8188_aea6;
    pub const SET_XCRS: u32 = 0x4188_aea7;
    pub const GET_STATS_FD: u32 = 0xaece;
}

/// The flags with which the C library makes a thread: everything shared, no namespace, no other signal handling.
const THREAD_FLAGS: u32 = (CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID) as u32;

/// Until the guest runs.
const SETUP: &[Call] = &[
    // The filters themselves, and what a process may do to itself.
    any(SYS_seccomp, "further filters"),
    checked(
        SYS_prctl,
        Pairs(
            0,
            1,
            &[
                (PR_SET_NO_NEW_PRIVS as u32, 1),
                (PR_SET_DUMPABLE as u32, 0),
                (PR_SET_SECCOMP as u32, SECCOMP_MODE_FILTER),
            ],
        ),
        "before a filter; the memory becomes the guest's",
    ),
    checked(SYS_prctl, OneOf(0, &[PR_SET_NAME as u32]), "names of threads"),
    // Threads.
    checked(SYS_clone, OneOf(0, &[THREAD_FLAGS]), "threads of this process"),
    any(SYS_clone3, "answered with ENOSYS, so that it is clone(2)"),
    any(SYS_set_robust_list, "a thread begins"),
    any(SYS_rseq, "a thread begins"),
    any(SYS_gettid, "a thread begins"),
    any(SYS_sched_getaffinity, "the bounds of a thread's stack"),
    any(SYS_rt_sigaction, "the signal that takes a vCPU out of the guest"),
    checked(
        SYS_mprotect,
        Without(2, PROT_EXEC as u32),
        "guard pages of stacks",
    ),
    checked(
        SYS_madvise,
        OneOf(2, &[MADV_POPULATE_READ as u32, MADV_POPULATE_WRITE as u32]),
        "pages of the guest are mapped ahead",
    ),
    // Memory and files.
    any(SYS_memfd_create, "the guest's memory"),
    any(SYS_ftruncate, "its size"),
    checked(
        SYS_fcntl,
        OneOf(
            1,
            &[
                F_GETFL as u32,
                F_SETFL as u32,
                F_GETFD as u32,
                F_SETFD as u32,
                F_ADD_SEALS as u32,
                F_DUPFD_CLOEXEC as u32,
            ],
        ),
        "how descriptors were opened; the size of memory is sealed",
    ),
    any(SYS_sendfile, "the kernel goes into the guest's memory"),
    any(SYS_read, "kernel and initrd"),
    any(SYS_lseek, "their length, and holes"),
    any(SYS_pread64, "the state file, the list of pages"),
    any(SYS_fstat, "what a descriptor is"),
    any(SYS_statx, "the length of files"),
    any(SYS_newfstatat, "the same, by the C library"),
    // Devices.
    any(SYS_eventfd2, "queues and interrupts"),
    any(SYS_epoll_create1, "the threads of devices"),
    any(SYS_getsockopt, "the channel is one"),
    checked(
        SYS_ioctl,
        OneOf(
            1,
            &[
                kvm::GET_API_VERSION,
                kvm::CREATE_VM,
                kvm::GET_MSR_INDEX_LIST,
                kvm::CHECK_EXTENSION,
                kvm::GET_VCPU_MMAP_SIZE,
                kvm::GET_SUPPORTED_CPUID,
                kvm::CREATE_VCPU,
                kvm::SET_USER_MEMORY_REGION,
                kvm::SET_TSS_ADDR,
                kvm::SET_IDENTITY_MAP_ADDR,
                kvm::CREATE_IRQCHIP,
                kvm::SET_IRQCHIP,
                kvm::IRQFD,
                kvm::IOEVENTFD,
                kvm::SET_CLOCK,
                kvm::SET_MSRS,
                kvm::SET_FPU,
                kvm::SET_LAPIC,
                kvm::SET_CPUID2,
                kvm::SET_MP_STATE,
                kvm::SET_DEBUGREGS,
                kvm::SET_TSC_KHZ,
                kvm::SET_XSAVE,
                kvm::SET_XCRS,
                kvm::GET_STATS_FD,
            ],
        ),
        "a machine is made",
    ),
];

/// The main thread while the guest runs: it owns the channel.
const MAIN: &[Call] = &[
    any(SYS_poll, "commands, and the end of the guest"),
    any(SYS_ppoll, "the same, with a time"),
    any(
        SYS_restart_syscall,
        "a wait with a time that SIGSTOP or a suspended host has interrupted",
    ),
    any(SYS_recvmsg, "commands"),
    any(SYS_sendmsg, "answers"),
    checked(
        SYS_fcntl,
        OneOf(1, &[F_GETFL as u32, F_SETFL as u32]),
        "a stream must not block",
    ),
    any(SYS_fstat, "whether a stream is a socket"),
    any(SYS_epoll_ctl, "a stream is watched"),
    any(SYS_shutdown, "half of a stream ends"),
    any(SYS_read, "a stream is emptied before it is closed"),
    any(SYS_readv, "a stream is served at once"),
    any(SYS_writev, "a stream is served at once; the guest's last bytes"),
    // A guest is saved.
    checked(
        SYS_ioctl,
        OneOf(1, &[kvm::GET_CLOCK, kvm::GET_IRQCHIP]),
        "the state of the machine is read",
    ),
    any(SYS_tgkill, "a vCPU leaves the guest"),
    any(SYS_getpid, "for tgkill"),
    any(SYS_mincore, "which pages hold something"),
    any(SYS_lseek, "which parts of a file do"),
    any(SYS_pwrite64, "memory and state are written"),
    any(SYS_ftruncate, "the memory's file has its length"),
    any(SYS_pread64, "KVM's counters, the page map"),
    any(SYS_getrusage, "what the process has cost"),
    // What is left when threads and large buffers go.
    checked(
        SYS_madvise,
        OneOf(2, &[MADV_DONTNEED as u32]),
        "free memory goes back to the host",
    ),
    any(SYS_mremap, "large allocations grow"),
    any(SYS_rt_sigprocmask, "the end of the process"),
    any(SYS_sigaltstack, "the end of the process"),
];

/// A vCPU: it runs the guest and answers its exits. A driver's reset of a device is carried out here too.
const VCPU: &[Call] = &[
    checked(
        SYS_ioctl,
        OneOf(
            1,
            &[
                kvm::RUN,
                // Instructions that KVM lacks.
                kvm::GET_REGS,
                kvm::SET_REGS,
                kvm::GET_SREGS,
                kvm::SET_SREGS,
                kvm::SET_VCPU_EVENTS,
                kvm::GET_VCPU_EVENTS,
                kvm::GET_FPU,
                kvm::SET_FPU,
                kvm::GET_XSAVE,
                kvm::SET_XSAVE,
                kvm::GET_XCRS,
                // The guest is saved.
                kvm::GET_MP_STATE,
                kvm::GET_DEBUGREGS,
                kvm::GET_LAPIC,
                kvm::GET_MSRS,
                kvm::GET_TSC_KHZ,
            ],
        ),
        "the guest runs; its state is read",
    ),
    any(
        SYS_epoll_ctl,
        "streams of a device that is reset are not watched any more",
    ),
    any(SYS_shutdown, "and end"),
    any(SYS_writev, "after what the guest had sent"),
];

/// The disks.
const DISKS: &[Call] = &[
    any(SYS_epoll_pwait, "notified queues"),
    any(SYS_read, "a notification is taken"),
    any(SYS_preadv, "reads"),
    any(SYS_pwritev, "writes"),
    any(SYS_fdatasync, "flushes"),
    checked(
        SYS_fallocate,
        OneOf(
            1,
            &[
                (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE) as u32,
                (FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE) as u32,
            ],
        ),
        "discards and zeros",
    ),
    checked(
        SYS_madvise,
        OneOf(2, &[MADV_DONTNEED as u32]),
        "free memory goes back to the host",
    ),
    any(SYS_mremap, "large allocations grow"),
];

/// The streams.
const STREAMS: &[Call] = &[
    any(SYS_fstat, "whether the host's end of a connection is a socket"),
    checked(
        SYS_fcntl,
        OneOf(1, &[F_GETFL as u32, F_SETFL as u32]),
        "it must not block",
    ),
    any(SYS_epoll_pwait, "notified queues and streams"),
    any(SYS_epoll_ctl, "streams that end"),
    any(
        SYS_read,
        "a notification is taken; a stream is emptied before it is closed",
    ),
    any(SYS_readv, "a stream into the guest"),
    any(SYS_writev, "a stream out of it"),
    any(SYS_shutdown, "half of a stream ends"),
    checked(
        SYS_madvise,
        OneOf(2, &[MADV_DONTNEED as u32, MADV_REMOVE as u32]),
        "free memory goes back to the host, the guest's too",
    ),
    any(SYS_mremap, "large allocations grow"),
];

/// Pages are mapped ahead.
const PREFETCH: &[Call] = &[checked(
    SYS_madvise,
    OneOf(
        2,
        &[
            MADV_POPULATE_READ as u32,
            MADV_POPULATE_WRITE as u32,
            MADV_DONTNEED as u32,
        ],
    ),
    "pages of the guest",
)];

#[cfg(test)]
mod tests {
    use brig_jail::seccomp::count;

    use super::*;

    #[test]
    fn the_lists_are_as_long_as_the_documentation_says() {
        let text = include_str!("../../../docs/security.md");
        let rows = [
            ("main, until the guest runs", Kind::Setup),
            ("main, from then on", Kind::Main),
            ("a vCPU", Kind::Vcpu),
            ("disks", Kind::Disks),
            ("streams", Kind::Streams),
            ("prefetch", Kind::Prefetch),
        ];
        // What only a build for tests has does not count.
        let lines = rows.map(|(name, kind)| format!("| {name} | {} |", count(&kind.lists().concat())));
        for line in &lines {
            assert!(text.contains(line), "{lines:#?}");
        }
    }

    #[test]
    fn the_lists_are_short() {
        assert!(count(&Kind::Vcpu.calls()) <= 20, "{}", count(&Kind::Vcpu.calls()));
        for kind in [Kind::Disks, Kind::Streams, Kind::Prefetch] {
            assert!(count(&kind.calls()) <= 40, "{kind:?}: {}", count(&kind.calls()));
        }
    }

    #[test]
    fn once_the_guest_runs_nothing_is_made() {
        let makes = [
            SYS_clone,
            SYS_clone3,
            SYS_fork,
            SYS_vfork,
            SYS_execve,
            SYS_execveat,
            SYS_socket,
            SYS_socketpair,
            SYS_connect,
            SYS_bind,
            SYS_listen,
            SYS_accept,
            SYS_accept4,
            SYS_open,
            SYS_openat,
            SYS_openat2,
            SYS_creat,
            SYS_memfd_create,
            SYS_ptrace,
            SYS_process_vm_readv,
            SYS_process_vm_writev,
            SYS_mount,
            SYS_unshare,
            SYS_setns,
            SYS_kill,
            SYS_prctl,
            SYS_mprotect,
            SYS_bpf,
            SYS_io_uring_setup,
            SYS_userfaultfd,
            SYS_perf_event_open,
            SYS_keyctl,
            SYS_add_key,
            SYS_seccomp,
        ];
        for kind in Kind::ALL {
            for call in kind.calls() {
                assert!(
                    kind == Kind::Setup || !makes.contains(&call.number),
                    "{kind:?}: {}",
                    call.reason
                );
            }
        }
    }

    #[test]
    fn every_filter_can_be_compiled_and_every_call_has_a_reason() {
        for kind in Kind::ALL {
            kind.filter().unwrap();
            assert!(kind.calls().iter().all(|call| !call.reason.is_empty()));
        }
    }
}
