//! A sandbox as Docker's API describes a container (`GET /containers/{id}/json`, API 1.50): the fields that mean
//! something here, under Docker's names, and what is brig's own under `Brig`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    Isolation, Paths,
    device_rate::DeviceRate,
    guest::Origin,
    port::{BoundPort, PublishedPort},
    resources::{Cpus, MemoryMib},
    sandbox::{
        Config, Directory, Sandbox, Status,
        health::{Health, HealthConfig},
    },
};

/// What Docker shows for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The description of `sandbox`.
pub fn inspect(paths: &Paths, sandbox: &Sandbox) -> Value {
    let config = &sandbox.config;
    let directory = Directory::new(paths.sandbox(&config.id));
    let args = config.args();
    json!({
        "Id": config.id.as_str(),
        "Created": config.created.to_string(),
        "Path": args.first(),
        "Args": args.get(1..).unwrap_or_default(),
        "State": state(sandbox),
        "Image": config.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": directory.log(),
        "Name": format!("/{}", config.name),
        "RestartCount": 0,
        "Driver": match config.isolation {
            Isolation::Vm => "erofs",
            Isolation::Container => "overlay2",
        },
        "Platform": "linux",
        "HostConfig": {
            "AutoRemove": config.auto_remove,
            "Memory": memory(config),
            "NanoCpus": nano_cpus(config),
            "PidsLimit": config.limits.pids,
            "BlkioDeviceReadBps": rates(&config.device_rates.read_bps),
            "BlkioDeviceWriteBps": rates(&config.device_rates.write_bps),
            "BlkioDeviceReadIOps": rates(&config.device_rates.read_iops),
            "BlkioDeviceWriteIOps": rates(&config.device_rates.write_iops),
            "NetworkMode": "none",
            "PortBindings": wanted_ports(&config.ports),
            "LogConfig": { "Type": "json-file", "Config": {} },
            "Isolation": config.isolation.as_str(),
        },
        "Config": {
            "Hostname": config.hostname,
            "User": config.user,
            "AttachStdin": config.stdin,
            "OpenStdin": config.stdin,
            "StdinOnce": config.stdin_once,
            "Tty": config.tty,
            "Env": config.env,
            "Cmd": non_empty(&config.command),
            "Entrypoint": non_empty(&config.entrypoint),
            "Image": config.image,
            "WorkingDir": config.working_dir,
            "Labels": config.labels,
            "StopSignal": config.stop_signal.to_string(),
            "Healthcheck": config.health.as_ref().map(healthcheck),
            "Volumes": volumes(&config.volumes),
            "ExposedPorts": exposed_ports(sandbox),
        },
        "NetworkSettings": { "Ports": bound_ports(&sandbox.state.ports) },
        "Brig": brig(sandbox),
    })
}

/// Bytes; 0 stands for no limit.
fn memory(config: &Config) -> u64 {
    match config.isolation {
        Isolation::Vm => config.memory.bytes(),
        Isolation::Container => config.limits.memory.map_or(0, MemoryMib::bytes),
    }
}

fn rates(rates: &[DeviceRate]) -> Value {
    let all = rates.iter();
    all.map(|one| json!({ "Path": one.path, "Rate": one.rate }))
        .collect()
}

/// Billionths of a CPU; 0 stands for no limit.
fn nano_cpus(config: &Config) -> u64 {
    match config.isolation {
        Isolation::Vm => config.cpus.nano(),
        Isolation::Container => config.limits.cpus.map_or(0, Cpus::nano),
    }
}

/// What Docker has no names for.
fn brig(sandbox: &Sandbox) -> Value {
    let state = &sandbox.state;
    json!({
        "Isolation": sandbox.config.isolation.as_str(),
        "NoTemplate": sandbox.config.no_template,
        // A fork's snapshot has no name and is gone.
        "Snapshot": sandbox.config.snapshot.as_deref().filter(|name| !name.starts_with('.')),
        // Of the guest that runs; null when none does.
        "Restored": state.origin.map(|origin| !matches!(origin, Origin::Boot | Origin::Container)),
        "Origin": state.origin.map(Origin::as_str),
        "EmulatedKvmWorkarounds": state.workarounds,
    })
}

fn state(sandbox: &Sandbox) -> Value {
    let state = &sandbox.state;
    let time = |time: Option<jiff::Timestamp>| time.map_or_else(|| NEVER.to_owned(), |time| time.to_string());
    json!({
        "Status": state.word(),
        "Running": state.status == Status::Running,
        "Paused": state.paused,
        "Restarting": false,
        "OOMKilled": false,
        "Dead": false,
        // No process of the sandbox has a pid on the host; its supervisor is what stands for it there.
        "Pid": state.supervisor_pid.unwrap_or(0),
        "ExitCode": state.exit_code,
        "Error": state.error.as_deref().unwrap_or(""),
        "StartedAt": time(state.started),
        "FinishedAt": time(state.finished),
        "Health": state.health.as_ref().map(health),
        "GuestKernel": state.kernel,
        "VmmPid": state.vmm_pid.unwrap_or(0),
    })
}

