//! `images`.

use brig_engine::Engine;
use brig_image_store::{Image, Repository};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::{print, print_lines},
    filter::{Filters, created},
};
use crate::{arguments::Images, failure::Failure, listing, text};

/// What stands for a name that an image has not.
const NONE: &str = "<none>";

/// The heading of each field.
const FIELDS: [(&str, &str); 11] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "SIZE"),
];

const TABLE: &str = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const TABLE_WITH_DIGESTS: &str =
    "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

/// `brig images`.
pub fn list(engine: &Engine, options: &Images) -> Result<i32, Failure> {
    let mut filters = Filters::of_list(engine, &options.filter)?;
    if let Some(pattern) = &options.reference {
        filters.add_reference(pattern)?;
    }
    let mut images = engine.images().list()?;
    images.retain(|image| filters.fits(image));
    if options.quiet {
        print_lines(images.iter().map(|image| id(image, options.no_trunc)))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Value> = images
        .iter()
        .flat_map(|image| rows(image, &filters, options.no_trunc, now))
        .collect();
    let default = if options.digests {
        TABLE_WITH_DIGESTS
    } else {
        TABLE
    };
    let format = options.format.as_deref().filter(|format| *format != "table");
    print(&listing::render(format.unwrap_or(default), &FIELDS, &rows)?)?;
    Ok(0)
}

fn id(image: &Image, whole: bool) -> String {
    if whole {
        image.id.to_string()
    } else {
        image.id.short()
    }
}

/// A row for each name of the image.
fn rows(image: &Image, filters: &Filters, whole: bool, now: Timestamp) -> Vec<Value> {
    let row = |repository: Option<&Repository>, tag: Option<&str>| {
        let made = created(image);
        // What its registry calls it: an image that has never been in one has no digest, as with Docker.
        let known = image
            .digests
            .iter()
            .find(|known| Some(&known.repository) == repository);
        json!({
            "Repository": repository.map_or_else(|| NONE.to_owned(), ToString::to_string),
            "Tag": tag.unwrap_or(NONE),
            "Digest": known.map_or_else(|| NONE.to_owned(), |known| known.digest.to_string()),
            "ID": id(image, whole),
            "CreatedAt": made.map_or_else(|| "N/A".to_owned(), text::date),
            "CreatedSince": made.map_or_else(|| "N/A".to_owned(), |time| format!("{} ago", text::since(time, now))),
            "Size": text::size(image.size),
            // As with Docker `system df -v` counts these.
            "Containers": "N/A",
            "SharedSize": "N/A",
            "UniqueSize": "N/A",
            "VirtualSize": text::size(image.size),
        })
    };
    if image.names.is_empty() {
        // Pulled by its digest, or another image has its tag now: Docker still tells where it came from.
        let mut from: Vec<&Repository> = image.digests.iter().map(|known| &known.repository).collect();
        from.dedup();
        return match from.as_slice() {
            [] => vec![row(None, None)],
            _ => from
                .into_iter()
                .map(|repository| row(Some(repository), None))
                .collect(),
        };
    }
    let shown = image.names.iter().filter(|name| filters.names(name));
    shown
        .map(|name| row(Some(&name.repository), Some(&name.tag)))
        .collect()
}
