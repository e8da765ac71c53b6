//! `run`, `start` and `fork`.

use std::collections::BTreeMap;

use brig_engine::{
    CreateOptions, Engine, Error, SandboxId,
    clock::{Timing, monotonic_ns},
    engine::{Session, SnapshotOptions, StartOptions},
    error::chain,
    port::{PORTS_MAX, PortError, PublishedPort},
    sandbox::Config,
    template::{self, Ensured, Shape},
    unpack::Report,
};
use brig_image_store::Image;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::print;
use crate::{
    arguments::{Fork, Run, Start as StartArguments, TimingDetail},
    failure::Failure,
    foreground,
    progress::Step,
    timing,
};

/// What the spinner says while a guest starts.
const STARTING: &str = "Starting the guest";

/// What a user is told who waits for a template.
const MAKING: &str = "Making a template of a started guest: this is done once for each size of guest";

/// `brig run`.
pub async fn run(engine: &Engine, options: Run, began_ns: u64) -> Result<i32, Failure> {
    let mut interrupts = Interrupts::new()?;
    let cold = options.no_template || template::switched_off();
    let (config, template_ns) = match &options.snapshot {
        Some(snapshot) => (
            from_snapshot(engine, &options, snapshot, &mut interrupts).await?,
            None,
        ),
        None => from_image(engine, &options, cold, &mut interrupts).await?,
    };
    let start = Start {
        engine,
        options: &options,
        id: &config.id,
        stdin: config.stdin && options.interactive,
        cold,
        template_ns,
        began_ns,
    };
    let result = start_created(start, &mut interrupts).await;
    if result.is_err() && options.rm {
        discard(engine, &config.id).await;
    }
    result
}

/// Makes a sandbox of an image, and tells when a template was made for it.
async fn from_image(
    engine: &Engine,
    options: &Run,
    cold: bool,
    interrupts: &mut Interrupts,
) -> Result<(Config, Option<u64>), Failure> {
    let wishes = wishes(options)?;
    let image = engine.find_image(options.image()).map_err(Failure::of_run)?;
    // What is wrong with the options is told before the image is unpacked, which takes long.
    engine.check(&image, &wishes).map_err(Failure::of_run)?;
    interrupts.end(unpack_image(engine, &image, cold)).await??;
    let shape = Shape::new(options.cpus, options.memory);
    let template_ns = interrupts.end(template_for(engine, shape, cold)).await?.told();
    let config = engine.create(&image, &wishes).map_err(Failure::of_run)?;
    Ok((config, template_ns))
}

/// Makes a sandbox that goes on from a snapshot.
async fn from_snapshot(
    engine: &Engine,
    options: &Run,
    snapshot: &str,
    interrupts: &mut Interrupts,
) -> Result<Config, Failure> {
    let wishes = SnapshotOptions {
        name: options.name.clone(),
        hostname: options.hostname.clone(),
        ports: ports(options)?,
        stop_signal: options.stop_signal,
        auto_remove: options.rm,
        labels: labels(&options.label),
    };
    let image = engine.image_of_snapshot(snapshot).map_err(Failure::of_run)?;
    let cold = template::switched_off();
    interrupts.end(unpack_image(engine, &image, cold)).await??;
    engine
        .create_from_snapshot(snapshot, &wishes)
        .map_err(Failure::of_run)
}

/// `brig fork`: each copy's id is printed when it runs.
pub async fn fork(engine: &Engine, options: &Fork) -> Result<i32, Failure> {
    let mut interrupts = Interrupts::new()?;
    let saved = interrupts.end(engine.fork(&options.sandbox)).await??;
    let wishes = SnapshotOptions {
        auto_remove: options.rm,
        ..SnapshotOptions::default()
    };
    let wanted = StartOptions {
        attach: false,
        discard: true,
        cold: false,
        count: false,
    };
    for _ in 0..options.number {
        let config = engine.create_from_snapshot(&saved.name(), &wishes)?;
        match interrupts.end(launch(engine, &config.id, wanted)).await {
            Ok(Ok(_)) => print(&format!("{}\n", config.id))?,
            Ok(Err(e)) => {
                discard(engine, &config.id).await;
                return Err(e.into());
            }
            Err(interrupted) => {
                discard(engine, &config.id).await;
                return Err(interrupted);
            }
        }
    }
    Ok(0)
}

/// The start of a sandbox that has just been made.
struct Start<'a> {
    engine: &'a Engine,
    options: &'a Run,
    id: &'a SandboxId,
    /// Whether standard input is passed on.
    stdin: bool,
    cold: bool,
    /// When a template was made for it.
    template_ns: Option<u64>,
    began_ns: u64,
}