/// A health check, as an image's configuration says it too.
pub fn healthcheck(config: &HealthConfig) -> Value {
    let nanoseconds = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "Test": config.test,
        "Interval": nanoseconds(config.interval),
        "Timeout": nanoseconds(config.timeout),
        "StartPeriod": nanoseconds(config.start_period),
        "StartInterval": nanoseconds(config.start_interval),
        "Retries": config.retries,
    })
}

fn health(health: &Health) -> Value {
    let log: Vec<Value> = health
        .log
        .iter()
        .map(|checked| {
            json!({
                "Start": checked.start.to_string(),
                "End": checked.end.to_string(),
                "ExitCode": checked.exit_code,
                "Output": checked.output,
            })
        })
        .collect();
    json!({ "Status": health.status.as_str(), "FailingStreak": health.failing_streak, "Log": log })
}

fn volumes(paths: &[String]) -> Option<Value> {
    let all: Map<String, Value> = paths.iter().map(|path| (path.clone(), json!({}))).collect();
    (!all.is_empty()).then_some(Value::Object(all))
}

fn non_empty(list: &[String]) -> Option<&[String]> {
    (!list.is_empty()).then_some(list)
}

fn wanted_ports(ports: &[PublishedPort]) -> Value {
    let mut bindings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in ports {
        let host_port = match (port.host_port, port.host_port_last) {
            (0, _) => String::new(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        bindings
            .entry(format!("{}/tcp", port.container_port))
            .or_default()
            .push(json!({ "HostIp": port.host_ip.to_string(), "HostPort": host_port }));
    }
    json!(bindings)
}

fn bound_ports(ports: &[BoundPort]) -> Value {
    let mut bindings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in ports {
        bindings
            .entry(format!("{}/tcp", port.container_port))
            .or_default()
            .push(json!({ "HostIp": port.host.ip().to_string(), "HostPort": port.host.port().to_string() }));
    }
    json!(bindings)
}

fn exposed_ports(sandbox: &Sandbox) -> Value {
    let published = sandbox
        .config
        .ports
        .iter()
        .map(|port| format!("{}/tcp", port.container_port));
    let all: Map<String, Value> = sandbox
        .config
        .exposed_ports
        .iter()
        .cloned()
        .chain(published)
        .map(|port| (port, json!({})))
        .collect();
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        SandboxId,
        sandbox::{State, state::Live},
        test_support::{config, paths},
    };

    #[test]
    fn a_container_is_described_under_dockers_names() {
        let (_temporary, paths) = paths();
        let mut config = config(SandboxId::random().unwrap(), "web".into());
        config.ports = crate::port::parse("127.0.0.1:8080:80").unwrap();
        let sandbox = Sandbox {
            config,
            state: State::created().start_failed(127, "gone".into()),
            supervised: false,
        };
        let value = inspect(&paths, &sandbox);
        assert_eq!(value["Name"], "/web");
        assert_eq!(value["State"]["Status"], "created");
        assert_eq!(value["State"]["ExitCode"], 127);
        assert_eq!(value["State"]["StartedAt"], NEVER);
        assert_eq!(
            value["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"],
            "8080"
        );
        assert_eq!(value["Config"]["ExposedPorts"]["80/tcp"], json!({}));
        assert_eq!(value["NetworkSettings"]["Ports"], json!({}));
        assert_eq!(value["Brig"]["Restored"], Value::Null);
    }

    #[test]
    fn how_the_running_guest_came_to_be_is_told() {
        let (_temporary, paths) = paths();
        let live = Live {
            supervisor_pid: 1,
            vmm_pid: None,
            ports: vec![],
            kernel: "6.12".into(),
            origin: Origin::Template,
            workarounds: true,
            unconfined: None,
        };
        let sandbox = Sandbox {
            config: config(SandboxId::random().unwrap(), "web".into()),
            state: State::created().running(jiff::Timestamp::UNIX_EPOCH, live),
            supervised: true,
        };
        let value = inspect(&paths, &sandbox);
        assert_eq!(
            value["Brig"],
            json!({ "Isolation": "vm", "NoTemplate": false, "Snapshot": null, "Restored": true, "Origin": "template", "EmulatedKvmWorkarounds": true })
        );
    }
}
