//! The walls in words: what each is made of, and what would have to fail.

use crate::{report::Wall, ways::Way};

/// Those of these ways.
pub fn of(ways: &[Way]) -> Vec<Wall> {
    ways.iter().map(|way| wall(*way)).collect()
}

fn wall(way: Way) -> Wall {
    let (made_of, escape) = match way {
        Way::Vm => (
            "A kernel of its own behind the processor's virtualization; namespaces, capabilities and a filter within that guest; a \
             hypervisor of few devices in Rust, which opens nothing; around it user, pid, mount, net, ipc, uts and cgroup namespaces with an \
             empty root, no capability, landlock, limits, and for each kind of thread a list of system calls.",
            "Three bugs that fit together: one in the guest's kernel (or none, if the process is root in the guest and can load its own \
             code there), then one in KVM or in one of the emulated devices, then one in the host's kernel that the few calls on brig-vmm's \
             list reach. Side channels of the processor go around all of it.",
        ),
        Way::Container => (
            "User, mount, pid, uts, ipc, net, cgroup and time namespaces on the host's kernel, ids that are nobody's, Docker's \
             capabilities within them, Docker's list of system calls, masked paths, six devices.",
            "One bug in the host's kernel, in any of the system calls that are on the list or in the namespaces themselves.",
        ),
        Way::Crun | Way::Runc => (
            "The same namespaces, ids and capabilities as the container here; no list of system calls, as it was given none for this \
             comparison.",
            "One bug in the host's kernel, in any system call that it has.",
        ),
        Way::Process => (
            "Nothing: the program runs as the user who compares.",
            "None is needed.",
        ),
    };
    Wall {
        column: way.column(),
        made_of,
        escape,
    }
}
