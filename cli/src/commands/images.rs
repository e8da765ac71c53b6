//! `images` and `load`.

use std::io;

use brig_engine::Engine;
use brig_image_store::{Image, Loaded};
use jiff::Timestamp;

use super::{print, print_lines};
use crate::{
    arguments::{Images, Load},
    failure::Failure,
    progress::Step,
    table, text,
};

const HEADING: [&str; 5] = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];

/// What stands for a name that an image has not.
const NONE: &str = "<none>";

/// `brig images`.
pub fn list(engine: &Engine, options: &Images) -> Result<i32, Failure> {
    let images = engine.images().list()?;
    if options.quiet {
        print_lines(images.iter().map(|image| id(image, options.no_trunc)))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = images
        .iter()
        .flat_map(|image| rows(image, options.no_trunc, now))
        .collect();
    print(&table::render(&HEADING, &rows))?;
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
fn rows(image: &Image, whole: bool, now: Timestamp) -> Vec<Vec<String>> {
    let names: Vec<(String, String)> = match image.names.as_slice() {
        [] => vec![(NONE.to_owned(), NONE.to_owned())],
        names => names
            .iter()
            .map(|name| (name.repository.to_string(), name.tag.clone()))
            .collect(),
    };
    let created = image
        .created
        .as_deref()
        .and_then(|time| time.parse::<Timestamp>().ok())
        .map_or_else(
            || "N/A".to_owned(),
            |time| format!("{} ago", text::since(time, now)),
        );
    names
        .into_iter()
        .map(|(repository, tag)| {
            vec![
                repository,
                tag,
                id(image, whole),
                created.clone(),
                text::size(image.size),
            ]
        })
        .collect()
}

/// `brig load`.
pub fn load(engine: &Engine, options: &Load) -> Result<i32, Failure> {
    let step = Step::bytes("Loading", options.quiet);
    let mut read = 0;
    let mut show = |progress: brig_image_store::LoadProgress| {
        read = progress.bytes;
        step.advance(progress.bytes, progress.total);
    };
    let loaded = match &options.input {
        Some(path) => engine.images().load_path(path, &mut show)?,
        None => engine.images().load(&mut io::stdin().lock(), &mut show)?,
    };
    step.finish(Some(read));
    print_lines(loaded.iter().flat_map(lines))?;
    Ok(0)
}

/// What is said of one loaded image.
fn lines(loaded: &Loaded) -> Vec<String> {
    match loaded.names.as_slice() {
        [] => vec![format!("Loaded image ID: {}", loaded.image.id)],
        names => names.iter().map(|name| format!("Loaded image: {name}")).collect(),
    }
}
