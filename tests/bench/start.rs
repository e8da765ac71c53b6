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

use std::{collections::BTreeMap, env, fs, process::ExitCode, time::Instant};

use brig_tests::{
    brig::{Brig, Output},
    http, leftovers, machine,
};

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

/// Milliseconds and counts by name, a value a start.
type Figures = BTreeMap<&'static str, Vec<f64>>;

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
    // The second table: its last line is that of the exit.
    let costs = stderr.lines().skip_while(|line| !line.starts_with("UNTIL"));
    if let Some(line) = costs.filter_map(|line| line.strip_prefix("exit")).last() {
        let values = line.split_whitespace().filter_map(|value| value.parse().ok());
        for (name, value) in COSTS.into_iter().zip(values) {
            figures.entry(name).or_default().push(value);
        }
    }
}

fn table(title: &str, names: &[&str], figures: &Figures) {
    println!(
        "\n{title}\n{:<24}{:>12}{:>12}{:>12}{:>12}{:>6}",
        "", "min", "median", "p95", "max", "runs"
    );
    for name in names {
        let Some(values) = figures.get(name) else { continue };
        let at = |share: f64| quantile(values, share);
        println!(
            "{name:<24}{:>12.1}{:>12.1}{:>12.1}{:>12.1}{:>6}",
            at(0.0),
            at(0.5),
            at(0.95),
            at(1.0),
            values.len()
        );
    }
}

/// The nearest value at or above the share.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted[index.saturating_sub(1).min(sorted.len() - 1)]
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
    let (mut supervisors, mut vmms) = (Vec::new(), Vec::new());
    for process in leftovers::processes(brig) {
        let Some(pss) = pss_kib(process.pid) else { continue };
        if process.name == "brig-vmm" {
            vmms.push(pss);
        } else {
            supervisors.push(pss);
        }
    }
    println!(
        "\n{count} idle sandboxes, KiB of private memory each (PSS, pages that several share counted in parts)"
    );
    for (what, values) in [("supervisor", &supervisors), ("brig-vmm with its guest", &vmms)] {
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

/// Proportional set size of a process (proc(5), `smaps_rollup`).
fn pss_kib(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}
