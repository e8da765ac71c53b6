//! The walls of a supervisor whose sandbox has a guest: it hears what an agent says, and must not be talked into more than it does.
//!
//! brig-vmm and the program that makes a disk are its children and inherit these walls, so that they keep out what none of the three
//! does; brig-vmm's own are narrower. A supervisor of a container has none of them: the programs of a container inherit
//! what the supervisor gives up, and they may gain privileges in their namespaces. What keeps these in is in docs/isolation.md.

use brig_jail::{
    WallError, capabilities,
    seccomp::{Arguments, Call, Filter, any, checked},
};
use rustix::thread::CapabilitySet;

/// What root's supervisor keeps.
const CAPABILITIES: [CapabilitySet; 6] = [
    // brig-vmm gets a user of its own.
    CapabilitySet::SETUID,
    CapabilitySet::SETGID,
    // It is killed.
    CapabilitySet::KILL,
    // brig's files may be another user's.
    CapabilitySet::DAC_OVERRIDE,
    CapabilitySet::FOWNER,
    // Ports below 1024 are published.
    CapabilitySet::NET_BIND_SERVICE,
];

/// Builds them around this thread and all that it makes from now on. It is the only one yet.
///
/// # Errors
/// [`WallError`]: the supervisor is to end then.
pub(super) fn build() -> Result<(), WallError> {
    capabilities::keep(&CAPABILITIES)?;
    // It gives up gaining privileges too.
    Filter::killing(KILLING)?.install()
}

/// What kills a supervisor.
const KILLING: &[Call] = &[
    // Other processes.
    any(libc::SYS_ptrace, "no process is traced"),
    any(libc::SYS_process_vm_readv, "nor its memory read"),
    any(libc::SYS_process_vm_writev, "nor written"),
    any(libc::SYS_process_madvise, "nor advised about"),
    any(libc::SYS_pidfd_getfd, "nor its descriptors taken"),
    any(libc::SYS_kcmp, "nor compared with another"),
    any(libc::SYS_setns, "nor its namespaces entered"),
    any(libc::SYS_move_pages, "nor its pages moved"),
    any(libc::SYS_migrate_pages, "nor its pages moved"),
    // The kernel.
    any(libc::SYS_init_module, "no module is loaded"),
    any(libc::SYS_finit_module, "no module is loaded"),
    any(libc::SYS_delete_module, "nor removed"),
    any(libc::SYS_kexec_load, "nor another kernel"),
    any(libc::SYS_kexec_file_load, "nor another kernel"),
    any(libc::SYS_bpf, "nor a program for it"),
    any(libc::SYS_perf_event_open, "it is not measured"),
    any(libc::SYS_syslog, "its log is not read"),
    any(libc::SYS_reboot, "the host stays up"),
    any(libc::SYS_add_key, "it keeps no keys"),
    any(libc::SYS_request_key, "it keeps no keys"),
    any(libc::SYS_keyctl, "it keeps no keys"),
    // Interfaces with many ways in.
    any(libc::SYS_io_uring_setup, "requests that no filter sees"),
    any(libc::SYS_io_uring_enter, "requests that no filter sees"),
    any(libc::SYS_io_uring_register, "requests that no filter sees"),
    any(libc::SYS_userfaultfd, "the kernel waits for a process"),
    any(libc::SYS_fanotify_init, "all files of a filesystem are watched"),
    any(libc::SYS_name_to_handle_at, "files without a path"),
    any(libc::SYS_open_by_handle_at, "files without a path"),
    checked(
        libc::SYS_socket,
        Arguments::NoneOf(
            0,
            &[libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32],
        ),
        "sockets of other families",
    ),
    // The host.
    any(libc::SYS_swapon, "what is root's"),
    any(libc::SYS_swapoff, "what is root's"),
    any(libc::SYS_acct, "what is root's"),
    any(libc::SYS_quotactl, "what is root's"),
    any(libc::SYS_quotactl_fd, "what is root's"),
    any(libc::SYS_settimeofday, "the time is the host's"),
    any(libc::SYS_clock_settime, "the time is the host's"),
    any(libc::SYS_clock_adjtime, "the time is the host's"),
    any(libc::SYS_adjtimex, "the time is the host's"),
    any(libc::SYS_sethostname, "the name is the host's"),
    any(libc::SYS_setdomainname, "the name is the host's"),
    any(libc::SYS_vhangup, "the terminal is another's"),
    any(libc::SYS_iopl, "ports of the processor"),
    any(libc::SYS_ioperm, "ports of the processor"),
    any(libc::SYS_modify_ldt, "segments of the processor"),
    any(libc::SYS_personality, "another kind of program"),
];

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::process::{Pid, WaitOptions, waitpid};

    use super::*;

    /// How a child ends that has built the walls and does `what`.
    fn ends(what: impl Fn() -> i32) -> Result<i32, i32> {
        // SAFETY: the child builds the walls, makes system calls and ends by _exit. It allocates, which glibc allows after a fork
        // of a process with threads.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let code = if build().is_ok() { what() } else { 99 };
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) }
        }
        let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty())
            .unwrap()
            .unwrap();
        status
            .exit_status()
            .ok_or_else(|| status.terminating_signal().unwrap())
    }

    #[test]
    fn every_call_of_the_list_kills_and_has_a_reason() {
        for call in KILLING {
            assert!(!call.reason.is_empty());
            // SAFETY: the first argument is a family that no socket may have; no call of the list comes to read any.
            let attempt = || unsafe { libc::syscall(call.number, libc::AF_PACKET, 0, 0, 0, 0, 0) as i32 };
            assert_eq!(
                ends(attempt),
                Err(libc::SIGSYS),
                "{}: {}",
                call.number,
                call.reason
            );
        }
    }

    #[test]
    fn what_a_supervisor_does_is_left_and_its_capabilities_are_few() {
        let does = || {
            let pair = std::os::unix::net::UnixStream::pair();
            let listener = std::net::TcpListener::bind("127.0.0.1:0");
            let thread = std::thread::spawn(|| 1).join();
            let program = std::process::Command::new("/bin/true").status();
            let all =
                pair.is_ok() && listener.is_ok() && thread.is_ok() && program.is_ok_and(|s| s.success());
            let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            let kept = CAPABILITIES.iter().fold(0, |all, one| all | one.bits());
            let has = u64::from_str_radix(&field("CapEff:"), 16).unwrap_or(u64::MAX);
            i32::from(!(all && has & !kept == 0 && field("NoNewPrivs:") == "1" && field("Seccomp:") == "2"))
        };
        assert_eq!(ends(does), Ok(0));
    }
}
