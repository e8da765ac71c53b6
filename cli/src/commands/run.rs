//! `run` and `start`; [`super::create`] makes the sandbox.

use brig_engine::{
    Engine, Error, Isolation, SandboxId,
    clock::{Timing, monotonic_ns},
    control::WindowSize,
    engine::{Session, StartOptions, Summoned},
    error::chain,
    sandbox::Status,
    template::{self, Ensured, Shape},
    unpack::{self, Report},
};
use brig_image_store::Image;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::{
    create::{self, Wanted},
    exec::check_input,
    print,
};
use crate::{
    arguments::{Run, Start as StartArguments, TimingDetail},
    cidfile::CidFile,
    failure::Failure,
    foreground::{self, Ending, Stay},
    progress::Step,
    terminal,
    timing::{self, HostCosts},
};

/// What the spinner says while a sandbox starts.
fn starting(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Vm => "Starting the guest",
        Isolation::Container => "Starting the container",
    }
}

/// What a user is told who waits for a template.
const MAKING: &str = "Making a template of a started guest: this is done once for each size of guest";

/// `brig run`.
pub async fn run(engine: &Engine, mut options: Run, began_ns: u64) -> Result<i32, Failure> {
    check_input(options.create.interactive && !options.detach, options.create.tty)?;
    let cidfile = options
        .create
        .cidfile
        .as_deref()
        .map(CidFile::create)
        .transpose()?;
    let mut interrupts = Interrupts::new()?;
    let isolation = create::settle(engine, &mut options.create)?;
    let making = &options.create;
    let wanted = Wanted::new(making, options.detach)?;
    // There is no guest that could be a template's.
    let cold = making.no_template || isolation == Isolation::Container || template::switched_off();
    let count = options.timing == Some(TimingDetail::Full);
    let host_costs = count.then(HostCosts::start);
    // It gets ready while everything else is looked up.
    let templated = !cold && making.snapshot.is_none();
    let shape = Shape::new(making.cpus, making.memory);
    let supervisor = SandboxId::random().and_then(|id| match isolation {
        Isolation::Vm => engine.summon(&id, templated.then_some(shape)),
        Isolation::Container => engine.summon_cell(&id),
    });
    let supervisor = supervisor.map_err(Failure::of_run)?;
    let id = supervisor.id().clone();
    let (prepared, unpacked) = wanted.prepare(engine, making, cold, &mut interrupts).await?;
    let template = interrupts.end(template_for(engine, shape, !templated)).await?;
    let made = Made {
        template_ns: template.told(),
        image: unpacked,
    };
    let config = prepared.make(engine, id)?;
    if let Some(file) = cidfile {
        file.write(&config.id)?;
    }
    let start = Start {
        engine,
        options: &options,
        id: &config.id,
        isolation,
        supervisor,
        stdin: config.stdin && making.interactive,
        tty: config.tty,
        cold,
        made,
        host_costs,
        began_ns,
    };
    let result = start_created(start, &mut interrupts).await;
    if result.is_err() && making.rm {
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

/// The start of a sandbox that has just been made.
struct Start<'a> {
    engine: &'a Engine,
    options: &'a Run,
    id: &'a SandboxId,
    isolation: Isolation,
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
        isolation,
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
    let session = match interrupts.end(launch(isolation, supervisor.start(wanted))).await {
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
        Ending::Ended { code, .. } => return Ok(code),
        Ending::Detached => return Ok(0),
    };
    if options.create.rm {
        // Its supervisor has done so, unless it was killed.
        discard(engine, id).await;
    }
    if let Some(detail) = options.timing {
        let timing = Timing {
            template_ns: made.template_ns,
            ..exit.timing
        };
        print_timing(&timing, made.image.as_ref(), host_costs, began_ns, detail);
    }
    Ok(finish(exit.code, exit.error))
}

/// `brig start`.
pub async fn start(engine: &Engine, options: &StartArguments) -> Result<i32, Failure> {
    let wanted: Vec<String>;
    let references = if options.restart_policy {
        let sandboxes = engine.wanted_after_boot()?;
        wanted = sandboxes
            .iter()
            .map(|sandbox| sandbox.config.name.clone())
            .collect();
        &wanted
    } else {
        &options.sandboxes
    };
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
    if sandbox.is_running() || sandbox.state.status == Status::Restarting && !attach {
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
    let session = interrupts
        .end(launch(config.isolation, engine.start(id, wanted)))
        .await?;
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
        Ending::Ended { code, .. } => Ok(code),
        Ending::Detached => Ok(0),
    }
}

/// The size of this command's terminal, when the process is to have one that is seen on it.
fn terminal_size(wanted: bool) -> Option<WindowSize> {
    wanted.then(terminal::size).flatten()
}

/// Starts a sandbox and waits until its process runs.
async fn launch(
    isolation: Isolation,
    session: impl Future<Output = Result<Session, Error>>,
) -> Result<Session, Error> {
    let step = Step::spinner(starting(isolation));
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
        (Err(Error::Vmm(e)), _) if e.is_of_host() => Tried::default(),
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

/// Unpacks an image that has not been yet, and shows how far it is.
pub(super) async fn unpack_image(
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

fn print_timing(
    timing: &Timing,
    image: Option<&unpack::Timing>,
    mut host: Option<HostCosts>,
    began_ns: u64,
    detail: TimingDetail,
) {
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
    if detail == TimingDetail::Json {
        eprintln!("{}", timing::json(timing, moments));
        return;
    }
    eprint!("{}", timing::render(timing, host.as_ref(), moments));
    if let Some(image) = image {
        eprint!("\n{}", timing::render_unpack(image));
    }
}
