//! `ps`, `port` and `inspect`.

use brig_engine::{
    Engine,
    port::BoundPort,
    sandbox::{Sandbox, Status},
};
use jiff::Timestamp;

use super::{print, print_lines};
use crate::{
    arguments::{Port, Ps, Sandboxes},
    failure::Failure,
    table, text,
};

const HEADING: [&str; 7] = [
    "CONTAINER ID",
    "IMAGE",
    "COMMAND",
    "CREATED",
    "STATUS",
    "PORTS",
    "NAMES",
];

/// `brig ps`.
pub fn ps(engine: &Engine, options: &Ps) -> Result<i32, Failure> {
    let sandboxes = engine.list()?;
    let shown = sandboxes
        .iter()
        .filter(|sandbox| options.all || sandbox.is_running());
    if options.quiet {
        print_lines(shown.map(|sandbox| id(sandbox, options.no_trunc)))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = shown.map(|sandbox| row(sandbox, options.no_trunc, now)).collect();
    print(&table::render(&HEADING, &rows))?;
    Ok(0)
}

fn id(sandbox: &Sandbox, whole: bool) -> &str {
    if whole {
        sandbox.id().as_str()
    } else {
        sandbox.id().short()
    }
}

fn row(sandbox: &Sandbox, whole: bool, now: Timestamp) -> Vec<String> {
    let config = &sandbox.config;
    let ports: Vec<String> = sandbox.state.ports.iter().map(ToString::to_string).collect();
    vec![
        id(sandbox, whole).to_owned(),
        config.image.clone(),
        text::command(&config.args(), whole),
        format!("{} ago", text::since(config.created, now)),
        status(sandbox, now),
        ports.join(", "),
        config.name.clone(),
    ]
}

/// `Up 2 minutes`, `Exited (0) 5 seconds ago`, `Created`.
fn status(sandbox: &Sandbox, now: Timestamp) -> String {
    let state = &sandbox.state;
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", text::since(state.started.unwrap_or(now), now)),
        Status::Exited => {
            format!(
                "Exited ({}) {} ago",
                state.exit_code,
                text::since(state.finished.unwrap_or(now), now)
            )
        }
    }
}

/// `brig port`.
pub fn port(engine: &Engine, options: &Port) -> Result<i32, Failure> {
    let sandbox = engine.find(&options.sandbox)?;
    let ports = &sandbox.state.ports;
    let Some(wanted) = &options.port else {
        print_lines(
            ports
                .iter()
                .map(|port| format!("{}/tcp -> {}", port.container_port, port.host)),
        )?;
        return Ok(0);
    };
    let number: Option<u16> = wanted.strip_suffix("/tcp").unwrap_or(wanted).parse().ok();
    let found: Vec<&BoundPort> = ports
        .iter()
        .filter(|port| Some(port.container_port) == number)
        .collect();
    if found.is_empty() {
        return Err(Failure::command(format!(
            "no public port {wanted:?} is published for {}",
            options.sandbox
        )));
    }
    print_lines(found.iter().map(|port| port.host))?;
    Ok(0)
}

/// `brig inspect`.
pub fn inspect(engine: &Engine, options: &Sandboxes) -> Result<i32, Failure> {
    let mut found = Vec::new();
    let mut failed = false;
    for reference in &options.sandboxes {
        match engine.inspect(reference) {
            Ok(value) => found.push(value),
            Err(e) => {
                Failure::from(e).report();
                failed = true;
            }
        }
    }
    let json = serde_json::Value::Array(found);
    print(&format!("{json:#}\n"))?;
    if failed { Err(Failure::reported()) } else { Ok(0) }
}
