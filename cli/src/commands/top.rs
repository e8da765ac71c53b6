//! `top`: the processes of a sandbox, in the columns that ps(1) would show.

use std::time::Duration;

use brig_engine::{Engine, error::one_line, tool::Process};
use jiff::{Timestamp, tz::TimeZone};

use super::print;
use crate::{arguments::Top, failure::Failure, table};

/// Clock ticks of a second.
const TICKS: u64 = 100;

/// Columns of `ps -ef`, which Docker's `top` shows.
const FULL: &str = "uid,pid,ppid,c,stime,tty,time,cmd";
/// Of `ps -e`.
const SHORT: &str = "pid,tty,time,comm";
/// Of `ps aux`.
const USER: &str = "user,pid,pcpu,vsz,rss,tty,stat,stime,time,command";

/// `brig top`.
pub async fn top(engine: &Engine, options: &Top) -> Result<i32, Failure> {
    let Some((reference, words)) = options.words.split_first() else {
        return Err(Failure::command("top needs a sandbox: brig top web".to_owned()));
    };
    let columns = columns(words)?;
    let processes = engine.processes(reference).await?;
    let heading: Vec<&str> = columns.iter().map(|column| column.heading).collect();
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = processes
        .iter()
        .map(|process| columns.iter().map(|column| cell(column, process, now)).collect())
        .collect();
    print(&table::render(&heading, &rows))?;
    Ok(0)
}

/// Something that is shown of each process.
#[derive(Clone, Copy)]
struct Column {
    names: &'static [&'static str],
    heading: &'static str,
    of: fn(&Process, Timestamp) -> String,
}

const COLUMNS: [Column; 16] = [
    Column {
        names: &["pid"],
        heading: "PID",
        of: |process, _| process.pid.to_string(),
    },
    Column {
        names: &["ppid"],
        heading: "PPID",
        of: |process, _| process.ppid.to_string(),
    },
    Column {
        names: &["uid"],
        heading: "UID",
        of: |process, _| process.uid.to_string(),
    },
    Column {
        names: &["user", "euser"],
        heading: "USER",
        of: |process, _| process.uid.to_string(),
    },
    Column {
        names: &["c"],
        heading: "C",
        of: |process, _| format!("{:.0}", share(process)),
    },
    Column {
        names: &["pcpu", "%cpu"],
        heading: "%CPU",
        of: |process, _| format!("{:.1}", share(process)),
    },
    Column {
        names: &["stat", "s", "state"],
        heading: "STAT",
        of: |process, _| process.state.clone(),
    },
    Column {
        names: &["tty", "tt", "tname"],
        heading: "TTY",
        of: |process, _| tty(process.tty),
    },
    Column {
        names: &["stime", "start", "start_time"],
        heading: "STIME",
        of: began,
    },
    Column {
        names: &["etime"],
        heading: "ELAPSED",
        of: |process, _| elapsed(process),
    },
    Column {
        names: &["time", "cputime"],
        heading: "TIME",
        of: |process, _| clock(process.cpu_ticks / TICKS),
    },
    Column {
        names: &["vsz"],
        heading: "VSZ",
        of: |process, _| process.virtual_kib.to_string(),
    },
    Column {
        names: &["rss"],
        heading: "RSS",
        of: |process, _| process.resident_kib.to_string(),
    },
    Column {
        names: &["nlwp", "thcount"],
        heading: "NLWP",
        of: |process, _| process.threads.to_string(),
    },
    Column {
        names: &["comm", "ucmd"],
        heading: "COMMAND",
        of: |process, _| process.name.clone(),
    },
    Column {
        names: &["args", "cmd", "command"],
        heading: "CMD",
        of: |process, _| arguments(process),
    },
];

