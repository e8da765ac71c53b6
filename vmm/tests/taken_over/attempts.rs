//! What a brig-vmm that has been taken over tries, and what denies it.

use std::{ffi::CStr, mem::size_of_val, ptr};

use libc::{c_long, c_void};

/// Processes that it would like to get at, by their pids on the host.
pub struct Victims {
    /// Whoever started it.
    pub supervisor: i32,
    /// Another sandbox's brig-vmm.
    pub other: i32,
}

/// What denies an attempt where no filter does.
pub enum Beneath {
    /// The layer, by the errno that it gives; more than one where kernels differ.
    Layers(&'static [(i32, &'static str)]),
    /// No other layer, and why that is no harm.
    Nothing(&'static str),
}

/// One attempt.
pub struct Attempt {
    /// What is tried, in one word.
    pub name: &'static str,
    /// Tries it; -1 when it was denied.
    pub call: fn(&Victims) -> c_long,
    /// What else than a filter denies it.
    pub beneath: Beneath,
}

use Beneath::{Layers, Nothing};

const EMPTY_ROOT: (i32, &str) = (libc::ENOENT, "the empty root");
const NO_FILE: &[(i32, &str)] = &[EMPTY_ROOT, (libc::EACCES, "landlock")];
const NO_NEW_FILE: &[(i32, &str)] = &[
    (libc::EACCES, "the mode of the empty root, and landlock"),
    (libc::EROFS, "the read-only root"),
];
const NO_PROCESS: &[(i32, &str)] = &[
    (libc::ESRCH, "the pid namespace"),
    (libc::EPERM, "landlock, or the lack of capabilities"),
];
const NO_CAPABILITY: &[(i32, &str)] = &[(libc::EPERM, "the lack of capabilities")];
const NO_NETWORK: &[(i32, &str)] = &[
    (libc::ENETUNREACH, "the network namespace, which has no network"),
    (libc::EACCES, "landlock"),
];

