//! `rename` and `restart`.

use brig_engine::Engine;

use super::run;
use crate::{
    arguments::{Rename, Restart, Start},
    failure::Failure,
};

/// `brig rename`.
pub fn rename(engine: &Engine, options: &Rename) -> Result<i32, Failure> {
    // Docker shows names with a slash before them, and takes them so.
    let name = options.name.strip_prefix('/').unwrap_or(&options.name);
    engine.rename(&options.sandbox, name)?;
    Ok(0)
}

/// `brig restart`.
pub async fn restart(engine: &Engine, options: &Restart) -> Result<i32, Failure> {
    let mut failed = false;
    for reference in &options.sandboxes.sandboxes {
        if let Err(failure) = again(engine, reference, options).await {
            failure.report();
            failed = true;
        }
    }
    if failed { Err(Failure::reported()) } else { Ok(0) }
}

/// Ends a sandbox, if it runs, and starts it.
async fn again(engine: &Engine, reference: &str, options: &Restart) -> Result<(), Failure> {
    let sandbox = engine.find(reference)?;
    if sandbox.config.auto_remove {
        return Err(Failure::command(format!(
            "cannot restart {reference}: it was started with --rm, so it goes when it stops"
        )));
    }
    engine
        .stop(sandbox.id().as_str(), options.signal, options.time)
        .await?;
    let start = Start::of(reference)
        .ok_or_else(|| Failure::command(format!("cannot start {reference}: it is no name of a sandbox")))?;
    run::start(engine, &start).await?;
    engine.note(&sandbox, "restart", &[]);
    Ok(())
}
