//! brig-vmm: the hypervisor process of one sandbox. It takes no arguments and opens nothing: commands and descriptors
//! come over the channel that it inherits as descriptor 3 (`brig_protocol::vmm`).

use std::{
    os::fd::{FromRawFd, OwnedFd},
    process::exit,
};

use brig_protocol::vmm::CHANNEL_FD;
use brig_vmm::{control, jail};

/// The command line was wrong, or the channel is missing.
const EXIT_USAGE: i32 = 2;

fn main() {
    let main_ns = control::monotonic_ns();
    if std::env::args_os().len() > 1 {
        eprintln!("brig-vmm: takes no arguments; it is started by brig");
        exit(EXIT_USAGE);
    }
    // SAFETY: fcntl on a number that may be anything only looks at it.
    if unsafe { libc::fcntl(CHANNEL_FD, libc::F_GETFD) } < 0 {
        eprintln!("brig-vmm: descriptor {CHANNEL_FD} is not open; this program is started by brig");
        exit(EXIT_USAGE);
    }
    if let Err(error) = jail::at_start(CHANNEL_FD as u32 + 1) {
        eprintln!("brig-vmm: cannot close inherited descriptors: {error}");
        exit(EXIT_USAGE);
    }
    // SAFETY: the descriptor is open, and nothing else in this process owns it.
    let channel = unsafe { OwnedFd::from_raw_fd(CHANNEL_FD) };
    // Not `return`: the threads of vCPUs and devices are ended with the process, in whatever they are doing.
    match control::serve(&channel, main_ns) {
        Ok(()) => exit(0),
        Err(error) => {
            eprintln!("brig-vmm: {}", control::chain(&error));
            exit(1);
        }
    }
}
