//! Moments as Docker's options write them: `--since`, `--until` and the filter of the same name.

use jiff::{SignedDuration, Timestamp};

use crate::failure::Failure;

/// An age (`24h`, `1h30m`), a date, a time with its zone, or seconds since 1970 with or without a fraction.
pub fn parse(text: &str) -> Result<Timestamp, Failure> {
    seconds(text)
        .or_else(|| {
            let age = text.parse::<SignedDuration>().ok()?;
            Timestamp::now().checked_sub(age).ok()
        })
        .or_else(|| text.parse().ok())
        .or_else(|| {
            // Without a zone: of a date the beginning, both in UTC.
            let time = text.parse::<jiff::civil::DateTime>().ok()?;
            let zoned = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
            Some(zoned.timestamp())
        })
        .ok_or_else(|| {
            Failure::command(format!(
                "invalid time {text:?}: write an age (24h) or a date (2025-01-31)"
            ))
        })
}

fn seconds(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = format!("{fraction:0<9}").parse().ok()?;
    Timestamp::new(whole.parse().ok()?, nanoseconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_an_age_a_date_a_time_or_seconds() {
        let now = Timestamp::now();
        let day = parse("24h").unwrap();
        assert!((now.as_second() - day.as_second() - 86_400).abs() < 10);
        for (text, seconds, nanoseconds) in [
            ("86400", 86_400, 0),
            ("86400.25", 86_400, 250_000_000),
            ("0.000000001", 0, 1),
            ("1970-01-02", 86_400, 0),
            ("1970-01-01T00:01:00Z", 60, 0),
            ("1970-01-01T01:00:00.5+01:00", 0, 500_000_000),
            ("1970-01-01T00:02:00", 120, 0),
        ] {
            let moment = parse(text).unwrap();
            assert_eq!(
                (moment.as_second(), moment.subsec_nanosecond()),
                (seconds, nanoseconds),
                "{text}"
            );
        }
        for text in ["", "yesterday", "1x", "1.x", "1.0000000001"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