/// All of them.
pub const ATTEMPTS: &[Attempt] = &[
    // Files.
    Attempt {
        name: "open-a-file",
        call: |_| open(c"/etc/passwd", libc::O_RDONLY),
        beneath: Layers(NO_FILE),
    },
    Attempt {
        name: "open-the-root",
        call: |_| open(c"/", libc::O_RDONLY),
        beneath: Layers(NO_NEW_FILE),
    },
    Attempt {
        name: "open-proc",
        call: |_| open(c"/proc/self/mem", libc::O_RDWR),
        beneath: Layers(NO_FILE),
    },
    Attempt {
        name: "open-kvm",
        call: |_| open(c"/dev/kvm", libc::O_RDWR),
        beneath: Layers(NO_FILE),
    },
    Attempt {
        name: "open-what-is-above",
        call: |_| open(c"../../../etc/passwd", libc::O_RDONLY),
        beneath: Layers(NO_FILE),
    },
    Attempt {
        name: "make-a-file",
        call: |_| open(c"/x", libc::O_CREAT | libc::O_RDWR),
        beneath: Layers(NO_NEW_FILE),
    },
    Attempt {
        name: "make-a-directory",
        call: |_| make_directory(c"/x"),
        beneath: Layers(NO_NEW_FILE),
    },
    Attempt {
        name: "execute-a-program",
        call: |_| execute(c"/bin/sh"),
        beneath: Layers(NO_FILE),
    },
    // Addresses.
    Attempt {
        name: "connect-by-tcp",
        call: |_| connect_to_loopback(libc::SOCK_STREAM),
        beneath: Layers(NO_NETWORK),
    },
    Attempt {
        name: "send-by-udp",
        call: |_| connect_to_loopback(libc::SOCK_DGRAM),
        beneath: Layers(NO_NETWORK),
    },
    Attempt {
        name: "connect-to-a-path",
        call: |_| connect_to_unix(b"/run/docker.sock"),
        beneath: Layers(NO_FILE),
    },
    Attempt {
        name: "connect-to-an-abstract-name",
        call: |_| connect_to_unix(b"\0name"),
        beneath: Layers(&[
            (libc::ECONNREFUSED, "the network namespace"),
            (libc::EPERM, "landlock"),
        ]),
    },
    Attempt {
        name: "listen-for-tcp",
        call: |_| listen(),
        beneath: Nothing("the network namespace has nobody who could connect"),
    },
    // Other processes.
    Attempt {
        name: "signal-the-supervisor",
        call: |v| signal(v.supervisor),
        beneath: Layers(NO_PROCESS),
    },
    Attempt {
        name: "signal-another-sandbox",
        call: |v| signal(v.other),
        beneath: Layers(NO_PROCESS),
    },
    Attempt {
        name: "trace-the-supervisor",
        call: |v| trace(v.supervisor),
        beneath: Layers(NO_PROCESS),
    },
    Attempt {
        name: "trace-another-sandbox",
        call: |v| trace(v.other),
        beneath: Layers(NO_PROCESS),
    },
    Attempt {
        name: "read-another-sandboxs-memory",
        call: |v| read_memory(v.other),
        beneath: Layers(NO_PROCESS),
    },
    Attempt {
        name: "refer-to-another-sandbox",
        call: |v| pidfd(v.other),
        beneath: Layers(NO_PROCESS),
    },
    // Mounts and namespaces.
    Attempt {
        name: "mount",
        call: |_| mount(),
        beneath: Layers(NO_CAPABILITY),
    },
    Attempt {
        name: "change-the-root",
        call: |_| change_root(),
        beneath: Layers(NO_CAPABILITY),
    },
    Attempt {
        name: "make-a-mount-namespace",
        call: |_| unshare(libc::CLONE_NEWNS),
        beneath: Layers(NO_CAPABILITY),
    },
    Attempt {
        name: "make-a-network-namespace",
        call: |_| unshare(libc::CLONE_NEWNET),
        beneath: Layers(NO_CAPABILITY),
    },
    Attempt {
        name: "make-a-pid-namespace",
        call: |_| unshare(libc::CLONE_NEWPID),
        beneath: Layers(NO_CAPABILITY),
    },
    Attempt {
        name: "make-a-user-namespace",
        call: |_| unshare(libc::CLONE_NEWUSER),
        beneath: Nothing("what one has there reaches nothing that is outside of it"),
    },
    // More rights.
    Attempt {
        name: "become-root",
        call: |_| become_root(),
        beneath: Layers(&[
            (libc::EINVAL, "the user namespace, which has no such user"),
            (libc::EPERM, "the lack of capabilities"),
        ]),
    },
    Attempt {
        name: "raise-a-limit",
        call: |_| raise_limit(),
        beneath: Layers(NO_CAPABILITY),
    },
    Attempt {
        name: "change-the-hosts-name",
        call: |_| change_name(),
        beneath: Layers(NO_CAPABILITY),
    },
    // Code, and more of it at a time.
    Attempt {
        name: "map-code",
        call: |_| map_code(),
        beneath: Nothing("it is its own memory"),
    },
    Attempt {
        name: "make-memory-executable",
        call: |_| protect(),
        beneath: Nothing("it is its own memory"),
    },
    Attempt {
        name: "write-by-the-number-of-another-abi",
        call: |_| write_by_x32(),
        beneath: Nothing("it is a write"),
    },
    Attempt {
        name: "make-a-process",
        call: |_| fork(),
        beneath: Nothing("it is in the same walls, and few fit"),
    },
    Attempt {
        name: "ask-kvm-for-a-machine",
        call: |_| create_vm(),
        beneath: Layers(&[(libc::EBADF, "the lack of a descriptor")]),
    },
];

fn open(path: &CStr, flags: i32) -> c_long {
    // SAFETY: the path ends with a null byte.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) }
}

fn make_directory(path: &CStr) -> c_long {
    // SAFETY: the path ends with a null byte.
    unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path.as_ptr(), 0o700) }
}

fn execute(path: &CStr) -> c_long {
    let none: [*const libc::c_char; 1] = [ptr::null()];
    // SAFETY: the path ends with a null byte, the lists with a null pointer.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), none.as_ptr(), none.as_ptr()) }
}

fn socket(domain: i32, kind: i32) -> c_long {
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_socket, domain, kind, 0) }
}

