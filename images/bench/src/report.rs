//! The lines that are printed: JSON, one object a line.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use crate::rows::{Measured, Row, Unit};

/// Prints what a row came to.
///
/// # Errors
/// Those of writing.
pub fn row(out: &mut impl Write, row: &Row, measured: &Measured) -> io::Result<()> {
    let mut line = head(row);
    let value = |time: &f64| row.unit.of(*time);
    let _ = write!(
        line,
        ",\"warm_up\":{},\"samples\":{},\"operations\":{}",
        numbers(measured.times.warm_up.iter().map(value)),
        numbers(measured.times.samples.iter().map(value)),
        measured.times.batch
    );
    for (name, value) in &measured.notes {
        let _ = write!(line, ",{}:{value}", quote(name));
    }
    writeln!(out, "{line}}}")
}

/// Prints that a row could not be measured.
///
/// # Errors
/// Those of writing.
pub fn failure(out: &mut impl Write, row: &Row, error: &io::Error) -> io::Result<()> {
    writeln!(out, "{},\"error\":{}}}", head(row), quote(&error.to_string()))
}

/// Prints what rows there are.
///
/// # Errors
/// Those of writing.
pub fn list<'a>(out: &mut impl Write, rows: impl Iterator<Item = &'a Row>) -> io::Result<()> {
    for row in rows {
        writeln!(out, "{},\"how\":{}}}", head(row), quote(row.how))?;
    }
    Ok(())
}

/// Prints that something has happened, and to how much of it.
///
/// # Errors
/// Those of writing.
pub fn event(out: &mut impl Write, event: &str, name: &str, value: u64) -> io::Result<()> {
    writeln!(out, "{{\"event\":{},{}:{value}}}", quote(event), quote(name))?;
    out.flush()
}

fn head(row: &Row) -> String {
    let better = match row.unit {
        Unit::Nanoseconds => "lower",
        Unit::MebibytesPerSecond { .. } | Unit::PerSecond { .. } => "higher",
    };
    format!(
        "{{\"name\":{},\"unit\":{},\"better\":{}",
        quote(row.name),
        quote(row.unit.name()),
        quote(better)
    )
}

fn numbers(values: impl Iterator<Item = f64>) -> String {
    // Three digits more than a nanosecond are noise already.
    let texts: Vec<_> = values.map(|value| format!("{value:.3}")).collect();
    format!("[{}]", texts.join(","))
}

pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '.. => quoted.push(character),
            _ => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sampler::Times;

    const ROW: Row = Row {
        name: "copy",
        unit: Unit::MebibytesPerSecond { bytes: 1 << 20 },
        how: "a \"copy\"\n",
        measure: |_| Ok(Measured::default()),
    };

    #[test]
    fn a_line_is_an_object_with_warm_up_apart_from_samples() {
        let mut out = Vec::new();
        let measured = Measured {
            times: Times {
                warm_up: vec![2e9],
                samples: vec![1e9, 0.5e9],
                batch: 4,
            },
            notes: vec![("direct", "true".into())],
        };
        row(&mut out, &ROW, &measured).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&out).unwrap(),
            json!({
                "name": "copy", "unit": "MiB/s", "better": "higher", "warm_up": [0.5], "samples": [1.0, 2.0],
                "operations": 4, "direct": true
            })
        );
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 1);
    }

    #[test]
    fn texts_are_quoted() {
        let mut out = Vec::new();
        list(&mut out, [ROW].iter()).unwrap();
        failure(&mut out, &ROW, &io::Error::other("\u{1}\\")).unwrap();
        let lines: Vec<Value> = out
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(lines[0]["how"], "a \"copy\"\n");
        assert_eq!(lines[1]["error"], "\u{1}\\");
    }
}
