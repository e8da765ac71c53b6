//! `system df`, `system prune` and `system check`.

use brig_engine::{Engine, engine::DiskUsage, sandbox::Sandbox};
use brig_image_store::{Prune, store::Problem};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{
    images::{filter::PruneFilters, remove},
    print, print_lines,
};
use crate::{
    arguments::{SystemDf, SystemPrune},
    confirm,
    failure::Failure,
    listing, table, text,
};

/// The heading of each field.
const FIELDS: [(&str, &str); 5] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

const TABLE: &str = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";

/// `brig system df`.
pub fn usage(engine: &Engine, options: &SystemDf) -> Result<i32, Failure> {
    let usage = engine.disk_usage()?;
    if options.verbose {
        print(&verbose(&usage))?;
    } else {
        let format = options.format.as_deref().filter(|format| *format != "table");
        print(&listing::render(
            format.unwrap_or(TABLE),
            &FIELDS,
            &summary(&usage),
        )?)?;
    }
    Ok(0)
}

fn summary(usage: &DiskUsage) -> Vec<Value> {
    let row = |what: &str, total: usize, active: usize, bytes: u64, reclaimable: u64| {
        let reclaimable = reclaimable.min(bytes);
        let percent = (reclaimable * 100).checked_div(bytes).unwrap_or(0);
        json!({
            "Type": what,
            "TotalCount": total.to_string(),
            "Active": active.to_string(),
            "Size": text::size(bytes),
            "Reclaimable": format!("{} ({percent}%)", text::size(reclaimable)),
        })
    };
    let images = usage.store.blobs + usage.store.unpacked;
    let active = usage.images.iter().filter(|(_, _, users)| *users > 0).count();
    let sandboxes: u64 = usage.sandboxes.iter().map(|(_, bytes)| bytes).sum();
    let running = |(sandbox, _): &&(Sandbox, u64)| sandbox.supervised;
    let kept: u64 = usage
        .sandboxes
        .iter()
        .filter(running)
        .map(|(_, bytes)| bytes)
        .sum();
    let unused = usage.volumes.iter().filter(|(_, _, users)| *users == 0);
    let unused = unused.map(|(_, bytes, _)| bytes).sum();
    let templates: u64 = usage.templates.iter().map(|template| template.allocated).sum();
    let snapshots: u64 = usage.snapshots.iter().map(|snapshot| snapshot.allocated).sum();
    let cache = usage.cache + usage.store.temporary;
    vec![
        row(
            "Images",
            usage.images.len(),
            active,
            images,
            images.saturating_sub(usage.used_images),
        ),
        row(
            "Sandboxes",
            usage.sandboxes.len(),
            usage.sandboxes.iter().filter(running).count(),
            sandboxes,
            sandboxes - kept,
        ),
        row(
            "Local Volumes",
            usage.volumes.len(),
            usage.volumes.iter().filter(|(_, _, users)| *users > 0).count(),
            usage.volumes.iter().map(|(_, bytes, _)| bytes).sum(),
            unused,
        ),
        row("Templates", usage.templates.len(), 0, templates, templates),
        row("Snapshots", usage.snapshots.len(), 0, snapshots, 0),
        row("Cache", 0, 0, cache, cache),
    ]
}

