//! Writing the log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{Entry, FILE_BYTES, FILES, LINE_BYTES, Stream};
use crate::options::LogOptions as Limits;

/// Cuts output into lines and appends them to a log.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
    /// How many files there may be, the present one included.
    files: u32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl LogWriter {
    /// Appends to the log at `path`, within what the user wants or brig's own limits.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path, options: Limits) -> io::Result<Self> {
        match options {
            Limits { max_size: 0, .. } => Self::with_limits(path, FILE_BYTES, FILES),
            // As Docker: one file when the user says nothing of their number.
            Limits { max_size, max_file } => Self::with_limits(path, max_size, max_file.max(1)),
        }
    }

    fn with_limits(path: &Path, limit: u64, files: u32) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            written,
            limit,
            files,
            stdout: Vec::new(),
            stderr: Vec::new(),
        })
    }

    /// Takes bytes that were written to `stream`; whole lines go to the file.
    ///
    /// # Errors
    /// Those of write(2); what could not be written is lost, and later output is still taken.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8], now: Timestamp) -> io::Result<()> {
        let mut entries = Vec::new();
        let mut line = std::mem::take(self.partial(stream));
        while !bytes.is_empty() {
            let room = LINE_BYTES - line.len();
            let window = &bytes[..bytes.len().min(room)];
            let taken = window
                .iter()
                .position(|&b| b == b'\n')
                .map_or(window.len(), |at| at + 1);
            line.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if line.len() == LINE_BYTES || line.last() == Some(&b'\n') {
                encode(&mut entries, stream, &line, now)?;
                line.clear();
            }
        }
        *self.partial(stream) = line;
        self.append(&entries)
    }

    /// Writes what is left of a last line without a newline.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn finish(&mut self, stream: Stream, now: Timestamp) -> io::Result<()> {
        let line = std::mem::take(self.partial(stream));
        let mut entries = Vec::new();
        if !line.is_empty() {
            encode(&mut entries, stream, &line, now)?;
        }
        self.append(&entries)
    }

    fn partial(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut rest = entries;
        while !rest.is_empty() {
            // Whole lines, as many as fit into the file; one that is longer than a file has one for itself.
            let room = self.limit.saturating_sub(self.written);
            let fits = lines_within(rest, usize::try_from(room).unwrap_or(usize::MAX));
            let piece = match (fits, self.written) {
                (0, 0) => rest
                    .iter()
                    .position(|&byte| byte == b'\n')
                    .map_or(rest.len(), |end| end + 1),
                (0, _) => {
                    self.rotate()?;
                    continue;
                }
                (fits, _) => fits,
            };
            self.put(&rest[..piece])?;
            rest = &rest[piece..];
        }
        Ok(())
    }

    /// Writes whole lines. On a full disk nothing is left of those that do not fit: half a line would spoil the next one.
    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(lines);
        if written.is_ok() {
            self.written += lines.len() as u64;
        } else {
            let _ = self.file.set_len(self.written);
        }
        written
    }

    /// Moves each file to the place of the next older one, and begins a new one. The oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.files).rev() {
            match fs::rename(numbered(&self.path, number - 1), numbered(&self.path, number)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        // Of one file alone a new one takes the place; who reads the old one reads it to its end.
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        self.file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

/// Bytes of the lines that are whole within the first `room`.
fn lines_within(entries: &[u8], room: usize) -> usize {
    let window = &entries[..entries.len().min(room)];
    window
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |end| end + 1)
}

/// The file of a log that so many newer ones follow: `log.json`, `log.json.1`, …
pub(crate) fn numbered(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        number => path.with_extension(format!("json.{number}")),
    }
}

