//! The program of the image `bench`: see the library.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use brig_bench::{
    hold, look,
    options::{Command, HELP, Options},
    report,
    rows::{self, Row},
    server,
};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("bench: {message}; see bench help");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever reads has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what is asked for; `false` when a row failed.
fn run(options: &Options) -> io::Result<bool> {
    let out = &mut io::stdout();
    match &options.command {
        Command::Help => out.write_all(HELP.as_bytes())?,
        Command::List => report::list(out, rows::LOCAL.iter().chain(rows::NETWORK))?,
        // What the row fork_exec executes.
        Command::Exit => {}
        Command::Run { rows } => return measure(options, rows, out),
        Command::Client { rows, .. } => return measure(options, rows, out),
        Command::Server { port } => server::run(*port, out)?,
        Command::Look => look::run(out)?,
        Command::Hold { mib } => hold::run(*mib, options.seconds, out)?,
    }
    Ok(true)
}

/// Measures rows one after another. One that fails is reported and does not keep the others from being measured.
fn measure(options: &Options, rows: &[&'static Row], out: &mut impl Write) -> io::Result<bool> {
    let mut all = true;
    for row in rows {
        match (row.measure)(options) {
            Ok(measured) => report::row(out, row, &measured)?,
            Err(error) => {
                all = false;
                eprintln!("bench: {}: {error}", row.name);
                report::failure(out, row, &error)?;
            }
        }
        out.flush()?;
    }
    Ok(all)
}
