//! Commands on a host that lacks something. The command gets a mount namespace of its own for that, so the real host
//! stays as it is.

use std::{
    ffi::{CStr, CString},
    io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::Command,
};

/// `nobody` of every Linux.
const NOBODY: u32 = 65534;

/// What `/dev/kvm` shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmDevice {
    /// Not there.
    Missing,
    /// There, for its owner alone.
    Private,
    /// There, for everybody.
    Public,
}

/// Device nodes that every Linux has: name, major and minor number (Documentation/admin-guide/devices.txt).
const NODES: [(&CStr, u32, u32); 6] = [
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
    (c"/dev/tty", 5, 0),
];

/// The major and minor number of `/dev/kvm`.
const KVM: (u32, u32) = (10, 232);

/// Gives `command` a `/dev` with the usual nodes and `kvm`. Takes root.
pub fn with_kvm_device(command: &mut Command, kvm: KvmDevice) {
    let prepare = move || {
        own_mounts()?;
        mount(c"/dev", c"mode=755")?;
        for (path, major, minor) in NODES {
            make_node(path, 0o666, major, minor)?;
        }
        match kvm {
            KvmDevice::Missing => Ok(()),
            KvmDevice::Private => make_node(c"/dev/kvm", 0o600, KVM.0, KVM.1),
            KvmDevice::Public => make_node(c"/dev/kvm", 0o666, KVM.0, KVM.1),
        }
    };
    // SAFETY: between fork and exec the closure makes system calls on constant strings, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Runs `command` as nobody, after what was asked for before. Takes root.
pub fn as_nobody(command: &mut Command) {
    let drop_rights = || {
        // SAFETY: the calls take numbers; the list of groups is empty, so its address is not read.
        unsafe {
            checked(libc::setgroups(0, std::ptr::null()))?;
            checked(libc::setgid(NOBODY))?;
            checked(libc::setuid(NOBODY))
        }
    };
    // SAFETY: between fork and exec the closure makes three system calls, and allocates nothing.
    unsafe { command.pre_exec(drop_rights) };
}

/// Gives `command` a filesystem of `mebibytes` at the existing directory `path`. Takes root.
///
/// # Panics
/// When the path has a zero byte.
pub fn with_little_space(command: &mut Command, path: &Path, mebibytes: u32) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without zero bytes");
    let options = CString::new(format!("size={mebibytes}m,mode=700")).expect("no zero byte");
    let prepare = move || {
        own_mounts()?;
        mount(&path, &options)
    };
    // SAFETY: between fork and exec the closure makes system calls on strings made before, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Puts an empty directory in the place of the existing directory `path`. Takes root.
///
/// # Panics
/// When the path has a zero byte.
pub fn without_directory(command: &mut Command, path: &Path) {
    with_little_space(command, path, 1);
}

fn own_mounts() -> io::Result<()> {
    // SAFETY: both calls take flags and constant strings; a null filesystem type and null data are what a change of
    // propagation takes (mount(2)).
    unsafe {
        checked(libc::unshare(libc::CLONE_NEWNS))?;
        checked(libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ))
    }
}

fn mount(path: &CStr, options: &CStr) -> io::Result<()> {
    // SAFETY: all addresses are of strings with a zero at their end, which live through the call.
    checked(unsafe {
        libc::mount(
            c"tmpfs".as_ptr(),
            path.as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    })
}

fn make_node(path: &CStr, mode: libc::mode_t, major: u32, minor: u32) -> io::Result<()> {
    // SAFETY: the address is of a string with a zero at its end, which lives through the calls.
    unsafe {
        checked(libc::mknod(
            path.as_ptr(),
            libc::S_IFCHR | mode,
            libc::makedev(major, minor),
        ))?;
        // The umask does not count here.
        checked(libc::chmod(path.as_ptr(), mode))
    }
}

fn checked(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
