//! `completion`, and the manual pages that `make man` writes.

use std::{fs::File, io, path::Path, process::Command as Process};

use brig_engine::Engine;
use clap::CommandFactory;
use clap_complete::Shell;

use super::registry::program;
use crate::{
    arguments::{Arguments, Completion, Manual},
    failure::Failure,
};

/// Commands that another program has, and writes the pages of.
const OTHERS: [&str; 5] = ["pull", "push", "login", "logout", "search"];

/// `brig completion`.
pub fn completion(options: &Completion) -> Result<i32, Failure> {
    let shell: Shell = options.shell.into();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "brig", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script)?;
    Ok(0)
}

/// `brig manual`.
pub fn pages(engine: &Engine, options: &Manual) -> Result<i32, Failure> {
    let directory = &options.directory;
    let mut command = Arguments::command();
    command.build();
    let wrote = std::fs::create_dir_all(directory).and_then(|()| write(&command, directory));
    wrote.map_err(|e| Failure::command(format!("cannot write to {}: {e}", directory.display())))?;
    let mut other: Process = program(engine.paths());
    let status = other.arg("manual").arg(directory).status();
    match status {
        Ok(status) if status.success() => Ok(0),
        Ok(_) => Err(Failure::reported()),
        Err(e) => Err(Failure::command(super::registry::not_started(engine.paths(), &e))),
    }
}

/// Writes the page of a command and of those below it.
fn write(command: &clap::Command, directory: &Path) -> io::Result<()> {
    let page = clap_mangen::Man::new(command.clone());
    page.render(&mut File::create(directory.join(page.get_filename()))?)?;
    let shown = |below: &&clap::Command| !below.is_hide_set() && !OTHERS.contains(&below.get_name());
    command
        .get_subcommands()
        .filter(shown)
        .try_for_each(|below| write(below, directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_gets_a_script_that_knows_the_options() {
        for (shell, word) in [
            (Shell::Bash, "complete -F"),
            (Shell::Zsh, "#compdef brig"),
            (Shell::Fish, "complete -c brig"),
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "brig", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(
                script.contains(word) && script.contains("max-image-size"),
                "{shell}"
            );
        }
    }

    #[test]
    fn each_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Arguments::command();
        command.build();
        write(&command, directory.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(directory.path().join(name));
        assert!(page("brig.1").unwrap().contains("brig\\-run"));
        let run = page("brig-run.1").unwrap();
        assert!(
            run.contains("\\-\\-max\\-image\\-size") && run.contains("Examples:"),
            "{run}"
        );
        page("brig-image-prune.1").unwrap();
        assert!(page("brig-pull.1").is_err() && page("brig-manual.1").is_err());
    }
}
