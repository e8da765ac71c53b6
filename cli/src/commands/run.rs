//! `run` and `start`.

use std::collections::BTreeMap;

use brig_engine::{
    CreateOptions, Engine, Error, SandboxId,
    clock::{Timing, monotonic_ns},
    engine::{Session, StartOptions},
    port::{PORTS_MAX, PortError},
};
use brig_image_store::Image;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::print;
use crate::{
    arguments::{Run, Start},
    failure::Failure,
    foreground,
    progress::Step,
    timing,
};

/// What the spinner says while a guest boots.
const BOOTING: &str = "Starting the guest";

/// `brig run`.
pub async fn run(engine: &Engine, options: Run, began_ns: u64) -> Result<i32, Failure> {
    let wishes = wishes(&options)?;
    let mut interrupts = Interrupts::new()?;
    let image = engine.find_image(options.image()).map_err(Failure::of_run)?;
    // What is wrong with the options is told before the image is unpacked, which takes long.
    engine.check(&image, &wishes).map_err(Failure::of_run)?;
    interrupts.end(unpack(engine, &image)).await??;
    let config = engine.create(&image, &wishes).map_err(Failure::of_run)?;
    let result = start_created(engine, &options, &config.id, &mut interrupts, began_ns).await;
    if result.is_err() && options.rm {
        discard(engine, &config.id).await;
    }
    result
}

/// Starts a sandbox that has just been made, and stays with it unless it is to run in the background.
async fn start_created(
    engine: &Engine,
    options: &Run,
    id: &SandboxId,
    interrupts: &mut Interrupts,
    began_ns: u64,
) -> Result<i32, Failure> {
    let wanted = StartOptions {
        attach: !options.detach,
        discard: true,
    };
    let session = match interrupts.end(boot(engine, id, wanted)).await {
        Ok(session) => session.map_err(Failure::of_run)?,
        Err(interrupted) => {
            discard(engine, id).await;
            return Err(interrupted);
        }
    };
    if options.detach {
        print(&format!("{id}\n"))?;
        return Ok(0);
    }
    let exit = foreground::attach(engine, id, session, options.interactive).await?;
    if options.rm {
        // Its supervisor has done so, unless it was killed.
        discard(engine, id).await;
    }
    if options.timing {
        print_timing(&exit.timing, began_ns);
    }
    Ok(finish(exit.code, exit.error))
}

/// `brig start`.
pub async fn start(engine: &Engine, options: &Start) -> Result<i32, Failure> {
    let references = &options.sandboxes.sandboxes;
    if options.attach && references.len() > 1 {
        return Err(Failure::usage(
            "with -a only one sandbox can be started at a time".to_owned(),
        ));
    }
    let mut failed = false;
    for reference in references {
        match start_one(engine, reference, options.attach).await {
            Ok(Some(code)) => return Ok(code),
            Ok(None) => print(&format!("{reference}\n"))?,
            Err(failure) if options.attach => return Err(failure),
            Err(failure) => {
                failure.report();
                failed = true;
            }
        }
    }
    if failed { Err(Failure::reported()) } else { Ok(0) }
}

/// Starts a sandbox; attached, its exit code.
async fn start_one(engine: &Engine, reference: &str, attach: bool) -> Result<Option<i32>, Failure> {
    let sandbox = engine.find(reference)?;
    if sandbox.is_running() && !attach {
        // As with Docker that is no error.
        return Ok(None);
    }
    let id = sandbox.id();
    let wanted = StartOptions {
        attach,
        discard: false,
    };
    let session = Interrupts::new()?.end(boot(engine, id, wanted)).await?;
    let session = session.map_err(|e| if attach { Failure::of_run(e) } else { e.into() })?;
    if !attach {
        return Ok(None);
    }
    let exit = foreground::attach(engine, id, session, sandbox.config.stdin).await?;
    Ok(Some(finish(exit.code, exit.error)))
}

/// Boots the guest and waits until the process runs.
async fn boot(engine: &Engine, id: &SandboxId, options: StartOptions) -> Result<Session, Error> {
    let step = Step::spinner(BOOTING);
    let mut session = engine.start(id, options).await?;
    session.output.started().await?;
    drop(step);
    Ok(session)
}

async fn unpack(engine: &Engine, image: &Image) -> Result<(), Failure> {
    if engine.images().unpacked(image)?.is_some() {
        return Ok(());
    }
    let step = Step::bytes("Unpacking the image in a guest", false);
    let mut total = None;
    let unpacked = engine
        .unpack(image, &mut |progress| {
            total = Some(progress.total);
            step.advance(progress.bytes, total);
        })
        .await;
    unpacked.map_err(Failure::of_run)?;
    step.finish(total);
    Ok(())
}

/// Removes a sandbox that nothing ran in.
async fn discard(engine: &Engine, id: &SandboxId) {
    // Its supervisor may have done so already.
    let _ = engine.remove(id.as_str(), true).await;
}

/// The signals that ask a command to end, noticed from the moment that this is made.
struct Interrupts {
    interrupt: Signals,
    terminate: Signals,
    hangup: Signals,
}

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Does `work`, or drops it when a signal has come since the last time.
    async fn end<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Err(Failure::interrupted()),
            _ = self.terminate.recv() => Err(Failure::interrupted()),
            _ = self.hangup.recv() => Err(Failure::interrupted()),
            done = work => Ok(done),
        }
    }
}

/// The exit code, after a line about what brig or the guest has to say about the end.
fn finish(code: i32, error: Option<String>) -> i32 {
    if let Some(error) = error {
        eprintln!("brig: {error}");
    }
    code
}

fn print_timing(timing: &Timing, began_ns: u64) {
    eprint!("{}", timing::render(timing, began_ns, monotonic_ns()));
}

/// The arguments as the engine takes them.
fn wishes(options: &Run) -> Result<CreateOptions, Failure> {
    let ports: Vec<_> = options.publish.iter().flat_map(|ports| ports.0.clone()).collect();
    if ports.len() > PORTS_MAX {
        return Err(Failure::of_run(PortError::TooMany.into()));
    }
    Ok(CreateOptions {
        image: options.image().to_owned(),
        command: options.command().to_vec(),
        entrypoint: options.entrypoint.clone(),
        name: options.name.clone(),
        env: environment(&options.env),
        working_dir: options.workdir.clone(),
        user: options.user.clone(),
        hostname: options.hostname.clone(),
        memory: options.memory,
        cpus: options.cpus,
        ports,
        stop_signal: options.stop_signal,
        auto_remove: options.rm,
        stdin: options.interactive,
        labels: labels(&options.label),
    })
}

/// `NAME` alone takes the value that brig itself has, and stands for nothing when it has none.
fn environment(entries: &[String]) -> Vec<String> {
    let with_value = |entry: &String| {
        if entry.contains('=') || entry.is_empty() {
            return Some(entry.clone());
        }
        std::env::var_os(entry).map(|value| format!("{entry}={}", value.to_string_lossy()))
    };
    entries.iter().filter_map(with_value).collect()
}

fn labels(entries: &[String]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_without_a_value_is_brigs_own() {
        let path = std::env::var("PATH").unwrap();
        let entries = ["A=1", "PATH", "NO_SUCH_VARIABLE_HERE"].map(String::from);
        assert_eq!(environment(&entries), ["A=1".to_owned(), format!("PATH={path}")]);
    }

    #[test]
    fn a_label_may_have_no_value() {
        let labels = labels(&["a=b=c", "d"].map(String::from));
        assert_eq!(
            labels.into_iter().collect::<Vec<_>>(),
            [("a".into(), "b=c".into()), ("d".into(), String::new())]
        );
    }
}
