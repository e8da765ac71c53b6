//! The walls of a supervisor whose sandbox has a guest: it hears what an agent says, and must not be talked into more than it does.
//!
//! It gives up most at its beginning, by [`build`], and the rest by [`close`], when it knows what its sandbox needs and before the guest
//! says a word: it is left the files of its sandbox and what each start reads, executes nothing and connects to nobody. What
//! goes beyond that its steward does ([`super::steward`]), who starts brig-vmm too, whose own walls are narrower.
//!
//! A supervisor of a container has none of them: the programs of a container inherit what the supervisor gives up, and they may gain
//! privileges in their namespaces. What keeps these in is in docs/isolation.md.

use brig_jail::{
    WallError, capabilities, landlock,
    seccomp::{Arguments, Call, Filter, any, checked},
};
use rustix::thread::CapabilitySet;

use super::needs::Needs;

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

/// Builds the rest of them: of files it is left what these say. This thread is the only one yet.
///
/// # Errors
/// [`WallError`]: the supervisor is to end then.
pub(super) fn close(needs: &Needs) -> Result<(), WallError> {
    landlock::leave(needs.paths())?;
    Filter::killing(KILLING_AT_LAST)?.install()
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

/// What kills it from the start of its guest on.
const KILLING_AT_LAST: &[Call] = &[
    any(libc::SYS_execve, "it becomes no other program"),
    any(libc::SYS_execveat, "it becomes no other program"),
    any(libc::SYS_connect, "it speaks to those who come"),
];

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::process::{Pid, WaitOptions, waitpid};

    use super::*;
    use crate::{
        SandboxId,
        sandbox::Registry,
        test_support::{blank_disk, config},
    };

    /// How a child ends that has built the walls and does `what`.
    fn ends(what: impl Fn() -> i32) -> Result<i32, i32> {
        // SAFETY: the child builds the walls, makes system calls and ends by _exit. It allocates, which glibc allows after a fork
        // of a process with threads.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // Locks of other tests among them.
            // SAFETY: takes numbers. The child never uses what owned them.
            unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
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
    fn a_supervisor_is_left_the_files_of_its_sandbox_and_runs_and_asks_nobody() {
        let (temporary, paths) = crate::test_support::paths();
        let registry = Registry::new(paths.sandboxes());
        let create = || {
            registry
                .create(SandboxId::random().unwrap(), None, config, |_| Ok(()))
                .unwrap()
        };
        let (own, other) = (create(), create());
        fs::write(paths.templates().join("template"), "x").unwrap();
        blank_disk(&paths);
        let needs = Needs::lay_out(&paths, &own, &registry.directory(&own.id)).unwrap();
        let closed =
            |what: &dyn Fn() -> bool| ends(|| if close(&needs).is_ok() { what().into() } else { 98 });
        let can = |what: &dyn Fn() -> bool| assert_eq!(closed(what), Ok(1));
        let cannot = |what: &dyn Fn() -> bool| assert_eq!(closed(what), Ok(0));
        let here = paths.sandbox(&own.id);
        can(&|| {
            fs::write(here.join("new"), "x").is_ok() && fs::rename(here.join("new"), here.join("old")).is_ok()
        });
        can(&|| tempfile::tempfile_in(&here).is_ok());
        can(&|| fs::read(paths.templates().join("template")).is_ok());
        can(&|| fs::write(paths.events().join("log"), "x").is_ok());
        can(&|| fs::write("/dev/null", "x").is_ok() && fs::read("/proc/self/status").is_ok());
        can(&|| std::net::TcpListener::bind("127.0.0.1:0").is_ok());
        let there = paths.sandbox(&other.id);
        cannot(&|| {
            fs::read(there.join("config.json")).is_ok() || fs::write(there.join("log.json"), "x").is_ok()
        });
        cannot(&|| fs::write(paths.templates().join("template"), "x").is_ok());
        cannot(&|| fs::remove_file(paths.templates().join("template")).is_ok());
        cannot(&|| fs::write(paths.root.join("new"), "x").is_ok());
        cannot(&|| fs::read("/etc/passwd").is_ok() || fs::read_dir("/").is_ok());
        cannot(&|| fs::write(temporary.path().join("new"), "x").is_ok());
        let killed = |what: &dyn Fn() -> bool| assert_eq!(closed(what), Err(libc::SIGSYS));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        killed(&|| std::net::TcpStream::connect(address).is_ok());
        killed(&|| {
            let program = [c"/bin/true".as_ptr(), std::ptr::null()];
            // SAFETY: the strings and the list end with null.
            unsafe { libc::execv(program[0], program.as_ptr()) == 0 }
        });
    }

    #[test]
    fn every_call_of_the_list_kills_and_has_a_reason() {
        for call in KILLING.iter().chain(KILLING_AT_LAST) {
            assert!(!call.reason.is_empty());
        }
        for call in KILLING {
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
