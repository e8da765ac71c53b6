//! `export`, `commit` and `diff`: what is in a sandbox's files.

use std::io::{self, Write};

use brig_engine::{Engine, Error, engine::CommitOptions, error::one_line, template, unpack::Report};

use super::{images::transfer::refuse_terminal, print_lines};
use crate::{
    arguments::{Commit, Diff, Export},
    failure::Failure,
    output::FileOutput,
    progress::Step,
};

/// `brig export`.
pub async fn export(engine: &Engine, options: &Export) -> Result<i32, Failure> {
    let step = Step::bytes("Exporting", false);
    let mut done = 0;
    let mut file = options.output.as_deref().map(FileOutput::create).transpose()?;
    if file.is_none() {
        refuse_terminal("an archive", "-o FILE")?;
    }
    let mut sink = |piece: &[u8]| {
        done += piece.len() as u64;
        step.advance(done, None);
        let written = match &mut file {
            Some(file) => file.writer().write_all(piece),
            None => io::stdout().lock().write_all(piece),
        };
        written.map_err(Error::Output)
    };
    let exported = engine
        .export(
            &options.sandbox,
            template::switched_off(),
            &mut |report| note(&step, report),
            &mut sink,
        )
        .await;
    match exported {
        Err(Error::Output(source)) => return Err(source.into()),
        other => other?,
    }
    if let Some(file) = file {
        file.finish()?;
    }
    step.finish(Some(done));
    Ok(0)
}

/// `brig commit`.
pub async fn commit(engine: &Engine, options: &Commit) -> Result<i32, Failure> {
    let step = Step::unknown("Making an image");
    let wishes = CommitOptions {
        name: options.name.clone(),
        author: options.author.clone(),
        message: options.message.clone(),
        changes: options.change.clone(),
    };
    let image = engine
        .commit(
            &options.sandbox,
            &wishes,
            template::switched_off(),
            &mut |report| note(&step, report),
        )
        .await?;
    step.finish(None);
    print_lines([image.id])?;
    Ok(0)
}

/// `brig diff`.
pub async fn diff(engine: &Engine, options: &Diff) -> Result<i32, Failure> {
    let step = Step::unknown("Comparing files");
    let changes = engine
        .diff(&options.sandbox, template::switched_off(), &mut |report| {
            note(&step, report);
        })
        .await?;
    step.finish(None);
    // The sandbox chose these names: they are not to steer a terminal.
    let line = |(kind, path): &(char, String)| format!("{kind} {}", one_line(path, usize::MAX));
    print_lines(changes.iter().map(line))?;
    Ok(0)
}

fn note(step: &Step, report: Report) {
    if let Report::Notice(line) = report {
        step.note(&line);
    }
}
