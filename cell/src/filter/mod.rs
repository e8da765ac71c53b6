//! The system calls that the processes of a container may make, and those of one that unpacks. The programs are made when brig-cell is built (`build.rs`), of
//! `table.rs`.

#[cfg(test)]
mod table;

include!(concat!(env!("OUT_DIR"), "/filter.rs"));

#[cfg(test)]
mod tests {
    use super::{
        CONTAINER, UNPACK,
        table::{ALLOWED, CHECKED, UNKNOWN, UNPACKING},
    };

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;
    const KILL: u32 = 0x8000_0000;
    const X86_64: u32 = 0xc000_003e;

    /// What the kernel does (net/core/filter.c), as far as the program needs it.
    fn run(number: u32, arch: u32, argument: u64) -> u32 {
        run_program(&CONTAINER, number, arch, argument)
    }

    fn run_program(program: &[libc::sock_filter], number: u32, arch: u32, argument: u64) -> u32 {
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let taken = match step.code {
                0x20 => {
                    accumulator = match step.k {
                        0 => number,
                        4 => arch,
                        16 => argument as u32,
                        other => panic!("reads at {other}"),
                    };
                    continue;
                }
                0x06 => return step.k,
                0x15 => accumulator == step.k,
                0x35 => accumulator >= step.k,
                0x45 => accumulator & step.k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if taken { step.jt } else { step.jf });
        }
    }

    #[test]
    fn the_program_says_what_the_table_says() {
        for number in 0..1000 {
            let listed = i64::from(number);
            if CHECKED.iter().any(|(checked, _)| *checked == listed) {
                continue;
            }
            let expected = if ALLOWED.contains(&listed) {
                ALLOW
            } else if UNKNOWN.contains(&listed) {
                ENOSYS
            } else {
                EPERM
            };
            assert_eq!(run(number, X86_64, 0), expected, "system call {number}");
        }
        assert_eq!(run(u32::MAX, X86_64, 0), EPERM);
        // The numbers of x32, which are those of x86-64 with a bit more.
        assert_eq!(run(0x4000_0000, X86_64, 0), EPERM);
    }

    #[test]
    fn whoever_unpacks_may_do_that_alone() {
        for number in 0..1000 {
            let expected = if UNPACKING.contains(&i64::from(number)) {
                ALLOW
            } else {
                EPERM
            };
            assert_eq!(
                run_program(&UNPACK, number, X86_64, 0),
                expected,
                "system call {number}"
            );
        }
        for never in [
            libc::SYS_execve,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_clone,
            libc::SYS_mount,
        ] {
            assert!(!UNPACKING.contains(&never));
        }
    }

    #[test]
    fn another_architectures_numbers_end_the_process() {
        assert_eq!(run(1, 0x4000_0003, 0), KILL);
    }

    #[test]
    fn arguments_decide_where_they_must() {
        let call = |number: i64, argument| run(number as u32, X86_64, argument);
        assert_eq!(call(libc::SYS_clone, libc::SIGCHLD as u64), ALLOW);
        for flag in [
            libc::CLONE_NEWNS,
            libc::CLONE_NEWCGROUP,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWNET,
        ] {
            assert_eq!(call(libc::SYS_clone, flag as u64), EPERM, "{flag:#x}");
        }
        assert_eq!(call(libc::SYS_socket, libc::AF_INET as u64), ALLOW);
        assert_eq!(call(libc::SYS_socket, libc::AF_VSOCK as u64), EPERM);
        // The kernel takes the low half only.
        assert_eq!(call(libc::SYS_socket, 1 << 32 | libc::AF_VSOCK as u64), EPERM);
        for (domain, expected) in [
            (0, ALLOW),
            (8, ALLOW),
            (0x20000, ALLOW),
            (0x20008, ALLOW),
            (0xffff_ffff, ALLOW),
            (0x0040_0000, EPERM),
        ] {
            assert_eq!(call(libc::SYS_personality, domain), expected, "{domain:#x}");
        }
    }

    /// docs.docker.com/engine/security/seccomp, "Significant syscalls blocked by the default profile", without those that its
    /// default capabilities allow (`chroot`) and newer kernels have made harmless (`ptrace`, `process_vm_readv`), and what no kernel has any more.
    #[test]
    fn what_docker_documents_as_blocked_is_blocked() {
        for number in [
            libc::SYS_acct,
            libc::SYS_add_key,
            libc::SYS_bpf,
            libc::SYS_clock_settime,
            libc::SYS_delete_module,
            libc::SYS_finit_module,
            libc::SYS_get_mempolicy,
            libc::SYS_init_module,
            libc::SYS_ioperm,
            libc::SYS_iopl,
            libc::SYS_kcmp,
            libc::SYS_kexec_file_load,
            libc::SYS_kexec_load,
            libc::SYS_keyctl,
            libc::SYS_lookup_dcookie,
            libc::SYS_mbind,
            libc::SYS_mount,
            libc::SYS_move_pages,
            libc::SYS_nfsservctl,
            libc::SYS_open_by_handle_at,
            libc::SYS_perf_event_open,
            libc::SYS_pivot_root,
            libc::SYS_quotactl,
            libc::SYS_reboot,
            libc::SYS_request_key,
            libc::SYS_set_mempolicy,
            libc::SYS_setns,
            libc::SYS_settimeofday,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_sysfs,
            libc::SYS__sysctl,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_uselib,
            libc::SYS_userfaultfd,
            libc::SYS_ustat,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ] {
            assert_eq!(run(number as u32, X86_64, 0), EPERM, "system call {number}");
        }
    }
}
