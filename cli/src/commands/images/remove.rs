//! `rmi`, `tag` and `image prune`.

use brig_engine::{Engine, Error};
use brig_image_store::{Prune, Removed, StoreError};

use super::{super::print_lines, filter::PruneFilters};
use crate::{
    arguments::{ImagePrune, Rmi, Tag},
    confirm,
    failure::Failure,
    text,
};

/// `brig rmi`.
pub fn remove(engine: &Engine, options: &Rmi) -> Result<i32, Failure> {
    let mut failed = false;
    for image in &options.images {
        match engine.remove_image(image, options.force) {
            Ok(removed) => print_lines(lines(&removed, "Untagged", "Deleted"))?,
            Err(e) => {
                // As with Docker that is told, and no failure of one who only wants it gone.
                let is_gone = matches!(e, Error::Image(StoreError::NoSuchImage(_)));
                Failure::from(e).report();
                failed |= !(is_gone && options.force);
            }
        }
    }
    if failed { Err(Failure::reported()) } else { Ok(0) }
}

/// `brig tag`.
pub fn tag(engine: &Engine, options: &Tag) -> Result<i32, Failure> {
    let image = engine.find_image(&options.source)?;
    engine
        .images()
        .tag(&image.id.to_string(), options.target.clone())?;
    Ok(0)
}

/// `brig image prune`.
pub fn prune(engine: &Engine, options: &ImagePrune) -> Result<i32, Failure> {
    let filters = PruneFilters::new(&options.filter)?;
    let (which, what) = if options.all {
        (
            Prune::Unused,
            "all images without at least one sandbox or snapshot that uses them",
        )
    } else {
        (Prune::Dangling, "all images without a name")
    };
    if !options.force && !confirm::ask(&format!("This will remove {what}."))? {
        return Ok(0);
    }
    let removed = engine.prune_images(which, |image| filters.fit_image(image))?;
    if !removed.untagged.is_empty() || !removed.deleted.is_empty() {
        print_lines(["Deleted Images:".to_owned()])?;
        print_lines(lines(&removed, "untagged", "deleted"))?;
        print_lines([""])?;
    }
    print_lines([format!("Total reclaimed space: {}", text::size(removed.bytes))])?;
    Ok(0)
}

/// What is said of a removal.
pub fn lines(removed: &Removed, untagged: &str, deleted: &str) -> Vec<String> {
    let names = removed.untagged.iter().map(|name| format!("{untagged}: {name}"));
    let digests = removed
        .deleted
        .iter()
        .map(|digest| format!("{deleted}: {digest}"));
    names.chain(digests).collect()
}
