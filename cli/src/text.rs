//! Times, sizes and commands in Docker's words.

use jiff::Timestamp;

/// Characters of a command that tables show.
const COMMAND_CHARACTERS: usize = 20;

/// How long ago `time` was, without the word "ago": `5 seconds`, `About a minute`, `2 weeks` (docker/go-units,
/// `HumanDuration`).
pub fn since(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(time).as_secs().max(0);
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// A number of bytes with three significant digits and decimal units: `12.3MB` (docker/go-units, `HumanSize`).
pub fn size(bytes: u64) -> String {
    in_units(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// A number of bytes with four significant digits and binary units: `12.34MiB` (docker/go-units, `BytesSize`).
pub fn binary_size(bytes: u64) -> String {
    in_units(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"], 4)
}

/// A number of bytes in the largest of `units`, each `base` times the one before, of which there is one at least, rounded to so
/// many significant digits; whole bytes stay whole.
fn in_units(bytes: u64, base: f64, units: &[&str], significant: usize) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let before_the_point = match value {
        v if v < 10.0 => 1,
        v if v < 100.0 => 2,
        v if v < 1000.0 => 3,
        _ => significant,
    };
    let digits = if unit == 0 {
        0
    } else {
        significant - before_the_point
    };
    let number = format!("{value:.digits$}");
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        &number
    };
    format!("{number}{}", units[unit])
}

/// A command in quotes, cut unless `whole`, without what could steer a terminal.
pub fn command(args: &[String], whole: bool) -> String {
    let text: String = args
        .join(" ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let text = if whole {
        text
    } else {
        shorten(&text, COMMAND_CHARACTERS)
    };
    format!("\"{text}\"")
}

/// The start of a text that is longer than `limit` characters.
pub fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let start: String = text.chars().take(limit - 1).collect();
    format!("{start}…")
}

/// A time as Docker's tables have it: `2025-01-31 12:00:00 +0000 UTC`.
pub fn date(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_dockers_words() {
        let now = Timestamp::from_second(2_000_000_000).unwrap();
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (180, "3 minutes"),
            (3600, "About an hour"),
            (3 * 3600, "3 hours"),
            (3 * 86_400, "3 days"),
            (20 * 86_400, "2 weeks"),
            (90 * 86_400, "3 months"),
            (1000 * 86_400, "2 years"),
        ] {
            assert_eq!(
                since(Timestamp::from_second(2_000_000_000 - seconds).unwrap(), now),
                words
            );
        }
        // A clock that was set back.
        assert_eq!(
            since(Timestamp::from_second(2_000_000_009).unwrap(), now),
            "Less than a second"
        );
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (12_345_678, "12.3MB"),
            (1_500_000_000, "1.5GB"),
            (100_000, "100kB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn memory_is_written_as_docker_writes_it() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1 << 20, "1MiB"),
            (12_939_428, "12.34MiB"),
            (512 << 20, "512MiB"),
            (1_288_490_189, "1.2GiB"),
        ] {
            assert_eq!(binary_size(bytes), text);
        }
    }

    #[test]
    fn a_long_command_is_cut() {
        let args = ["sh", "-c", "echo this is long"].map(String::from);
        assert_eq!(command(&args, false), "\"sh -c echo this is …\"");
        assert_eq!(command(&args, true), "\"sh -c echo this is long\"");
        assert_eq!(command(&["a\nb\x1b".to_owned()], false), "\"a b \"");
    }
}
