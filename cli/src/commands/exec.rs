//! `exec` and `attach`.

use brig_engine::{Engine, Error, clock::monotonic_ns, control::ExecRequest};

use super::{create::environment, run::finish};
use crate::{
    arguments::{Attach, Exec},
    env_file,
    failure::Failure,
    foreground::{self, Ending, Stay},
    terminal, timing,
};

/// `brig exec`.
pub async fn exec(engine: &Engine, options: &Exec) -> Result<i32, Failure> {
    let Some((reference, args)) = options.words.split_first().filter(|(_, args)| !args.is_empty()) else {
        return Err(Failure::command(
            "exec needs a sandbox and a command: brig exec web ls".to_owned(),
        ));
    };
    let attached_input = options.interactive && !options.detach;
    check_input(attached_input, options.tty)?;
    let mut env = env_file::read(&options.env_file)?;
    env.extend(options.env.iter().cloned());
    let request = ExecRequest {
        args: args.to_vec(),
        env: environment(&env),
        user: options.user.clone(),
        working_dir: options.workdir.clone(),
        stdin: options.interactive,
        tty: options.tty.then(|| terminal::size().unwrap_or_default()),
        privileged: options.privileged,
        detach: options.detach,
    };
    let request_ns = monotonic_ns();
    let id = engine.find(reference)?.id().clone();
    let mut session = engine.exec(reference, request).await?;
    let took_us = session.output.started(&mut |_| {}).await.map_err(|e| match e {
        e @ Error::Start { .. } => Failure::of_run(e),
        e => e.into(),
    })?;
    let exec_ns = monotonic_ns();
    if options.detach {
        return Ok(0);
    }
    let stay = Stay {
        stdin: attached_input,
        tty: options.tty,
        signals: false,
        keys: options.detach_keys.clone().unwrap_or_default(),
    };
    match foreground::stay(engine, &id, session, stay).await? {
        Ending::Ended { code, output_ns } => {
            if options.timing {
                let stages = [
                    ("request", Some(request_ns)),
                    ("process exec", Some(exec_ns)),
                    ("first output byte", output_ns),
                    ("exit", Some(monotonic_ns())),
                ];
                eprint!("{}", timing::render_exec(&stages, took_us.unwrap_or_default()));
            }
            Ok(code)
        }
        Ending::Exited(exit) => Ok(exit.code),
        Ending::Detached => Ok(0),
    }
}

/// `brig attach`.
pub async fn attach(engine: &Engine, options: &Attach) -> Result<i32, Failure> {
    let sandbox = engine.find(&options.sandbox)?;
    let config = &sandbox.config;
    let stdin = config.stdin && !options.no_stdin;
    check_input(stdin, config.tty)?;
    let mut session = engine.attach(&options.sandbox).await?;
    if config.tty {
        foreground::show_anew(&mut session).await?;
    }
    let stay = Stay {
        stdin,
        tty: config.tty,
        signals: options.sig_proxy,
        keys: options.detach_keys.clone().unwrap_or_default(),
    };
    match foreground::stay(engine, sandbox.id(), session, stay).await? {
        Ending::Ended { code, .. } => Ok(code),
        Ending::Exited(exit) => Ok(finish(exit.code, exit.error)),
        Ending::Detached => Ok(0),
    }
}

/// Docker's words for a terminal without one.
pub(super) fn check_input(stdin: bool, tty: bool) -> Result<(), Failure> {
    if stdin && tty && !terminal::has_input() {
        return Err(Failure::command("the input device is not a TTY".to_owned()));
    }
    Ok(())
}
