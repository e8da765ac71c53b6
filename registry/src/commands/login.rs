//! `login` and `logout`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    sync::Arc,
};

use anyhow::{Context, bail};
use brig_registry::{
    Http,
    config::DOCKER_HUB,
    credentials::{Credential, CredentialFile},
    session::Session,
};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::{block_on, config};
use crate::arguments::{Login, Logout};

/// Most bytes of a password from standard input.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// `brig login`.
pub fn login(options: &Login) -> anyhow::Result<()> {
    let host = host(options.server.as_deref());
    let mut file = CredentialFile::open()?;
    let config = config(&options.connection)?;
    let (user, password) = name_and_password(options)?;
    if user.is_empty() || password.is_empty() {
        bail!("a name and a password are needed to log in to {host}");
    }
    let credential = Credential::Password { user, password };
    let http = Arc::new(Http::new(Arc::new(config)));
    let session = Session::of_registry(http, &host, Some(credential.clone()))?;
    let lasting = block_on("", session.log_in())??;
    let plain = file.set(&host, &lasting.unwrap_or(credential))?;
    if plain {
        eprintln!(
            "WARNING! Your password will be stored unencrypted in {}.\nConfigure a credential helper to remove this warning.",
            file.path().display()
        );
    }
    println!("Login Succeeded");
    Ok(())
}

/// `brig logout`.
pub fn logout(options: &Logout) -> anyhow::Result<()> {
    let host = host(options.server.as_deref());
    if CredentialFile::open()?.remove(&host)? {
        println!("Removing login credentials for {host}");
    } else {
        println!("Not logged in to {host}");
    }
    Ok(())
}

/// The registry that a user means: an address will do.
fn host(server: Option<&str>) -> String {
    let server = server.unwrap_or(DOCKER_HUB);
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    let bare = bare.split('/').next().unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        _ => bare.to_owned(),
    }
}

fn name_and_password(options: &Login) -> anyhow::Result<(String, String)> {
    if options.password.is_some() {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    if options.password_stdin {
        let mut text = String::new();
        io::stdin()
            .take(PASSWORD_BYTES_MAX)
            .read_to_string(&mut text)
            .context("cannot read the password")?;
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        return Ok((options.username.clone().unwrap_or_default(), password));
    }
    if (options.username.is_none() || options.password.is_none()) && !io::stdin().is_terminal() {
        bail!("standard input is no terminal: use -u NAME --password-stdin");
    }
    let user = match &options.username {
        Some(user) => user.clone(),
        None => ask("Username: ", false)?,
    };
    let password = match &options.password {
        Some(password) => password.clone(),
        None => ask("Password: ", true)?,
    };
    Ok((user, password))
}

/// Asks the user on the terminal.
fn ask(prompt: &str, secret: bool) -> anyhow::Result<String> {
    let terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .context("cannot open the terminal")?;
    (&terminal)
        .write_all(prompt.as_bytes())
        .context("cannot write to the terminal")?;
    let quiet = if secret {
        Some(Quiet::new(&terminal)?)
    } else {
        None
    };
    // In a thread, so that Ctrl-C ends the command here and the terminal shows again what is typed.
    let input = terminal.try_clone().context("cannot use the terminal")?;
    let read = move || {
        let mut line = String::new();
        BufReader::new(input.take(PASSWORD_BYTES_MAX))
            .read_line(&mut line)
            .map(|_| line)
    };
    let line = block_on("", async { tokio::task::spawn_blocking(read).await });
    if quiet.is_some() {
        let _ = (&terminal).write_all(b"\n");
    }
    let line = line?.context("cannot read from the terminal")?;
    let line = line.context("cannot read from the terminal")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: rustix::termios::Termios,
}

impl<'a> Quiet<'a> {
    fn new(terminal: &'a File) -> anyhow::Result<Self> {
        let before = tcgetattr(terminal).context("cannot use the terminal")?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &silent).context("cannot use the terminal")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_be_an_address() {
        assert_eq!(host(None), "docker.io");
        assert_eq!(host(Some("https://index.docker.io/v1/")), "docker.io");
        assert_eq!(host(Some("http://localhost:5000/")), "localhost:5000");
        assert_eq!(host(Some("registry.example")), "registry.example");
    }
}
