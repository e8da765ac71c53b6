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
    let script = script(options.shell.into());
    io::Write::write_all(&mut io::stdout().lock(), script.as_bytes())?;
    Ok(0)
}

/// Names of sandboxes and images, beside the commands and options that the generated script knows.
const BASH_NAMES: &str = r#"
_brig_names() {
    _brig "$@"
    local cur="$2" command="${COMP_WORDS[1]}" at=2 names=""
    case "${command}" in
        container) command="${COMP_WORDS[2]}" at=3 ;;
        image) command="image ${COMP_WORDS[2]}" at=3 ;;
    esac
    if [[ ${COMP_CWORD} -lt ${at} || ${cur} == -* ]]; then
        return 0
    fi
    case "${command}" in
        attach|exec|kill|pause|port|stats|stop|top|unpause|update)
            names=$(brig ps --format '{{.Names}}' 2>/dev/null) ;;
        commit|cp|diff|export|inspect|logs|rename|restart|rm|start|wait)
            names=$(brig ps -a --format '{{.Names}}' 2>/dev/null) ;;
        run|create|rmi|tag|save|history|push|"image rm"|"image inspect"|"image history"|"image tag"|"image save"|"image push")
            names=$(brig images --format '{{.Repository}}:{{.Tag}}' 2>/dev/null) ;;
        *) return 0 ;;
    esac
    COMPREPLY=( $(compgen -W "${names}" -- "${cur}") )
}
complete -F _brig_names -o bashdefault -o default brig
"#;

/// As [`BASH_NAMES`]; the generated lines call these.
const ZSH_NAMES: &str = r#"_brig_sandboxes() {
    local names; names=(${(f)"$(brig ps -a --format '{{.Names}}' 2>/dev/null)"})
    compadd -a names || _default
}
_brig_images() {
    local names; names=(${(f)"$(brig images --format '{{.Repository}}:{{.Tag}}' 2>/dev/null)"})
    compadd -a names || _default
}

"#;

/// As [`BASH_NAMES`].
const FISH_NAMES: &str = r#"
set -l running attach exec kill pause port stats stop top unpause update
set -l all commit diff export inspect logs rename restart rm start wait
set -l images run create rmi tag save history push
complete -c brig -n "__fish_brig_using_subcommand $running" -f -a "(brig ps --format '{{.Names}}' 2>/dev/null)"
complete -c brig -n "__fish_brig_using_subcommand $all" -f -a "(brig ps -a --format '{{.Names}}' 2>/dev/null)"
complete -c brig -n "__fish_brig_using_subcommand cp" -a "(brig ps -a --format '{{.Names}}:' 2>/dev/null)"
complete -c brig -n "__fish_brig_using_subcommand $images" -f -a "(brig images --format '{{.Repository}}:{{.Tag}}' 2>/dev/null)"
complete -c brig -n "__fish_brig_using_subcommand container; and __fish_seen_subcommand_from $running" -f -a "(brig ps --format '{{.Names}}' 2>/dev/null)"
complete -c brig -n "__fish_brig_using_subcommand container; and __fish_seen_subcommand_from $all" -f -a "(brig ps -a --format '{{.Names}}' 2>/dev/null)"
complete -c brig -n "__fish_brig_using_subcommand image; and __fish_seen_subcommand_from rm inspect history tag save push" -f -a "(brig images --format '{{.Repository}}:{{.Tag}}' 2>/dev/null)"
"#;

/// How the help of an argument that is a sandbox begins, and of one that is an image.
const SANDBOXES: [&str; 4] = [
    "-- Ids, names, or starts of ids",
    "-- Id, name, or the start of an id",
    "-- The sandbox",
    "-- Sandboxes, else images",
];
const IMAGES: [&str; 3] = [
    "-- Names, ids, or starts of ids",
    "-- Name, id, or the start of an id",
    "-- The image",
];

/// What a shell needs to complete brig's commands.
fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "brig", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        Shell::Bash => script.push_str(BASH_NAMES),
        Shell::Fish => script.push_str(FISH_NAMES),
        Shell::Zsh => {
            let named = |line: &str| {
                let is_of = |starts: &[&str]| starts.iter().any(|start| line.contains(start));
                let function = if is_of(&SANDBOXES) {
                    "_brig_sandboxes"
                } else if is_of(&IMAGES) {
                    "_brig_images"
                } else {
                    "_default"
                };
                line.replace(":_default'", &format!(":{function}'"))
            };
            let lines: Vec<String> = script.lines().map(named).collect();
            script = lines.join("\n") + "\n";
            // Before the last lines, which run it.
            if let Some(at) = script.rfind("if [ \"$funcstack[1]\"") {
                script.insert_str(at, ZSH_NAMES);
            }
        }
        _ => {}
    }
    script
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
            let script = script(shell);
            assert!(
                script.contains(word) && script.contains("max-image-size"),
                "{shell}"
            );
            assert!(script.contains("brig ps -a --format"), "{shell}");
        }
        let zsh = script(Shell::Zsh);
        for line in [
            "'*::sandboxes -- Ids, names, or starts of ids:_brig_sandboxes'",
            ":image -- Name, id, or the start of an id:_brig_images'",
        ] {
            assert!(zsh.contains(line), "{line}");
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
