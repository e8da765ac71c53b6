//! `port` and `inspect`.

use brig_engine::{Engine, Error, port::BoundPort};
use serde_json::Value;

use super::{described, images, print_lines, ps::sizes, volume};
use crate::{
    arguments::{Inspect, InspectKind, Port},
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
    let describe = |name: &String| {
        Ok(if options.security {
            engine.security(name)?
        } else {
            describe(engine, name, options)?
        })
    };
    described::show(options.format.as_deref(), options.names.iter().map(describe))
}

/// What has this name, in Docker's order: a sandbox, an image, a volume.
fn describe(engine: &Engine, name: &str, options: &Inspect) -> Result<Value, Failure> {
    let wanted = |kind| options.kind.is_none_or(|only| only == kind);
    let is_last = |kind| options.kind == Some(kind);
    if wanted(InspectKind::Container) {
        match engine.find(name) {
            Err(Error::NoSuchSandbox(_)) if !is_last(InspectKind::Container) => {}
            found => {
                let sandbox = found?;
                let mut described = engine.inspect(sandbox.id().as_str())?;
                if options.size {
                    let (own, all) = sizes(engine, &sandbox);
                    described["SizeRw"] = own.into();
                    described["SizeRootFs"] = all.into();
                }
                return Ok(described);
            }
        }
    }
    if wanted(InspectKind::Image) {
        // `welcome` is an image before it is in the store.
        let found = if is_last(InspectKind::Image) {
            Some(engine.find_image(name)?)
        } else {
            engine.images().resolve(name).ok().flatten()
        };
        if let Some(image) = found {
            return images::show::describe(engine, &image);
        }
    }
    if wanted(InspectKind::Volume) {
        let found = volume::describe(engine, name);
        if found.is_ok() || is_last(InspectKind::Volume) {
            return found;
        }
    }
    Err(Failure::command(format!("no such object: {name}")))
}
