//! `ps`: which sandboxes, and what of each.

use brig_engine::{
    Engine, Isolation,
    sandbox::{Sandbox, Status, health::HealthStatus},
    volume::{Source, VolumeMount},
};
use brig_image_store::ImageId;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{print, print_lines};
use crate::{arguments::Ps, failure::Failure, listing, text};

/// The heading of each field.
const FIELDS: [(&str, &str); 16] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Isolation", "ISOLATION"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Size", "SIZE"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Labels", "LABELS"),
    ("Label", "LABEL"),
];

const TABLE: &str = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Isolation}}\t{{.Ports}}\t{{.Names}}";

/// `brig ps`.
pub fn ps(engine: &Engine, options: &Ps) -> Result<i32, Failure> {
    let filters = Filters::new(engine, &options.filter)?;
    let last = if options.latest {
        Some(1)
    } else {
        options.last.and_then(|last| usize::try_from(last).ok())
    };
    // As with Docker these ask for sandboxes that do not run, too.
    let all = options.all || last.is_some() || filters.status.is_some();
    let mut sandboxes = engine.list()?;
    sandboxes.retain(|sandbox| {
        (all || sandbox.is_running() || sandbox.state.status == Status::Restarting) && filters.fits(sandbox)
    });
    sandboxes.truncate(last.unwrap_or(usize::MAX));
    if options.quiet {
        print_lines(sandboxes.iter().map(|sandbox| id(sandbox, options.no_trunc)))?;
        return Ok(0);
    }
    let format = options.format.as_deref().filter(|format| *format != "table");
    // Sizes take time to add up: only when they are shown.
    let sized = options.size || format.is_some_and(|format| format.contains(".Size"));
    let now = Timestamp::now();
    let is_json = format == Some("json");
    let row = |sandbox: &Sandbox| {
        let size = if sized {
            size(engine, sandbox)
        } else {
            String::new()
        };
        let mut row = row(sandbox, options.no_trunc, now, &size);
        if is_json && let Some(members) = row.as_object_mut() {
            // A function of Docker's templates, and no field.
            members.remove("Label");
        }
        row
    };
    let rows: Vec<Value> = sandboxes.iter().map(row).collect();
    let table = if options.size {
        format!("{TABLE}\t{{{{.Size}}}}")
    } else {
        TABLE.to_owned()
    };
    print(&listing::render(format.unwrap_or(&table), &FIELDS, &rows)?)?;
    Ok(0)
}

fn id(sandbox: &Sandbox, whole: bool) -> &str {
    if whole {
        sandbox.id().as_str()
    } else {
        sandbox.id().short()
    }
}

fn row(sandbox: &Sandbox, whole: bool, now: Timestamp, size: &str) -> Value {
    let config = &sandbox.config;
    let mut ports: Vec<String> = sandbox.state.ports.iter().map(ToString::to_string).collect();
    if sandbox.is_running() {
        // As with Docker those that nobody can reach from outside, too.
        let bound = |exposed: &&String| {
            let mut ports = sandbox.state.ports.iter();
            !ports.any(|port| **exposed == format!("{}/tcp", port.container_port))
        };
        ports.extend(config.exposed_ports.iter().filter(bound).cloned());
    }
    let labels: Vec<String> = config
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let volumes = config.mounts.iter().filter(|mount| mount.volume().is_some());
    json!({
        "ID": id(sandbox, whole),
        "Image": config.image,
        "Command": text::command(&config.args(), whole),
        "CreatedAt": text::date(config.created),
        "RunningFor": format!("{} ago", text::since(config.created, now)),
        "Status": status(sandbox, now),
        "State": sandbox.state.word(),
        "Isolation": config.isolation.to_string(),
        "Ports": ports.join(", "),
        "Names": config.name,
        "Size": size,
        "Mounts": mounts(sandbox).join(","),
        "LocalVolumes": volumes.count().to_string(),
        // There is the loopback, and what is published.
        "Networks": "none",
        "Labels": labels.join(","),
        "Label": config.labels,
    })
}

/// What is mounted: names of volumes, paths of the host's.
fn mounts(sandbox: &Sandbox) -> Vec<String> {
    let name = |mount: &VolumeMount| match &mount.source {
        Source::Volume(name) => name.clone(),
        Source::Anonymous => String::new(),
        Source::Host(path) => path.display().to_string(),
    };
    sandbox.config.mounts.iter().map(name).collect()
}

