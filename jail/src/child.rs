//! What a new process does between its birth and the execution of its program. It is a fork of a process that may have had
//! other threads: nothing here allocates, takes a lock or panics.

use std::{
    ffi::{c_char, c_int},
    ptr,
};

use crate::{capabilities, identity::Identity};

/// What the child needs, all of it made by the parent.
pub(crate) struct Plan<'a> {
    /// The program.
    pub program: c_int,
    /// Its arguments, a null pointer last.
    pub arguments: &'a [*const c_char],
    /// Its standard streams.
    pub streams: [c_int; 3],
    /// Where it is told its ids …
    pub told: c_int,
    /// … and the parent's end of that pipe.
    pub tell: c_int,
}

/// First descriptor that is not a standard stream.
const FIRST_OTHER: libc::c_uint = 3;

/// The exit code of a child that could not become its program.
const FAILED: c_int = 127;

const MESSAGE_BYTES: usize = 12;

/// What the parent tells the child: its ids, and whether they are its own.
pub(crate) fn message(identity: Identity) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    let words = [identity.uid, identity.gid, identity.own.into()];
    for (bytes, word) in message.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    message
}

fn parse(message: [u8; MESSAGE_BYTES]) -> Identity {
    let word =
        |at: usize| u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
    Identity {
        uid: word(0),
        gid: word(4),
        own: word(8) != 0,
    }
}

/// Becomes the program.
pub(crate) fn run(plan: &Plan<'_>) -> ! {
    let what = become_program(plan);
    // SAFETY: it is read in the thread that has just failed.
    let errno = unsafe { *libc::__errno_location() };
    complain(plan.streams[2], what, errno);
    // SAFETY: ends this process at once; no handler of the parent's runs.
    unsafe { libc::_exit(FAILED) }
}

/// Returns what failed; why is in errno.
fn become_program(plan: &Plan<'_>) -> &'static str {
    // SAFETY: the descriptor is this process's copy, which nothing uses.
    unsafe { libc::close(plan.tell) };
    let mut message = [0; MESSAGE_BYTES];
    // SAFETY: the kernel fills at most the bytes of `message`. A write of so few bytes to a pipe is read in one piece.
    let read = unsafe { libc::read(plan.told, message.as_mut_ptr().cast(), MESSAGE_BYTES) };
    if read != MESSAGE_BYTES as isize {
        return "hear from the starter";
    }
    // Unless the ids are mapped, this process has none, and after them it may need no other.
    let identity = parse(message);
    if identity.own && !assume(identity) {
        return "become a user of its own";
    }
    if !capabilities::keep_over_exec() {
        return "keep the capabilities to build walls";
    }
    // After every change of credentials, which clears it (prctl(2)).
    // SAFETY: the option takes a number and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return "end with the starter";
    }
    for (target, &stream) in (0..).zip(&plan.streams) {
        // SAFETY: takes numbers. The streams of the plan are none of 0, 1, 2, so that none is overwritten before its turn.
        if unsafe { libc::dup2(stream, target) } < 0 {
            return "set a standard stream";
        }
    }
    // SAFETY: takes numbers; descriptors are closed when the program is executed, and not before.
    let closed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST_OTHER,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if closed != 0 {
        return "close the starter's descriptors";
    }
    let environment: [*const c_char; 1] = [ptr::null()];
    // SAFETY: both lists end with a null pointer and their strings with a null byte; all of it lives until the program has taken
    // this memory's place.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            plan.program,
            c"".as_ptr(),
            plan.arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    "execute the program"
}

/// Becomes a user: groups first, as only a user with capabilities may leave them. The system calls themselves: those of the C
/// library change all threads, for which it keeps a list with a lock.
fn assume(identity: Identity) -> bool {
    let Identity { uid, gid, .. } = identity;
    // SAFETY: takes numbers, and no pointer is read for a list of no groups.
    unsafe {
        libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) == 0
            && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
            && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
    }
}

/// Writes `cannot WHAT: errno N`.
fn complain(stderr: c_int, what: &str, errno: c_int) {
    let mut digits = [0; 10];
    let mut first = digits.len();
    let mut rest = errno.unsigned_abs();
    while first > 0 {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for part in [
        b"cannot ".as_slice(),
        what.as_bytes(),
        b": errno ",
        &digits[first..],
        b"\n",
    ] {
        // SAFETY: the bytes are those of `part`.
        unsafe { libc::write(stderr, part.as_ptr().cast(), part.len()) };
    }
}
