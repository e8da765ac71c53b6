//! `search`.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use anyhow::Context;
use brig_registry::{
    config::DOCKER_HUB,
    search::{Found, Search as Wanted, search as look},
};
use serde_json::json;

use super::{block_on, registries};
use crate::arguments::{Filter, Format, Search};

const HEADING: [&str; 4] = ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"];

/// Characters of a description that a table shows.
const DESCRIPTION_CHARACTERS: usize = 45;

/// Spaces between two columns.
const GAP: usize = 3;

/// `brig search`.
pub fn search(options: &Search) -> anyhow::Result<()> {
    let (host, term) = split(&options.term);
    let registries = registries(&options.connection, host)?;
    let wanted = Wanted {
        host: host.to_owned(),
        term: term.to_owned(),
        limit: options.limit,
    };
    let mut found = block_on("", look(&registries, &wanted))??;
    found.retain(|found| options.filter.iter().all(|filter| fits(found, *filter)));
    let text = match options.format {
        Some(Format::Json) => lines(&found),
        Some(Format::Table) | None => table(&found, options.no_trunc),
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write")
}

/// Tells a registry from the term: as in an image's name, it has a dot, a colon, or it is `localhost`.
fn split(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DOCKER_HUB, text),
    }
}

fn fits(found: &Found, filter: Filter) -> bool {
    match filter {
        Filter::Stars(least) => found.stars >= least,
        Filter::Official(wanted) => found.official == wanted,
    }
}

fn lines(found: &[Found]) -> String {
    let mut text = String::new();
    for found in found {
        let line = json!({
            "Name": found.name,
            "Description": found.description,
            "StarCount": found.stars.to_string(),
            "IsOfficial": found.official.to_string(),
        });
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text
}

fn table(found: &[Found], whole: bool) -> String {
    let row = |found: &Found| {
        let description = if whole || found.description.chars().count() <= DESCRIPTION_CHARACTERS {
            found.description.clone()
        } else {
            let start: String = found
                .description
                .chars()
                .take(DESCRIPTION_CHARACTERS - 1)
                .collect();
            format!("{start}…")
        };
        let official = if found.official { "[OK]" } else { "" };
        [
            found.name.clone(),
            description,
            found.stars.to_string(),
            official.to_owned(),
        ]
    };
    let rows: Vec<[String; 4]> = std::iter::once(HEADING.map(str::to_owned))
        .chain(found.iter().map(row))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADING.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}", width = width + GAP);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_told_from_the_term() {
        assert_eq!(split("nginx"), ("docker.io", "nginx"));
        assert_eq!(split("team/app"), ("docker.io", "team/app"));
        assert_eq!(split("localhost:5000/team/app"), ("localhost:5000", "team/app"));
        assert_eq!(split("localhost:5000/"), ("localhost:5000", ""));
    }

    #[test]
    fn the_table_is_dockers() {
        let found = Found {
            name: "nginx".into(),
            description: "d".repeat(60),
            stars: 3,
            official: true,
        };
        let text = table(&[found], false);
        assert!(text.starts_with("NAME    DESCRIPTION"), "{text}");
        assert!(text.ends_with("…   3       [OK]\n"), "{text}");
    }
}
