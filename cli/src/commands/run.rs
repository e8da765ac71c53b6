//! `run` and `start`.

use std::{collections::BTreeMap, fs};

use brig_engine::{
    CreateOptions, Engine, Error, Isolation, SandboxId,
    clock::{Timing, monotonic_ns},
    control::WindowSize,
    engine::{Session, SnapshotOptions, StartOptions, Summoned},
    error::chain,
    port::{PORTS_MAX, PortError, PublishedPort},
    sandbox::{Config, health::HealthOptions},
    template::{self, Ensured, Shape},
    unpack::{self, Report},
};
use brig_image_store::Image;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::{exec::check_input, print, registry};
use crate::{
    arguments::{Run, Start as StartArguments, TimingDetail},
    cidfile::CidFile,
    env_file,
    failure::Failure,
    foreground::{self, Ending, Stay},
    progress::Step,
    terminal,
    timing::{self, HostCosts},
};

/// What the spinner says while a guest starts.
const STARTING: &str = "Starting the guest";

/// What a user is told who waits for a template.
const MAKING: &str = "Making a template of a started guest: this is done once for each size of guest";

/// `brig run`.
pub async fn run(engine: &Engine, options: Run, began_ns: u64) -> Result<i32, Failure> {
    check_input(options.interactive && !options.detach, options.tty)?;
    let cidfile = options.cidfile.as_deref().map(CidFile::create).transpose()?;
    let mut interrupts = Interrupts::new()?;
    let isolation = isolation(&options)?;
    // There is no guest that could be a template's.
    let cold = options.no_template || isolation == Isolation::Container || template::switched_off();
    let count = options.timing == Some(TimingDetail::Full);
    let host_costs = count.then(HostCosts::start);
    // It gets ready while everything else is looked up.
    let templated = !cold && options.snapshot.is_none();
    let shape = templated.then(|| Shape::new(options.cpus, options.memory));
    let supervisor = SandboxId::random().and_then(|id| match isolation {
        Isolation::Vm => engine.summon(&id, shape),
        Isolation::Container => engine.summon_cell(&id),
    });
    let supervisor = supervisor.map_err(Failure::of_run)?;
    let id = supervisor.id().clone();
    let (config, made) = match &options.snapshot {
        Some(snapshot) => (
            from_snapshot(engine, &options, id, snapshot, &mut interrupts).await?,
            Made::default(),
        ),
        None => from_image(engine, &options, isolation, id, cold, &mut interrupts).await?,
    };
    if let Some(file) = cidfile {
        file.write(&config.id)?;
    }
    let start = Start {
        engine,
        options: &options,
        id: &config.id,
        supervisor,
        stdin: config.stdin && options.interactive,
        tty: config.tty,
        cold,
        made,
        host_costs,
        began_ns,
    };
    let result = start_created(start, &mut interrupts).await;
    if result.is_err() && options.rm {
        discard(engine, &config.id).await;
    }
    result
}

/// What was made for a start, and will be there for the next ones.
#[derive(Clone, Copy, Default)]
struct Made {
    /// When the template was ready.
    template_ns: Option<u64>,
    /// How the image was unpacked.
    image: Option<unpack::Timing>,
}

/// Makes a sandbox of an image, and tells what else was made for it.
async fn from_image(
    engine: &Engine,
    options: &Run,
    isolation: Isolation,
    id: SandboxId,
    cold: bool,
    interrupts: &mut Interrupts,
) -> Result<(Config, Made), Failure> {
    let wishes = wishes(options)?;
    let image = interrupts.end(registry::image(engine, options)).await??;
    // What is wrong with the options is told before the image is unpacked, which takes long.
    let draft = engine.draft(&image, &wishes).map_err(Failure::of_run)?;
    let unpacking = unpack::Options {
        cold,
        max_size: options.max_image_size,
    };
    let unpacked = interrupts
        .end(unpack_image(engine, &image, isolation, unpacking))
        .await??;
    let shape = Shape::new(options.cpus, options.memory);
    let template_ns = interrupts.end(template_for(engine, shape, cold)).await?.told();
    let config = engine.create(id, draft).map_err(Failure::of_run)?;
    let made = Made {
        template_ns,
        image: unpacked,
    };
    Ok((config, made))
}

/// What the user wants the sandbox to be walled off by. A snapshot is a guest's.
fn isolation(options: &Run) -> Result<Isolation, Failure> {
    match options.isolation {
        Some(isolation) => Ok(isolation),
        None if options.snapshot.is_some() => Ok(Isolation::Vm),
        None => Isolation::from_environment().map_err(Failure::of_run),
    }
}

