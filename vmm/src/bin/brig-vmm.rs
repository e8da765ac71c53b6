//! brig-vmm: the hypervisor process of one sandbox. It takes no arguments and opens nothing: commands and descriptors
//! come over the channel that is its standard input (`brig_protocol::vmm`).

use std::{
    os::fd::{FromRawFd, OwnedFd},
    process::exit,
};

use brig_protocol::{channel, vmm::CHANNEL_FD};
use brig_vmm::{control, jail, threads};

/// The command line or standard input was wrong.
const EXIT_USAGE: i32 = 2;

fn main() {
    let main_ns = control::monotonic_ns();
    if std::env::args_os().len() > 1 {
        eprintln!("brig-vmm: takes no arguments; it is started by brig");
        exit(EXIT_USAGE);
    }
    threads::share_heap();
    // SAFETY: the standard library has made sure that the descriptor is open, nothing in this process reads standard input,
    // and nothing else owns it.
    let channel = unsafe { OwnedFd::from_raw_fd(CHANNEL_FD) };
    if !channel::is_one(&channel) {
        eprintln!("brig-vmm: standard input is no channel; this program is started by brig");
        exit(EXIT_USAGE);
    }
    if let Err(error) = jail::at_start() {
        eprintln!("brig-vmm: cannot enter the jail: {}", control::chain(&error));
        exit(jail::EXIT_JAIL);
    }
    // Not `return`: the threads of vCPUs and devices are ended with the process, in whatever they are doing.
    match control::serve(&channel, main_ns) {
        Ok(()) => exit(0),
        Err(error) => {
            eprintln!("brig-vmm: {}", control::chain(&error));
            exit(1);
        }
    }
}
