//! `logs`.

use std::io::{self, Write};

use brig_engine::{
    Engine,
    log::{Entry, LogOptions, Stream},
};

use crate::{arguments::Logs, failure::Failure};

/// `brig logs`.
pub async fn logs(engine: &Engine, options: &Logs) -> Result<i32, Failure> {
    let wanted = LogOptions {
        tail: options.tail.0,
        since: None,
    };
    if options.follow {
        let mut log = engine.follow(&options.sandbox, wanted).await?;
        while let Some(entry) = log.next().await? {
            show(&entry, options.timestamps)?;
        }
    } else {
        let mut log = engine.logs(&options.sandbox, wanted)?;
        while let Some(entry) = log.next()? {
            show(&entry, options.timestamps)?;
        }
    }
    Ok(0)
}

/// Writes an entry to the stream that it came from.
fn show(entry: &Entry, timestamps: bool) -> io::Result<()> {
    match entry.stream {
        Stream::Stdout => write(io::stdout().lock(), entry, timestamps),
        Stream::Stderr => write(io::stderr().lock(), entry, timestamps),
    }
}

fn write(mut stream: impl Write, entry: &Entry, timestamps: bool) -> io::Result<()> {
    if timestamps {
        // Nanoseconds in full, so that the lines are aligned.
        write!(stream, "{:.9} ", entry.time)?;
    }
    stream.write_all(entry.log.as_bytes())?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_all_its_digits() {
        let entry = Entry {
            log: "x\n".into(),
            stream: Stream::Stdout,
            time: "2026-01-02T03:04:05.5Z".parse().unwrap(),
        };
        let mut text = Vec::new();
        write(&mut text, &entry, true).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "2026-01-02T03:04:05.500000000Z x\n"
        );
    }
}
