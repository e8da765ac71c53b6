//! `port` and `inspect`.

use brig_engine::{Engine, port::BoundPort};

use super::{described, print_lines};
use crate::{
    arguments::{Inspect, Port},
    failure::Failure,
};

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
pub fn inspect(engine: &Engine, options: &Inspect) -> Result<i32, Failure> {
    let describe = |reference: &String| {
        Ok(if options.security {
            engine.security(reference)?
        } else {
            engine.inspect(reference)?
        })
    };
    described::show(options.format.as_deref(), options.sandboxes.iter().map(describe))
}
