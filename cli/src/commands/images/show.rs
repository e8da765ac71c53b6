//! `image inspect` and `history`.

use brig_engine::Engine;
use brig_image_store::{Image, Layer, store::HistoryEntry};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{described, print, print_lines};
use crate::{
    arguments::{History, ImageInspect},
    failure::Failure,
    listing, text,
};

/// Characters of `CREATED BY` unless it is shown whole.
const CREATED_BY_CHARACTERS: usize = 45;

/// What stands for the id of a layer's image, which is not here.
const MISSING: &str = "<missing>";

const HISTORY_FIELDS: [(&str, &str); 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// `brig image inspect`.
pub fn inspect(engine: &Engine, options: &ImageInspect) -> Result<i32, Failure> {
    let describe = |text: &String| describe(engine, &engine.find_image(text)?);
    described::show(options.format.as_deref(), options.images.iter().map(describe))
}

/// An image as Docker's API describes it.
pub fn describe(engine: &Engine, image: &Image) -> Result<Value, Failure> {
    let document = engine.images().config_document(image)?;
    let member = |key: &str| document.get(key).cloned().unwrap_or_else(|| "".into());
    let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
    let digests: Vec<String> = image.digests.iter().map(ToString::to_string).collect();
    let layers: Vec<String> = image
        .layers
        .iter()
        .map(|layer: &Layer| layer.diff_id.to_string())
        .collect();
    let last = engine
        .images()
        .history(image)?
        .into_iter()
        .next()
        .unwrap_or_default();
    Ok(json!({
        "Id": image.id.to_string(),
        "RepoTags": names,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": last.comment,
        "Created": image.created,
        "DockerVersion": member("docker_version"),
        "Author": member("author"),
        "Architecture": image.architecture,
        "Variant": member("variant"),
        "Os": image.os,
        "Size": image.size,
        "RootFS": {"Type": "layers", "Layers": layers},
        "Descriptor": image.manifest.map(|digest| json!({"digest": digest.to_string()})),
        "Config": with_defaults(document.get("config")),
    }))
}

/// The member `config` with what Docker's answer has in any case, so that a template can ask for it.
fn with_defaults(config: Option<&Value>) -> Value {
    let mut all = json!({
        "Cmd": null, "Entrypoint": null, "Env": null, "ExposedPorts": null, "Labels": null, "User": "", "Volumes": null,
        "WorkingDir": "",
    });
    if let (Some(all), Some(Value::Object(config))) = (all.as_object_mut(), config) {
        all.extend(config.clone());
    }
    all
}

/// `brig history`.
pub fn history(engine: &Engine, options: &History) -> Result<i32, Failure> {
    let image = engine.find_image(&options.image)?;
    let history = engine.images().history(&image)?;
    let id = if options.no_trunc {
        image.id.to_string()
    } else {
        image.id.short()
    };
    let ids = (0..history.len()).map(|n| if n == 0 { id.as_str() } else { MISSING });
    if options.quiet {
        print_lines(ids)?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Value> = ids
        .zip(&history)
        .map(|(id, entry)| row(id, entry, options, now))
        .collect();
    let created = if options.human {
        "CreatedSince"
    } else {
        "CreatedAt"
    };
    let table =
        format!("table {{{{.ID}}}}\t{{{{.{created}}}}}\t{{{{.CreatedBy}}}}\t{{{{.Size}}}}\t{{{{.Comment}}}}");
    let format = options.format.as_deref().filter(|format| *format != "table");
    print(&listing::render(
        format.unwrap_or(&table),
        &HISTORY_FIELDS,
        &rows,
    )?)?;
    Ok(0)
}

fn row(id: &str, entry: &HistoryEntry, options: &History, now: Timestamp) -> Value {
    let made = entry
        .created
        .as_deref()
        .and_then(|time| time.parse::<Timestamp>().ok());
    // What an image's author wrote is not to steer a terminal.
    let plain = |text: &str| text.replace(char::is_control, " ");
    let by = plain(&entry.created_by);
    let by = if options.no_trunc {
        by
    } else {
        text::shorten(&by, CREATED_BY_CHARACTERS)
    };
    json!({
        "ID": id,
        "CreatedSince": made.map_or_else(|| "N/A".to_owned(), |made| format!("{} ago", text::since(made, now))),
        "CreatedAt": entry.created.as_deref().map_or_else(|| "N/A".to_owned(), plain),
        "CreatedBy": by,
        "Size": if options.human { text::size(entry.size) } else { entry.size.to_string() },
        "Comment": plain(&entry.comment),
    })
}
