//! `cp`: files between this machine and a sandbox.

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufReader, Read, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, JoinHandle},
};

use brig_engine::{
    Engine, Error,
    engine::Pipes,
    error::{chain, one_line},
    template,
    tool::{self, Tool},
    unpack::Report,
};
use brig_image_store::{
    copy::{
        self, CopyError, Source,
        read::Wanted,
        write::{Trust, Written},
    },
    tar::Kind,
};
use tokio::sync::mpsc;

use super::images::transfer::refuse_terminal;
use crate::{arguments::Copy, failure::Failure, progress::Step, text};

/// Bytes of a piece of a stream, and how many wait for their taker.
const PIECE_BYTES: usize = 32 << 10;
const PIECES: usize = 16;

/// `brig cp`.
pub async fn copy(engine: &Engine, options: &Copy) -> Result<i32, Failure> {
    match (Place::parse(&options.from), Place::parse(&options.to)) {
        (Place::Sandbox { name, path }, Place::Here(to)) => out_of(engine, options, name, path, &to).await,
        (Place::Here(from), Place::Sandbox { name, path }) => into(engine, options, &from, name, path).await,
        (Place::Sandbox { .. }, Place::Sandbox { .. }) => Err(Failure::command(
            "cp copies from a sandbox or into one, not between two: brig cp a:/x - | brig cp - b:/"
                .to_owned(),
        )),
        (Place::Here(_), Place::Here(_)) => Err(Failure::command(
            "cp needs a sandbox at one end: brig cp web:/etc/nginx ./nginx".to_owned(),
        )),
    }
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    /// In a sandbox; the path is absolute.
    Sandbox { name: &'a str, path: Vec<u8> },
    /// On this machine, or `-`.
    Here(PathBuf),
}

impl<'a> Place<'a> {
    /// As Docker splits: what begins with a dot or a slash is on this machine.
    fn parse(text: &'a OsStr) -> Self {
        let here = || Self::Here(text.into());
        let bytes = text.as_bytes();
        if bytes.starts_with(b"/") || bytes.starts_with(b".") {
            return here();
        }
        let Some(at) = bytes.iter().position(|&byte| byte == b':') else {
            return here();
        };
        let Ok(name) = str::from_utf8(&bytes[..at]) else {
            return here();
        };
        let mut path = bytes[at + 1..].to_vec();
        if !path.starts_with(b"/") {
            path.insert(0, b'/');
        }
        Self::Sandbox { name, path }
    }
}

/// The last component of a path, and whether what is in a directory is meant rather than the directory.
fn name_of(path: &[u8]) -> (Vec<u8>, bool) {
    let contents = path.ends_with(b"/.") || path == b".";
    let mut components = path
        .split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."));
    match components.next_back() {
        Some(b"..") | None => (b"root".to_vec(), true),
        Some(name) => (name.to_vec(), contents),
    }
}

/// From a sandbox to a path here. What comes is untrusted.
async fn out_of(
    engine: &Engine,
    options: &Copy,
    name: &str,
    path: Vec<u8>,
    to: &Path,
) -> Result<i32, Failure> {
    let (base, contents) = name_of(&path);
    let tool = Tool::Read {
        path,
        follow: options.follow_link,
    };
    let (_keep, input) = mpsc::channel(1);
    if to == Path::new("-") {
        refuse_terminal("an archive", "a path in the place of -")?;
        let mut output = |piece: &[u8]| io::stdout().lock().write_all(piece).map_err(Error::Output);
        let pipes = Pipes {
            input,
            output: &mut output,
        };
        let copied = engine
            .copy(name, tool, template::switched_off(), &mut |_| {}, pipes)
            .await;
        return match copied {
            Err(Error::Output(source)) => Err(source.into()),
            other => Ok(other.map(|()| 0)?),
        };
    }
    let step = step(options, "Copying");
    let (sender, receiver) = sync_channel(PIECES);
    let destination = to.as_os_str().to_owned();
    let owners = options.archive;
    let writing = thread::spawn(move || {
        let stream = BufReader::new(Pieces::new(receiver));
        copy::write::tree(stream, Trust::Nobody { owners }, |first| {
            let source = Source {
                name: OsString::from_vec(base),
                is_directory: first.kind == Kind::Directory,
                contents,
            };
            copy::place(&destination, &source)
        })
    });
    let mut done = 0;
    let copied = {
        let sender = sender;
        let mut output = |piece: &[u8]| {
            done += piece.len() as u64;
            if let Some(step) = &step {
                step.advance(done, None);
            }
            // Why nobody takes it any more is said below.
            sender
                .send(Some(piece.to_vec()))
                .map_err(|_| Error::Output(io::ErrorKind::BrokenPipe.into()))
        };
        let pipes = Pipes {
            input,
            output: &mut output,
        };
        let copied = engine
            .copy(
                name,
                tool,
                template::switched_off(),
                &mut note(step.as_ref()),
                pipes,
            )
            .await;
        if copied.is_ok() {
            // Without it the end is that of a stream that has been cut.
            let _ = sender.send(None);
        }
        copied
    };
    let written = finish(writing);
    match (copied, written) {
        (Ok(()) | Err(Error::Output(_)), Err(failure)) => Err(failure),
        (Err(error), _) => Err(error.into()),
        (Ok(()), Ok(written)) => {
            tell(options, step, written, &format!("{}", to.display()));
            Ok(0)
        }
    }
}

/// From a path here into a sandbox.
async fn into(
    engine: &Engine,
    options: &Copy,
    from: &Path,
    name: &str,
    path: Vec<u8>,
) -> Result<i32, Failure> {
    let (sender, input) = mpsc::channel(PIECES);
    let shown = format!("{name}:{}", String::from_utf8_lossy(&path));
    let mut nothing = |_: &[u8]| Ok(());
    let pipes = Pipes {
        input,
        output: &mut nothing,
    };
    if from == Path::new("-") {
        let tool = Tool::Write { path, source: None };
        thread::spawn(move || {
            let mut stdin = io::stdin().lock();
            let mut buffer = vec![0; PIECE_BYTES];
            // The end of either ends the other.
            while let Ok(count) = stdin.read(&mut buffer)
                && count > 0
                && sender.blocking_send(buffer[..count].to_vec()).is_ok()
            {}
        });
        engine
            .copy(name, tool, template::switched_off(), &mut |_| {}, pipes)
            .await?;
        return Ok(0);
    }
    let wanted = Wanted {
        path: from.as_os_str(),
        follow: options.follow_link,
    };
    let is_directory = copy::read::is_directory(&wanted).map_err(cannot)?;
    let whole = std::path::absolute(from)?;
    let (base, _) = name_of(whole.as_os_str().as_bytes());
    let tool = Tool::Write {
        path,
        source: Some(tool::Source {
            name: base,
            is_directory,
            contents: name_of(from.as_os_str().as_bytes()).1,
        }),
    };
    let step = step(options, "Copying");
    let (path, follow) = (from.as_os_str().to_owned(), options.follow_link);
    let reading = thread::spawn(move || {
        let wanted = Wanted { path: &path, follow };
        let mut done = 0;
        copy::read::tree(
            &wanted,
            Sending {
                sender,
                done: &mut done,
            },
        )?;
        Ok(Written {
            bytes: done,
            left_out: 0,
        })
    });
    let copied = engine
        .copy(
            name,
            tool,
            template::switched_off(),
            &mut note(step.as_ref()),
            pipes,
        )
        .await;
    let read = finish(reading);
    // What the sandbox says comes first: the other end then only knows that nobody takes its bytes.
    copied?;
    tell(options, step, read?, &shown);
    Ok(0)
}

fn finish(work: JoinHandle<Result<Written, CopyError>>) -> Result<Written, Failure> {
    match work.join() {
        Ok(done) => done.map_err(cannot),
        Err(_) => Err(Failure::command("cannot copy: a thread has failed".to_owned())),
    }
}

fn cannot(error: CopyError) -> Failure {
    // A sandbox may have chosen the path in it.
    Failure::command(format!("cannot copy {}", one_line(&chain(&error), 4096)))
}

fn step(options: &Copy, what: &'static str) -> Option<Step> {
    (!options.quiet).then(|| Step::bytes(what, false))
}

fn note(step: Option<&Step>) -> impl FnMut(Report) {
    move |report| {
        if let (Report::Notice(line), Some(step)) = (report, step) {
            step.note(&line);
        }
    }
}

fn tell(options: &Copy, step: Option<Step>, written: Written, to: &str) {
    drop(step);
    if written.left_out > 0 {
        eprintln!("brig: devices are not copied: {} left out", written.left_out);
    }
    if !options.quiet {
        eprintln!("Successfully copied {} to {to}", text::size(written.bytes));
    }
}

/// Reads what comes in pieces, up to the one that says that this was all.
struct Pieces {
    receiver: Receiver<Option<Vec<u8>>>,
    piece: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Pieces {
    fn new(receiver: Receiver<Option<Vec<u8>>>) -> Self {
        Self {
            receiver,
            piece: Vec::new(),
            taken: 0,
            ended: false,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.piece.len() && !self.ended {
            match self.receiver.recv() {
                Ok(Some(piece)) => (self.piece, self.taken) = (piece, 0),
                Ok(None) => self.ended = true,
                Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.taken);
        buffer[..count].copy_from_slice(&self.piece[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// Hands on what is written.
struct Sending<'a> {
    sender: mpsc::Sender<Vec<u8>>,
    done: &'a mut u64,
}

impl Write for Sending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.chunks(PIECE_BYTES) {
            let sent = self.sender.blocking_send(piece.to_vec());
            sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            *self.done += piece.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_sandbox_s_when_it_has_a_colon_and_begins_with_no_dot_or_slash() {
        let sandbox = |text: &'static str| match Place::parse(OsStr::new(text)) {
            Place::Sandbox { name, path } => Some((name.to_owned(), String::from_utf8(path).unwrap())),
            Place::Here(_) => None,
        };
        assert_eq!(sandbox("web:/etc"), Some(("web".into(), "/etc".into())));
        assert_eq!(sandbox("web:etc/x"), Some(("web".into(), "/etc/x".into())));
        assert_eq!(sandbox("web:"), Some(("web".into(), "/".into())));
        for text in ["-", "file", "./web:x", "/web:x", "../a:b"] {
            assert_eq!(sandbox(text), None, "{text}");
        }
    }

    #[test]
    fn the_name_is_the_last_component() {
        let name = |path: &str| {
            let (name, contents) = name_of(path.as_bytes());
            (String::from_utf8(name).unwrap(), contents)
        };
        assert_eq!(name("/etc/nginx"), ("nginx".into(), false));
        assert_eq!(name("/etc/nginx/"), ("nginx".into(), false));
        assert_eq!(name("/etc/nginx/."), ("nginx".into(), true));
        assert_eq!(name("."), ("root".into(), true));
        assert_eq!(name("/"), ("root".into(), true));
        assert_eq!(name("a/.."), ("root".into(), true));
    }

    #[test]
    fn a_stream_that_is_cut_is_an_error_and_no_end() {
        let (sender, receiver) = sync_channel(4);
        sender.send(Some(b"ab".to_vec())).unwrap();
        sender.send(None).unwrap();
        let mut bytes = Vec::new();
        Pieces::new(receiver).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"ab");
        let (sender, receiver) = sync_channel(4);
        sender.send(Some(b"ab".to_vec())).unwrap();
        drop(sender);
        assert!(Pieces::new(receiver).read_to_end(&mut Vec::new()).is_err());
    }
}
