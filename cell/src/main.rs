//! brig-cell: a sandbox with `container` isolation, or the unpacking of an image for one. Two processes:
//!
//! ```text
//! supervisor ── keeper ── cell: root of a user namespace, init of a pid namespace     [outer]
//!               (host)     └─ launcher ─ the image's process, init of one below       [inner]
//! ```
//! The keeper is what the supervisor spawns. It makes the cell, says which ids of the host its ids are, puts it into
//! its cgroups, and waits for its end: nothing else. The cell goes to a root of its own, in which there is nothing but the
//! image, the writable layer and a few devices, and is from then on what the agent is in a guest: the same code
//! ([`brig_agent::agent`]), so that streams, ports, signals and exit status are the same in both isolations.
//!
//! What dies takes everything below with it, whatever it was killed by: the cell with the keeper, the keeper with its
//! supervisor (`PR_SET_PDEATHSIG`), and with the cell, which is the init of its pid namespace, every process of the sandbox
//! (pid_namespaces(7)). A process of the image cannot undo that: it is not the one that has the request.
//!
//! | module | job |
//! |---|---|
//! | [`keeper`] | the process on the host |
//! | [`filter`] | which system calls there are |
//! | [`ids`] | user namespaces and their ids |
//! | [`room`] | the root filesystem that the cell itself has |
//! | [`run`] | the cell of a sandbox |
//! | [`unpack`] | the cell that unpacks an image |

mod error;
mod filter;
mod ids;
mod keeper;
mod room;
mod run;
mod unpack;

use std::{
    os::fd::{FromRawFd, OwnedFd},
    process::ExitCode,
};

use brig_agent::agent::clock_us;
use brig_launcher::init;
use brig_protocol::{channel, vmm::CHANNEL_FD};

fn main() -> ExitCode {
    let began_us = clock_us();
    let mut words = std::env::args_os();
    if words.next().is_some_and(|name| name == init::NAME) {
        return ExitCode::from(init::run(words) as u8);
    }
    // SAFETY: the standard library has made sure that the descriptor is open, nothing in this process reads standard input,
    // and nothing else owns it.
    let channel = unsafe { OwnedFd::from_raw_fd(CHANNEL_FD) };
    if !channel::is_one(&channel) {
        eprintln!("brig-cell: standard input is no channel; it is started by brig");
        return ExitCode::FAILURE;
    }
    keeper::keep(channel, began_us)
}
