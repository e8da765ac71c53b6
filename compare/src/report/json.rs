//! The report for programs.

use serde_json::{Map, Value, json};

use super::{Better, Cell, Report, Row, Section};

/// Everything, with all samples, so that other figures can be made of them.
pub fn render(report: &Report) -> Value {
    let host: Map<String, Value> = report
        .host
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({
        "notices": report.notices,
        "subject": report.subject,
        "host": host,
        "missing": report.missing,
        "sections": report.sections.iter().map(section).collect::<Vec<_>>(),
        "walls": report.walls.iter().map(|wall| json!({
            "column": wall.column.id,
            "made_of": wall.made_of,
            "escape": wall.escape,
        })).collect::<Vec<_>>(),
    })
}

fn section(section: &Section) -> Value {
    json!({
        "id": section.id,
        "title": section.title,
        "how": section.how,
        "columns": section.columns.iter().map(|column| json!({"id": column.id, "title": column.title})).collect::<Vec<_>>(),
        "rows": section.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

fn row(row: &Row) -> Value {
    let cells: Map<String, Value> = row
        .cells
        .iter()
        .map(|(column, cell)| ((*column).to_owned(), self::cell(cell)))
        .collect();
    json!({
        "id": row.id,
        "title": row.title,
        "unit": row.unit,
        "better": match row.better {
            Better::Lower => "lower",
            Better::Higher => "higher",
        },
        "how": row.how,
        "cells": cells,
    })
}

fn cell(cell: &Cell) -> Value {
    let mut value = json!({ "first": cell.first, "samples": cell.samples });
    if let Some(summary) = cell.summary() {
        value["runs"] = json!(summary.runs);
        for (name, number) in [
            ("min", summary.min),
            ("p25", summary.p25),
            ("median", summary.median),
            ("p75", summary.p75),
            ("p95", summary.p95),
            ("p99", summary.p99),
            ("max", summary.max),
            ("spread", summary.spread()),
        ] {
            value[name] = json!(number);
        }
    }
    if let Some(text) = &cell.text {
        value["text"] = json!(text);
    }
    for (name, note) in &cell.notes {
        value[name] = note.clone();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn each_cell_has_its_figures_and_its_samples_and_first_runs_apart() {
        let value = render(&report());
        let cell = &value["sections"][0]["rows"][0]["cells"]["vm"];
        assert_eq!(cell["samples"], json!([100.0, 120.0, 110.0]));
        assert_eq!(cell["first"], json!([900.0]));
        assert_eq!((&cell["runs"], &cell["median"]), (&json!(3), &json!(110.0)));
        assert_eq!(cell["spread"], json!(5.0));
        assert_eq!(value["sections"][0]["rows"][0]["unit"], "ms");
        let kernel = &value["sections"][0]["rows"][1]["cells"]["vm"];
        assert_eq!(kernel["text"], "its own & no other");
        assert!(kernel.get("median").is_none());
    }
}
