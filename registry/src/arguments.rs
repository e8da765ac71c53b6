//! The command line: Docker's words.

use std::{path::PathBuf, process, str::FromStr};

use brig_image_store::{MaxImageSize, Platform};
use clap::{
    Args, CommandFactory, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::CODE_FAILED;

/// Exit code for options that make no sense, as Docker's.
const CODE_USAGE: i32 = 125;

/// Images from and to registries
#[derive(Debug, Parser)]
#[command(name = "brig", bin_name = "brig", version, disable_help_subcommand = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Download an image from a registry
    #[command(after_help = PULL_EXAMPLES)]
    Pull(Pull),
    /// Upload an image to a registry
    #[command(after_help = PUSH_EXAMPLES)]
    Push(Push),
    /// Keep a name and a password for a registry
    #[command(after_help = LOGIN_EXAMPLES)]
    Login(Login),
    /// Forget the name and the password for a registry
    Logout(Logout),
    /// Look for images in a registry
    #[command(after_help = SEARCH_EXAMPLES)]
    Search(Search),
    /// Write the manual pages of these
    #[command(hide = true)]
    Manual(Manual),
}

/// Options of `manual`.
#[derive(Debug, Args)]
pub struct Manual {
    /// Where they are written to
    pub directory: PathBuf,
}

const PULL_EXAMPLES: &str = "\
Without a registry the image is Docker Hub's, without a tag it is the one called latest. What breaks off is resumed by the
next pull. Mirrors, certificates and registries without encryption are configured in $BRIG_ROOT/registries.toml or
/etc/brig/registries.toml.

Examples:
  brig pull nginx                               docker.io/library/nginx:latest
  brig pull localhost:5000/team/app:1.2
  brig pull debian@sha256:…                     these bytes and no others
  brig pull --platform linux/arm64 debian       for another machine: brig keeps it, but does not run it";

const PUSH_EXAMPLES: &str = "\
The image's name says where it goes.

Examples:
  brig push localhost:5000/team/app:1.2
  brig push -a localhost:5000/team/app          each tag that the store has of it";

const LOGIN_EXAMPLES: &str = "\
Name and password are kept where Docker keeps them: in $DOCKER_CONFIG/config.json or ~/.docker/config.json, or by the
credential helper that this file names. Without a server it is Docker Hub.

Examples:
  brig login localhost:5000
  echo $TOKEN | brig login -u robot --password-stdin registry.example";

const SEARCH_EXAMPLES: &str = "\
A registry without a search endpoint is asked for its catalog: the repositories that have the term in their names.

Examples:
  brig search nginx                             on Docker Hub
  brig search localhost:5000/app                in the registry localhost:5000
  brig search localhost:5000/                   all that it has
  brig search --filter is-official=true --limit 5 python";

/// Options of all commands that speak to a registry.
#[derive(Debug, Args)]
pub struct Connection {
    /// Speak to this registry without encryption or a certificate, too; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub insecure_registry: Vec<String>,
}

/// Options of `pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// All images of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// The image for this platform
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Refuse an image whose layers have more bytes than this
    #[arg(long, value_name = "BYTES", default_value_t)]
    pub max_image_size: MaxImageSize,
    #[command(flatten)]
    pub show: Show,
    #[command(flatten)]
    pub connection: Connection,
    /// The image: [REGISTRY/]NAME[:TAG] or [REGISTRY/]NAME@DIGEST
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Options of `push`.
#[derive(Debug, Args)]
pub struct Push {
    /// All tags of the repository that the store has
    #[arg(short, long)]
    pub all_tags: bool,
    #[command(flatten)]
    pub show: Show,
    #[command(flatten)]
    pub connection: Connection,
    /// The image: [REGISTRY/]NAME[:TAG]
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Options of `login`.
#[derive(Debug, Args)]
pub struct Login {
    /// The name; asked for otherwise
    #[arg(short, long, value_name = "NAME")]
    pub username: Option<String>,
    /// The password; other users of this machine may see it here
    #[arg(short, long, value_name = "PASSWORD")]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password", requires = "username")]
    pub password_stdin: bool,
    #[command(flatten)]
    pub connection: Connection,
    /// The registry; Docker Hub otherwise
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
}

/// Options of `logout`.
#[derive(Debug, Args)]
pub struct Logout {
    /// The registry; Docker Hub otherwise
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
}

/// Options of `search`.
#[derive(Debug, Args)]
pub struct Search {
    /// Most results, 1 to 100
    #[arg(long, value_name = "NUMBER", default_value_t = 25,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100))]
    pub limit: usize,
    /// Only some: stars=NUMBER, is-official=true; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub filter: Vec<Filter>,
    /// json: an object a line
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Show descriptions whole
    #[arg(long)]
    pub no_trunc: bool,
    #[command(flatten)]
    pub connection: Connection,
    /// Part of a name, of another registry when that stands before it
    #[arg(value_name = "[REGISTRY/]TERM")]
    pub term: String,
}

/// What is printed of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table.
    Table,
    /// An object a line.
    Json,
}

/// What results have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// At least so many stars.
    Stars(u64),
    /// Official ones, or the others.
    Official(bool),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write stars=NUMBER or is-official=true".to_owned();
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        match name {
            "stars" => value.parse().map(Self::Stars).map_err(|_| wrong()),
            "is-official" => value.parse().map(Self::Official).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

/// How a transfer is shown.
#[derive(Debug, Args)]
pub struct Show {
    /// No progress: only the name in the end
    #[arg(short, long)]
    pub quiet: bool,
    /// What the progress is for.
    #[arg(long, hide = true, default_value = "person")]
    pub progress: Progress,
}

/// What the progress is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// A person: bars on a terminal, elsewhere lines.
    Person,
    /// The same on standard error, where `brig run` has its own output.
    Stderr,
    /// A program: a JSON object a line, as in Docker's Engine API.
    Json,
}

/// Prints what is wrong with the arguments (or the help that they ask for) and ends the process as Docker does.
pub fn exit(error: &clap::Error) -> ! {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            process::exit(0)
        }
        _ => {
            eprintln!("brig: {}", one_line(error, std::env::args().skip(1)));
            process::exit(exit_code(error))
        }
    }
}

/// Docker's code of what is wrong with an option, and of what is wrong with the other words.
fn exit_code(error: &clap::Error) -> i32 {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if word.starts_with('-') => CODE_USAGE,
        _ => CODE_FAILED.into(),
    }
}

/// clap's message without its headline's `error: ` and its usage block.
fn one_line(error: &clap::Error, words: impl IntoIterator<Item = String>) -> String {
    let text = error.render().to_string();
    let message: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let message = message.join(" ").replace(" tip: ", "; ");
    format!(
        "{} (see {} --help)",
        message.strip_prefix("error: ").unwrap_or(&message),
        command_of(words)
    )
}

/// The command that `words` begin with.
fn command_of(words: impl IntoIterator<Item = String>) -> String {
    let all = Arguments::command();
    let mut command = &all;
    let mut path = all.get_name().to_owned();
    for word in words {
        let Some(next) = command.find_subcommand(&word) else {
            break;
        };
        path.extend([" ", next.get_name()]);
        command = next;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for words in [
            &["brig", "pull"][..],
            &["brig", "pull", "--platform", "x", "y"],
            &["brig", "nope"],
        ] {
            let said = words[1..].iter().map(ToString::to_string);
            let line = one_line(&Arguments::try_parse_from(words).unwrap_err(), said);
            assert!(!line.contains('\n') && !line.starts_with("error"), "{line}");
        }
    }
}
