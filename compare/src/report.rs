//! What is told: sections of rows, with a cell for each way to run the image.
//!
//! | module | what it makes of it |
//! |---|---|
//! | [`table`] | text for a terminal |
//! | [`json`] | everything, all samples included, for programs |
//! | [`html`] | one page with plots, that needs nothing else |
//! | [`svg`] | the plots |

pub mod html;
pub mod json;
mod svg;
pub mod table;

use std::collections::BTreeMap;

use crate::statistics::Summary;

/// Everything that was found out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What must be known before any figure is read, such as that the KVM is an emulated one.
    pub notices: Vec<String>,
    /// The image and the command that were run.
    pub subject: String,
    /// Facts about the host: name and value.
    pub host: Vec<(String, String)>,
    /// What could not be measured, and why.
    pub missing: Vec<String>,
    /// The figures.
    pub sections: Vec<Section>,
    /// What each wall is made of and what an escape takes, in words.
    pub walls: Vec<Wall>,
}

/// Rows that have the same columns.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// A word for it, as `--only` takes it.
    pub id: &'static str,
    /// Its heading.
    pub title: String,
    /// How the runs were made, for all rows of it.
    pub how: String,
    /// In their order.
    pub columns: Vec<Column>,
    /// In their order.
    pub rows: Vec<Row>,
}

/// A way to run something, as a section's column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// A word for it.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
}

/// One thing that was measured.
#[derive(Clone, Debug)]
pub struct Row {
    /// A word for it that no other row of its section has.
    pub id: String,
    /// What a person reads.
    pub title: String,
    /// Of its values.
    pub unit: &'static str,
    /// Which end of the scale is the good one.
    pub better: Better,
    /// How it is measured, in a sentence.
    pub how: String,
    /// Whether its high quantiles are shown too.
    pub quantiles: bool,
    /// By the column's word; a column that is missing has none.
    pub cells: BTreeMap<&'static str, Cell>,
}

/// Which values are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Small ones.
    Lower,
    /// Great ones.
    Higher,
}

/// What a row came to in one column.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// First runs, which are no samples.
    pub first: Vec<f64>,
    /// The others.
    pub samples: Vec<f64>,
    /// In the place of a number, or beside one.
    pub text: Option<String>,
    /// What else is to be known.
    pub notes: BTreeMap<String, serde_json::Value>,
}

/// A wall in words.
#[derive(Clone, Debug)]
pub struct Wall {
    /// Whose it is.
    pub column: Column,
    /// What it is made of.
    pub made_of: &'static str,
    /// What would have to fail for an escape.
    pub escape: &'static str,
}

impl Row {
    /// A row without cells.
    pub fn new(id: &str, title: &str, unit: &'static str, how: &str) -> Self {
        Self {
            id: id.to_owned(),
            title: title.to_owned(),
            unit,
            better: Better::Lower,
            how: how.to_owned(),
            quantiles: false,
            cells: BTreeMap::new(),
        }
    }

    /// The same with its high quantiles shown.
    #[must_use]
    pub fn with_quantiles(mut self) -> Self {
        self.quantiles = true;
        self
    }

    /// The cell of a column, made when there is none.
    pub fn cell(&mut self, column: Column) -> &mut Cell {
        self.cells.entry(column.id).or_default()
    }

    /// Whether there is anything in it.
    pub fn is_empty(&self) -> bool {
        self.cells.values().all(Cell::is_empty)
    }
}

impl Cell {
    /// Of its samples.
    pub fn summary(&self) -> Option<Summary> {
        Summary::of(&self.samples)
    }

    fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.text.is_none()
    }
}

impl Section {
    /// Leaves out rows and columns that nothing is in.
    #[must_use]
    pub fn without_gaps(mut self) -> Self {
        self.rows.retain(|row| !row.is_empty());
        let rows = &self.rows;
        self.columns.retain(|column| {
            let cells = rows.iter().filter_map(|row| row.cells.get(column.id));
            cells.into_iter().any(|cell| !cell.is_empty())
        });
        self
    }
}

