//! The guest kernel's log and what brig-vmm says, kept so far as they help when a guest fails.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
};

use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, task::JoinHandle};

use crate::error::one_line;

/// Bytes of `console.log` before it is moved to `console.log.1`: together they keep the last 128 to 256 KiB.
const FILE_BYTES: u64 = 128 << 10;

/// Lines that are kept for an error message.
const LINES: usize = 8;

/// Most bytes of such a line.
const LINE_BYTES: usize = 240;

/// What a kernel says when it gives up (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";

/// Collects lines. Clones share what they collect.
#[derive(Clone, Debug, Default)]
pub struct Console(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    file: Option<BoundedFile>,
    lines: VecDeque<String>,
    panic: Option<String>,
}

impl Console {
    /// A console that also writes to the file at `path`, from its start.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn with_file(path: &Path) -> io::Result<Self> {
        let file = BoundedFile {
            file: File::create(path)?,
            path: path.to_owned(),
            written: 0,
        };
        let _ = std::fs::remove_file(file.older());
        Ok(Self(Rc::new(RefCell::new(Inner {
            file: Some(file),
            ..Inner::default()
        }))))
    }

    /// Makes a pipe, collects what comes from it, and gives its write end.
    ///
    /// # Errors
    /// Those of pipe(2).
    pub fn pipe(&self) -> io::Result<(OwnedFd, JoinHandle<()>)> {
        let (reader, writer) = io::pipe()?;
        Ok((writer.into(), self.collect(reader.into())?))
    }

    /// Collects what comes from the pipe `reader`, in a task of its own, until its last writer is gone.
    ///
    /// # Errors
    /// Those of making it ready to be waited for.
    pub fn collect(&self, reader: OwnedFd) -> io::Result<JoinHandle<()>> {
        let reader = Receiver::from_owned_fd(reader)?;
        Ok(tokio::task::spawn_local(self.clone().read(reader)))
    }

    async fn read(self, mut reader: Receiver) {
        let mut line = Vec::new();
        let mut chunk = vec![0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut chunk).await {
            self.0.borrow_mut().write(&chunk[..count]);
            for &byte in &chunk[..count] {
                if byte == b'\n' {
                    self.0.borrow_mut().line(&line);
                    line.clear();
                } else if line.len() < LINE_BYTES {
                    line.push(byte);
                }
            }
        }
        self.0.borrow_mut().line(&line);
    }

    /// Why the guest failed, as far as its kernel's log tells: the panic, or the last lines.
    pub fn reason(&self) -> Option<String> {
        let inner = self.0.borrow();
        match &inner.panic {
            Some(panic) => Some(panic.clone()),
            None if inner.lines.is_empty() => None,
            None => {
                let last: Vec<&str> = inner
                    .lines
                    .iter()
                    .rev()
                    .take(3)
                    .rev()
                    .map(String::as_str)
                    .collect();
                Some(format!(
                    "last lines of the guest kernel's log: {}",
                    last.join(" | ")
                ))
            }
        }
    }
}

impl Inner {
    fn write(&mut self, bytes: &[u8]) {
        // A full disk must not end a sandbox for the sake of its kernel's log.
        if let Some(file) = &mut self.file
            && file.write(bytes).is_err()
        {
            self.file = None;
        }
    }

    fn line(&mut self, bytes: &[u8]) {
        let text = one_line(String::from_utf8_lossy(bytes).trim(), LINE_BYTES);
        let text = without_time(&text);
        if text.is_empty() {
            return;
        }
        if self.panic.is_none()
            && let Some(start) = text.find(PANIC)
        {
            self.panic = Some(text[start..].to_owned());
        }
        self.lines.push_back(text.to_owned());
        if self.lines.len() > LINES {
            self.lines.pop_front();
        }
    }
}

/// Takes printk's `[    1.234567] ` off.
fn without_time(line: &str) -> &str {
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((time, rest)) if time.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.') => rest,
        _ => line,
    }
}

#[derive(Debug)]
struct BoundedFile {
    file: File,
    path: PathBuf,
    written: u64,
}

impl BoundedFile {
    fn older(&self) -> PathBuf {
        self.path.with_extension("log.1")
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= FILE_BYTES {
            std::fs::rename(&self.path, self.older())?;
            self.file = File::create(&self.path)?;
            self.written = 0;
        }
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    async fn collect(console: &Console, bytes: &[u8]) {
        let (writer, task) = console.pipe().unwrap();
        let bytes = bytes.to_vec();
        let writing = std::thread::spawn(move || File::from(writer).write_all(&bytes).unwrap());
        task.await.unwrap();
        writing.join().unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_found_in_the_log() {
        let log =
            b"[    0.1] booting\n[    1.5] Kernel panic - not syncing: VFS: no root\n[    1.6] CPU: 0\n";
        LocalSet::new()
            .run_until(async {
                let console = Console::default();
                collect(&console, log).await;
                assert_eq!(
                    console.reason().unwrap(),
                    "Kernel panic - not syncing: VFS: no root"
                );
            })
            .await;
    }

    #[tokio::test]
    async fn without_a_panic_the_last_lines_tell() {
        LocalSet::new()
            .run_until(async {
                let console = Console::default();
                assert_eq!(console.reason(), None);
                collect(&console, b"one\ntwo\n\x1b[31mthree\n[ 1.0] four").await;
                assert!(console.reason().unwrap().ends_with("two |  [31mthree | four"));
            })
            .await;
    }

    #[tokio::test]
    async fn a_guest_that_talks_without_end_fills_no_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        LocalSet::new()
            .run_until(async {
                let console = Console::with_file(&path).unwrap();
                collect(&console, &vec![b'x'; 1 << 20]).await;
            })
            .await;
        let sizes: u64 = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!((FILE_BYTES..=2 * FILE_BYTES + 8192).contains(&sizes), "{sizes}");
    }
}
