//! How a command fails: one line, and an exit code.

use std::io;

use brig_engine::error::{CODE_BRIG, chain};

/// Exit code of every command that fails other than `run` and `start -a`, as Docker's.
pub const CODE_COMMAND: i32 = 1;

/// Exit code after an interrupt: 128 + SIGINT.
const CODE_INTERRUPTED: i32 = 130;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// Lines that are to be printed; none when that has been done.
    lines: Vec<String>,
    code: i32,
}

impl Failure {
    /// A failure to run something: Docker's 125, or what the error says.
    pub fn of_run(error: brig_engine::Error) -> Self {
        Self {
            code: error.exit_code(),
            lines: vec![chain(&error)],
        }
    }

    /// What `create` could not do: `run` cannot either, but has a code of its own for that.
    pub fn of_create(self) -> Self {
        Self {
            code: if self.code == CODE_BRIG {
                CODE_COMMAND
            } else {
                self.code
            },
            ..self
        }
    }

    /// The user interrupted the command before anything ran.
    pub fn interrupted() -> Self {
        Self {
            lines: Vec::new(),
            code: CODE_INTERRUPTED,
        }
    }

    /// A signal has ended the command.
    pub fn signalled(signal: i32) -> Self {
        Self {
            lines: Vec::new(),
            code: 128 + signal,
        }
    }

    /// What cannot be done as it was asked for; `run`'s code.
    pub fn usage(line: String) -> Self {
        Self {
            lines: vec![line],
            code: CODE_BRIG,
        }
    }

    /// What is run needs something that another program could not do, and that one has reported why; `run`'s code.
    pub fn told_of_run() -> Self {
        Self {
            lines: Vec::new(),
            code: CODE_BRIG,
        }
    }

    /// What a command other than `run` cannot do.
    pub fn command(line: String) -> Self {
        Self {
            lines: vec![line],
            code: CODE_COMMAND,
        }
    }

    /// The same for several reasons.
    pub fn commands(lines: Vec<String>) -> Self {
        Self {
            lines,
            code: CODE_COMMAND,
        }
    }

    /// One of several things failed, and all of them have been reported.
    pub fn reported() -> Self {
        Self {
            lines: Vec::new(),
            code: CODE_COMMAND,
        }
    }

    /// Prints it and gives the exit code.
    pub fn report(self) -> i32 {
        for line in self.lines {
            eprintln!("brig: {line}");
        }
        self.code
    }
}

impl From<brig_engine::Error> for Failure {
    fn from(error: brig_engine::Error) -> Self {
        Self {
            lines: vec![chain(&error)],
            code: CODE_COMMAND,
        }
    }
}

impl From<brig_image_store::StoreError> for Failure {
    fn from(error: brig_image_store::StoreError) -> Self {
        brig_engine::Error::from(error).into()
    }
}

impl From<io::Error> for Failure {
    /// An error on one of the command's own streams. A reader that has gone away ends a command without a word, as
    /// SIGPIPE would.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::reported(),
            _ => Self {
                lines: vec![format!("cannot write: {error}")],
                code: CODE_COMMAND,
            },
        }
    }
}
