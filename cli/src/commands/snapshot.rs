//! `snapshot create`, `ls`, `rm`, `inspect`, `export` and `import`.

use std::{
    fs::{self, File},
    io::{self, BufWriter, IsTerminal, Write},
    path::Path,
};

use brig_engine::{
    Engine, Error,
    snapshot::{Record, archive, store::Listed},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{print, print_lines};
use crate::{
    arguments::{
        Format, Snapshot, SnapshotCreate, SnapshotExport, SnapshotImport, SnapshotList, SnapshotNames,
    },
    failure::Failure,
    progress::Step,
    table, text,
};

const HEADING: [&str; 7] = ["NAME", "IMAGE", "VCPUS", "MEMORY", "SIZE", "CREATED", "ORIGIN"];

/// `brig snapshot …`.
pub async fn dispatch(engine: &Engine, command: Snapshot) -> Result<i32, Failure> {
    match command {
        Snapshot::Create(options) => create(engine, &options).await,
        Snapshot::Ls(options) => list(engine, &options),
        Snapshot::Rm(options) => remove(engine, &options),
        Snapshot::Inspect(options) => inspect(engine, &options),
        Snapshot::Export(options) => export(engine, &options),
        Snapshot::Import(options) => import(engine, &options),
    }
}

async fn create(engine: &Engine, options: &SnapshotCreate) -> Result<i32, Failure> {
    let step = Step::spinner("Saving the sandbox");
    engine.snapshot(&options.sandbox, &options.name).await?;
    drop(step);
    print(&format!("{}\n", options.name))?;
    Ok(0)
}

fn list(engine: &Engine, options: &SnapshotList) -> Result<i32, Failure> {
    let listed = engine.snapshots().list()?;
    if options.quiet {
        print_lines(listed.iter().map(|snapshot| &snapshot.name))?;
        return Ok(0);
    }
    if options.format == Format::Json {
        let values = listed.iter().map(|snapshot| {
            let record = snapshot.record.as_ref();
            describe(&snapshot.name, Some(snapshot.allocated), record.ok())
        });
        print(&format!("{:#}\n", Value::Array(values.collect())))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = listed.iter().map(|snapshot| row(snapshot, now)).collect();
    print(&table::render(&HEADING, &rows))?;
    Ok(0)
}

fn row(snapshot: &Listed, now: Timestamp) -> Vec<String> {
    let size = text::size(snapshot.allocated);
    let Ok(record) = &snapshot.record else {
        let mut row = vec![String::new(); HEADING.len()];
        (row[0], row[4]) = (snapshot.name.clone(), size);
        "damaged".clone_into(&mut row[1]);
        return row;
    };
    vec![
        snapshot.name.clone(),
        record.config.image.clone(),
        record.config.cpus.vcpus().to_string(),
        record.config.memory.to_string(),
        size,
        format!("{} ago", text::since(record.created, now)),
        origin(record).to_owned(),
    ]
}

fn origin(record: &Record) -> &'static str {
    if record.imported { "imported" } else { "made here" }
}

fn describe(name: &str, allocated: Option<u64>, record: Option<&Record>) -> Value {
    json!({
        "Name": name,
        "Image": record.map(|record| record.config.image.as_str()),
        "Created": record.map(|record| record.created.to_string()),
        "Imported": record.map(|record| record.imported),
        "AllocatedBytes": allocated,
        "Record": record.map(|record| json!(record)),
    })
}

fn inspect(engine: &Engine, options: &SnapshotNames) -> Result<i32, Failure> {
    let snapshots = engine.snapshots();
    let mut found = Vec::new();
    let mut failed = false;
    for name in &options.names {
        match snapshots.record(name) {
            Ok(record) => {
                let allocated = brig_engine::files::allocated(&engine.paths().snapshots().join(name)).ok();
                found.push(describe(name, allocated, Some(&record)));
            }
            Err(e) => {
                Failure::from(e).report();
                failed = true;
            }
        }
    }
    print(&format!("{:#}\n", Value::Array(found)))?;
    if failed { Err(Failure::reported()) } else { Ok(0) }
}

fn remove(engine: &Engine, options: &SnapshotNames) -> Result<i32, Failure> {
    let snapshots = engine.snapshots();
    let mut failed = false;
    for name in &options.names {
        match snapshots.remove(name) {
            Ok(()) => print(&format!("{name}\n"))?,
            Err(e) => {
                Failure::from(e).report();
                failed = true;
            }
        }
    }
    if failed { Err(Failure::reported()) } else { Ok(0) }
}

fn export(engine: &Engine, options: &SnapshotExport) -> Result<i32, Failure> {
    let snapshots = engine.snapshots();
    // Before a file is made for one that does not exist.
    snapshots.record(&options.name)?;
    let Some(path) = &options.output else {
        if io::stdout().is_terminal() {
            return Err(Failure::command(
                "refusing to write an archive to a terminal: use -o FILE".to_owned(),
            ));
        }
        archive::export(
            &snapshots,
            &options.name,
            &mut BufWriter::new(io::stdout().lock()),
        )?;
        return Ok(0);
    };
    let step = Step::spinner("Writing the archive");
    let write = || -> Result<(), Error> {
        let file = File::create(path).map_err(failed("make", path))?;
        let mut output = BufWriter::with_capacity(1 << 20, file);
        archive::export(&snapshots, &options.name, &mut output)?;
        output.flush().map_err(failed("write", path))
    };
    let written = write();
    drop(step);
    if written.is_err() && path.is_file() {
        let _ = fs::remove_file(path);
    }
    written?;
    Ok(0)
}

fn import(engine: &Engine, options: &SnapshotImport) -> Result<i32, Failure> {
    let stem = options
        .file
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    let stdin = options.file == Path::new("-");
    let name = match (&options.name, stem) {
        (Some(name), _) => name.clone(),
        (None, Some(stem)) if !stdin => stem,
        _ => {
            return Err(Failure::command(
                "--name is needed: what shall it be called?".to_owned(),
            ));
        }
    };
    let step = Step::spinner("Reading the archive");
    if stdin {
        archive::import(&engine.snapshots(), &name, archive::buffered(io::stdin().lock()))?;
    } else {
        let file = File::open(&options.file).map_err(failed("open", &options.file))?;
        archive::import(&engine.snapshots(), &name, archive::buffered(file))?;
    }
    drop(step);
    print(&format!("{name}\n"))?;
    Ok(0)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}
