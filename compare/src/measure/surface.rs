//! What of the host a sandbox can reach.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    Error, calls, filter, processes,
    report::{Row, Section},
    trace::{self, Calls},
    ways::Way,
    world::{Running, World},
};

/// What the benchmarks' program does while its calls are counted: files, memory, processes, pipes.
const ACTIVITY: [&str; 8] = [
    "getppid",
    "open_close",
    "page_fault",
    "mmap_munmap",
    "fork_exec",
    "pipe_latency",
    "create",
    "unlink",
];

/// Programs that do something for a sandbox and are not it.
const HELPERS: [&str; 7] = [
    "brig",
    "brig-supervisor",
    "brig-vmm",
    "brig-cell",
    "crun",
    "runc",
    "?",
];

pub(super) fn section(world: &World<'_>) -> Section {
    let row = |id: &str, title: &str, how: &str| Row::new(id, title, "", how);
    let mut reached = row(
        "calls",
        "host calls, by what it could take over",
        "different system calls of the host that were made, seen by ptrace(2), while the benchmarks' program did a little of everything: \
         by the image's process, or by brig-vmm from the guest's first instruction on",
    );
    let mut others = row(
        "calls_around",
        "host calls, by what is around it",
        "the same, by all processes that start, watch and end the sandbox",
    );
    let mut allowed = row(
        "allowed",
        "host calls that its filter allows",
        "of the process that the image could take over: its filters, read back from the kernel and followed for each call along every path \
         that arguments can take it; of brig-vmm those of all its threads together once the guest runs. Without a filter all that the kernel has",
    );
    let mut arguments = row(
        "some_arguments",
        "  of those, some arguments only",
        "calls for which there are arguments that the filter refuses",
    );
    let mut devices = row(
        "nodes",
        "device nodes in /dev",
        "character and block devices below /dev, counted from within; in a microVM they are the guest kernel's",
    );
    let mut emulated = row(
        "emulated",
        "devices that the VMM emulates",
        "virtio devices as the guest sees them in /sys/bus/virtio/devices; a serial port that writes only and the reset line of an i8042 come on top",
    );
    let mut kernel = row(
        "kernel",
        "kernel",
        "/proc/sys/kernel/random/boot_id from within, against the host's",
    );
    for way in &world.ways {
        let column = way.column();
        world.tell(&format!("attack surface, {}", column.title));
        let result = (|| -> Result<(), Error> {
            match trace(world, *way) {
                Ok(found) => {
                    let (own, around) = split(*way, &found);
                    for (row, numbers) in [(&mut reached, own), (&mut others, around)] {
                        if numbers.is_empty() {
                            continue;
                        }
                        let cell = row.cell(column);
                        cell.samples.push(numbers.len() as f64);
                        let names: Vec<String> = numbers.iter().map(|number| calls::name(*number)).collect();
                        cell.notes.insert("calls".into(), json!(names));
                    }
                }
                Err(e) => world.miss(&format!("host system calls, {}: {}", column.title, e.line())),
            }
            let running = world.start(*way, &["server"], &[])?;
            let filters = filters(world, *way, &running);
            world.stop(running);
            match filters {
                Ok((all, some)) => {
                    allowed.cell(column).samples.push(all as f64);
                    arguments.cell(column).samples.push(some as f64);
                }
                Err(e) => world.miss(&format!(
                    "system calls that are allowed, {}: {}",
                    column.title,
                    e.line()
                )),
            }
            let look = world.start(*way, &["look"], &[])?;
            let seen: Result<Value, _> = serde_json::from_str(&look.first);
            world.stop(look);
            let seen = seen.map_err(|e| Error::Told(e.to_string()))?;
            let count = |name: &str| seen[name].as_array().map(Vec::len);
            if let Some(nodes) = count("nodes") {
                let cell = devices.cell(column);
                cell.samples.push(nodes as f64);
                cell.notes.insert("nodes".into(), seen["nodes"].clone());
            }
            if let (Way::Vm, Some(found)) = (*way, count("virtio")) {
                let cell = emulated.cell(column);
                cell.samples.push(found as f64);
                cell.notes.insert("virtio".into(), seen["virtio"].clone());
            }
            let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            let shared = seen["boot_id"].as_str() == Some(own.trim());
            kernel.cell(column).text = Some(if shared { "the host's" } else { "its own" }.into());
            Ok(())
        })();
        if let Err(e) = result {
            world.miss(&format!("attack surface, {}: {}", column.title, e.line()));
        }
    }
    Section {
        id: "surface",
        title: "Attack surface".into(),
        how: "What a hostile image could reach of the host, and how much of it is used. Few is good, and says nothing about how well the \
              few are made."
            .into(),
        columns: world.ways.iter().map(|way| way.column()).collect(),
        rows: vec![reached, others, allowed, arguments, devices, emulated, kernel],
    }
}

