//! The commands.

mod login;
mod pull;
mod push;
mod search;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use brig_image_store::{Store, journal::Journal};
use brig_registry::{
    Config, Http,
    credentials::{CredentialFile, Credentials},
    pull::Registries,
};
use clap::CommandFactory;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    arguments::{Arguments, Command, Connection},
    confine,
};

/// Carries a command out.
pub fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Pull(options) => pull::pull(&options),
        Command::Push(options) => push::push(&options),
        Command::Login(options) => login::login(&options),
        Command::Logout(options) => login::logout(&options),
        Command::Search(options) => search::search(&options),
        Command::Manual(options) => pages(&options.directory),
    }
}

/// Writes the manual pages of these commands; those of the others are `brig`'s.
fn pages(directory: &Path) -> anyhow::Result<()> {
    let mut all = Arguments::command();
    all.build();
    for command in all.get_subcommands().filter(|command| !command.is_hide_set()) {
        let page = clap_mangen::Man::new(command.clone());
        let path = directory.join(page.get_filename());
        let wrote = fs::File::create(&path).and_then(|mut file| page.render(&mut file));
        wrote.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The directory with everything of brig's, which `brig` has resolved.
fn root() -> anyhow::Result<PathBuf> {
    match env::var_os("BRIG_ROOT").filter(|root| !root.is_empty()) {
        Some(root) => Ok(root.into()),
        None => bail!("BRIG_ROOT is not set: this program is started by brig"),
    }
}

/// The images, and who is told what happens to them.
fn store() -> anyhow::Result<Store> {
    let root = root()?;
    Ok(Store::open(&root.join("images"))?.telling(Journal::of_root(&root)))
}

/// The configuration of registries.
fn config(connection: &Connection) -> anyhow::Result<Config> {
    let own = root()?.join("registries.toml");
    let mut config = Config::load(&[PathBuf::from("/etc/brig/registries.toml"), own])?;
    // Docker without root has its own ones.
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let user = env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty());
    let user = user
        .map(PathBuf::from)
        .or(home)
        .map(|path| path.join("docker/certs.d"));
    config.certificates.extend(user);
    config.certificates.push(root()?.join("certs.d"));
    for host in &connection.insecure_registry {
        config.allow_insecure(host);
    }
    Ok(config)
}

/// What is needed to speak to `host`. Helpers that know passwords run before this process gives up its rights; then it
/// does.
fn registries(connection: &Connection, host: &str) -> anyhow::Result<Registries> {
    let config = config(connection)?;
    let file = CredentialFile::open()?;
    let mut hosts = vec![host.to_owned()];
    let mirrors = config.registry(host).mirrors;
    hosts.extend(mirrors.iter().filter_map(|mirror| mirror_host(mirror)));
    let mut credentials = Credentials::new();
    for host in hosts {
        if let Some(credential) = file.get(&host)? {
            credentials.insert(host, credential);
        }
    }
    confine::confine(&root()?, &config);
    Ok(Registries {
        http: Arc::new(Http::new(Arc::new(config))),
        credentials,
    })
}

/// Host, and port where one is named, of a mirror's address.
fn mirror_host(mirror: &str) -> Option<String> {
    let rest = mirror.split_once("://")?.1;
    rest.split('/').next().map(str::to_owned)
}

/// How long an interrupted command may take to write down what it has got.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// A signal has ended the command before it was done.
#[derive(Debug, thiserror::Error)]
#[error("interrupted{then}")]
pub struct Interrupted {
    /// The signal's number (signal(7)).
    pub signal: i32,
    /// What is left of what was done, for the user.
    then: &'static str,
}

/// Runs `work` on a runtime of its own, until it is done or a signal comes. `then` is what a user is told in that case.
fn block_on<T>(then: &'static str, work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let result = runtime.block_on(async {
        tokio::select! {
            signal = interrupt() => Err(Interrupted { signal: signal?, then }.into()),
            result = work => Ok(result),
        }
    });
    if result.is_err() {
        // What has come is on its way to the disk.
        runtime.shutdown_timeout(LAST_WRITES);
    } else {
        // A thread that waits for another process's download need not be waited for.
        runtime.shutdown_background();
    }
    result
}

/// Waits for a signal that asks this process to end.
async fn interrupt() -> anyhow::Result<i32> {
    let take = |kind| signal(kind).context("cannot take signals");
    let mut interrupts = take(SignalKind::interrupt())?;
    let mut terminations = take(SignalKind::terminate())?;
    let mut hangups = take(SignalKind::hangup())?;
    let kind = tokio::select! {
        _ = interrupts.recv() => SignalKind::interrupt(),
        _ = terminations.recv() => SignalKind::terminate(),
        _ = hangups.recv() => SignalKind::hangup(),
    };
    Ok(kind.as_raw_value())
}
