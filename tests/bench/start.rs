//! How long a start takes, cold and from a template, and what an idle sandbox costs.
//!
//! ```text
//! bench-start [--rounds N] [--cold N] [--idle N]
//!   --rounds N   starts from the template (20); one in each round, and a cold one in the first of them
//!   --cold N     cold starts among the rounds (3)
//!   --idle N     sandboxes that run at once for the memory figures (10)
//! ```
//! `brig run --rm --timing=full busybox true` each time. Cold and restored starts take turns, so that what else the machine
//! does falls on both, and the ratios are of one run. Nothing is compared with a limit: a benchmark does not fail.

mod figures;

use std::{env, fs, process::ExitCode, time::Instant};

use brig_tests::{
    brig::{Brig, Output},
    http, leftovers, machine,
    smaps::{self, Mapping},
};

use crate::figures::{Figures, quantile, table};

/// Stages in the order in which they are reached.
const STAGES: [&str; 9] = [
    "supervisor",
    "VMM start",
    "kernel entry",
    "guest resumed",
    "init",
    "agent ready",
    "process exec",
    "exit",
    "cleaned up",
];

/// Columns of the costs, in their order in the table of `--timing=full`.
const COSTS: [&str; 10] = [
    "VM exits",
    "port exits",
    "MMIO exits",
    "halts",
    "interrupts",
    "emulated instructions",
    "guest page faults",
    "host page faults",
    "major faults",
    "waits",
];

/// Columns of what the host was asked for, in their order in the last table of `--timing=full`.
const HOST_COSTS: [&str; 2] = ["host system calls", "host page faults, all"];

struct Options {
    rounds: usize,
    cold: usize,
    idle: usize,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(what) => {
            eprintln!("bench-start: {what}");
            return ExitCode::from(2);
        }
    };
    if let Some(reason) = machine::Need::Kvm.missing() {
        eprintln!("bench-start: skipped, {reason}");
        return ExitCode::SUCCESS;
    }
    let brig = Brig::new();
    let info = brig.ok(&["system", "info"]);
    println!(
        "{}",
        info.lines().find(|line| line.starts_with("KVM")).unwrap_or("")
    );
    starts(&brig, &options);
    idle(&brig, options.idle);
    brig.assert_nothing_left();
    ExitCode::SUCCESS
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        rounds: 20,
        cold: 3,
        idle: 10,
    };
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok());
        let value = value.ok_or(format!("{name} needs a number"))?;
        match name.as_str() {
            "--rounds" => options.rounds = value,
            "--cold" => options.cold = value,
            "--idle" => options.idle = value,
            _ => return Err(format!("unknown option {name}: --rounds, --cold and --idle")),
        }
    }
    Ok(options)
}

fn starts(brig: &Brig, options: &Options) {
    let (mut cold, mut restored) = (Figures::new(), Figures::new());
    // The first makes the template, unpacks the image and fills caches.
    start(brig, &[], &mut Figures::new());
    for round in 0..options.rounds.max(options.cold) {
        if round < options.cold {
            start(brig, &["--no-template"], &mut cold);
        }
        if round < options.rounds {
            start(brig, &[], &mut restored);
        }
    }
    table("A cold start, milliseconds since the request", &STAGES, &cold);
    table(
        "From a template, milliseconds since the request",
        &STAGES,
        &restored,
    );
    table("From a template, counted until the exit", &COSTS, &restored);
    table(
        "From a template, all processes of the host until the end",
        &HOST_COSTS,
        &restored,
    );
    ratios(&cold, &restored);
}

fn start(brig: &Brig, options: &[&str], figures: &mut Figures) {
    let words = [&["run", "--rm", "--timing=full"], options, &["busybox", "true"]].concat();
    let Output { code, stderr, .. } = brig.run(&words);
    assert_eq!(code, 0, "{stderr}");
    for stage in STAGES {
        let at = stderr
            .lines()
            .filter_map(|line| line.strip_prefix(stage))
            .find_map(|columns| columns.split_whitespace().next()?.parse().ok());
        if let Some(at) = at {
            figures.entry(stage).or_default().push(at);
        }
    }
    // The tables of costs: the last line of each is that of the end.
    for (heading, end, names) in [
        ("EXITS", "exit", &COSTS[..]),
        ("HOST SYSTEM CALLS", "cleaned up", &HOST_COSTS),
    ] {
        let rows = stderr.lines().skip_while(|line| !line.contains(heading));
        if let Some(line) = rows.filter_map(|line| line.strip_prefix(end)).last() {
            let values = line.split_whitespace().filter_map(|value| value.parse().ok());
            for (&name, value) in names.iter().zip(values) {
                figures.entry(name).or_default().push(value);
            }
        }
    }
}

