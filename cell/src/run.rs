//! The cell, from its first step in its namespaces on.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use brig_agent::{
    agent::{self, Setup},
    error::AgentError,
    prepared::Prepared,
    process::Places,
    streams::Arrivals,
    wake::Machine,
};
use brig_launcher::network;
use brig_protocol::cell::{Begin, IdMap, Job, RunJob};
use rustix::{
    io::Errno,
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
    time::Timespec,
};

use crate::{
    error::{CellError, Context},
    filter,
    keeper::{self, complain, die_with_parent},
    room::{self, Parts},
    unpack,
};

/// linux/keyctl.h.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// The whole life of a cell.
pub fn cell(channel: &OwnedFd, begin: Begin, fds: Vec<OwnedFd>, began_us: u64) -> i32 {
    let fds = fds.into_iter().map(Some).collect();
    let done = match begin.job {
        Job::Run(job) => run(channel, &begin.ids, &job, fds, began_us),
        Job::Unpack(job) => unpack::run(&begin.ids, &job, fds),
        Job::Empty { directory } => unpack::empty(&directory, &begin.ids),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            complain(channel, &error);
            1
        }
    }
}

/// Serves the supervisor until the sandbox is over.
fn run(
    channel: &OwnedFd,
    ids: &IdMap,
    job: &RunJob,
    mut fds: Vec<Option<OwnedFd>>,
    began_us: u64,
) -> Result<(), CellError> {
    let control = keeper::take(&mut fds, job.control)?;
    // The cgroups' files: whoever has them could leave.
    drop(fds);
    let parts = Parts::take(job)?;
    leave_keyring();
    room::enter(&parts, ids, || {
        enter_new_time()?;
        Ok(network::enter_new()?)
    })?;
    drop(parts);
    // Again: it is lost with a change of ids.
    die_with_parent()?;
    let arrivals = channel.try_clone().step("duplicate the channel")?;
    rustix::io::ioctl_fionbio(&arrivals, true).step("set the channel up")?;
    agent::serve(Setup {
        control,
        arrivals: Arrivals::Channel(arrivals),
        places: Places::under("/"),
        prepared: Prepared::in_network(),
        filter: Some(&filter::CONTAINER),
        entered_us: began_us,
        default_limit: None,
        machine: Box::new(NoMachine),
        abandon: || std::process::exit(1),
    })?;
    Ok(())
}

/// Makes a time namespace (time_namespaces(7)) and enters it, with all processes of the cell. They cannot make their own: before
/// Linux 6.3 a process that has made one is not in it after an exec either, and can make no thread then. A kernel that was built
/// without time namespaces has one time for all.
fn enter_new_time() -> Result<(), CellError> {
    // SAFETY: CLONE_NEWTIME changes which clocks later children read; no file descriptor is unshared.
    match unsafe { unshare_unsafe(UnshareFlags::NEWTIME) } {
        Err(Errno::INVAL) => return Ok(()),
        made => made.step("create a time namespace")?,
    }
    let made = File::open("/proc/self/ns/time_for_children").step("open a time namespace")?;
    move_into_link_name_space(made.as_fd(), Some(LinkNameSpaceType::Time)).step("enter a time namespace")
}

/// Lets go of the keys of whoever started the sandbox (session-keyring(7)). A kernel without keys has none.
fn leave_keyring() {
    // SAFETY: a null pointer asks for a new keyring without a name; nothing is read or written.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
}

/// The host's kernel is nobody's to bring up to date.
#[derive(Debug)]
struct NoMachine;

impl Machine for NoMachine {
    fn open(&mut self, _places: &Places) -> Result<(), AgentError> {
        Err(AgentError::NotHere("wake up"))
    }

    fn set_clock(&mut self, _now: Timespec) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn reseed(&mut self, _seed: &[u8; 32]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
