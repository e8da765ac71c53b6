//! What the agent itself does in a sandbox ([`brig_protocol::tool`]): each in a process of its own, in the sandbox's root
//! filesystem, with nothing but three streams.

mod processes;

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use brig_image_store::copy::{self, CopyError, Top};
use brig_protocol::{
    frame,
    tool::{FRAME_BYTES, Listed, Source, Tool, Usage},
};

use crate::error::one_line;

/// Bytes that are read at a time.
const READ_BYTES: usize = 128 << 10;

/// Exit code of one that has failed, and said why on standard error.
const FAILED: i32 = 1;

/// Why one has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// Does what `tool` says and gives the exit code. The calling process is in the sandbox, and ends after this.
pub fn run(tool: &Tool) -> i32 {
    // SAFETY: the caller has put a stream into each of these places, and nothing else of this process owns them.
    let [input, output] = [0, 1].map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    let done = match tool {
        Tool::Processes => list(output),
        Tool::Usage => measure(input, output),
        Tool::Read { path, follow } => read(path, *follow, output),
        Tool::Write { path, source } => write(path, source.as_ref(), input),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", one_line(&error));
            FAILED
        }
    }
}

fn list(output: File) -> Result<(), ToolError> {
    let mut output = io::BufWriter::new(output);
    for process in processes::all()? {
        frame::write(&mut output, &Listed::Process(Box::new(process)), FRAME_BYTES)?;
    }
    frame::write(&mut output, &Listed::End, FRAME_BYTES)?;
    Ok(output.flush()?)
}

/// Answers as long as it is asked.
fn measure(mut input: File, mut output: File) -> Result<(), ToolError> {
    let mut asked = [0];
    while input.read(&mut asked)? > 0 {
        let threads = processes::threads()?;
        frame::write(&mut output, &Usage { threads }, FRAME_BYTES)?;
    }
    Ok(())
}

fn read(path: &[u8], follow: bool, output: File) -> Result<(), ToolError> {
    let path = OsStr::from_bytes(path);
    Ok(copy::read::tree(&copy::read::Wanted { path, follow }, output)?)
}

fn write(path: &[u8], source: Option<&Source>, input: File) -> Result<(), ToolError> {
    let path = OsStr::from_bytes(path);
    let place = match source {
        None => (copy::open_directory(path)?, Top::Kept),
        Some(source) => {
            let source = copy::Source {
                name: OsStr::from_bytes(&source.name).to_owned(),
                is_directory: source.is_directory,
                contents: source.contents,
            };
            copy::place(path, &source)?
        }
    };
    // Whoever copies into a sandbox may do anything in it.
    let input = io::BufReader::with_capacity(READ_BYTES, input);
    copy::write::tree(input, copy::write::Trust::Owner, |_| Ok(place))?;
    Ok(())
}
