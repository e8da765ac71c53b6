//! `template create`, `template ls` and `template rm`.

use brig_engine::{
    Engine,
    error::chain,
    resources::MemoryMib,
    template::{Ensured, Listed, Shape},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{print, print_lines};
use crate::{
    arguments::{Format, Template, TemplateCreate, TemplateList, TemplateRemove},
    failure::Failure,
    progress::Step,
    table, text,
};

const HEADING: [&str; 6] = ["ID", "VCPUS", "MEMORY", "SIZE", "CREATED", "LAST USED"];

/// `brig template …`.
pub async fn dispatch(engine: &Engine, command: Template) -> Result<i32, Failure> {
    match command {
        Template::Create(options) => create(engine, &options).await,
        Template::Ls(options) => list(engine, &options),
        Template::Rm(options) => remove(engine, &options),
    }
}

async fn create(engine: &Engine, options: &TemplateCreate) -> Result<i32, Failure> {
    let memory = options.memory.map(MemoryMib::check_host).transpose()?;
    let step = Step::spinner("Making a template");
    let ensured = engine
        .ensure_template(Shape::new(options.cpus, memory), true, &mut || {})
        .await?;
    drop(step);
    match ensured {
        Ensured::Present(key) | Ensured::Made(key) => {
            print(&format!("{key}\n"))?;
            Ok(0)
        }
        Ensured::Hopeless => Err(Failure::command(
            "the last templates could not be used".to_owned(),
        )),
    }
}

fn list(engine: &Engine, options: &TemplateList) -> Result<i32, Failure> {
    let listed = engine.templates().list()?;
    let id = |template: &Listed| {
        if options.no_trunc {
            template.key.as_str().to_owned()
        } else {
            template.key.short().to_owned()
        }
    };
    if options.quiet {
        print_lines(listed.iter().map(id))?;
        return Ok(0);
    }
    if options.format == Format::Json {
        let values: Vec<Value> = listed.iter().map(describe).collect();
        print(&format!("{:#}\n", Value::Array(values)))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let ago = |time| format!("{} ago", text::since(time, now));
    let rows: Vec<Vec<String>> = listed
        .iter()
        .map(|template| {
            let used = used(template).map_or_else(String::new, ago);
            match &template.record {
                Some(record) => vec![
                    id(template),
                    record.made_from.shape.vcpus.to_string(),
                    record.made_from.shape.memory.to_string(),
                    text::size(template.allocated),
                    ago(record.created),
                    used,
                ],
                None => vec![
                    id(template),
                    "damaged".to_owned(),
                    String::new(),
                    text::size(template.allocated),
                    String::new(),
                    used,
                ],
            }
        })
        .collect();
    print(&table::render(&HEADING, &rows))?;
    Ok(0)
}

fn used(template: &Listed) -> Option<Timestamp> {
    Timestamp::try_from(template.used).ok()
}

fn describe(template: &Listed) -> Value {
    let record = template.record.as_ref();
    json!({
        "Id": template.key.as_str(),
        "Vcpus": record.map(|record| record.made_from.shape.vcpus),
        "MemoryBytes": record.map(|record| record.made_from.shape.memory.bytes()),
        "AllocatedBytes": template.allocated,
        "Created": record.map(|record| record.created.to_string()),
        "LastUsed": used(template).map(|time| time.to_string()),
        "GuestKernel": record.map(|record| record.kernel.as_str()),
        "MadeFrom": record.map(|record| json!(record.made_from)),
    })
}

fn remove(engine: &Engine, options: &TemplateRemove) -> Result<i32, Failure> {
    let cache = engine.templates();
    let references = if options.all {
        let listed = cache.list()?;
        listed
            .iter()
            .map(|template| template.key.as_str().to_owned())
            .collect()
    } else {
        options.templates.clone()
    };
    let mut failed = false;
    for reference in &references {
        match cache.resolve(reference) {
            Ok(key) => {
                cache.drop_template(&key);
                print(&format!("{key}\n"))?;
            }
            // Another command removed it just now.
            Err(_) if options.all => {}
            Err(e) => {
                Failure::command(chain(&e)).report();
                failed = true;
            }
        }
    }
    if failed { Err(Failure::reported()) } else { Ok(0) }
}