/// `Up 2 minutes`, `Exited (0) 5 seconds ago`, `Created`.
fn status(sandbox: &Sandbox, now: Timestamp) -> String {
    let state = &sandbox.state;
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            let paused = if state.paused { " (Paused)" } else { "" };
            let health = match state.health.as_ref().map(|health| health.status) {
                None => String::new(),
                Some(HealthStatus::Starting) => " (health: starting)".to_owned(),
                Some(status) => format!(" ({})", status.as_str()),
            };
            format!(
                "Up {}{health}{paused}",
                text::since(state.started.unwrap_or(now), now)
            )
        }
        Status::Restarting => {
            format!(
                "Restarting ({}) {} ago",
                state.exit_code,
                text::since(state.finished.unwrap_or(now), now)
            )
        }
        Status::Exited => {
            format!(
                "Exited ({}) {} ago",
                state.exit_code,
                text::since(state.finished.unwrap_or(now), now)
            )
        }
    }
}

/// `1.2MB (virtual 28MB)`: what the sandbox has on the disk, and that with its image.
fn size(engine: &Engine, sandbox: &Sandbox) -> String {
    let (own, all) = sizes(engine, sandbox);
    format!("{} (virtual {})", text::size(own), text::size(all))
}

/// Bytes that the sandbox has on the disk, and those with its image's.
pub fn sizes(engine: &Engine, sandbox: &Sandbox) -> (u64, u64) {
    let own = engine.sandbox_usage(sandbox);
    let image = sandbox.config.image_id.parse().ok().map(ImageId);
    let image = image.and_then(|id| engine.images().image(&id).ok().flatten());
    let shared = image.map_or(0, |image| engine.images().disk_usage([&image]));
    (own, own + shared)
}

/// What a sandbox must be. Several of one kind are alternatives, but labels, of which it must have all.
#[derive(Debug, Default)]
struct Filters {
    ids: Vec<String>,
    names: Vec<NamePattern>,
    labels: Vec<(String, Option<String>)>,
    exited: Vec<i32>,
    status: Option<Vec<String>>,
    /// Names and ids of images, as they were asked for and as they are resolved.
    images: Option<Vec<String>>,
    ports: Vec<u16>,
    /// Names of volumes, paths of the host's, and where they are mounted.
    volumes: Vec<String>,
    health: Vec<String>,
    isolations: Vec<Isolation>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

/// What a name must be like: Docker takes a regular expression, of which people use the ends (`^web`, `^/web$`).
#[derive(Debug, PartialEq, Eq)]
struct NamePattern {
    part: String,
    at_start: bool,
    at_end: bool,
}

impl NamePattern {
    fn new(text: &str) -> Result<Self, String> {
        let anchored = text.strip_prefix('^');
        let rest = anchored.unwrap_or(text);
        let ended = rest.strip_suffix('$');
        // With Docker names begin with a slash.
        let part = ended.unwrap_or(rest).trim_start_matches('/');
        let is_of_names = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !part.chars().all(is_of_names) {
            return Err("a part of a name, with ^ before its start and $ behind its end".to_owned());
        }
        Ok(Self {
            part: part.to_owned(),
            at_start: anchored.is_some(),
            at_end: ended.is_some(),
        })
    }

    fn fits(&self, name: &str) -> bool {
        match (self.at_start, self.at_end) {
            (true, true) => name == self.part,
            (true, false) => name.starts_with(&self.part),
            (false, true) => name.ends_with(&self.part),
            (false, false) => name.contains(&self.part),
        }
    }
}

/// Docker's states. Some, no sandbox of brig's is ever in.
const STATES: [&str; 7] = [
    "created",
    "restarting",
    "running",
    "removing",
    "paused",
    "exited",
    "dead",
];

/// Docker's words for what health checks find.
const HEALTH: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];

