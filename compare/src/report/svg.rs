//! Plots as SVG that stands in a page: its colours and fonts are the page's classes.

use std::fmt::Write;

use super::{Cell, Column, Row, value};
use crate::statistics::Summary;

/// Of a plot, in its own units; the page scales it.
const WIDTH: f64 = 760.0;
/// Where bars begin, behind the names.
const LEFT: f64 = 130.0;
/// Where bars end; the values stand behind.
const RIGHT: f64 = 600.0;
/// Of a bar and the gap below it.
const LINE: f64 = 24.0;
const BAR: f64 = 14.0;

/// Bars whose lengths differ by more than this are drawn on a logarithmic scale, on which the short ones can be seen.
const LINEAR_MOST: f64 = 25.0;

/// What may be written into a page.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Where values lie between [`LEFT`] and [`RIGHT`].
enum Scale {
    /// From zero to this.
    Linear(f64),
    /// From the first to the second, by their decimal logarithms.
    Logarithmic(f64, f64),
}

impl Scale {
    /// That all of these fit on. Zeros and what is below cannot be on a logarithmic one.
    fn of(summaries: &[Summary]) -> Self {
        let greatest = summaries.iter().map(|s| s.p75.max(s.median)).fold(0.0, f64::max);
        let medians = || summaries.iter().map(|s| s.median);
        let least = medians().filter(|m| *m > 0.0).fold(f64::INFINITY, f64::min);
        let positive = medians().all(|m| m > 0.0);
        if positive && greatest / least > LINEAR_MOST {
            Self::Logarithmic((least / 2.0).log10(), greatest.log10())
        } else {
            Self::Linear(greatest)
        }
    }

    fn x(&self, value: f64) -> f64 {
        let part = match *self {
            Self::Linear(greatest) if greatest > 0.0 => value / greatest,
            Self::Linear(_) => 0.0,
            Self::Logarithmic(low, high) => (value.max(f64::MIN_POSITIVE).log10() - low) / (high - low),
        };
        LEFT + part.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }
}

/// A row's medians as bars, each with its middle half and its far ends as a line. `None` when no column has a number.
pub(super) fn bars(row: &Row, columns: &[Column]) -> Option<String> {
    let shown: Vec<(&Column, Summary)> = columns
        .iter()
        .filter_map(|column| Some((column, row.cells.get(column.id).and_then(Cell::summary)?)))
        .collect();
    if shown.is_empty() {
        return None;
    }
    let summaries: Vec<Summary> = shown.iter().map(|(_, summary)| *summary).collect();
    let scale = Scale::of(&summaries);
    let height = LINE * shown.len() as f64;
    let mut svg = open(&format!("{}: medians", row.title), height);
    for (line, (column, summary)) in shown.iter().enumerate() {
        let top = LINE * line as f64;
        let (middle, bar_top) = (top + LINE / 2.0, top + (LINE - BAR) / 2.0);
        let end = scale.x(summary.median);
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.0}\" y=\"{:.1}\">{}</text>\
             <rect class=\"bar {}\" x=\"{LEFT}\" y=\"{bar_top:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"3\">\
             <title>{}</title></rect>",
            LEFT - 10.0,
            middle + 4.0,
            escape(column.title),
            column.id,
            (end - LEFT).max(1.5),
            escape(&describe(summary, row.unit)),
        );
        let mut label = end;
        if summary.runs > 1 {
            let (low, high) = (scale.x(summary.p25), scale.x(summary.p75));
            label = label.max(high);
            let _ = write!(
                svg,
                "<path class=\"spread\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8\"/>",
                middle - 4.0,
                middle - 4.0
            );
        }
        let _ = write!(
            svg,
            "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            label + 8.0,
            middle + 4.0,
            escape(&value(summary.median, row.unit))
        );
    }
    svg.push_str("</svg>");
    if matches!(scale, Scale::Logarithmic(..)) {
        svg.push_str("<p class=\"scale\">logarithmic scale</p>");
    }
    Some(svg)
}

/// What is shown when the pointer rests on a bar.
pub(super) fn describe(summary: &Summary, unit: &str) -> String {
    let v = |number| value(number, unit);
    format!(
        "median {}, middle half {} to {}, least {}, p95 {}, p99 {}, greatest {}, {} runs",
        v(summary.median),
        v(summary.p25),
        v(summary.p75),
        v(summary.min),
        v(summary.p95),
        v(summary.p99),
        v(summary.max),
        summary.runs
    )
}

