//! What a sandbox takes from the disk.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use crate::{
    Error,
    report::{Row, Section},
    ways::Way,
    world::World,
};

/// KiB that a file or a directory with all in it takes, holes not counted. Links are not followed.
fn taken_kib(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let mut kib = metadata.blocks() / 2;
    if metadata.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        kib += entries.map(|entry| taken_kib(&entry.path())).sum::<u64>();
    }
    kib
}

pub(super) fn section(world: &World<'_>) -> Section {
    let row = |id: &str, title: &str, how: &str| Row::new(id, title, "KiB", how);
    let mut own = row(
        "own",
        "a sandbox that runs",
        "blocks of its directory: records, log, and the writable disk or layer as far as it is written",
    );
    let mut image = row(
        "image",
        "the images, unpacked",
        "blocks of the EROFS files, or of the directories, of what is compared and of the benchmarks; once, whatever the number of sandboxes",
    );
    let mut template = row(
        "template",
        "the template",
        "blocks of the saved guest and the blank disk; once for each size of guest",
    );
    for way in world.ways.iter().copied().filter(|way| way.is_brig()) {
        let column = way.column();
        world.tell(&format!("disk space, {}", column.title));
        for _ in 0..world.options.runs.min(3) {
            match directory(world, way) {
                Ok(kib) => own.cell(column).samples.push(kib),
                Err(e) => {
                    world.miss(&format!("disk space, {}: {}", column.title, e.line()));
                    break;
                }
            }
        }
        let images = world.scratch.root().join("images");
        let kib = match way {
            Way::Container => taken_kib(&images.join("directories")),
            _ => taken_kib(&images.join("erofs")),
        };
        image.cell(column).samples.push(kib as f64);
        if way == Way::Vm {
            template
                .cell(column)
                .samples
                .push(taken_kib(&world.scratch.root().join("templates")) as f64);
        }
    }
    Section {
        id: "space",
        title: "Disk space a sandbox".into(),
        how: "Blocks in use (stat(2)), so that sparse files count for what is in them.".into(),
        columns: world
            .ways
            .iter()
            .filter(|way| way.is_brig())
            .map(|way| way.column())
            .collect(),
        rows: vec![own, image, template],
    }
}

fn directory(world: &World<'_>, way: Way) -> Result<f64, Error> {
    let running = world.start(way, &["server"], &[])?;
    let id = world.inspect(&running.name, "/Id");
    let kib = id.map(|id| {
        taken_kib(
            &world
                .scratch
                .root()
                .join("sandboxes")
                .join(id.as_str().unwrap_or_default()),
        )
    });
    world.stop(running);
    kib.map(|kib| kib as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_nothing_and_what_is_written_does() {
        let directory = tempfile::tempdir().unwrap();
        let empty = taken_kib(directory.path());
        let file = fs::File::create(directory.path().join("hole.erofs")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(taken_kib(directory.path()) < empty + 64);
        fs::write(directory.path().join("full.erofs"), vec![1; 1 << 20]).unwrap();
        fs::File::open(directory.path().join("full.erofs"))
            .unwrap()
            .sync_all()
            .unwrap();
        assert!(taken_kib(directory.path()) >= empty + 1024);
    }
}
