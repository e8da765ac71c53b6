//! What all `inspect` commands do with what they have found.

use serde_json::Value;

use super::{print, print_lines};
use crate::{failure::Failure, format::Template};

/// Prints descriptions: all together as JSON, or each as `format` says, a template or `json`. What could not be found is told first.
pub fn show(
    format: Option<&str>,
    descriptions: impl Iterator<Item = Result<Value, Failure>>,
) -> Result<i32, Failure> {
    let template = format.map(template).transpose()?;
    let mut found = Vec::new();
    let mut failed = false;
    for description in descriptions {
        match description {
            Ok(value) => found.push(value),
            Err(failure) => {
                failure.report();
                failed = true;
            }
        }
    }
    match template {
        Some(template) => {
            for value in &found {
                print_lines([template.render(value)?])?;
            }
        }
        None => print(&format!("{:#}\n", Value::Array(found)))?,
    }
    if failed { Err(Failure::reported()) } else { Ok(0) }
}

/// Prints one description as `format` says.
pub fn show_one(format: &str, description: &Value) -> Result<i32, Failure> {
    print_lines([template(format)?.render(description)?])?;
    Ok(0)
}

fn template(format: &str) -> Result<Template, Failure> {
    let format = if format == "json" { "{{json .}}" } else { format };
    Ok(Template::parse(format)?)
}
