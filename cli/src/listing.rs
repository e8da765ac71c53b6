//! Lists: a table, a JSON object a line, or a template a line.

use serde_json::{Map, Value};

use crate::{
    failure::Failure,
    format::{FormatError, Template},
    table,
};

/// Lines of `rows` as `format` says: `json`, a template, or a template after `table `, which gets a heading of `fields`
/// (name and heading each).
pub fn render(format: &str, fields: &[(&str, &str)], rows: &[Value]) -> Result<String, Failure> {
    if format == "json" {
        return Ok(joined(rows.iter().map(ToString::to_string)));
    }
    let (template, is_table) = match format.strip_prefix("table ") {
        Some(template) => (template, true),
        None => (format, false),
    };
    let template = Template::parse(template)?;
    let lines: Vec<String> = rows
        .iter()
        .map(|row| template.render(row))
        .collect::<Result<_, _>>()?;
    if !is_table {
        return Ok(joined(lines.into_iter()));
    }
    let heading: Map<String, Value> = fields
        .iter()
        .map(|(name, heading)| ((*name).to_owned(), (*heading).into()))
        .collect();
    let heading = template.render(&heading.into())?;
    let heading: Vec<&str> = heading.split('\t').collect();
    let cells = |line: &String| line.split('\t').map(str::to_owned).collect();
    let rows: Vec<Vec<String>> = lines.iter().map(cells).collect();
    Ok(table::render(&heading, &rows))
}

fn joined(lines: impl Iterator<Item = String>) -> String {
    lines.flat_map(|line| [line, "\n".to_owned()]).collect()
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        Self::command(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_a_table_json_or_a_template() {
        let rows = [
            json!({"ID": "a", "Size": "1kB"}),
            json!({"ID": "bb", "Size": "2kB"}),
        ];
        let fields = [("ID", "IMAGE ID"), ("Size", "SIZE")];
        let render = |format| render(format, &fields, &rows).unwrap();
        assert_eq!(
            render("table {{.ID}}\\t{{.Size}}"),
            "IMAGE ID   SIZE\na          1kB\nbb         2kB\n"
        );
        assert_eq!(render("{{.ID}}={{.Size}}"), "a=1kB\nbb=2kB\n");
        assert_eq!(
            render("json"),
            "{\"ID\":\"a\",\"Size\":\"1kB\"}\n{\"ID\":\"bb\",\"Size\":\"2kB\"}\n"
        );
        assert!(super::render("{{.Nope}}", &fields, &rows).is_err());
    }
}
