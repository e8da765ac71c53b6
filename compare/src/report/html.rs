//! The report as one page: no script, nothing that it would have to fetch, light and dark as the reader's system is.

use std::fmt::Write;

use super::{Cell, Report, Row, Section, svg, value};
use svg::escape;

/// Rows whose words begin so are moments of one start: they are drawn as a line.
pub const STAGE: &str = "stage.";

/// The page's looks. Colours of the ways can be told apart by people who are colour-blind (Okabe and Ito's).
const STYLE: &str = "
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1b1f27;--soft:#5d6675;--line:#e1e5ec;--note:#fff4d6;--note-line:#e3b341;
--vm:#0072b2;--cold:#56b4e9;--container:#e69f00;--crun:#009e73;--runc:#cc79a7;--process:#8b94a3;--spread:#1b1f27}
@media(prefers-color-scheme:dark){:root{--paper:#101319;--card:#181c24;--ink:#e7eaf0;--soft:#9aa4b4;--line:#2a303b;--note:#3a2f10;
--note-line:#8a6d1f;--vm:#3d9bd9;--cold:#7cc6f2;--container:#f0b132;--crun:#2fc096;--runc:#dd95bd;--process:#7b8595;--spread:#f4f6fa}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
main{max-width:900px;margin:0 auto;padding:32px 16px 64px}
h1{font-size:28px;margin:0 0 4px;letter-spacing:-.01em}h2{font-size:20px;margin:0 0 2px}h3{font-size:15px;margin:22px 0 2px}
.subject{color:var(--soft);margin:0 0 20px;overflow-wrap:anywhere}
.note{background:var(--note);border-left:4px solid var(--note-line);border-radius:6px;padding:10px 14px;margin:0 0 12px}
section,.facts{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 22px;margin:18px 0}
.facts dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.how{color:var(--soft);font-size:13px;margin:0 0 4px}
svg{display:block;width:100%;height:auto;margin:2px 0}
svg text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:var(--ink)}
svg .name{text-anchor:end;fill:var(--soft)}svg .value{font-variant-numeric:tabular-nums}
.spread{stroke:var(--spread);stroke-width:1.4;fill:none;opacity:.75}
.vm{fill:var(--vm)}.cold{fill:var(--cold)}.container{fill:var(--container)}.crun{fill:var(--crun)}.runc{fill:var(--runc)}.process{fill:var(--process)}
.s0{fill:#9aa4b4;background:#9aa4b4}.s1{fill:#0072b2;background:#0072b2}.s2{fill:#56b4e9;background:#56b4e9}.s3{fill:#009e73;background:#009e73}
.s4{fill:#f0e442;background:#f0e442}.s5{fill:#e69f00;background:#e69f00}.s6{fill:#d55e00;background:#d55e00}.s7{fill:#cc79a7;background:#cc79a7}
.s8{fill:#7f5fb5;background:#7f5fb5}.s9{fill:#5d6675;background:#5d6675}.s10{fill:#3c8d40;background:#3c8d40}.s11{fill:#b0302f;background:#b0302f}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;padding:0;margin:6px 0 0;font-size:13px;color:var(--soft)}
.legend span{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.scale{font-size:12px;color:var(--soft);margin:0 0 0 17.1%}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:4px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal}td small{color:var(--soft)}td.words{white-space:normal;text-align:left}
details{margin-top:14px}summary{cursor:pointer;color:var(--soft)}
.walls p{margin:2px 0 10px}footer{color:var(--soft);font-size:13px;margin-top:24px}
";

/// The page.
pub fn render(report: &Report) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>brig compare: {0}</title><style>{STYLE}</style></head><body><main>\
         <h1>What each wall costs</h1><p class=\"subject\">{0}</p>",
        escape(&report.subject)
    );
    for notice in &report.notices {
        let _ = write!(page, "<p class=\"note\" role=\"note\">{}</p>", escape(notice));
    }
    if !report.host.is_empty() {
        page.push_str("<div class=\"facts\"><dl>");
        for (name, value) in &report.host {
            let _ = write!(page, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        }
        page.push_str("</dl></div>");
    }
    for section in &report.sections {
        self::section(&mut page, section);
    }
    walls(&mut page, report);
    if !report.missing.is_empty() {
        page.push_str("<section><h2>Not measured</h2><ul>");
        for line in &report.missing {
            let _ = write!(page, "<li>{}</li>", escape(line));
        }
        page.push_str("</ul></section>");
    }
    page.push_str(
        "<footer>A bar is the median; the line on it is the middle half of the runs. First runs are in none of them: they are in \
         the tables. Rest the pointer on a bar for its quantiles.</footer></main></body></html>\n",
    );
    page
}

fn section(page: &mut String, section: &Section) {
    let _ = write!(
        page,
        "<section id=\"{}\"><h2>{}</h2><p class=\"how\">{}</p>",
        section.id,
        escape(&section.title),
        escape(&section.how)
    );
    let (stages, rows): (Vec<&Row>, Vec<&Row>) =
        section.rows.iter().partition(|row| row.id.starts_with(STAGE));
    if let Some(plot) = svg::timeline(&stages, &section.columns) {
        let _ = write!(
            page,
            "<h3>Stages</h3><p class=\"how\">Medians; each line has a scale of its own, and its whole stands behind it.</p>{plot}"
        );
    }
    for row in rows {
        if let Some(plot) = svg::bars(row, &section.columns) {
            let _ = write!(
                page,
                "<h3>{}</h3><p class=\"how\">{}</p>{plot}",
                escape(&row.title),
                escape(&row.how)
            );
        }
    }
    table(page, section);
    page.push_str("</section>");
}

/// All figures. It is folded where plots show them already.
fn table(page: &mut String, section: &Section) {
    let all_words = section
        .rows
        .iter()
        .all(|row| row.cells.values().all(|cell| cell.samples.is_empty()));
    if !all_words {
        page.push_str("<details><summary>All figures</summary>");
    }
    page.push_str("<div class=\"wide\"><table><thead><tr><th></th>");
    for column in &section.columns {
        let _ = write!(page, "<th>{}</th>", escape(column.title));
    }
    page.push_str("</tr></thead><tbody>");
    for row in &section.rows {
        let _ = write!(
            page,
            "<tr><td title=\"{}\">{}</td>",
            escape(&row.how),
            escape(&row.title)
        );
        for column in &section.columns {
            match row.cells.get(column.id) {
                Some(cell) => self::cell(page, cell, row.unit),
                None => page.push_str("<td>—</td>"),
            }
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>");
    if !all_words {
        page.push_str("</details>");
    }
}

fn cell(page: &mut String, cell: &Cell, unit: &str) {
    if let Some(text) = &cell.text {
        let _ = write!(page, "<td class=\"words\">{}</td>", escape(text));
        return;
    }
    let Some(summary) = cell.summary() else {
        page.push_str("<td>—</td>");
        return;
    };
    let v = |number| escape(&value(number, unit));
    let _ = write!(
        page,
        "<td title=\"{}\">{}<br><small>{} – {}, {} runs",
        escape(&svg::describe(&summary, unit)),
        v(summary.median),
        v(summary.p25),
        v(summary.p75),
        summary.runs
    );
    if let Some(first) = cell.first.first() {
        let _ = write!(page, "; first {}", v(*first));
    }
    page.push_str("</small></td>");
}

fn walls(page: &mut String, report: &Report) {
    if report.walls.is_empty() {
        return;
    }
    page.push_str("<section class=\"walls\"><h2>What the walls are made of</h2>");
    for wall in &report.walls {
        let _ = write!(
            page,
            "<h3>{}</h3><p>{}</p><p><b>An escape takes:</b> {}</p>",
            escape(wall.column.title),
            escape(wall.made_of),
            escape(wall.escape)
        );
    }
    page.push_str("</section>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_page_has_all_that_was_found_out() {
        let page = render(&report());
        for part in [
            "KVM is emulated",
            "&lt;bench&gt; &quot;help&quot;",
            "its own &amp; no other",
            "crun: not installed",
            "<svg viewBox",
            "three things",
            "from &lt;start&gt; to end",
            "; first 900 ms",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    #[test]
    fn a_page_needs_nothing_else_and_runs_nothing() {
        let page = render(&report());
        for word in [
            "http://", "https://", "<script", "src=", "href=", "url(", "@import", "<link",
        ] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("prefers-color-scheme:dark"));
        for tag in [
            "section", "table", "svg", "details", "main", "div", "ul", "p", "td", "h3",
        ] {
            let opened =
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn stages_have_as_many_colours_as_the_page_has() {
        assert!(STYLE.contains(&format!(".s{}{{", svg::STAGE_COLOURS - 1)));
        assert!(!STYLE.contains(&format!(".s{}{{", svg::STAGE_COLOURS)));
    }
}