/// Makes a sandbox that goes on from a snapshot.
async fn from_snapshot(
    engine: &Engine,
    options: &Run,
    id: SandboxId,
    snapshot: &str,
    interrupts: &mut Interrupts,
) -> Result<Config, Failure> {
    let wishes = SnapshotOptions {
        name: options.name.clone(),
        hostname: options.hostname.clone(),
        ports: ports(options)?,
        stop_signal: options.stop_signal,
        auto_remove: options.rm,
        labels: all_labels(options)?,
    };
    let image = engine.image_of_snapshot(snapshot).map_err(Failure::of_run)?;
    let unpacking = unpack::Options {
        cold: template::switched_off(),
        max_size: options.max_image_size,
    };
    interrupts
        .end(unpack_image(engine, &image, Isolation::Vm, unpacking))
        .await??;
    engine
        .create_from_snapshot(id, snapshot, &wishes)
        .map_err(Failure::of_run)
}

/// The start of a sandbox that has just been made.
struct Start<'a> {
    engine: &'a Engine,
    options: &'a Run,
    id: &'a SandboxId,
    /// It waits for its word.
    supervisor: Summoned,
    /// Whether standard input is passed on.
    stdin: bool,
    /// Whether the process has a terminal.
    tty: bool,
    cold: bool,
    made: Made,
    /// What it costs the host, when that is wanted.
    host_costs: Option<HostCosts>,
    began_ns: u64,
}

