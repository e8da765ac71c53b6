//! The system calls that `std` does not have.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::{self, NonNull},
    slice,
};

/// Bytes of a page.
pub const PAGE: usize = 4096;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// getppid(2), by a system call each time.
pub fn getppid() {
    // SAFETY: getppid takes nothing, touches no memory and cannot fail.
    unsafe { libc::syscall(libc::SYS_getppid) };
}

/// pipe2(2): the end to read, the end to write. Closed at an exec.
///
/// # Errors
/// Those of pipe2(2).
pub fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the array has place for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both descriptors are new and nobody else's.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

/// A process of this program's own, which is ended and waited for when this is dropped.
pub struct Child(libc::pid_t);

impl Child {
    /// Forks a process that does `work` and ends, with code 0 or, when the work fails, 1.
    ///
    /// # Errors
    /// Those of fork(2).
    ///
    /// # Safety
    /// This process must have one thread: a lock that another one held would never be free in the child.
    pub unsafe fn fork(work: impl FnOnce() -> io::Result<()>) -> io::Result<Self> {
        // SAFETY: there is one thread, says the caller, so the child may go on as the parent would.
        let pid = check(unsafe { libc::fork() })?;
        if pid == 0 {
            let code = i32::from(work().is_err());
            // SAFETY: _exit does not return and runs nothing of the parent's.
            unsafe { libc::_exit(code) };
        }
        Ok(Self(pid))
    }

    /// Waits for its end and returns its exit code, or 128 and the signal.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub fn wait(self) -> io::Result<i32> {
        let result = self.collect();
        std::mem::forget(self);
        result
    }

    fn collect(&self) -> io::Result<i32> {
        let mut status = 0;
        // SAFETY: the status is a place for one int; the pid is that of a child that nobody else waits for.
        check(unsafe { libc::waitpid(self.0, &raw mut status, 0) })?;
        if libc::WIFEXITED(status) {
            Ok(libc::WEXITSTATUS(status))
        } else {
            Ok(128 + libc::WTERMSIG(status))
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: kill takes two numbers. The child has not been waited for, so the pid is its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        let _ = self.collect();
    }
}

/// fork(2), execve(2) of a program with one argument, and waitpid(2).
///
/// # Errors
/// Those of the three, and an exit code that is not 0.
///
/// # Safety
/// As of [`Child::fork`].
pub unsafe fn fork_exec_wait(program: &CStr, argument: &CStr) -> io::Result<()> {
    let words = [program.as_ptr(), argument.as_ptr(), ptr::null()];
    let environment = [ptr::null()];
    let exec = || {
        // SAFETY: both lists end with a null pointer, and their strings outlive the call.
        unsafe { libc::execve(program.as_ptr(), words.as_ptr(), environment.as_ptr()) };
        Err(io::Error::last_os_error())
    };
    // SAFETY: the caller's promise.
    let child = unsafe { Child::fork(exec) }?;
    match child.wait()? {
        0 => Ok(()),
        code => Err(io::Error::other(format!(
            "{} ended with {code}",
            program.to_string_lossy()
        ))),
    }
}

/// The path as execve(2) wants it.
///
/// # Errors
/// When there is a zero byte in it.
pub fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Keeps this process on the CPU it is on, until it is dropped.
pub struct Pinned(libc::cpu_set_t);

impl Pinned {
    /// Pins this thread; children inherit it.
    ///
    /// # Errors
    /// Those of sched_setaffinity(2).
    pub fn here() -> io::Result<Self> {
        let size = size_of::<libc::cpu_set_t>();
        // SAFETY: all bits zero are a cpu_set_t: an empty one.
        let (mut before, mut one): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
        // SAFETY: the set has the size that is said.
        check(unsafe { libc::sched_getaffinity(0, size, &raw mut before) })?;
        // SAFETY: sched_getcpu takes nothing; the number of a CPU of ours is below the size of the set, as the kernel has
        // just written it there.
        unsafe { libc::CPU_SET(check(libc::sched_getcpu())? as usize, &mut one) };
        // SAFETY: as above.
        check(unsafe { libc::sched_setaffinity(0, size, &raw const one) })?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the set has the size that is said.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.0) };
    }
}

/// Anonymous memory, in pages of [`PAGE`] bytes, zero and not there before it is touched.
pub struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

impl Memory {
    /// mmap(2), with huge pages kept away.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(bytes: usize) -> io::Result<Self> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: the kernel chooses the address, so nothing that is in use is replaced.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    /// Says that a fault is to bring one small page. A kernel without huge pages refuses, and does so anyway.
    #[must_use]
    pub fn without_huge_pages(self) -> Self {
        // SAFETY: the range is this mapping; the advice does not change what is in it.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, libc::MADV_NOHUGEPAGE) };
        self
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is readable and writable, has this length, is zero where nobody has written, and is borrowed as
        // `self` is.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Writes to each page.
    pub fn touch(&mut self) {
        for page in self.bytes().chunks_mut(PAGE) {
            // SAFETY: a page is a valid place for one byte; volatile, so that the write is not left out.
            unsafe { ptr::write_volatile(page.as_mut_ptr(), 1) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, whose borrows have ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Lets go of what the page cache has of a file, as far as it is written.
///
/// # Errors
/// Those of posix_fadvise(2).
pub fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Signals that are kept from interrupting the process until they are asked for. As PID 1 of a sandbox a process gets no
/// signal that it does not ask for (pid_namespaces(7)).
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks signals for this thread and those that it will start.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: sigemptyset makes a set of the zeroed one; the others get a set that is initialised and live.
        let fd = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC)
        };
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(check(fd)?) }))
    }

    /// The next of the signals, or `None` when the time is over before.
    ///
    /// # Errors
    /// Those of poll(2) and read(2).
    pub fn wait(&self, limit: Option<std::time::Duration>) -> io::Result<Option<i32>> {
        let mut ready = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: one pollfd, which is live.
        if check(unsafe { libc::poll(&raw mut ready, 1, limit) })? == 0 {
            return Ok(None);
        }
        // SAFETY: all bits zero are a signalfd_siginfo, and the kernel writes at most its size.
        let info = unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let size = size_of_val(&info);
            if libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) < 0 {
                return Err(io::Error::last_os_error());
            }
            info
        };
        Ok(Some(info.ssi_signo as i32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_until_it_is_touched() {
        let mut memory = Memory::map(3 * PAGE).unwrap().without_huge_pages();
        assert!(memory.bytes().iter().all(|byte| *byte == 0));
        memory.touch();
        for page in memory.bytes().chunks(PAGE) {
            assert_eq!((page[0], page[1]), (1, 0));
        }
    }

    #[test]
    fn pinning_is_undone() {
        let allowed = || std::thread::available_parallelism().unwrap().get();
        let before = allowed();
        let pinned = Pinned::here().unwrap();
        assert_eq!(allowed(), 1);
        drop(pinned);
        assert_eq!(allowed(), before);
    }

    #[test]
    fn a_signal_is_waited_for() {
        let signals = Signals::block(&[libc::SIGUSR2]).unwrap();
        assert_eq!(signals.wait(Some(std::time::Duration::ZERO)).unwrap(), None);
        // SAFETY: the signal is blocked for this thread, to which it is sent.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
        assert_eq!(signals.wait(None).unwrap(), Some(libc::SIGUSR2));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let missing = c_path(Path::new("/nowhere/program")).unwrap();
        // SAFETY: the child executes or ends, and does nothing else.
        assert!(unsafe { fork_exec_wait(&missing, &missing) }.is_err());
    }
}
