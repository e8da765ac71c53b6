//! A sandbox as Docker's API describes a container (`GET /containers/{id}/json`, API 1.50): the fields that mean
//! something here, under Docker's names, and what is brig's own under `Brig`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    Isolation, Paths,
    device_rate::DeviceRate,
    guest::Origin,
    options::{Device, HostOptions, LogOptions, RestartPolicy, SeccompOption, Swap, Sysctl, Tmpfs, Ulimit},
    port::{BoundPort, PublishedPort},
    resources::{Cpus, MemoryMib},
    sandbox::{
        Config, Directory, Sandbox, Status,
        health::{Health, HealthConfig},
    },
    spec::SHM_BYTES,
    volume::{Source, Volumes},
};

/// What Docker shows for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The description of `sandbox`.
pub fn inspect(paths: &Paths, sandbox: &Sandbox) -> Value {
    let config = &sandbox.config;
    let directory = Directory::new(paths.sandbox(&config.id));
    let args = config.args();
    let options = &config.options;
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
        "RestartCount": sandbox.state.restarts,
        "Driver": match config.isolation {
            Isolation::Vm => "erofs",
            Isolation::Container => "overlay2",
        },
        "Platform": "linux",
        "HostConfig": host_config(config),
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
            "StopTimeout": options.stop_timeout,
            "Healthcheck": config.health.as_ref().map(healthcheck),
            "Volumes": volumes(&config.volumes),
            "ExposedPorts": exposed_ports(sandbox),
        },
        "Mounts": mounts(paths, config),
        // A sandbox has an address of its own in no network.
        "NetworkSettings": { "Ports": bound_ports(&sandbox.state.ports), "IPAddress": "", "Gateway": "", "Networks": {} },
        "Brig": brig(sandbox),
    })
}

fn mounts(paths: &Paths, config: &Config) -> Vec<Value> {
    let volumes = Volumes::new(&paths.root);
    let all = config.mounts.iter().map(|mount| {
        let (kind, name, source) = match &mount.source {
            Source::Volume(name) => ("volume", name.as_str(), volumes.path(name)),
            Source::Anonymous => ("volume", "", std::path::PathBuf::new()),
            Source::Host(path) => ("bind", "", path.clone()),
        };
        json!({
            "Type": kind,
            "Name": name,
            "Source": source,
            "Destination": mount.target,
            "Driver": if kind == "volume" { "local" } else { "" },
            "Mode": if mount.read_only { "ro" } else { "" },
            "RW": !mount.read_only,
        })
    });
    all.collect()
}

/// What a host gives to it.
fn host_config(config: &Config) -> Value {
    let options = &config.options;
    let mut all = wishes(options);
    let more = json!({
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
        "LogConfig": { "Type": "json-file", "Config": log_options(options.log) },
        "MemorySwap": match config.limits.swap {
            None => 0,
            Some(Swap::Unlimited) => -1,
            Some(Swap::Total(total)) => total.bytes() as i64,
        },
        "CpuShares": config.limits.cpu_shares.unwrap_or(0),
        "OomKillDisable": config.limits.oom_kill_disable,
        "Isolation": config.isolation.as_str(),
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

fn wishes(options: &HostOptions) -> Value {
    json!({
        "RestartPolicy": restart_policy(options.restart),
        "Init": options.init,
        "ReadonlyRootfs": options.read_only,
        "Tmpfs": tmpfs(&options.tmpfs),
        "ShmSize": options.shm_bytes.unwrap_or(SHM_BYTES),
        "Ulimits": ulimits(&options.ulimits),
        "CapAdd": texts(&options.cap_add),
        "CapDrop": texts(&options.cap_drop),
        "SecurityOpt": security_options(options),
        "Privileged": options.privileged,
        "GroupAdd": non_empty(&options.groups),
        "ExtraHosts": texts(&options.hosts),
        "Dns": texts(&options.dns),
        "DnsSearch": non_empty(&options.dns_search),
        "DnsOptions": non_empty(&options.dns_options),
        "StorageOpt": options.storage_bytes.map(|bytes| json!({ "size": bytes.to_string() })),
        "Sysctls": sysctls(&options.sysctls),
        "Devices": devices(&options.devices),
    })
}

fn log_options(log: LogOptions) -> Value {
    let mut all = Map::new();
    if log.max_size > 0 {
        all.insert("max-size".to_owned(), json!(log.max_size.to_string()));
    }
    if log.max_file > 0 {
        all.insert("max-file".to_owned(), json!(log.max_file.to_string()));
    }
    Value::Object(all)
}

fn restart_policy(policy: RestartPolicy) -> Value {
    let most = match policy {
        RestartPolicy::OnFailure(most) => most.unwrap_or(0),
        _ => 0,
    };
    json!({ "Name": policy.word(), "MaximumRetryCount": most })
}

fn texts<T: ToString>(list: &[T]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.iter().map(ToString::to_string).collect())
}

fn tmpfs(list: &[Tmpfs]) -> Option<Value> {
    let all: Map<String, Value> = list
        .iter()
        .map(|tmpfs| (tmpfs.path.clone(), json!(tmpfs.options.join(","))))
        .collect();
    (!all.is_empty()).then_some(Value::Object(all))
}

fn ulimits(list: &[Ulimit]) -> Option<Vec<Value>> {
    // Docker's -1 for no limit.
    let number = |value: u64| value as i64;
    let all = list
        .iter()
        .map(|limit| json!({ "Name": limit.name(), "Soft": number(limit.soft), "Hard": number(limit.hard) }));
    (!list.is_empty()).then(|| all.collect())
}

fn security_options(options: &HostOptions) -> Option<Vec<String>> {
    let mut all = Vec::new();
    if options.no_new_privileges {
        all.push("no-new-privileges".to_owned());
    }
    match &options.seccomp {
        SeccompOption::Default => {}
        SeccompOption::Unconfined => all.push("seccomp=unconfined".to_owned()),
        SeccompOption::Profile { path, .. } => all.push(format!("seccomp={}", path.display())),
    }
    (!all.is_empty()).then_some(all)
}

fn sysctls(list: &[Sysctl]) -> Option<Value> {
    let all: Map<String, Value> = list
        .iter()
        .map(|setting| (setting.name.clone(), json!(setting.value)))
        .collect();
    (!all.is_empty()).then_some(Value::Object(all))
}

fn devices(list: &[Device]) -> Vec<Value> {
    list.iter()
        .map(|device| {
            json!({ "PathOnHost": device.host, "PathInContainer": device.inside, "CgroupPermissions": "rwm" })
        })
        .collect()
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
        // As Docker has it: one that rests counts as running.
        "Running": matches!(state.status, Status::Running | Status::Restarting),
        "Paused": state.paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.oom_killed,
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
