//! Reading the log, once or along with its writer.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use serde::de::DeserializeOwned;

use super::{Entry, writer::numbered};
use crate::options::limit::LOG_FILES as FILES_MAX;

/// Most files that are kept for a reader that is slower than the writer: they take room that nothing shows.
const HELD_MAX: usize = 32;

/// What a log's lines are.
pub trait Dated: DeserializeOwned {
    /// When it was written.
    fn time(&self) -> Timestamp;
}

impl Dated for Entry {
    fn time(&self) -> Timestamp {
        self.time
    }
}

/// Reads what a sandbox wrote.
pub type LogReader = LineReader<Entry>;

/// Which entries are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// At most so many of the last entries that are there already; `None` for all.
    pub tail: Option<usize>,
    /// None from before this time.
    pub since: Option<Timestamp>,
}

/// Reads a log's entries in order, over the change from one file to the next.
#[derive(Debug)]
pub struct LineReader<E> {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// Those that follow it, as far as they are known.
    newer: VecDeque<BufReader<File>>,
    /// The start of an entry whose end has not been written yet.
    partial: Vec<u8>,
    since: Option<Timestamp>,
    ready: VecDeque<E>,
}

impl<E: Dated> LineReader<E> {
    /// Opens the log at `path`; one that has not been written yet is empty.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let mut reader = Self {
            path: path.to_owned(),
            file: oldest(path)?,
            newer: VecDeque::new(),
            partial: Vec::new(),
            since: options.since,
            ready: VecDeque::new(),
        };
        if let Some(tail) = options.tail {
            let mut last = VecDeque::new();
            while let Some(entry) = reader.next()? {
                last.push_back(entry);
                if last.len() > tail {
                    last.pop_front();
                }
            }
            reader.ready = last;
        }
        Ok(reader)
    }

    /// The next entry, or `None` when there is none yet. A damaged line is left out.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    #[expect(
        clippy::should_implement_trait,
        reason = "an end of the log is not the end of an iterator"
    )]
    pub fn next(&mut self) -> io::Result<Option<E>> {
        if let Some(entry) = self.ready.pop_front() {
            return Ok(Some(entry));
        }
        loop {
            match self.read_line()? {
                Some(line) => {
                    if let Ok(entry) = serde_json::from_slice::<E>(&line)
                        && self.since.is_none_or(|since| entry.time() >= since)
                    {
                        return Ok(Some(entry));
                    }
                }
                None if self.next_file()? => {}
                None => return Ok(None),
            }
        }
    }

    fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        // At each piece that is read from the file: a reader that is slower than the writer loses nothing by that.
        if file.buffer().is_empty() {
            hold_newer(&self.path, file, &mut self.newer)?;
        }
        file.read_until(b'\n', &mut self.partial)?;
        if self.partial.ends_with(b"\n") {
            return Ok(Some(std::mem::take(&mut self.partial)));
        }
        Ok(None)
    }

    /// Goes on with the file that follows the one that has been read. Whether there may be more to read.
    fn next_file(&mut self) -> io::Result<bool> {
        let Some(current) = &mut self.file else {
            self.file = oldest(&self.path)?;
            return Ok(self.file.is_some());
        };
        if self.newer.is_empty() && hold_newer(&self.path, current, &mut self.newer)? == Look::Again {
            return Ok(true);
        }
        if self.newer.is_empty() {
            return Ok(false);
        }
        // The writer may have finished this file between the last read and now: then there is more in it.
        if !current.fill_buf()?.is_empty() {
            return Ok(true);
        }
        self.partial.clear();
        self.file = self.newer.pop_front();
        Ok(true)
    }
}

/// Whether there is more to be seen at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Again,
    Later,
}

/// Opens the file that has come after the newest that is known, `current` or the last of `newer`: the writer removes it perhaps
/// before it is read.
fn hold_newer(
    path: &Path,
    current: &BufReader<File>,
    newer: &mut VecDeque<BufReader<File>>,
) -> io::Result<Look> {
    if newer.len() >= HELD_MAX {
        return Ok(Look::Later);
    }
    let own = identity(newer.back().unwrap_or(current).get_ref())?;
    let next = match place(path, own)? {
        // The newest.
        Some(0) => return Ok(Look::Later),
        Some(number) => open(&numbered(path, number - 1))?,
        // It is gone, and what has followed it may be too.
        None => oldest(path)?,
    };
    // They may have moved on meanwhile, and the one that was opened not be the next: look again.
    if let (Some(next), Some(number)) = (&next, place(path, own)?)
        && number > 0
        && place(path, identity(next.get_ref())?)? != Some(number - 1)
    {
        return Ok(Look::Again);
    }
    newer.extend(next);
    Ok(Look::Later)
}

