//! `push`.

use anyhow::bail;
use brig_image_store::{Image, ImageName, Reference, Store};
use brig_registry::{Error, push::push as push_one};

use super::{block_on, registries, store};
use crate::{arguments::Push, display::Display};

/// What a user is told who interrupts it.
const INTERRUPTED: &str = ": what the registry has by now is not sent again by the next push";

/// `brig push`.
pub fn push(options: &Push) -> anyhow::Result<()> {
    let reference: Reference = options.name.parse()?;
    if reference.digest.is_some() {
        bail!("\"{}\" has a digest: push it by its tag", options.name);
    }
    if options.all_tags && reference.tag.is_some() {
        bail!("with --all-tags no tag can be named");
    }
    let store = store()?;
    let images = images(&store, &reference, options.all_tags)?;
    let registries = registries(&options.connection, reference.repository.domain())?;
    let display = Display::new(&options.show);
    let repository = reference.repository.canonical();
    display.line(&format!("The push refers to repository [{repository}]"));
    if reference.tag.is_none() && !options.all_tags {
        display.line("Using default tag: latest");
    }
    let sink = display.sink();
    let result = block_on(INTERRUPTED, async {
        for (name, image) in &images {
            push_one(&store, &registries, image, name, &sink).await?;
            let id = name.to_string();
            store.note("push", Some(image), &id, &name.repository.to_string());
        }
        Ok::<_, Error>(())
    });
    display.finish();
    result??;
    if options.show.quiet {
        println!(
            "{repository}{}",
            reference.tag.map(|tag| format!(":{tag}")).unwrap_or_default()
        );
    }
    Ok(())
}

/// The images to push, by their names.
fn images(store: &Store, reference: &Reference, all: bool) -> anyhow::Result<Vec<(ImageName, Image)>> {
    if !all {
        let name = reference.name();
        return match store.resolve(&name.canonical())? {
            Some(image) => Ok(vec![(name, image)]),
            None => Err(Error::NoSuchImage(name.to_string()).into()),
        };
    }
    let mut found = Vec::new();
    for image in store.list()? {
        let names = image
            .names
            .iter()
            .filter(|name| name.repository == reference.repository);
        found.extend(names.map(|name| (name.clone(), image.clone())));
    }
    if found.is_empty() {
        return Err(Error::NoSuchImage(reference.repository.to_string()).into());
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}