/// A value with three significant digits and the unit that keeps it short: `1.24 ms`, `240 µs`, `3.1 MiB`.
pub fn value(value: f64, unit: &str) -> String {
    let steps: &[(f64, &str)] = match unit {
        "ns" => &[(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")],
        "ms" => &[(1e3, "s"), (1.0, "ms"), (1e-3, "µs")],
        "KiB" => &[(1024.0 * 1024.0, "GiB"), (1024.0, "MiB"), (1.0, "KiB")],
        "1/s" => &[(1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")],
        "MiB/s" => &[(1024.0, "GiB/s"), (1.0, "MiB/s"), (1.0 / 1024.0, "KiB/s")],
        _ => &[],
    };
    let found = steps
        .iter()
        .find(|(step, _)| value.abs() >= *step)
        .or(steps.last());
    match found {
        // Zero has no need of a small unit.
        Some(_) if value == 0.0 => format!("0 {}", if unit == "1/s" { "/s" } else { unit }),
        Some((step, name)) => format!("{} {name}", digits(value / step)),
        None if unit.is_empty() => digits(value),
        None => format!("{} {unit}", digits(value)),
    }
}

/// Three significant digits, without an exponent.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 99.95 || v == 0.0 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.places$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const VM: Column = Column {
        id: "vm",
        title: "microVM",
    };
    pub(crate) const CONTAINER: Column = Column {
        id: "container",
        title: "container",
    };

    /// A report with all kinds of things in it, and a text that must be escaped wherever it goes.
    pub(crate) fn report() -> Report {
        let mut whole = Row::new("whole", "whole command", "ms", "from <start> to end").with_quantiles();
        whole.cell(VM).samples = vec![100.0, 120.0, 110.0];
        whole.cell(VM).first = vec![900.0];
        whole.cell(CONTAINER).samples = vec![10.0];
        let mut kernel = Row::new("kernel", "kernel", "", "uname(2)");
        kernel.cell(VM).text = Some("its own & no other".into());
        Report {
            notices: vec!["KVM is emulated".into()],
            subject: "<bench> \"help\"".into(),
            host: vec![("CPUs".into(), "2".into())],
            missing: vec!["crun: not installed".into()],
            sections: vec![Section {
                id: "start",
                title: "Start".into(),
                how: "one at a time".into(),
                columns: vec![VM, CONTAINER],
                rows: vec![whole, kernel],
            }],
            walls: vec![Wall {
                column: VM,
                made_of: "a kernel of its own",
                escape: "three things",
            }],
        }
    }

    #[test]
    fn values_have_three_digits_and_the_unit_that_fits() {
        for (number, unit, text) in [
            (1_234_567.0, "ns", "1.23 ms"),
            (240_000.0, "ns", "240 µs"),
            (99.96, "ns", "100 ns"),
            (0.25, "ns", "0.25 ns"),
            (12.0, "ms", "12 ms"),
            (0.5, "ms", "500 µs"),
            (61_000.0, "ms", "61 s"),
            (3174.4, "KiB", "3.1 MiB"),
            (27.0, "1/s", "27 /s"),
            (27_300.0, "1/s", "27.3 k/s"),
            (0.5, "MiB/s", "512 KiB/s"),
            (1.07, "×", "1.07 ×"),
            (19.0, "", "19"),
            (0.0, "KiB", "0 KiB"),
        ] {
            assert_eq!(value(number, unit), text);
        }
    }

    #[test]
    fn what_nothing_is_in_is_left_out() {
        let mut section = report().sections.remove(0);
        section.columns.push(Column {
            id: "crun",
            title: "crun",
        });
        section.rows.push(Row::new("empty", "empty", "ms", ""));
        let section = section.without_gaps();
        assert_eq!(section.columns, [VM, CONTAINER]);
        assert_eq!(section.rows.len(), 2);
    }
}
