//! `logs`.

use std::{
    collections::VecDeque,
    io::{self, Write},
    time::Duration,
};

use brig_engine::{
    Engine,
    log::{Entry, LogOptions, Stream},
};

use jiff::Timestamp;

use crate::{arguments::Logs, failure::Failure, moment};

/// `brig logs`.
pub async fn logs(engine: &Engine, options: &Logs) -> Result<i32, Failure> {
    let moment = |text: &Option<String>| text.as_deref().map(moment::parse).transpose();
    let until = moment(&options.until)?;
    let wanted = LogOptions {
        tail: options.tail.0,
        since: moment(&options.since)?,
    };
    let is_over = |entry: &Entry| until.is_some_and(|until| entry.time > until);
    // What is still to be written is later than a time that has passed.
    if options.follow && until.is_none_or(|until| until > Timestamp::now()) {
        let mut log = engine.follow(&options.sandbox, wanted).await?;
        loop {
            let left = until.map(|until| Duration::try_from(until.duration_since(Timestamp::now())));
            let entry = match left {
                None => log.next().await?,
                Some(left) => match tokio::time::timeout(left.unwrap_or_default(), log.next()).await {
                    Ok(entry) => entry?,
                    Err(_) => break,
                },
            };
            match entry {
                Some(entry) if !is_over(&entry) => show(&entry, options.timestamps)?,
                _ => break,
            }
        }
        return Ok(0);
    }
    // With an end in time, the last lines are those before it: they are counted here.
    let (tail, wanted) = match until {
        Some(_) => (wanted.tail, LogOptions { tail: None, ..wanted }),
        None => (None, wanted),
    };
    let mut log = engine.logs(&options.sandbox, wanted)?;
    let mut last = VecDeque::new();
    while let Some(entry) = log.next()? {
        if is_over(&entry) {
            break;
        }
        let Some(tail) = tail else {
            show(&entry, options.timestamps)?;
            continue;
        };
        last.push_back(entry);
        if last.len() > tail {
            last.pop_front();
        }
    }
    for entry in &last {
        show(entry, options.timestamps)?;
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
