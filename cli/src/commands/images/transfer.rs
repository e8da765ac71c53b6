//! `save`, `load` and `import`.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Read},
    path::Path,
};

use brig_engine::Engine;
use brig_image_store::{LoadProgress, Loaded, StoreError, store::ImportOptions};
use jiff::Timestamp;

use super::super::print_lines;
use crate::{
    arguments::{Import, Load, Save},
    failure::Failure,
    output::FileOutput,
    progress::Step,
};

/// Bytes that are written at a time.
const WRITE_BYTES: usize = 256 << 10;

/// `brig save`.
pub fn save(engine: &Engine, options: &Save) -> Result<i32, Failure> {
    // `welcome` comes into the store when it is asked for first.
    for image in &options.images {
        if engine.images().resolve(image)?.is_none() {
            let _ = engine.find_image(image);
        }
    }
    let step = Step::bytes("Saving", false);
    let mut done = 0;
    let mut show = |progress: LoadProgress| {
        done = progress.bytes;
        step.advance(progress.bytes, progress.total);
    };
    if let Some(path) = &options.output {
        let mut file = FileOutput::create(path)?;
        let mut output = BufWriter::with_capacity(WRITE_BYTES, file.writer());
        engine.images().save(&options.images, &mut output, &mut show)?;
        drop(output);
        file.finish()?;
    } else {
        refuse_terminal("an archive", "-o FILE")?;
        let mut output = BufWriter::with_capacity(WRITE_BYTES, io::stdout().lock());
        let saved = engine.images().save(&options.images, &mut output, &mut show);
        saved.map_err(of_output)?;
    }
    step.finish(Some(done));
    Ok(0)
}

/// Binary data is not for a terminal.
pub fn refuse_terminal(what: &str, instead: &str) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::command(format!(
            "refusing to write {what} to a terminal: use {instead}, or redirect standard output"
        )));
    }
    Ok(())
}

/// A reader of standard output that has gone away ends the command without a word.
fn of_output(error: StoreError) -> Failure {
    match error {
        StoreError::Output(source) => source.into(),
        other => other.into(),
    }
}

/// `brig load`.
pub fn load(engine: &Engine, options: &Load) -> Result<i32, Failure> {
    if options.input.is_none() && io::stdin().is_terminal() {
        return Err(Failure::command(
            "requested load from standard input, but it is a terminal: use -i FILE, or redirect it"
                .to_owned(),
        ));
    }
    let step = Step::bytes("Loading", options.quiet);
    let mut read = 0;
    let mut show = |progress: LoadProgress| {
        read = progress.bytes;
        step.advance(progress.bytes, progress.total);
    };
    let store = engine.images().limited(options.max_image_size);
    let loaded = match &options.input {
        Some(path) => store.load_path(path, &mut show)?,
        None => store.load(&mut io::stdin().lock(), &mut show)?,
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

/// `brig import`.
pub fn import(engine: &Engine, options: &Import) -> Result<i32, Failure> {
    let source = options.source.as_str();
    if source.contains("://") {
        return Err(Failure::command(format!(
            "import takes no URL: curl -L {source} | brig import - …"
        )));
    }
    let (mut input, total): (Box<dyn Read>, _) = if source == "-" {
        if io::stdin().is_terminal() {
            return Err(Failure::command(
                "standard input is a terminal: redirect it, or name a file".to_owned(),
            ));
        }
        (Box::new(io::stdin().lock()), None)
    } else {
        let open = |path: &Path| {
            let file = File::open(path)?;
            let found = file.metadata()?;
            Ok((file, found.is_file().then_some(found.len())))
        };
        let (file, total) = open(Path::new(source))
            .map_err(|e: io::Error| Failure::command(format!("cannot open {source}: {e}")))?;
        (Box::new(file), total)
    };
    let step = Step::bytes("Importing", false);
    let mut read = 0;
    let mut show = |bytes| {
        read = bytes;
        step.advance(bytes, total);
    };
    let store = engine.images().limited(options.max_image_size);
    let options = ImportOptions {
        changes: options.change.clone(),
        message: options
            .message
            .clone()
            .unwrap_or_else(|| format!("Imported from {source}")),
        name: options.name.clone(),
        created: Timestamp::now().to_string(),
    };
    let image = store.import(&mut input, &options, &mut show)?;
    step.finish(Some(read));
    print_lines([image.id])?;
    Ok(0)
}