fn trace(world: &World<'_>, way: Way) -> Result<Calls, Error> {
    let mut words: Vec<String> = ["--seconds", "0", "--size", "1", "--files", "4", "run"]
        .map(String::from)
        .into();
    words.extend(ACTIVITY.map(String::from));
    let (mut command, name) = world.command(way, &world.bench, &words, &[])?;
    let calls = trace::run(&mut command);
    world.forget(way, &name);
    calls
}

/// The calls of what a hostile image could take over, and those of everything else.
fn split(way: Way, found: &Calls) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let mut own = BTreeSet::new();
    let mut around = BTreeSet::new();
    for (program, numbers) in &found.by_program {
        let is_helper =
            way != Way::Process && (HELPERS.contains(&program.as_str()) || program.starts_with("memfd:"));
        if is_helper { &mut around } else { &mut own }.extend(numbers);
    }
    if way == Way::Vm {
        own.clone_from(&found.while_guest_ran);
    }
    (own, around)
}

/// How many calls the filters allow of the process that the image could take over, and how many of these with some arguments only.
fn filters(world: &World<'_>, way: Way, running: &Running) -> Result<(usize, usize), Error> {
    let wanted = |pid: u32| match (way, processes::program(pid)) {
        (Way::Vm, Some(program)) => program == "brig-vmm",
        (Way::Process, _) => true,
        (_, Some(program)) => !HELPERS.contains(&program.as_str()) && !program.starts_with("memfd:"),
        (_, None) => false,
    };
    let tree = processes::tree(world.pid(running)?);
    let pid = tree.into_iter().find(|pid| wanted(*pid));
    let pid = pid.ok_or_else(|| Error::Told("the process is not to be found".into()))?;
    let tasks = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&tasks).map_err(Error::file("read", Path::new(&tasks)))?;
    // A call that any of the threads may make can be made.
    let mut best = vec![filter::Verdict::Never; calls::NUMBERS as usize];
    for thread in threads.flatten() {
        let Some(thread) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let filters = filter::of_thread(thread).map_err(Error::system("read its filters (only root may)"))?;
        for (number, best) in (0..).zip(&mut best) {
            *best = (*best).max(filter::verdict(&filters, number));
        }
    }
    let known = || {
        (0..)
            .zip(&best)
            .filter(|(number, _)| calls::is_known(*number))
            .map(|(_, verdict)| *verdict)
    };
    Ok((
        known()
            .filter(|verdict| *verdict > filter::Verdict::Never)
            .count(),
        known()
            .filter(|verdict| *verdict == filter::Verdict::SomeArguments)
            .count(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(programs: &[(&str, u32)]) -> Calls {
        let mut calls = Calls::default();
        for (program, number) in programs {
            calls
                .by_program
                .entry((*program).into())
                .or_default()
                .insert(*number);
        }
        calls.while_guest_ran.insert(16);
        calls
    }

    #[test]
    fn what_an_image_could_take_over_is_its_process_or_the_vmm() {
        let found = calls(&[
            ("brig", 1),
            ("brig-vmm", 2),
            ("brig-vmm", 16),
            ("brig-supervisor", 3),
        ]);
        let (own, around) = split(Way::Vm, &found);
        assert_eq!((own, around), ([16].into(), [1, 2, 3, 16].into()));
        let found = calls(&[("brig", 1), ("brig-cell", 2), ("bench", 3), ("memfd:cell", 4)]);
        let (own, around) = split(Way::Container, &found);
        assert_eq!((own, around), ([3].into(), [1, 2, 4].into()));
        assert_eq!(split(Way::Process, &calls(&[("brig-bench", 5)])).0, [5].into());
    }
}