/// A `struct sockaddr_in` of port 80 on 127.0.0.1.
fn loopback() -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 80u16.to_be(),
        sin_addr: libc::in_addr {
            s_addr: 0x7f00_0001_u32.to_be(),
        },
        sin_zero: [0; 8],
    }
}

fn connect_to_loopback(kind: i32) -> c_long {
    let address = loopback();
    let fd = socket(libc::AF_INET, kind);
    // SAFETY: the address is as long as is said.
    unsafe { libc::syscall(libc::SYS_connect, fd, &raw const address, size_of_val(&address)) }
}

fn connect_to_unix(name: &[u8]) -> c_long {
    let mut address = [0u8; 2 + 108];
    address[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    address[2..2 + name.len()].copy_from_slice(name);
    let fd = socket(libc::AF_UNIX, libc::SOCK_STREAM);
    // SAFETY: the address is as long as is said.
    unsafe { libc::syscall(libc::SYS_connect, fd, address.as_ptr(), 2 + name.len()) }
}

fn listen() -> c_long {
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM);
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_listen, fd, 1) }
}

fn signal(pid: i32) -> c_long {
    // SAFETY: takes numbers; signal 0 only asks whether one may be sent.
    unsafe { libc::syscall(libc::SYS_kill, pid, 0) }
}

fn trace(pid: i32) -> c_long {
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid, 0, 0) }
}

fn read_memory(pid: i32) -> c_long {
    let mut byte = 0u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: ptr::dangling_mut::<c_void>(),
        iov_len: 1,
    };
    // SAFETY: the kernel writes at most the one byte.
    unsafe {
        libc::syscall(
            libc::SYS_process_vm_readv,
            pid,
            &raw const local,
            1,
            &raw const remote,
            1,
            0,
        )
    }
}

fn pidfd(pid: i32) -> c_long {
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }
}

fn mount() -> c_long {
    // SAFETY: all strings end with a null byte.
    unsafe {
        libc::syscall(
            libc::SYS_mount,
            c"none".as_ptr(),
            c"/".as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            ptr::null::<c_void>(),
        )
    }
}

fn change_root() -> c_long {
    // SAFETY: the path ends with a null byte.
    unsafe { libc::syscall(libc::SYS_chroot, c"/".as_ptr()) }
}

fn unshare(namespaces: i32) -> c_long {
    // SAFETY: takes a number.
    unsafe { libc::syscall(libc::SYS_unshare, namespaces) }
}

fn become_root() -> c_long {
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }
}

fn raise_limit() -> c_long {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    let nobody: *mut libc::rlimit = ptr::null_mut();
    // SAFETY: the kernel reads the one structure and is given no other.
    unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_NPROC,
            &raw const unlimited,
            nobody,
        )
    }
}

fn change_name() -> c_long {
    // SAFETY: as many bytes are there as is said.
    unsafe { libc::syscall(libc::SYS_sethostname, c"x".as_ptr(), 1) }
}

fn map_code() -> c_long {
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory, which nothing uses.
    unsafe {
        libc::syscall(
            libc::SYS_mmap,
            ptr::null::<c_void>(),
            4096,
            protection,
            flags,
            -1,
            0,
        )
    }
}

fn protect() -> c_long {
    // SAFETY: a range of no length.
    unsafe { libc::syscall(libc::SYS_mprotect, ptr::null::<c_void>(), 0, libc::PROT_EXEC) }
}

fn fork() -> c_long {
    // SAFETY: a child ends at once.
    let child = unsafe { libc::syscall(libc::SYS_fork) };
    if child == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    child
}

/// write(2) as x32 numbers it: the list's numbers do not mean those.
fn write_by_x32() -> c_long {
    const X32: c_long = 0x4000_0000;
    // SAFETY: there is no such descriptor.
    unsafe { libc::syscall(X32 | libc::SYS_write, -1, ptr::null::<c_void>(), 0) }
}

fn create_vm() -> c_long {
    const KVM_CREATE_VM: u64 = 0xae01;
    // SAFETY: there is no such descriptor.
    unsafe { libc::syscall(libc::SYS_ioctl, -1, KVM_CREATE_VM, 0) }
}