fn verbose(usage: &DiskUsage) -> String {
    let now = Timestamp::now();
    let ago = |time| format!("{} ago", text::since(time, now));
    let section = |title: &str, heading: &[&str], rows: Vec<Vec<String>>| {
        format!("{title}:\n\n{}\n", table::render(heading, &rows))
    };
    let images = usage.images.iter().map(|(image, bytes, users)| {
        let name = image.names.first();
        let made = super::super::images::filter::created(image);
        vec![
            name.map_or_else(|| "<none>".to_owned(), |name| name.repository.to_string()),
            name.map_or_else(|| "<none>".to_owned(), |name| name.tag.clone()),
            image.id.short(),
            made.map_or_else(|| "N/A".to_owned(), ago),
            text::size(*bytes),
            users.to_string(),
        ]
    });
    let sandboxes = usage.sandboxes.iter().map(|(sandbox, bytes)| {
        vec![
            sandbox.id().short().to_owned(),
            sandbox.config.image.clone(),
            text::command(&sandbox.config.args(), false),
            text::size(*bytes),
            ago(sandbox.config.created),
            sandbox.state.status.as_str().to_owned(),
            sandbox.config.name.clone(),
        ]
    });
    let volumes = usage
        .volumes
        .iter()
        .map(|(volume, bytes, users)| vec![volume.name.clone(), users.to_string(), text::size(*bytes)]);
    let templates = usage.templates.iter().map(|template| {
        let created = template
            .record
            .as_ref()
            .map_or_else(|| "damaged".to_owned(), |record| ago(record.created));
        vec![
            template.key.as_str().chars().take(12).collect(),
            created,
            text::size(template.allocated),
        ]
    });
    let snapshots = usage.snapshots.iter().map(|snapshot| {
        let record = snapshot.record.as_ref();
        let created = record.map_or_else(|_| "damaged".to_owned(), |record| ago(record.created));
        vec![snapshot.name.clone(), created, text::size(snapshot.allocated)]
    });
    [
        section(
            "Images space usage",
            &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "USED BY"],
            images.collect(),
        ),
        section(
            "Sandboxes space usage",
            &[
                "CONTAINER ID",
                "IMAGE",
                "COMMAND",
                "SIZE",
                "CREATED",
                "STATUS",
                "NAMES",
            ],
            sandboxes.collect(),
        ),
        section(
            "Local Volumes space usage",
            &["VOLUME NAME", "LINKS", "SIZE"],
            volumes.collect(),
        ),
        section(
            "Templates space usage",
            &["TEMPLATE ID", "CREATED", "SIZE"],
            templates.collect(),
        ),
        section(
            "Snapshots space usage",
            &["NAME", "CREATED", "SIZE"],
            snapshots.collect(),
        ),
        format!(
            "Cache usage: {}\n",
            text::size(usage.cache + usage.store.temporary)
        ),
    ]
    .concat()
}

/// `brig system prune`.
pub async fn prune(engine: &Engine, options: &SystemPrune) -> Result<i32, Failure> {
    let images = if options.all {
        "all images that nothing uses"
    } else {
        "all images without a name"
    };
    let volumes = if options.volumes {
        "\n  - all volumes without a name that no sandbox has then"
    } else {
        ""
    };
    let more = if options.all { "\n  - all templates" } else { "" };
    let filters = PruneFilters::new(&options.filter)?;
    let warning = format!(
        "This will remove:\n  - all stopped sandboxes{volumes}\n  - {images}\n  - what killed processes have left{more}\n"
    );
    if !options.force && !confirm::ask(&warning)? {
        return Ok(0);
    }
    let (gone, mut bytes) = engine
        .prune_sandboxes(|sandbox| filters.fit(sandbox.config.created, &sandbox.config.labels))
        .await?;
    report("Deleted Sandboxes:", gone)?;
    if options.volumes {
        let (gone, took) = engine.prune_volumes(false, |_| true)?;
        bytes += took;
        report("Deleted Volumes:", gone)?;
    }
    let which = if options.all {
        Prune::Unused
    } else {
        Prune::Dangling
    };
    let removed = engine.prune_images(which, |image| filters.fit_image(image))?;
    bytes += removed.bytes;
    report("Deleted Images:", remove::lines(&removed, "untagged", "deleted"))?;
    if options.all {
        let templates = engine.templates();
        let mut gone = Vec::new();
        for template in templates.list()? {
            if templates.drop_template(&template.key) {
                bytes += template.allocated;
                gone.push(template.key.to_string());
            }
        }
        report("Deleted Templates:", gone)?;
    }
    print_lines([format!("Total reclaimed space: {}", text::size(bytes))])?;
    Ok(0)
}

/// Prints what was removed, under a title, if anything was.
pub fn report(title: &str, lines: Vec<String>) -> Result<(), Failure> {
    if lines.is_empty() {
        return Ok(());
    }
    print_lines([title.to_owned()])?;
    print_lines(lines)?;
    print_lines([""])
}

/// `brig system check`.
pub fn check(engine: &Engine) -> Result<i32, Failure> {
    let problems = engine.images().check()?;
    for problem in problems.iter().filter(|problem| !problem.is_damage()) {
        print_lines([format!("{problem}: brig image prune removes it")])?;
    }
    let damage: Vec<&Problem> = problems.iter().filter(|problem| problem.is_damage()).collect();
    if damage.is_empty() {
        print_lines(["The image store is whole."])?;
        return Ok(0);
    }
    for problem in damage {
        Failure::command(problem.to_string()).report();
    }
    Err(Failure::reported())
}
