//! The report for a terminal.

use std::fmt::Write;

use super::{Cell, Column, Report, Row, Section, value};
use crate::statistics::Summary;

/// Columns of a section's table before those of its ways.
const HEADINGS: [&str; 2] = ["", "RUNS"];

/// A line's length that texts are broken at.
const WIDTH: usize = 110;

/// The tables, and with `explain` how each row was measured.
pub fn render(report: &Report, explain: bool) -> String {
    let mut text = String::new();
    for notice in &report.notices {
        let _ = writeln!(text, "{}", wrap(&format!("NOTE: {notice}"), ""));
    }
    let _ = writeln!(text, "{}", report.subject);
    for (name, value) in &report.host {
        let _ = writeln!(text, "  {name}: {value}");
    }
    text += "Each cell: the median, ± half of the middle half's width; first runs are not in it.\n";
    for section in &report.sections {
        self::section(&mut text, section, explain);
    }
    if !report.walls.is_empty() {
        text += "\nWhat the walls are made of, and what an escape takes\n";
    }
    for wall in &report.walls {
        let _ = writeln!(text, "  {}", wall.column.title);
        let _ = writeln!(text, "{}", wrap(wall.made_of, "    "));
        let _ = writeln!(text, "{}", wrap(&format!("Escape: {}", wall.escape), "    "));
    }
    if !report.missing.is_empty() {
        text += "\nNot measured\n";
    }
    for line in &report.missing {
        let _ = writeln!(text, "{}", wrap(line, "  "));
    }
    text
}

fn section(text: &mut String, section: &Section, explain: bool) {
    let _ = writeln!(text, "\n{}", section.title);
    let mut lines = vec![headings(&section.columns)];
    for row in &section.rows {
        lines.push(line(row, &section.columns));
        if row.quantiles {
            lines.extend(quantiles(row, &section.columns));
        }
    }
    align(text, &lines);
    if explain {
        if !section.how.is_empty() {
            let _ = writeln!(text, "{}", wrap(&section.how, "  "));
        }
        for row in &section.rows {
            let _ = writeln!(text, "{}", wrap(&format!("{}: {}", row.title, row.how), "  "));
        }
    }
}

fn headings(columns: &[Column]) -> Vec<String> {
    let own = HEADINGS.iter().map(ToString::to_string);
    own.chain(columns.iter().map(|column| column.title.to_uppercase()))
        .collect()
}

fn line(row: &Row, columns: &[Column]) -> Vec<String> {
    let mut line = vec![row.title.clone(), runs(row)];
    line.extend(columns.iter().map(|column| match row.cells.get(column.id) {
        Some(cell) => self::cell(cell, row.unit),
        None => "—".to_owned(),
    }));
    line
}

/// The number of runs of a cell; of the one with the fewest and the one with the most, where they differ.
fn runs(row: &Row) -> String {
    let counts = || {
        row.cells
            .values()
            .map(|cell| cell.samples.len())
            .filter(|n| *n > 0)
    };
    match (counts().min(), counts().max()) {
        (Some(least), Some(most)) if least == most => least.to_string(),
        (Some(least), Some(most)) => format!("{least}–{most}"),
        _ => String::new(),
    }
}

fn cell(cell: &Cell, unit: &str) -> String {
    match (cell.summary(), &cell.text) {
        (_, Some(text)) => text.clone(),
        (Some(summary), None) if summary.runs == 1 => value(summary.median, unit),
        (Some(summary), None) => {
            let (median, spread) = (value(summary.median, unit), value(summary.spread(), unit));
            // The unit once, where both have it.
            match (median.rsplit_once(' '), spread.rsplit_once(' ')) {
                (Some((number, a)), Some((spread, b))) if a == b => format!("{number} ±{spread} {a}"),
                _ => format!("{median} ±{spread}"),
            }
        }
        (None, None) => "—".to_owned(),
    }
}

fn quantiles(row: &Row, columns: &[Column]) -> Vec<Vec<String>> {
    let one = |name: &str, of: fn(&Summary) -> f64| {
        let mut line = vec![format!("  {name}"), String::new()];
        line.extend(columns.iter().map(|column| {
            let summary = row.cells.get(column.id).and_then(Cell::summary);
            summary.map_or("—".to_owned(), |summary| value(of(&summary), row.unit))
        }));
        line
    };
    vec![
        one("p50", |summary| summary.median),
        one("p95", |summary| summary.p95),
        one("p99", |summary| summary.p99),
    ]
}

/// Columns of the width of their longest cell, two spaces apart; numbers to the right.
fn align(text: &mut String, lines: &[Vec<String>]) {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in lines {
        let mut out = String::from(" ");
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match at {
                0 => write!(out, " {cell:<width$}"),
                _ => write!(out, "  {cell:>width$}"),
            };
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
}

/// Breaks a text at spaces, each line behind `indent`.
fn wrap(text: &str, indent: &str) -> String {
    let mut lines = vec![indent.to_owned()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if line.chars().count() + 1 + word.chars().count() > WIDTH && line.trim() != "" {
            lines.push(format!("{indent}{word}"));
        } else {
            if line.trim() != "" {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_row_has_median_spread_and_runs_in_each_column() {
        let text = render(&report(), false);
        let line = |start: &str| {
            let found = text.lines().find(|line| line.trim_start().starts_with(start));
            found.unwrap_or_else(|| panic!("no {start} in {text}")).to_owned()
        };
        let words = |start: &str| line(start).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words("whole command"), "whole command 1–3 110 ±5 ms 10 ms");
        assert_eq!(words("p95"), "p95 119 ms 10 ms");
        assert!(line("kernel").contains("its own & no other"));
        assert!(text.starts_with("NOTE: KVM is emulated\n"), "{text}");
        assert!(text.contains("crun: not installed"));
        assert!(!text.contains("uname(2)"), "that is for --explain");
    }

    #[test]
    fn explained_rows_say_how_they_were_measured() {
        let text = render(&report(), true);
        assert!(
            text.contains("  kernel: uname(2)\n") && text.contains("one at a time"),
            "{text}"
        );
    }

    #[test]
    fn long_texts_are_broken_at_spaces() {
        let text = wrap(&"word ".repeat(50), "  ");
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= WIDTH && line.starts_with("  word"))
        );
    }
}
