//! A terminal (pty(7)) with a command on it: the test is the person who types and looks.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{ioctl_tiocsctty, setsid},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

/// How long something that a test waits for may take. A start takes seconds where KVM interprets the guest's kernel.
const PATIENCE: Duration = Duration::from_secs(120);

/// A terminal and the command on it.
pub struct Pty {
    master: File,
    child: Child,
    seen: Arc<Seen>,
    /// Bytes that have been waited for.
    read: usize,
}

/// What has been written to the terminal.
#[derive(Default)]
struct Seen {
    text: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Pty {
    /// Starts a command with a terminal of this size for its streams and for its controlling terminal.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        unlockpt(&master).expect("a terminal that can be opened");
        set_size(&master, rows, columns);
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).expect("the other end of a terminal");
        let copy = || slave.try_clone().expect("a descriptor");
        command.stdin(copy()).stdout(copy()).stderr(copy());
        // SAFETY: between fork and exec the closure makes two system calls and nothing else.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                Ok(ioctl_tiocsctty(rustix::stdio::stdin())?)
            });
        }
        let child = command.spawn().expect("the command starts");
        // Its copies of the slave are closed: the command has it alone.
        drop((command, slave));
        let master = File::from(master);
        let seen = Arc::new(Seen::default());
        let (reader, filled) = (master.try_clone().expect("a descriptor"), Arc::clone(&seen));
        thread::spawn(move || collect(reader, &filled));
        Self {
            master,
            child,
            seen,
            read: 0,
        }
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Waits until `text` has been written after what was waited for before, and gives everything up to its end.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.seen.text.lock().expect("no panic");
        loop {
            let new = &seen.0[self.read..];
            let found = new.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                let all = String::from_utf8_lossy(&new[..at + text.len()]).into_owned();
                self.read += at + text.len();
                return all;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !seen.1 && !left.is_zero(),
                "no {text:?} on the terminal but {:?}",
                String::from_utf8_lossy(new)
            );
            seen = self.seen.more.wait_timeout(seen, left).expect("no panic").0;
        }
    }

    /// Gives the terminal another size; the command hears of it.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.master, rows, columns);
    }

    /// Whether the terminal passes on each key as it is, without echo.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.master).expect("a terminal").local_modes;
        !modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// The command's pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the command; gives its exit code, 128 + the signal when one killed it.
    ///
    /// # Panics
    /// When it does not end.
    pub fn exit_code(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let deadline = Instant::now() + PATIENCE;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("the command on the terminal does not end");
            }
            thread::sleep(Duration::from_millis(20));
        };
        status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal))
            .unwrap_or(-1)
    }

    /// Closes the terminal, as one whose window is closed.
    pub fn hang_up(mut self) -> i32 {
        // The reader's copy goes with the last bytes; the kernel hangs up when the session's terminal is told to.
        // SAFETY: kill takes two numbers; the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGHUP) };
        self.exit_code()
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(master: impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master, size).expect("a terminal");
}

fn collect(mut master: File, seen: &Seen) {
    let mut buffer = [0; 4096];
    // A terminal that nobody has open any more is an error.
    while let Ok(count) = master.read(&mut buffer) {
        if count == 0 {
            break;
        }
        let mut text = seen.text.lock().expect("no panic");
        text.0.extend_from_slice(&buffer[..count]);
        seen.more.notify_all();
    }
    seen.text.lock().expect("no panic").1 = true;
    seen.more.notify_all();
}