/// Between which stages the two are compared.
fn ratios(cold: &Figures, restored: &Figures) {
    let median = |figures: &Figures, name: &str| figures.get(name).map(|values| quantile(values, 0.5));
    let span = |figures: &Figures, from: &str, to: &str| Some(median(figures, to)? - median(figures, from)?);
    println!("\nMedians, from a template against cold");
    for (what, from, to) in [
        ("VMM start to agent ready", "VMM start", "agent ready"),
        ("agent ready to exec", "agent ready", "process exec"),
        ("exec to exit", "process exec", "exit"),
    ] {
        if let (Some(a), Some(b)) = (span(restored, from, to), span(cold, from, to)) {
            println!("{what:<28}{a:>10.1} ms {b:>10.1} ms  ratio {:.3}", a / b);
        }
    }
    if let (Some(a), Some(b)) = (median(restored, "cleaned up"), median(cold, "cleaned up")) {
        println!(
            "{:<28}{a:>10.1} ms {b:>10.1} ms  ratio {:.3}",
            "the whole command",
            a / b
        );
    }
}

/// Starts sandboxes that do nothing, looks at their memory, and asks each whether it is there.
fn idle(brig: &Brig, count: usize) {
    if count == 0 {
        return;
    }
    let mut ids = Vec::new();
    let mut times = Vec::new();
    let before = available_kib();
    for _ in 0..count {
        let began = Instant::now();
        let id = brig.ok(&["run", "-d", "-p", "127.0.0.1:0:80", "welcome"]);
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ids.push(id.trim().to_owned());
    }
    let taken = before.saturating_sub(available_kib());
    let (mut supervisors, mut stewards, mut vmms, mut own) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for process in leftovers::processes(brig) {
        let Some((pss, memory)) = pss_kib(process.pid) else {
            continue;
        };
        match process.name.as_str() {
            "brig-vmm" => {
                vmms.push(pss);
                own.push(pss - memory);
            }
            "brig-steward" => stewards.push(pss),
            _ => supervisors.push(pss),
        }
    }
    println!(
        "\n{count} idle sandboxes, KiB of private memory each (PSS, pages that several share counted in parts)"
    );
    for (what, values) in [
        ("supervisor", &supervisors),
        ("its steward", &stewards),
        ("brig-vmm with its guest", &vmms),
        ("brig-vmm without it", &own),
    ] {
        if !values.is_empty() {
            println!(
                "{what:<28}median {:>8.0}   max {:>8.0}",
                quantile(values, 0.5),
                quantile(values, 1.0)
            );
        }
    }
    println!(
        "{:<28}{:>8} KiB a sandbox",
        "less memory available",
        taken / count as u64
    );
    let half = times.len().div_ceil(2);
    println!(
        "run -d: the first {half} took {:.0} ms each, the last {} {:.0} ms (medians)",
        quantile(&times[..half], 0.5),
        times.len() - half,
        quantile(&times[times.len() - half..], 0.5)
    );
    let reached = ids.iter().filter(|id| answers(brig, id)).count();
    println!("{reached} of {count} answer on their published ports");
    for id in &ids {
        brig.ok(&["rm", "-f", id]);
    }
}

/// Whether the web server in a sandbox gives its page.
fn answers(brig: &Brig, id: &str) -> bool {
    let port = brig.ok(&["port", id, "80/tcp"]);
    let Some(address) = port.lines().next().and_then(|line| line.trim().parse().ok()) else {
        return false;
    };
    http::get(address, "/info.json").is_ok_and(|answer| answer.text().contains(&id[..12]))
}

fn available_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Proportional set size of a process, and what of it is the guest's memory.
fn pss_kib(pid: u32) -> Option<(f64, f64)> {
    let all = smaps::of_process(pid)?;
    let sum = |of: &dyn Fn(&Mapping) -> bool| -> u64 {
        all.iter()
            .filter(|&mapping| of(mapping))
            .map(|mapping| mapping.pss_kib)
            .sum()
    };
    Some((sum(&|_| true) as f64, sum(&|mapping| mapping.is_guest) as f64))
}