fn encode(entries: &mut Vec<u8>, stream: Stream, line: &[u8], time: Timestamp) -> io::Result<()> {
    let entry = Entry {
        log: String::from_utf8_lossy(line).into_owned(),
        stream,
        time,
    };
    serde_json::to_writer(&mut *entries, &entry)?;
    entries.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.json");
        (directory, path)
    }

    fn entries(path: &Path) -> Vec<Entry> {
        fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_line_is_written_as_dockers_json_file_driver_does() {
        let (_directory, path) = log();
        let time: Timestamp = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
        LogWriter::open(&path, Limits::default())
            .unwrap()
            .write(Stream::Stderr, b"a \"b\"\n", time)
            .unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"log\":\"a \\\"b\\\"\\n\",\"stream\":\"stderr\",\"time\":\"2026-01-02T03:04:05.678901234Z\"}\n"
        );
    }

    #[test]
    fn pieces_become_lines_and_the_streams_are_kept_apart() {
        let (_directory, path) = log();
        let mut log = LogWriter::open(&path, Limits::default()).unwrap();
        let now = Timestamp::UNIX_EPOCH;
        log.write(Stream::Stdout, b"on", now).unwrap();
        log.write(Stream::Stderr, b"error\n", now).unwrap();
        log.write(Stream::Stdout, b"e\ntwo\nthr", now).unwrap();
        log.finish(Stream::Stdout, now).unwrap();
        let lines: Vec<_> = entries(&path).into_iter().map(|e| (e.log, e.stream)).collect();
        assert_eq!(
            lines,
            [
                ("error\n".to_owned(), Stream::Stderr),
                ("one\n".to_owned(), Stream::Stdout),
                ("two\n".to_owned(), Stream::Stdout),
                ("thr".to_owned(), Stream::Stdout),
            ]
        );
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (_directory, path) = log();
        let mut log = LogWriter::open(&path, Limits::default()).unwrap();
        log.write(
            Stream::Stdout,
            &vec![b'x'; 3 * LINE_BYTES + 1],
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        let entries = entries(&path);
        assert_eq!(entries.len(), 3);
        assert!(entries.iter().all(|e| e.log.len() == LINE_BYTES));
        assert_eq!(log.stdout.len(), 1);
    }

    #[test]
    fn a_log_takes_no_more_than_two_files_of_the_limit() {
        let (directory, path) = log();
        let mut log = LogWriter::with_limits(&path, 1000, 2).unwrap();
        for number in 0..1000 {
            log.write(
                Stream::Stdout,
                format!("{number}\n").as_bytes(),
                Timestamp::UNIX_EPOCH,
            )
            .unwrap();
        }
        let sizes: Vec<u64> = fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|&size| size <= 1000));
        assert_eq!(entries(&path).last().unwrap().log, "999\n");
    }

    #[test]
    fn a_user_says_how_many_files_of_which_size_there_are() {
        let (directory, path) = log();
        let options = Limits {
            max_size: 1000,
            max_file: 4,
        };
        let mut log = LogWriter::open(&path, options).unwrap();
        let numbers: Vec<String> = (0..500).map(|number| number.to_string()).collect();
        let text = numbers.join("\n") + "\n";
        // In one piece, which is more than all files hold.
        log.write(Stream::Stdout, text.as_bytes(), Timestamp::UNIX_EPOCH)
            .unwrap();
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .inspect(|entry| assert!(entry.metadata().unwrap().len() <= 1000, "{entry:?}"))
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["log.json", "log.json.1", "log.json.2", "log.json.3"]);
        let all: Vec<_> = (0..4)
            .rev()
            .flat_map(|number| entries(&numbered(&path, number)))
            .collect();
        let first: u32 = all[0].log.trim().parse().unwrap();
        let expected: Vec<_> = (first..500).map(|number| format!("{number}\n")).collect();
        assert_eq!(
            all.into_iter().map(|entry| entry.log).collect::<Vec<_>>(),
            expected
        );
        let options = Limits {
            max_file: 0,
            ..options
        };
        let (directory, path) = self::log();
        let mut log = LogWriter::open(&path, options).unwrap();
        log.write(Stream::Stdout, text.as_bytes(), Timestamp::UNIX_EPOCH)
            .unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(entries(&path).last().unwrap().log, "499\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let (_directory, path) = log();
        LogWriter::open(&path, Limits::default())
            .unwrap()
            .write(Stream::Stdout, b"\xff\0\x1b\n", Timestamp::UNIX_EPOCH)
            .unwrap();
        assert_eq!(entries(&path)[0].log, "\u{fffd}\0\x1b\n");
    }
}