/// Starts a sandbox that has just been made, and stays with it unless it is to run in the background.
async fn start_created(start: Start<'_>, interrupts: &mut Interrupts) -> Result<i32, Failure> {
    let Start {
        engine, options, id, ..
    } = start;
    let wanted = StartOptions {
        attach: !options.detach,
        discard: true,
        cold: start.cold,
        count: options.timing == Some(TimingDetail::Full),
    };
    let session = match interrupts.end(launch(engine, id, wanted)).await {
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
    let exit = foreground::attach(engine, id, session, start.stdin).await?;
    if options.rm {
        // Its supervisor has done so, unless it was killed.
        discard(engine, id).await;
    }
    if options.timing.is_some() {
        let timing = Timing {
            template_ns: start.template_ns,
            ..exit.timing
        };
        print_timing(&timing, start.began_ns);
    }
    Ok(finish(exit.code, exit.error))
}

/// `brig start`.
pub async fn start(engine: &Engine, options: &StartArguments) -> Result<i32, Failure> {
    let references = &options.sandboxes.sandboxes;
    if options.attach && references.len() > 1 {
        return Err(Failure::usage(
            "with -a only one sandbox can be started at a time".to_owned(),
        ));
    }
    let mut failed = false;
    for reference in references {
        match start_one(engine, reference, options).await {
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
async fn start_one(
    engine: &Engine,
    reference: &str,
    options: &StartArguments,
) -> Result<Option<i32>, Failure> {
    let attach = options.attach;
    let sandbox = engine.find(reference)?;
    if sandbox.is_running() && !attach {
        // As with Docker that is no error.
        return Ok(None);
    }
    let id = sandbox.id();
    let cold = options.no_template || template::switched_off();
    let mut interrupts = Interrupts::new()?;
    let shape = Shape::of(&sandbox.config);
    interrupts
        .end(template_for(engine, shape, cold || sandbox.config.no_template))
        .await?
        .told();
    let wanted = StartOptions {
        attach,
        discard: false,
        cold,
        count: false,
    };
    let session = interrupts.end(launch(engine, id, wanted)).await?;
    let session = session.map_err(|e| if attach { Failure::of_run(e) } else { e.into() })?;
    if !attach {
        return Ok(None);
    }
    let exit = foreground::attach(engine, id, session, sandbox.config.stdin).await?;
    Ok(Some(finish(exit.code, exit.error)))
}

/// Starts the guest and waits until the process runs.
async fn launch(engine: &Engine, id: &SandboxId, options: StartOptions) -> Result<Session, Error> {
    let step = Step::spinner(STARTING);
    let mut session = engine.start(id, options).await?;
    session.output.started(&mut |notice| step.note(notice)).await?;
    drop(step);
    Ok(session)
}

/// Makes sure that there is a template, unless none is wanted, and tells when one was made. A guest boots without one.
async fn template_for(engine: &Engine, shape: Shape, cold: bool) -> Tried {
    if cold {
        return Tried::default();
    }
    let mut step = None;
    let ensured = engine
        .ensure_template(shape, false, &mut || step = Some(Step::unknown(MAKING)))
        .await;
    match (ensured, step) {
        (Ok(Ensured::Made(_)), step) => {
            if let Some(step) = step {
                step.finish(None);
            }
            Tried {
                made_ns: Some(monotonic_ns()),
                notice: None,
            }
        }
        // What is wrong with the host or the installation is told by the start, which needs the same.
        (Ok(_) | Err(Error::NoMke2fs | Error::OtherMke2fs(..)), _) => Tried::default(),
        (Err(e), step) if step.is_some() || matches!(e, Error::TemplateBytes(_)) => Tried {
            made_ns: None,
            notice: Some(format!("{}; the guest boots", chain(&e))),
        },
        // Nothing was tried.
        (Err(_), _) => Tried::default(),
    }
}

/// What came of looking for a template.
#[derive(Default)]
struct Tried {
    /// When one was made.
    made_ns: Option<u64>,
    /// Why there is none, for the user.
    notice: Option<String>,
}

impl Tried {
    /// Tells the user, and returns when a template was made.
    fn told(self) -> Option<u64> {
        if let Some(notice) = self.notice {
            eprintln!("brig: {notice}");
        }
        self.made_ns
    }
}

async fn unpack_image(engine: &Engine, image: &Image, cold: bool) -> Result<(), Failure> {
    if engine.images().unpacked(image)?.is_some() {
        return Ok(());
    }
    let template = template_for(engine, Shape::unpack(), cold).await;
    let step = Step::bytes("Unpacking the image in a guest", false);
    let mut all = None;
    let unpacked = engine
        .unpack(image, cold, &mut |report| match report {
            Report::Progress { bytes, total } => {
                all = Some(total);
                step.advance(bytes, all);
            }
            Report::Notice(notice) => step.note(&notice),
        })
        .await;
    // One line is enough when what kept the template from being made keeps the image from being unpacked.
    unpacked.map_err(Failure::of_run)?;
    step.finish(all);
    template.told();
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

fn ports(options: &Run) -> Result<Vec<PublishedPort>, Failure> {
    let ports: Vec<_> = options.publish.iter().flat_map(|ports| ports.0.clone()).collect();
    if ports.len() > PORTS_MAX {
        return Err(Failure::of_run(PortError::TooMany.into()));
    }
    Ok(ports)
}

/// The arguments as the engine takes them.
fn wishes(options: &Run) -> Result<CreateOptions, Failure> {
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
        ports: ports(options)?,
        stop_signal: options.stop_signal,
        auto_remove: options.rm,
        no_template: options.no_template,
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