/// The columns that ps(1) would show with these options.
fn columns(words: &[String]) -> Result<Vec<Column>, Failure> {
    let wrong = |word: &str| {
        Failure::command(format!(
            "top does not know the option {word:?} of ps: there are -e, -f, aux, and -o with a list (see brig top --help)"
        ))
    };
    let mut list = FULL.to_owned();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        list = match word.as_str() {
            "-e" | "-A" | "-a" => SHORT.to_owned(),
            "-f" | "-ef" | "-fe" => FULL.to_owned(),
            "aux" | "-aux" | "u" | "axu" | "ax" => USER.to_owned(),
            "-o" | "-eo" | "o" | "-Ao" => words.next().ok_or_else(|| wrong(word))?.clone(),
            _ => match word.strip_prefix("-o").or_else(|| word.strip_prefix("-eo")) {
                Some(list) => list.to_owned(),
                None => return Err(wrong(word)),
            },
        };
    }
    let find = |name: &str| {
        let column = COLUMNS.iter().find(|column| column.names.contains(&name));
        column.copied().ok_or_else(|| wrong(name))
    };
    list.split(',').map(str::trim).map(find).collect()
}

/// The sandbox chose its words: they are not to steer a terminal.
fn cell(column: &Column, process: &Process, now: Timestamp) -> String {
    one_line(&(column.of)(process, now), usize::MAX)
}

fn share(process: &Process) -> f64 {
    let lived = process.now_ticks.saturating_sub(process.start_ticks).max(1);
    process.cpu_ticks as f64 * 100.0 / lived as f64
}

fn arguments(process: &Process) -> String {
    if process.arguments.is_empty() {
        // As ps shows one that has none, or has ended.
        format!("[{}]", process.name)
    } else {
        process.arguments.clone()
    }
}

/// Major 136 and up are pseudo terminals (Documentation/admin-guide/devices.txt).
fn tty(device: u32) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match major {
        0 => "?".to_owned(),
        136..144 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

fn age(process: &Process) -> Duration {
    Duration::from_millis(
        process
            .now_ticks
            .saturating_sub(process.start_ticks)
            .saturating_mul(1000 / TICKS),
    )
}

fn began(process: &Process, now: Timestamp) -> String {
    let began = now.checked_sub(age(process)).unwrap_or(Timestamp::UNIX_EPOCH);
    let began = began.to_zoned(TimeZone::UTC);
    let today = now.to_zoned(TimeZone::UTC).date();
    let format = if began.date() == today { "%H:%M" } else { "%b%d" };
    began.strftime(format).to_string()
}

fn elapsed(process: &Process) -> String {
    let seconds = age(process).as_secs();
    match seconds / 86_400 {
        0 => clock(seconds),
        days => format!("{days}-{}", clock(seconds % 86_400)),
    }
}

fn clock(seconds: u64) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process {
            pid: 7,
            ppid: 1,
            uid: 33,
            state: "S".into(),
            tty: 136 << 8 | 3,
            cpu_ticks: 6100,
            start_ticks: 1000,
            now_ticks: 1000 + 9_000_000,
            resident_kib: 12,
            name: "web".into(),
            arguments: "web \u{1b}[2J".into(),
            ..Process::default()
        }
    }

    fn shown(words: &[&str]) -> Result<Vec<String>, Failure> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let columns = columns(&words)?;
        Ok(columns
            .iter()
            .map(|column| cell(column, &process(), now))
            .collect())
    }

    #[test]
    fn the_columns_are_those_of_ps() {
        assert_eq!(
            shown(&[]).unwrap(),
            // The day when it was not today.
            ["33", "7", "1", "0", "Jan01", "pts/3", "00:01:01", "web  [2J"]
        );
        assert_eq!(shown(&["-o", "pid,rss, comm"]).unwrap(), ["7", "12", "web"]);
        assert_eq!(shown(&["-eoetime"]).unwrap(), ["1-01:00:00"]);
        assert_eq!(shown(&["aux"]).unwrap().len(), 10);
        for words in [&["-o"][..], &["-o", "pid,colour"], &["--forest"]] {
            assert!(shown(words).is_err(), "{words:?}");
        }
    }
}
