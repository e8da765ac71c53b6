//! `volume create`, `ls`, `inspect`, `rm` and `prune`.

use brig_engine::{
    Engine, Error, Isolation,
    sandbox::Sandbox,
    volume::{self, Record},
};
use serde_json::{Value, json};

use super::{create::labels, described, images::filter::PruneFilters, print, print_lines};
use crate::{
    arguments::{Volume, VolumeCreate, VolumeInspect, VolumeList, VolumePrune, VolumeRemove},
    confirm,
    failure::Failure,
    listing, text,
};

const FIELDS: [(&str, &str); 9] = [
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Isolation", "ISOLATION"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Scope", "SCOPE"),
    ("Links", "LINKS"),
];

const TABLE: &str = "table {{.Driver}}\t{{.Name}}\t{{.Isolation}}\t{{.Size}}";

/// `brig volume …`.
pub fn dispatch(engine: &Engine, command: &Volume) -> Result<i32, Failure> {
    match command {
        Volume::Create(options) => create(engine, options),
        Volume::Ls(options) => list(engine, options),
        Volume::Inspect(options) => inspect(engine, options),
        Volume::Rm(options) => remove(engine, options),
        Volume::Prune(options) => prune(engine, options),
    }
}

fn create(engine: &Engine, options: &VolumeCreate) -> Result<i32, Failure> {
    let labels = labels(&options.label);
    let made = engine.volumes().create(options.name.as_deref(), labels)?;
    print(&format!("{}\n", made.name))?;
    Ok(0)
}

fn row(engine: &Engine, record: &Record, sandboxes: &[Sandbox]) -> Value {
    let labels: Vec<String> = record
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    json!({
        "Name": record.name,
        "Driver": "local",
        "Isolation": record.isolation.map_or("-", Isolation::as_str),
        "Size": text::size(engine.volume_usage(&record.name)),
        "Labels": labels.join(","),
        "CreatedAt": record.created.to_string(),
        "Mountpoint": engine.volumes().path(&record.name),
        "Scope": "local",
        "Links": volume::users(&record.name, sandboxes).count().to_string(),
    })
}

fn list(engine: &Engine, options: &VolumeList) -> Result<i32, Failure> {
    let (volumes, sandboxes) = (engine.volumes(), engine.list()?);
    let mut all = volumes.list()?;
    for filter in &options.filter {
        let keep = filter_of(filter, &sandboxes)?;
        all.retain(|record| keep(record));
    }
    if options.quiet {
        print_lines(all.iter().map(|record| &record.name))?;
        return Ok(0);
    }
    let rows: Vec<Value> = all.iter().map(|record| row(engine, record, &sandboxes)).collect();
    let format = options
        .format
        .as_deref()
        .map_or(TABLE, |format| if format == "table" { TABLE } else { format });
    print(&listing::render(format, &FIELDS, &rows)?)?;
    Ok(0)
}

/// Says of a volume whether it is wanted.
type Filter<'a> = Box<dyn Fn(&Record) -> bool + 'a>;

/// What a filter lets through.
fn filter_of<'a>(filter: &'a str, sandboxes: &'a [Sandbox]) -> Result<Filter<'a>, Failure> {
    let (key, value) = filter.split_once('=').unwrap_or((filter, ""));
    Ok(match (key, value) {
        ("dangling", "true" | "1") => {
            Box::new(|record| volume::users(&record.name, sandboxes).next().is_none())
        }
        ("dangling", "false" | "0") => {
            Box::new(|record| volume::users(&record.name, sandboxes).next().is_some())
        }
        ("name", part) => Box::new(move |record| record.name.contains(part)),
        ("label", label) => {
            let (name, wanted) = label
                .split_once('=')
                .map_or((label, None), |(name, value)| (name, Some(value)));
            Box::new(move |record| {
                let found = record.labels.get(name);
                found.is_some_and(|found| wanted.is_none_or(|wanted| wanted == found))
            })
        }
        _ => {
            return Err(Failure::usage(format!(
                "invalid filter {filter:?}: dangling=true, name=PART, label=NAME[=VALUE]"
            )));
        }
    })
}

fn inspect(engine: &Engine, options: &VolumeInspect) -> Result<i32, Failure> {
    let describe = |name: &String| describe(engine, name);
    described::show(options.format.as_deref(), options.volumes.iter().map(describe))
}

/// A volume as Docker's API describes it.
pub fn describe(engine: &Engine, name: &str) -> Result<Value, Failure> {
    let (volumes, sandboxes) = (engine.volumes(), engine.list()?);
    let record = volumes.find(name)?;
    let users: Vec<&str> = volume::users(name, &sandboxes)
        .map(|sandbox| sandbox.config.name.as_str())
        .collect();
    Ok(json!({
        "Name": record.name,
        "CreatedAt": record.created.to_string(),
        "Driver": "local",
        "Labels": record.labels,
        "Mountpoint": volumes.path(name),
        "Options": Value::Null,
        "Scope": "local",
        "UsageData": { "Size": engine.volume_usage(name), "RefCount": users.len() },
        "Brig": { "Isolation": record.isolation.map(Isolation::as_str), "Anonymous": record.anonymous, "UsedBy": users },
    }))
}

fn remove(engine: &Engine, options: &VolumeRemove) -> Result<i32, Failure> {
    let mut failed = false;
    for name in &options.volumes {
        match engine.remove_volume(name) {
            Ok(()) => print(&format!("{name}\n"))?,
            Err(Error::NoSuchVolume(_)) if options.force => print(&format!("{name}\n"))?,
            Err(e) => {
                Failure::from(e).report();
                failed = true;
            }
        }
    }
    if failed { Err(Failure::reported()) } else { Ok(0) }
}

fn prune(engine: &Engine, options: &VolumePrune) -> Result<i32, Failure> {
    let which = if options.all {
        "all volumes that no sandbox has"
    } else {
        "all volumes without a name that no sandbox has"
    };
    let filters = PruneFilters::new(&options.filter)?;
    if !options.force && !confirm::ask(&format!("This will remove {which}.\n"))? {
        return Ok(0);
    }
    let (gone, bytes) =
        engine.prune_volumes(options.all, |record| filters.fit(record.created, &record.labels))?;
    if !gone.is_empty() {
        print_lines(["Deleted Volumes:".to_owned()])?;
        print_lines(gone)?;
        print_lines([""])?;
    }
    print_lines([format!("Total reclaimed space: {}", text::size(bytes))])?;
    Ok(0)
}