/// Stages of a start: `rows` are moments since its beginning, and each column's line is as long as its last one.
pub(super) fn timeline(rows: &[&Row], columns: &[Column]) -> Option<String> {
    let mut lines = Vec::new();
    for column in columns {
        let mut moments: Vec<(usize, &Row, f64)> = rows
            .iter()
            .enumerate()
            .filter_map(|(at, row)| Some((at, *row, row.cells.get(column.id)?.summary()?.median)))
            .collect();
        // A first byte may come before the word that the exec succeeded.
        moments.sort_by(|a, b| a.2.total_cmp(&b.2));
        if moments.len() > 1 {
            lines.push((column, moments));
        }
    }
    if lines.is_empty() {
        return None;
    }
    let mut svg = open("stages of a start", LINE * lines.len() as f64);
    for (line, (column, moments)) in lines.iter().enumerate() {
        let top = LINE * line as f64;
        let total = moments.last().map_or(0.0, |(.., moment)| *moment);
        let scale = Scale::Linear(total);
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.0}\" y=\"{:.1}\">{}</text>",
            LEFT - 10.0,
            top + LINE / 2.0 + 4.0,
            escape(column.title)
        );
        let mut before = 0.0;
        for (at, row, moment) in moments {
            let (from, to) = (scale.x(before), scale.x(*moment));
            let _ = write!(
                svg,
                "<rect class=\"stage s{}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\"><title>{}: {} after {}\
                 </title></rect>",
                at % STAGE_COLOURS,
                top + (LINE - BAR) / 2.0,
                (to - from).max(0.0),
                escape(&row.title),
                escape(&value(moment - before, row.unit)),
                escape(&value(before, row.unit)),
            );
            before = *moment;
        }
        let unit = moments[0].1.unit;
        let _ = write!(
            svg,
            "<text class=\"value\" x=\"{:.0}\" y=\"{:.1}\">{}</text>",
            RIGHT + 8.0,
            top + LINE / 2.0 + 4.0,
            escape(&value(total, unit))
        );
    }
    svg.push_str("</svg><ul class=\"legend\">");
    for (at, row) in rows.iter().enumerate() {
        let _ = write!(
            svg,
            "<li><span class=\"s{}\"></span>{}</li>",
            at % STAGE_COLOURS,
            escape(&row.title)
        );
    }
    svg.push_str("</ul>");
    Some(svg)
}

/// As many classes as the page has for stages.
pub(super) const STAGE_COLOURS: usize = 12;

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{CONTAINER, VM};

    fn row(vm: &[f64], container: &[f64]) -> Row {
        let mut row = Row::new("row", "a <row>", "ms", "");
        row.cell(VM).samples = vm.to_vec();
        row.cell(CONTAINER).samples = container.to_vec();
        row
    }

    /// The widths of the bars.
    fn widths(svg: &str) -> Vec<f64> {
        let bars = svg.split("class=\"bar").skip(1);
        bars.map(|bar| {
            let width = bar.split("width=\"").nth(1).unwrap();
            width.split('"').next().unwrap().parse().unwrap()
        })
        .collect()
    }

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let svg = bars(&row(&[10.0, 10.0], &[5.0]), &[VM, CONTAINER]).unwrap();
        let widths = widths(&svg);
        assert!((widths[0] - 2.0 * widths[1]).abs() < 0.2, "{widths:?}");
        assert!(!svg.contains("logarithmic"));
        assert_eq!(
            svg.matches("class=\"spread\"").count(),
            1,
            "one run has no spread"
        );
        assert!(svg.contains("a &lt;row&gt;") && !svg.contains("a <row>"));
    }

    #[test]
    fn what_differs_much_is_on_a_scale_that_says_so() {
        let svg = bars(&row(&[10_000.0], &[5.0]), &[VM, CONTAINER]).unwrap();
        assert!(svg.contains("logarithmic scale"));
        assert!(widths(&svg)[1] > 20.0, "{svg}");
    }

    #[test]
    fn zeros_can_be_drawn_and_nothing_is_not() {
        let svg = bars(&row(&[0.0], &[0.0]), &[VM, CONTAINER]).unwrap();
        assert_eq!(widths(&svg), [1.5, 1.5]);
        assert!(!svg.contains("NaN"));
        assert!(bars(&row(&[], &[]), &[VM, CONTAINER]).is_none());
    }

    #[test]
    fn stages_fill_the_line_in_the_order_of_time() {
        let moment = |title: &str, at: f64| {
            let mut row = Row::new(title, title, "ms", "");
            row.cell(VM).samples = vec![at];
            row
        };
        let (late, early) = (moment("exec", 4.0), moment("first byte", 3.0));
        let svg = timeline(&[&late, &early], &[VM, CONTAINER]).unwrap();
        let at = |text: &str| svg.find(text).unwrap();
        assert!(
            at("first byte: 3 ms after 0 ms") < at("exec: 1 ms after 3 ms"),
            "{svg}"
        );
        assert_eq!(svg.matches("class=\"name\"").count(), 1);
    }
}