impl Filters {
    fn new(engine: &Engine, texts: &[String]) -> Result<Self, Failure> {
        let mut filters = Self::default();
        for text in texts {
            let wrong = |why: &str| Failure::command(format!("invalid filter {text:?}: {why}"));
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| wrong("write it as KEY=VALUE"))?;
            match key {
                "id" => filters.ids.push(value.to_owned()),
                "name" => filters
                    .names
                    .push(NamePattern::new(value).map_err(|why| wrong(&why))?),
                "label" => filters.labels.push(match value.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (value.to_owned(), None),
                }),
                "exited" => {
                    let code = value.parse().map_err(|_| wrong("write an exit code"))?;
                    filters.exited.push(code);
                }
                "status" => {
                    if !STATES.contains(&value) {
                        return Err(wrong(&format!("there are {}", STATES.join(", "))));
                    }
                    filters.status.get_or_insert_default().push(value.to_owned());
                }
                "ancestor" => {
                    let images = filters.images.get_or_insert_default();
                    images.push(value.to_owned());
                    images.extend(
                        engine
                            .images()
                            .resolve(value)
                            .ok()
                            .flatten()
                            .map(|image| image.id.to_string()),
                    );
                }
                "publish" | "expose" => {
                    let port = value.strip_suffix("/tcp").unwrap_or(value);
                    filters
                        .ports
                        .push(port.parse().map_err(|_| wrong("write a port"))?);
                }
                "volume" => filters.volumes.push(value.to_owned()),
                "health" => {
                    if !HEALTH.contains(&value) {
                        return Err(wrong(&format!("there are {}", HEALTH.join(", "))));
                    }
                    filters.health.push(value.to_owned());
                }
                "isolation" => filters.isolations.push(value.parse()?),
                "before" => filters.before = Some(engine.find(value)?.config.created),
                "since" => filters.since = Some(engine.find(value)?.config.created),
                _ => {
                    return Err(wrong(
                        "there are id, name, label, exited, status, ancestor, publish, expose, volume, health, isolation, before, since",
                    ));
                }
            }
        }
        Ok(filters)
    }

    fn fits(&self, sandbox: &Sandbox) -> bool {
        let (config, state) = (&sandbox.config, &sandbox.state);
        let has_port = |port: &u16| {
            let published = config.ports.iter().any(|wanted| wanted.container_port == *port);
            let exposed = config
                .exposed_ports
                .iter()
                .any(|exposed| *exposed == format!("{port}/tcp"));
            let on_host = state.ports.iter().any(|bound| bound.host.port() == *port);
            published || exposed || on_host
        };
        let has_mount = |wanted: &str| {
            let targets = config.mounts.iter().map(|mount| mount.target.clone());
            mounts(sandbox)
                .into_iter()
                .chain(targets)
                .any(|name| name == wanted)
        };
        let health = state
            .health
            .as_ref()
            .map_or("none", |health| health.status.as_str());
        (self.ids.is_empty()
            || self
                .ids
                .iter()
                .any(|id| config.id.as_str().starts_with(id.as_str())))
            && (self.names.is_empty() || self.names.iter().any(|name| name.fits(&config.name)))
            && self.labels.iter().all(|(name, value)| {
                let found = config.labels.get(name);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            })
            && (self.exited.is_empty()
                || state.status == Status::Exited && self.exited.contains(&state.exit_code))
            && self
                .status
                .as_ref()
                .is_none_or(|wanted| wanted.iter().any(|status| status == state.word()))
            && self
                .images
                .as_ref()
                .is_none_or(|images| images.contains(&config.image) || images.contains(&config.image_id))
            && (self.ports.is_empty() || self.ports.iter().any(has_port))
            && (self.volumes.is_empty() || self.volumes.iter().any(|wanted| has_mount(wanted)))
            && (self.health.is_empty() || self.health.iter().any(|wanted| wanted == health))
            && (self.isolations.is_empty() || self.isolations.contains(&config.isolation))
            && self.before.is_none_or(|before| config.created < before)
            && self.since.is_none_or(|since| config.created > since)
    }
}

#[cfg(test)]
mod tests {
    use brig_engine::Paths;

    use super::*;

    #[test]
    fn filters_are_read_and_what_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let paths = Paths {
            root: path("root"),
            runtime: path("run"),
            lib: path("lib"),
        };
        let engine = Engine::open(paths).unwrap();
        let read = |text: &str| Filters::new(&engine, &[text.to_owned()]);
        for text in [
            "id=0f3c",
            "name=/web",
            "label=team",
            "label=team=web",
            "exited=137",
            "status=paused",
            "ancestor=nginx",
            "publish=80/tcp",
            "expose=80",
            "volume=/data",
            "health=none",
            "isolation=container",
        ] {
            assert!(read(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "x",
            "colour=red",
            "exited=no",
            "status=up",
            "publish=http",
            "before=none",
            "name=(web)",
            "name=a|b",
            "health=well",
            "isolation=jail",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let fits = |pattern: &str, name: &str| {
            let filters = read(&format!("name={pattern}")).unwrap();
            filters.names[0].fits(name)
        };
        for pattern in ["web", "/web", "^web$", "^/web$", "^we", "eb$", "e", ""] {
            assert!(fits(pattern, "web"), "{pattern}");
        }
        for pattern in ["webs", "^eb", "we$", "^we$", "^/eb"] {
            assert!(!fits(pattern, "web"), "{pattern}");
        }
        assert_eq!(
            read("label=a=b=c").unwrap().labels,
            [("a".to_owned(), Some("b=c".to_owned()))]
        );
    }
}
