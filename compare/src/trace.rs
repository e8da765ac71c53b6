//! Which system calls a command and all that it starts make of the host, by ptrace(2).
//!
//! Everything is stopped at each call, so it is slow, and nothing is timed that way. Threads and processes that are made later
//! are traced from their first instruction.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use crate::{Error, processes};

/// The request of ioctl(2) by which a vCPU runs: `KVM_RUN` (Documentation/virt/kvm/api.rst).
const KVM_RUN: u64 = 0xae80;

/// Numbers of system calls by who made them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// By the name of the program.
    pub by_program: BTreeMap<String, BTreeSet<u32>>,
    /// Of brig-vmm since a vCPU ran first.
    pub while_guest_ran: BTreeSet<u32>,
    /// How often a call was made at all.
    pub made: u64,
}

/// Runs a command to its end, and what it has started to theirs.
///
/// # Errors
/// Those of ptrace(2) and of the command.
pub fn run(command: &mut Command) -> Result<Calls, Error> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let trace_me = || {
        // SAFETY: the request takes no memory; the child asks to be traced by its parent.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(trace_me) };
    let child = command.spawn().map_err(Error::system("trace it"))?;
    let first = child.id() as i32;
    let mut tracer = Tracer {
        calls: Calls::default(),
        known: HashSet::new(),
        programs: BTreeMap::new(),
        guest_runs: false,
    };
    let mut ended = None;
    while let Some((thread, status)) = wait().map_err(Error::system("trace it"))? {
        if libc::WIFSTOPPED(status) {
            tracer.stopped(thread, status);
        } else {
            tracer.known.remove(&thread);
            tracer.programs.remove(&thread);
            if thread == first {
                ended = Some(status);
            }
        }
    }
    match ended {
        Some(status) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 => Ok(tracer.calls),
        _ => Err(Error::Program {
            what: "the traced command failed".into(),
            reason: format!("wait status {:#x}", ended.unwrap_or(-1)),
        }),
    }
}

/// The next of this thread's children and tracees that has something to tell; `None` when there are none left.
fn wait() -> io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int, which is live.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) } {
        -1 => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            e if e.kind() == io::ErrorKind::Interrupted => wait(),
            e => Err(e),
        },
        thread => Ok(Some((thread, status))),
    }
}

struct Tracer {
    calls: Calls,
    known: HashSet<i32>,
    /// The program of each thread, until it executes another.
    programs: BTreeMap<i32, String>,
    guest_runs: bool,
}

impl Tracer {
    fn stopped(&mut self, thread: i32, status: i32) {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let mut deliver = 0;
        if self.known.insert(thread) {
            // The stop at the exec, or the one that a new thread begins with.
            set_options(thread);
        } else if signal == libc::SIGTRAP | 0x80 {
            self.at_call(thread);
        } else if event == libc::PTRACE_EVENT_EXEC {
            self.programs.remove(&thread);
        } else if event == 0 {
            deliver = signal;
        }
        // SAFETY: the request takes a number for data. One that was killed meanwhile is told of by wait.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, 0, deliver as libc::c_long) };
    }

    fn at_call(&mut self, thread: i32) {
        // SAFETY: all bits zero are such a structure, and the kernel writes at most the size that it is told.
        let info = unsafe {
            let mut info: libc::ptrace_syscall_info = std::mem::zeroed();
            let size = size_of_val(&info);
            match libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, &raw mut info) {
                -1 => return,
                _ => info,
            }
        };
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return;
        }
        // SAFETY: the union holds an entry, as `op` says.
        let entry = unsafe { info.u.entry };
        let number = entry.nr as u32;
        let program = self
            .programs
            .entry(thread)
            .or_insert_with(|| processes::program(thread as u32).unwrap_or_else(|| "?".into()));
        self.calls.made += 1;
        if program == "brig-vmm" {
            self.guest_runs |= i64::from(number) == libc::SYS_ioctl && entry.args[1] == KVM_RUN;
            if self.guest_runs {
                self.calls.while_guest_ran.insert(number);
            }
        }
        if !self.calls.by_program.contains_key(program) {
            self.calls.by_program.insert(program.clone(), BTreeSet::new());
        }
        if let Some(numbers) = self.calls.by_program.get_mut(program) {
            numbers.insert(number);
        }
    }
}

fn set_options(thread: i32) {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: the request takes a number for data.
    unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, thread, 0, libc::c_long::from(options)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_children_are_told_from_those_of_their_parent() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "mkdir -p /dev/null/x 2>/dev/null; cat /proc/self/stat; true",
        ]);
        let calls = run(&mut command).unwrap();
        let shell = calls.by_program.keys().find(|name| name.ends_with("sh")).unwrap();
        let made = |program: &str, call: i64| calls.by_program[program].contains(&(call as u32));
        assert!(made("mkdir", libc::SYS_mkdir) && !made("mkdir", libc::SYS_kill));
        assert!(
            !made(shell, libc::SYS_mkdir) && made(shell, libc::SYS_wait4),
            "{calls:?}"
        );
        assert!(made("cat", libc::SYS_read));
        assert!(calls.while_guest_ran.is_empty() && calls.made > 50);
    }

    #[test]
    fn a_command_that_fails_is_an_error() {
        assert!(run(&mut Command::new("false")).is_err());
        assert!(run(&mut Command::new("/nowhere/program")).is_err());
    }
}
