//! brig-supervisor: the process of one running sandbox (`brig_engine::supervisor`). The engine starts it as
//! `brig-supervisor ID [container | VCPUS MEMORY]` with a socket to itself as its standard input; with the size of guest that the sandbox
//! will have, it prepares one. It is a program of its own so that it starts fast and
//! stays small.

use std::{
    ffi::OsStr,
    os::fd::{FromRawFd, OwnedFd},
    process::exit,
};

use brig_engine::{
    Error, Paths, SandboxId,
    error::{CODE_BRIG, chain},
    host::Machine,
    supervisor::{self, Likely},
};

/// First descriptor that is not a standard stream.
const FIRST_OTHER: libc::c_uint = 3;

fn main() {
    let words: Vec<_> = std::env::args_os().collect();
    let said = words.get(1).zip(words.get(2..).and_then(Likely::from_words));
    let Some((id, likely)) = said else {
        eprintln!("brig-supervisor: takes the id of a sandbox; it is started by brig");
        exit(CODE_BRIG);
    };
    // What the user's shell left open is not for a process that outlives it.
    // SAFETY: a system call without pointers. The process has just begun: one thread, and nothing that owns a descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST_OTHER, libc::c_uint::MAX, 0) };
    // SAFETY: the standard library has made sure that the descriptor is open, nothing in this process reads standard input,
    // and nothing else owns it.
    let starter = unsafe { OwnedFd::from_raw_fd(0) };
    match supervise(id, likely, starter) {
        Ok(()) => exit(0),
        Err(e) => {
            eprintln!("brig-supervisor: {}", chain(&e));
            exit(CODE_BRIG);
        }
    }
}

fn supervise(id: &OsStr, likely: Likely, starter: OwnedFd) -> Result<(), Error> {
    let id: SandboxId = id.to_string_lossy().parse()?;
    let paths = Paths::from_environment()?;
    let host = Machine::new(&paths).of_sandbox(&id);
    supervisor::main(&paths, &id, likely, starter, &host)
}
