//! The commands.

mod compare;
mod config;
mod copy;
mod create;
mod described;
mod events;
mod exec;
mod fork;
mod images;
mod life;
mod list;
mod logs;
mod manual;
mod pack;
mod ps;
pub mod registry;
mod restart;
mod run;
mod snapshot;
mod stats;
mod system;
mod template;
mod top;
mod volume;

use std::{
    fmt::Display,
    io::{self, Write},
};

use brig_engine::{Engine, Paths};

use crate::{
    arguments::{Command, Container},
    failure::Failure,
};

/// Carries a command out and gives its exit code.
pub async fn dispatch(command: Command, began_ns: u64) -> Result<i32, Failure> {
    if let Command::Version(options) = &command {
        return system::version(options);
    }
    let running = matches!(command, Command::Run(_));
    let open = || Engine::open(Paths::from_environment()?);
    let engine = open().map_err(|e| if running { Failure::of_run(e) } else { e.into() })?;
    match command {
        Command::Run(options) => run::run(&engine, *options, began_ns).await,
        Command::Create(options) => create::create(&engine, *options).await,
        Command::Ps(options) => ps::ps(&engine, &options),
        Command::Rename(options) => restart::rename(&engine, &options),
        Command::Restart(options) => restart::restart(&engine, &options).await,
        Command::Completion(options) => manual::completion(&options),
        Command::Manual(options) => manual::pages(&engine, &options),
        Command::Port(options) => list::port(&engine, &options),
        Command::Inspect(options) => list::inspect(&engine, &options),
        Command::Stop(options) => life::stop(&engine, &options).await,
        Command::Update(options) => life::update(&engine, &options),
        Command::Start(options) => run::start(&engine, &options).await,
        Command::Exec(options) => exec::exec(&engine, &options).await,
        Command::Attach(options) => exec::attach(&engine, &options).await,
        Command::Rm(options) => life::remove(&engine, &options).await,
        Command::Wait(options) => life::wait(&engine, &options).await,
        Command::Pause(options) => life::pause(&engine, &options, true).await,
        Command::Unpause(options) => life::pause(&engine, &options, false).await,
        Command::Kill(options) => life::kill(&engine, &options).await,
        Command::Logs(options) => logs::logs(&engine, &options).await,
        Command::Stats(options) => stats::stats(&engine, &options).await,
        Command::Top(options) => top::top(&engine, &options).await,
        Command::Events(options) => events::events(&engine, &options).await,
        Command::Images(options) => images::list::list(&engine, &options),
        Command::Rmi(options) => images::remove::remove(&engine, &options),
        Command::Tag(options) => images::remove::tag(&engine, &options),
        Command::Load(options) => images::transfer::load(&engine, &options),
        Command::Save(options) => images::transfer::save(&engine, &options),
        Command::Import(options) => images::transfer::import(&engine, &options),
        Command::History(options) => images::show::history(&engine, &options),
        Command::Cp(options) => copy::copy(&engine, &options).await,
        Command::Export(options) => pack::export(&engine, &options).await,
        Command::Commit(options) => pack::commit(&engine, &options).await,
        Command::Diff(options) => pack::diff(&engine, &options).await,
        Command::Image(command) => images::dispatch(&engine, command),
        Command::Snapshot(command) => snapshot::dispatch(&engine, command).await,
        Command::Volume(command) => volume::dispatch(&engine, &command),
        Command::Fork(options) => fork::fork(engine, &options).await,
        Command::Template(command) => template::dispatch(&engine, command).await,
        Command::System(command) => system::dispatch(&engine, &command).await,
        Command::Registry(command) => Err(registry::hand_over(&engine, command)),
        Command::Config(command) => config::dispatch(&engine, &command),
        Command::Compare(options) => compare::compare(&engine, &options).await,
        Command::Info(options) => system::info(&engine, &options).await,
        Command::Version(options) => system::version(&options),
        Command::Container(Container::Prune(options)) => life::prune(&engine, &options).await,
        // `Arguments::of` has put others in their places.
        Command::Container(other) => Box::pin(dispatch(other.short(), began_ns)).await,
        Command::Help(_) => Ok(0),
    }
}

/// Prints to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Prints lines to standard output.
fn print_lines<L: Display>(lines: impl IntoIterator<Item = L>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    for line in lines {
        writeln!(stdout, "{line}")?;
    }
    stdout.flush()?;
    Ok(())
}