/// Starts a sandbox that has just been made, and stays with it unless it is to run in the background.
async fn start_created(start: Start<'_>, interrupts: &mut Interrupts) -> Result<i32, Failure> {
    let Start {
        engine,
        options,
        id,
        supervisor,
        stdin,
        tty,
        cold,
        made,
        mut host_costs,
        began_ns,
    } = start;
    let wanted = StartOptions {
        attach: !options.detach,
        discard: true,
        cold,
        count: host_costs.is_some(),
        size: terminal_size(tty && !options.detach),
    };
    let session = match interrupts.end(launch(supervisor.start(wanted))).await {
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
    if let Some(costs) = &mut host_costs {
        costs.reached("process exec");
    }
    let stay = Stay {
        stdin,
        tty,
        signals: options.sig_proxy,
        keys: options.detach_keys.clone().unwrap_or_default(),
    };
    let exit = match foreground::stay(engine, id, session, stay).await? {
        Ending::Exited(exit) => exit,
        Ending::Ended(code) => return Ok(code),
        Ending::Detached => return Ok(0),
    };
    if options.rm {
        // Its supervisor has done so, unless it was killed.
        discard(engine, id).await;
    }
    if options.timing.is_some() {
        let timing = Timing {
            template_ns: made.template_ns,
            ..exit.timing
        };
        print_timing(&timing, made.image.as_ref(), host_costs, began_ns);
    }
    Ok(finish(exit.code, exit.error))
}

/// `brig start`.
pub async fn start(engine: &Engine, options: &StartArguments) -> Result<i32, Failure> {
    let references = &options.sandboxes.sandboxes;
    if (options.attach || options.interactive) && references.len() > 1 {
        return Err(Failure::usage(
            "with -a or -i only one sandbox can be started at a time".to_owned(),
        ));
    }
    let mut failed = false;
    for reference in references {
        match start_one(engine, reference, options).await {
            Ok(Some(code)) => return Ok(code),
            Ok(None) => print(&format!("{reference}\n"))?,
            Err(failure) if options.attach || options.interactive => return Err(failure),
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
    let attach = options.attach || options.interactive;
    let sandbox = engine.find(reference)?;
    let config = &sandbox.config;
    let stay = Stay {
        stdin: config.stdin && options.interactive,
        tty: config.tty,
        signals: options.sig_proxy,
        keys: options.detach_keys.clone().unwrap_or_default(),
    };
    check_input(stay.stdin, stay.tty)?;
    let id = sandbox.id();
    if sandbox.is_running() {
        // As with Docker that is no error.
        if !attach {
            return Ok(None);
        }
        let session = engine.attach(reference).await?;
        return Ok(Some(shown(engine, id, session, stay).await?));
    }
    let cold = options.no_template || template::switched_off();
    let mut interrupts = Interrupts::new()?;
    let shape = Shape::of(&sandbox.config);
    let in_container = sandbox.config.isolation == Isolation::Container;
    interrupts
        .end(template_for(
            engine,
            shape,
            cold || sandbox.config.no_template || in_container,
        ))
        .await?
        .told();
    let wanted = StartOptions {
        attach,
        discard: false,
        cold,
        count: false,
        size: terminal_size(attach && config.tty),
    };
    let session = interrupts.end(launch(engine.start(id, wanted))).await?;
    let session = session.map_err(|e| if attach { Failure::of_run(e) } else { e.into() })?;
    if !attach {
        return Ok(None);
    }
    Ok(Some(shown(engine, id, session, stay).await?))
}

/// Stays with a sandbox, and gives the exit code of the command.
async fn shown(engine: &Engine, id: &SandboxId, session: Session, stay: Stay) -> Result<i32, Failure> {
    match foreground::stay(engine, id, session, stay).await? {
        Ending::Exited(exit) => Ok(finish(exit.code, exit.error)),
        Ending::Ended(code) => Ok(code),
        Ending::Detached => Ok(0),
    }
}

/// The size of this command's terminal, when the process is to have one that is seen on it.
fn terminal_size(wanted: bool) -> Option<WindowSize> {
    wanted.then(terminal::size).flatten()
}

/// Starts the guest and waits until the process runs.
async fn launch(session: impl Future<Output = Result<Session, Error>>) -> Result<Session, Error> {
    let step = Step::spinner(STARTING);
    let mut session = session.await?;
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

async fn unpack_image(
    engine: &Engine,
    image: &Image,
    isolation: Isolation,
    options: unpack::Options,
) -> Result<Option<unpack::Timing>, Failure> {
    if engine.is_unpacked(image, isolation).map_err(Failure::of_run)? {
        return Ok(None);
    }
    let cold = options.cold || isolation == Isolation::Container;
    let template = template_for(engine, Shape::unpack(), cold).await;
    let step = Step::bytes(
        match isolation {
            Isolation::Vm => "Unpacking the image in a guest",
            Isolation::Container => "Unpacking the image",
        },
        false,
    );
    let mut all = None;
    let mut report = |report| match report {
        Report::Progress { bytes, total } => {
            all = Some(total);
            step.advance(bytes, all);
        }
        Report::Notice(notice) => step.note(&notice),
    };
    let unpacked = match isolation {
        Isolation::Vm => engine.unpack(image, options, &mut report).await,
        Isolation::Container => engine.unpack_directory(image, options, &mut report).await,
    };
    // One line is enough when what kept the template from being made keeps the image from being unpacked.
    let timing = unpacked.map_err(Failure::of_run)?;
    step.finish(all);
    template.told();
    Ok(timing)
}

/// Removes a sandbox that nothing ran in.
pub(super) async fn discard(engine: &Engine, id: &SandboxId) {
    // Its supervisor may have done so already.
    let _ = engine.remove(id.as_str(), true).await;
}

/// The signals that ask a command to end, noticed from the moment that this is made.
pub(super) struct Interrupts {
    interrupt: Signals,
    terminate: Signals,
    hangup: Signals,
}

impl Interrupts {
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Does `work`, or drops it when a signal has come since the last time.
    pub(super) async fn end<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
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
pub(super) fn finish(code: i32, error: Option<String>) -> i32 {
    if let Some(error) = error {
        eprintln!("brig: {error}");
    }
    code
}

fn print_timing(timing: &Timing, image: Option<&unpack::Timing>, mut host: Option<HostCosts>, began_ns: u64) {
    let cleaned_ns = monotonic_ns();
    if let Some(costs) = &mut host {
        costs.reached("cleaned up");
    }
    let unpacked_ns = image.map(|image| image.done_ns);
    let moments = timing::Moments {
        request_ns: began_ns,
        unpacked_ns,
        cleaned_ns,
    };
    eprint!("{}", timing::render(timing, host.as_ref(), moments));
    if let Some(image) = image {
        eprint!("\n{}", timing::render_unpack(image));
    }
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
    let mut env = env_file::read(&options.env_file)?;
    env.extend(options.env.iter().cloned());
    Ok(CreateOptions {
        isolation: isolation(options)?,
        pids: options.pids_limit,
        image: options.image().to_owned(),
        command: options.command().to_vec(),
        entrypoint: options.entrypoint.clone(),
        name: options.name.clone(),
        env: environment(&env),
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
        // As Docker's command line has it.
        stdin_once: options.interactive && !options.detach,
        tty: options.tty,
        health: HealthOptions {
            none: options.no_healthcheck,
            command: options.health_cmd.clone(),
            interval: options.health_interval,
            timeout: options.health_timeout,
            start_period: options.health_start_period,
            start_interval: options.health_start_interval,
            retries: options.health_retries,
        },
        publish_all: options.publish_all,
        labels: all_labels(options)?,
    })
}

/// `NAME` alone takes the value that brig itself has, and stands for nothing when it has none.
pub(super) fn environment(entries: &[String]) -> Vec<String> {
    let with_value = |entry: &String| {
        if entry.contains('=') || entry.is_empty() {
            return Some(entry.clone());
        }
        std::env::var_os(entry).map(|value| format!("{entry}={}", value.to_string_lossy()))
    };
    entries.iter().filter_map(with_value).collect()
}

/// Those of files, then those of the command line, which win.
fn all_labels(options: &Run) -> Result<BTreeMap<String, String>, Failure> {
    let mut entries = Vec::new();
    for path in &options.label_file {
        let text = fs::read_to_string(path)
            .map_err(|e| Failure::usage(format!("cannot read {}: {e}", path.display())))?;
        let lines = text.lines().map(str::trim_start);
        let said = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        entries.extend(said.map(str::to_owned));
    }
    entries.extend(options.label.iter().cloned());
    Ok(labels(&entries))
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
