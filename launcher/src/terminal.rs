//! A terminal of a process (pty(7)), made in the sandbox's own devpts, so that ttyname(3) has a name for it there.

use std::os::fd::OwnedFd;

use brig_protocol::spec::WindowSize;
use rustix::{
    fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid, fchown, openat2},
    mount::OpenTreeFlags,
    process::ioctl_tiocsctty,
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    termios::{Winsize, tcsetwinsize},
};

use crate::{
    error::{Context, LaunchError},
    masked::clone_tree,
    mounts,
    user::Identity,
};

/// What makes a new terminal when it is opened. Not `/dev/ptmx`, a link that root inside can point elsewhere.
const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// What the first process may call its terminal.
const CONSOLE: &str = "/dev/console";

/// The two ends of a new terminal.
pub(crate) struct Terminal {
    /// What a terminal emulator has.
    pub master: OwnedFd,
    /// What the process has.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Makes one below the root of the calling process.
    pub(crate) fn open(size: WindowSize) -> Result<Self, LaunchError> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::NO_SYMLINKS;
        let master = openat2(CWD, MULTIPLEXER, flags, Mode::empty(), resolve).step("open a terminal")?;
        unlockpt(&master).step("unlock the terminal")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).step("open the other end of the terminal")?;
        resize(&master, size).step("set the size of the terminal")?;
        Ok(Self { master, slave })
    }

    /// Shows it as `/dev/console` too. Called while the calling process may mount.
    pub(crate) fn bind_console(&self) -> Result<(), LaunchError> {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::NO_SYMLINKS;
        let target =
            openat2(CWD, CONSOLE, flags, Mode::from_raw_mode(0o666), resolve).step_on("create", CONSOLE)?;
        clone_tree(&self.slave, "", OpenTreeFlags::empty())
            .and_then(|tree| mounts::attach(&tree, &target))
            .step_on("bind the terminal over", CONSOLE)
    }

    /// Makes it the controlling terminal of the calling process, which leads a session, and its three streams. It belongs to
    /// the user then; its group stays that of all terminals.
    pub(crate) fn take(&self, identity: &Identity) -> Result<(), LaunchError> {
        ioctl_tiocsctty(&self.slave).step("take the terminal for the controlling one")?;
        if identity.uid != 0 {
            let uid = Uid::from_raw(identity.uid);
            fchown(&self.slave, Some(uid), None::<Gid>).step("give the terminal to the user")?;
        }
        dup2_stdin(&self.slave).step("set standard input")?;
        dup2_stdout(&self.slave).step("set standard output")?;
        dup2_stderr(&self.slave).step("set standard error")
    }
}

/// Gives a terminal another size; its foreground process group hears of that by `SIGWINCH`.
///
/// # Errors
/// Those of `ioctl_tty(2)`.
pub fn resize(terminal: &OwnedFd, size: WindowSize) -> std::io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}
