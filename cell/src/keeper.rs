//! The process on the host that the supervisor spawns: it makes the cell and stays to see its end.

use std::{
    io::{self, Read, Write},
    os::fd::OwnedFd,
    process::ExitCode,
    ptr,
};

use brig_agent::error::one_line;
use brig_protocol::{
    cell::{Begin, Job},
    channel,
    vmm::Event,
};
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid},
};

use crate::{
    error::{CellError, Context},
    ids, run,
};

/// What the cell is made with; its network, ipc, uts, cgroup and time namespaces follow when they are needed.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS;

/// A cell is told to go on once it has its ids and cgroups.
const GO: u8 = 1;

/// The whole life of the keeper. `channel` is the supervisor's; the cell has it to itself once it is there.
pub fn keep(channel: OwnedFd, began_us: u64) -> ExitCode {
    match begin(&channel, began_us) {
        Ok(Some(cell)) => {
            drop(channel);
            wait_for_end(cell)
        }
        // The supervisor is gone.
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&channel, &error);
            ExitCode::FAILURE
        }
    }
}

/// Tells the supervisor why there is no cell.
pub fn complain(channel: &OwnedFd, error: &CellError) {
    let message = one_line(error);
    // When nobody listens there is nobody to tell.
    let _ = channel::send(channel, &Event::Failed { message }, &[]);
}

/// Makes the cell. `None` when there is nothing to do.
fn begin(channel: &OwnedFd, began_us: u64) -> Result<Option<Pid>, CellError> {
    die_with_parent()?;
    block_signals();
    let (begin, fds) = match channel::receive::<Begin>(channel) {
        Err(channel::ChannelError::Closed) => return Ok(None),
        received => received?,
    };
    let (mut hold, mut go) = io::pipe().step("create a pipe")?;
    match clone_into_namespaces()? {
        None => {
            drop(go);
            let mut word = [0];
            // The keeper has failed and said why, or was killed.
            if hold.read_exact(&mut word).is_err() {
                std::process::exit(1);
            }
            drop(hold);
            std::process::exit(run::cell(channel, begin, fds, began_us))
        }
        Some(cell) => {
            drop(hold);
            let ready = ids::write_maps(cell, &begin.ids)
                .and_then(|()| join_cgroups(cell, &begin, &fds))
                .and_then(|()| go.write_all(&[GO]).step("let the cell go on"));
            if let Err(error) = ready {
                drop(go);
                let _ = kill_process(cell, Signal::KILL);
                wait_for_end(cell);
                return Err(error);
            }
            Ok(Some(cell))
        }
    }
}

/// As fork(2), into new namespaces. `None` in the child.
fn clone_into_namespaces() -> Result<Option<Pid>, CellError> {
    // SAFETY: without CLONE_VM and with no stack the call is fork(2)'s: the child goes on with a copy of this process, which
    // has one thread, so that nothing in the copy is held by another one.
    let pid = unsafe { libc::syscall(libc::SYS_clone, NAMESPACES | libc::SIGCHLD, 0, 0, 0, 0) };
    match pid {
        -1 => {
            let error = io::Error::last_os_error();
            Err(match Errno::from_io_error(&error) {
                Some(Errno::PERM | Errno::NOSPC | Errno::ACCESS) => CellError::NoUserNamespaces(error),
                _ => CellError::Step {
                    action: "create the namespaces".to_owned(),
                    source: error,
                },
            })
        }
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// The kernel takes the pid as this process knows it, and looks at who has opened the file.
fn join_cgroups(cell: Pid, begin: &Begin, fds: &[OwnedFd]) -> Result<(), CellError> {
    let Job::Run(job) = &begin.job else { return Ok(()) };
    for index in &job.cgroups {
        let file = fds.get(usize::from(*index)).ok_or(CellError::Protocol)?;
        let pid = cell.as_raw_nonzero().to_string();
        rustix::io::write(file, pid.as_bytes()).step("enter the sandbox's cgroup")?;
    }
    Ok(())
}

/// Has the kernel kill the calling process when its parent dies. Lost when the process changes who it is.
pub fn die_with_parent() -> Result<(), CellError> {
    set_parent_process_death_signal(Some(Signal::KILL)).step("ask to die with the parent")
}

/// The signals that the keeper waits for: an end, and a request to end the cell.
fn awaited() -> libc::sigset_t {
    // SAFETY: the set is initialised by sigemptyset before anything reads it, and all pointers are to it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        set
    }
}

fn block_signals() {
    let set = awaited();
    // SAFETY: the set is this function's own; a null pointer asks for no old set.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
}

/// Waits until nothing of the cell is left. SIGTERM kills it: the one who then waits for the keeper knows that everything is
/// gone, which the death of the keeper alone would not tell.
fn wait_for_end(cell: Pid) -> ExitCode {
    let set = awaited();
    loop {
        match waitpid(Some(cell), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => {
                return match status.exit_status() {
                    Some(code) => ExitCode::from(code as u8),
                    None => ExitCode::FAILURE,
                };
            }
            Err(Errno::CHILD) => return ExitCode::FAILURE,
            Ok(None) | Err(_) => {}
        }
        // SAFETY: the set is this function's own; a null pointer asks for no more than the number.
        if unsafe { libc::sigwaitinfo(&raw const set, ptr::null_mut()) } == libc::SIGTERM {
            let _ = kill_process(cell, Signal::KILL);
        }
    }
}

/// The descriptor of a message that has this position.
pub fn take(fds: &mut [Option<OwnedFd>], index: u8) -> Result<OwnedFd, CellError> {
    let fd = fds.get_mut(usize::from(index)).and_then(Option::take);
    fd.ok_or(CellError::Protocol)
}
