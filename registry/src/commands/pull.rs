//! `pull`.

use std::io::{self, Write};

use anyhow::{Context, bail};
use brig_image_store::{Reference, Store};
use brig_registry::{
    Error,
    pull::{Pull as Wanted, Registries, pull as pull_one, tags},
};

use super::{block_on, registries, store};
use crate::{
    arguments::{Progress, Pull},
    display::Display,
};

/// What a user is told who interrupts it.
const INTERRUPTED: &str = ": what has come of the image is kept, and the next pull goes on from there";

/// `brig pull`.
pub fn pull(options: &Pull) -> anyhow::Result<()> {
    let reference: Reference = options.name.parse()?;
    if options.all_tags && (reference.tag.is_some() || reference.digest.is_some()) {
        bail!("with --all-tags no tag or digest can be named");
    }
    let store = store()?.limited(options.max_image_size);
    let registries = registries(&options.connection, reference.repository.domain())?;
    let display = Display::new(&options.show);
    if reference.tag.is_none() && reference.digest.is_none() && !options.all_tags {
        display.line("Using default tag: latest");
    }
    let result = block_on(
        INTERRUPTED,
        pull_all(&store, &registries, options, &reference, &display),
    );
    display.finish();
    result??;
    if options.show.progress == Progress::Person {
        let last = match reference.digest {
            _ if options.all_tags => reference.repository.canonical(),
            Some(digest) => format!("{}@{digest}", reference.repository.canonical()),
            None => reference.name().canonical(),
        };
        writeln!(io::stdout(), "{last}").context("cannot write")?;
    }
    Ok(())
}

/// Pulls the image, or all of its repository.
async fn pull_all(
    store: &Store,
    registries: &Registries,
    options: &Pull,
    reference: &Reference,
    display: &Display,
) -> Result<(), Error> {
    let references = if options.all_tags {
        tags(registries, reference).await?
    } else {
        vec![reference.clone()]
    };
    for reference in references {
        let wanted = Wanted {
            reference,
            platform: options.platform.clone(),
        };
        let image = pull_one(store, registries, &wanted, &display.sink()).await?.image;
        let reference = &wanted.reference;
        let id = match reference.digest {
            Some(digest) => format!("{}@{digest}", reference.repository),
            None => reference.name().to_string(),
        };
        store.note("pull", Some(&image), &id, &reference.repository.to_string());
    }
    Ok(())
}