/// What tells a file from others.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// How many newer files there are than the one with this identity; `None` when it is not there any more.
fn place(path: &Path, wanted: (u64, u64)) -> io::Result<Option<u32>> {
    for number in 0..=FILES_MAX {
        match std::fs::metadata(numbered(path, number)) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == wanted => return Ok(Some(number)),
            Ok(_) => {}
            // The newest may not be there yet.
            Err(e) if e.kind() == io::ErrorKind::NotFound && number == 0 => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// The oldest file.
fn oldest(path: &Path) -> io::Result<Option<BufReader<File>>> {
    let mut oldest = open(path)?;
    for number in 1..=FILES_MAX {
        match open(&numbered(path, number))? {
            Some(file) => oldest = Some(file),
            None => break,
        }
    }
    Ok(oldest)
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;
    use crate::{
        log::{LogWriter, Stream, writer::numbered},
        options::LogOptions as Limits,
    };

    fn texts(reader: &mut LogReader) -> Vec<String> {
        std::iter::from_fn(|| reader.next().unwrap())
            .map(|entry| entry.log)
            .collect()
    }

    fn log_of(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.json");
        let mut log = LogWriter::open(&path, Limits::default()).unwrap();
        for (second, line) in lines.iter().enumerate() {
            let time = Timestamp::from_second(second as i64).unwrap();
            log.write(Stream::Stdout, line.as_bytes(), time).unwrap();
        }
        (directory, path)
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let (_directory, path) = log_of(&["1\n", "2\n", "3\n"]);
        for (tail, expected) in [(None, 3), (Some(0), 0), (Some(2), 2), (Some(9), 3)] {
            let mut reader = LogReader::open(&path, LogOptions { tail, since: None }).unwrap();
            let texts = texts(&mut reader);
            assert_eq!(texts.len(), expected);
            assert!(texts.last().is_none_or(|last| last == "3\n"));
        }
    }

    #[test]
    fn entries_from_before_a_time_are_left_out() {
        let (_directory, path) = log_of(&["0\n", "1\n", "2\n"]);
        let since = Some(Timestamp::from_second(1).unwrap());
        let mut reader = LogReader::open(&path, LogOptions { tail: None, since }).unwrap();
        assert_eq!(texts(&mut reader), ["1\n", "2\n"]);
    }

    #[test]
    fn a_log_that_was_never_written_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.json");
        let mut reader = LogReader::open(&path, LogOptions::default()).unwrap();
        assert_eq!(reader.next().unwrap(), None);
        LogWriter::open(&path, Limits::default())
            .unwrap()
            .write(Stream::Stdout, b"now\n", Timestamp::UNIX_EPOCH)
            .unwrap();
        assert_eq!(texts(&mut reader), ["now\n"]);
    }

    #[test]
    fn half_an_entry_is_waited_for() {
        let (_directory, path) = log_of(&["1\n"]);
        let whole = fs::read(&path).unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&whole[..10]).unwrap();
        let mut reader = LogReader::open(&path, LogOptions::default()).unwrap();
        assert_eq!(texts(&mut reader), ["1\n"]);
        file.write_all(&whole[10..]).unwrap();
        assert_eq!(texts(&mut reader), ["1\n"]);
    }

    #[test]
    fn a_damaged_line_is_left_out() {
        let (_directory, path) = log_of(&["1\n"]);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"log\":\n\xff\n").unwrap();
        let mut reader = LogReader::open(&path, LogOptions::default()).unwrap();
        assert_eq!(texts(&mut reader), ["1\n"]);
    }

    #[test]
    fn a_reader_follows_through_many_files_and_goes_on_where_some_are_gone() {
        let (_directory, path) = log_of(&[]);
        let limits = Limits {
            max_size: 1000,
            max_file: 5,
        };
        let mut log = LogWriter::open(&path, limits).unwrap();
        let mut reader = LogReader::open(&path, LogOptions::default()).unwrap();
        let mut seen = Vec::new();
        for number in 0..200 {
            log.write(
                Stream::Stdout,
                format!("{number}\n").as_bytes(),
                Timestamp::UNIX_EPOCH,
            )
            .unwrap();
            // Twenty entries are two files.
            if number % 20 == 19 {
                seen.extend(texts(&mut reader));
            }
        }
        let all: Vec<_> = (0..200).map(|number| format!("{number}\n")).collect();
        assert_eq!(seen, all);
        // One that has slept through more than there are files goes on with the oldest.
        for number in 200..400 {
            log.write(
                Stream::Stdout,
                format!("{number}\n").as_bytes(),
                Timestamp::UNIX_EPOCH,
            )
            .unwrap();
        }
        let late: Vec<u32> = texts(&mut reader)
            .iter()
            .map(|text| text.trim().parse().unwrap())
            .collect();
        assert!(late.len() >= 40 && late.last() == Some(&399), "{late:?}");
        assert!(
            late.windows(2).skip(20).all(|pair| pair[0] + 1 == pair[1]),
            "{late:?}"
        );
    }

    #[test]
    fn a_reader_that_is_slower_than_the_writer_loses_nothing() {
        let (_directory, path) = log_of(&[]);
        let limits = Limits {
            max_size: 16 << 10,
            max_file: 2,
        };
        let mut log = LogWriter::open(&path, limits).unwrap();
        let mut reader = LogReader::open(&path, LogOptions::default()).unwrap();
        let line = |number: usize| format!("{number:0>60}\n");
        let mut read = 0;
        for number in 0..3000 {
            log.write(Stream::Stdout, line(number).as_bytes(), Timestamp::UNIX_EPOCH)
                .unwrap();
            // Ten files are written while it reads six.
            if number % 10 < 6 {
                assert_eq!(reader.next().unwrap().unwrap().log, line(read));
                read += 1;
            }
        }
        for text in texts(&mut reader) {
            assert_eq!(text, line(read));
            read += 1;
        }
        assert_eq!(read, 3000);
    }

    #[test]
    fn a_reader_follows_the_change_of_files_without_a_loss() {
        let (_directory, path) = log_of(&["1\n", "2\n"]);
        let mut reader = LogReader::open(&path, LogOptions::default()).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().log, "1\n");
        fs::rename(&path, numbered(&path, 1)).unwrap();
        LogWriter::open(&path, Limits::default())
            .unwrap()
            .write(Stream::Stdout, b"3\n", Timestamp::UNIX_EPOCH)
            .unwrap();
        assert_eq!(texts(&mut reader), ["2\n", "3\n"]);
        let mut reader = LogReader::open(&path, LogOptions::default()).unwrap();
        assert_eq!(texts(&mut reader), ["1\n", "2\n", "3\n"]);
    }
}
