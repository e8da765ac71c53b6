//! The table that `--timing` prints.

use std::fmt::Write;

use brig_engine::{
    clock::{Counters, Stage, Timing},
    guest::Origin,
    kvm,
    perf::{HostCost, HostCounters},
    unpack,
};

use crate::{table, text};

/// What the unpack of the image took, part after part; the parts inside of the guest are those of its agent's clock.
pub fn render_unpack(timing: &unpack::Timing) -> String {
    let costs = &timing.costs;
    let between = |from: u64, to: u64| milliseconds(to.saturating_sub(from));
    let of_agent = |us: u64| format!("{:.1}", us as f64 / 1e3);
    let rows = [
        ("guest start", between(timing.began_ns, timing.ready_ns)),
        ("read layers", of_agent(costs.read_us)),
        ("decompress", of_agent(costs.decompress_us)),
        ("hash", of_agent(costs.hash_us)),
        ("write image", of_agent(costs.write_us)),
        ("names, copying", of_agent(costs.rest_us)),
        ("in the guest", between(timing.ready_ns, timing.unpacked_ns)),
        ("into the store", between(timing.unpacked_ns, timing.done_ns)),
        ("unpack", between(timing.began_ns, timing.done_ns)),
    ];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(part, ms)| vec![part.to_owned(), ms])
        .collect();
    let mut text = table::render(&["UNPACK", "MS"], &rows);
    let _ = writeln!(
        text,
        "{} of layers, {} unpacked, {} files",
        text::size(timing.compressed_bytes),
        text::size(timing.bytes),
        timing.inodes
    );
    text
}

/// What a start costs the host until each of a few stages, or why that is not counted.
pub struct HostCosts {
    counters: Result<HostCounters, String>,
    rows: Vec<(&'static str, HostCost)>,
}

impl HostCosts {
    /// Begins to count.
    pub fn start() -> Self {
        Self {
            counters: HostCounters::start(),
            rows: Vec::new(),
        }
    }

    /// A stage has been reached.
    pub fn reached(&mut self, stage: &'static str) {
        match self.counters.as_ref().map(HostCounters::read) {
            Ok(Ok(cost)) => self.rows.push((stage, cost)),
            Ok(Err(e)) => self.counters = Err(e.to_string()),
            Err(_) => {}
        }
    }

    fn render(&self) -> String {
        if let Err(reason) = &self.counters {
            return format!("system calls and page faults of the host: not counted: {reason}\n");
        }
        let row = |(stage, cost): &(&str, HostCost)| {
            vec![
                (*stage).to_owned(),
                cost.system_calls.to_string(),
                cost.page_faults.to_string(),
            ]
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        table::render(&["UNTIL", "HOST SYSTEM CALLS", "HOST PAGE FAULTS"], &rows)
    }
}

/// What the command itself saw, of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_field_names, reason = "the unit belongs to each name")]
pub struct Moments {
    /// It began.
    pub request_ns: u64,
    /// The image was unpacked, when that was needed.
    pub unpacked_ns: Option<u64>,
    /// Nothing was left to do.
    pub cleaned_ns: u64,
}

/// Where the time went from `request_ns`, when the command began, to `cleaned_ns`, when nothing was left to do. Both are
/// of `CLOCK_MONOTONIC`. What the start cost comes with it when that was counted.
pub fn render(timing: &Timing, host: Option<&HostCosts>, moments: Moments) -> String {
    let restored = is_restored(timing);
    let mut text = render_stages(reached(timing, moments));
    if !timing.costs.is_empty() {
        text += "\n";
        text += &costs(&timing.costs);
    }
    if let Some(host) = host {
        text += "\n";
        text += &host.render();
    }
    // Writing to a String cannot fail.
    if let Some(origin) = timing.origin {
        let how = match origin {
            Origin::Boot => "cold boot",
            Origin::Template => "restored from a template",
            Origin::Snapshot => "restored from a snapshot",
            Origin::Container => "a container on the host's kernel",
        };
        let made = if timing.template_ns.is_some() {
            ", which was made in this start"
        } else {
            ""
        };
        let _ = writeln!(text, "{how}{}", if restored { made } else { "" });
    }
    if let Some(kind) = timing.kvm {
        let _ = writeln!(text, "KVM is {}", kvm::describe(kind));
    }
    text
}

/// When the stages of an `exec` were reached, and how many microseconds of that the guest's agent took.
pub fn render_exec(stages: &[(&'static str, Option<u64>)], took_us: u64) -> String {
    let reached = stages.iter().filter_map(|(stage, ns)| ns.map(|ns| (*stage, ns)));
    let mut text = render_stages(reached.collect());
    let took = milliseconds(took_us.saturating_mul(1000));
    let _ = writeln!(text, "from the request to the exec in the sandbox: {took} ms");
    text
}

/// A line for each stage that was reached, the first of them at 0.
fn render_stages(mut reached: Vec<(&'static str, u64)>) -> String {
    // The first byte may come before the word that the exec succeeded.
    reached.sort_by_key(|(_, ns)| *ns);
    let request_ns = reached.first().map_or(0, |(_, ns)| *ns);
    let mut before = request_ns;
    let mut rows = Vec::with_capacity(reached.len());
    for (stage, ns) in reached {
        rows.push(vec![
            stage.to_owned(),
            milliseconds(ns.saturating_sub(request_ns)),
            milliseconds(ns.saturating_sub(before)),
        ]);
        before = ns;
    }
    table::render(&["STAGE", "MS", "DELTA"], &rows)
}

/// When each stage was reached, for programs: nanoseconds of `CLOCK_MONOTONIC`.
pub fn json(timing: &Timing, moments: Moments) -> serde_json::Value {
    let stages: serde_json::Map<String, serde_json::Value> = reached(timing, moments)
        .into_iter()
        .map(|(stage, ns)| (stage.to_owned(), ns.into()))
        .collect();
    serde_json::json!({
        "clock": "CLOCK_MONOTONIC",
        "origin": timing.origin.map(Origin::as_str),
        "stages": stages,
    })
}

fn is_restored(timing: &Timing) -> bool {
    timing
        .origin
        .is_some_and(|origin| !matches!(origin, Origin::Boot | Origin::Container))
}

/// The stages that were reached, by the words for them.
fn reached(timing: &Timing, moments: Moments) -> Vec<(&'static str, u64)> {
    let entry = if is_restored(timing) {
        "guest resumed"
    } else {
        "kernel entry"
    };
    let stages = [
        ("request", Some(moments.request_ns)),
        ("image unpacked", moments.unpacked_ns),
        ("template made", timing.template_ns),
        ("supervisor", timing.supervisor_ns),
        ("VMM start", timing.vmm_ns),
        (entry, timing.entry_ns),
        ("init", timing.init_ns),
        ("agent ready", timing.ready_ns),
        ("process exec", timing.exec_ns),
        ("first output byte", timing.output_ns),
        ("exit", timing.exit_ns),
        ("cleaned up", Some(moments.cleaned_ns)),
    ];
    stages
        .into_iter()
        .filter_map(|(stage, ns)| ns.map(|ns| (stage, ns)))
        .collect()
}

/// What the guest had cost at each stage, since its brig-vmm began.
fn costs(costs: &[(Stage, Counters)]) -> String {
    let rows: Vec<Vec<String>> = costs
        .iter()
        .map(|(stage, cost)| {
            let stage = match stage {
                Stage::Ready => "agent ready",
                Stage::Exec => "process exec",
                Stage::Exit => "exit",
            };
            let counts = [
                cost.exits,
                cost.io_exits,
                cost.mmio_exits,
                cost.halts,
                cost.interrupts,
                cost.emulated_instructions,
                cost.guest_faults,
                cost.minor_faults,
                cost.major_faults,
                cost.waits,
            ];
            let mut row = vec![stage.to_owned()];
            row.extend(counts.iter().map(u64::to_string));
            row
        })
        .collect();
    table::render(
        &[
            "UNTIL",
            "EXITS",
            "IO",
            "MMIO",
            "HALTS",
            "IRQS",
            "EMULATED",
            "GUEST FAULTS",
            "FAULTS",
            "MAJOR",
            "WAITS",
        ],
        &rows,
    )
}

fn milliseconds(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use brig_engine::unpack::UnpackCosts;

    use super::*;

    #[test]
    fn stages_are_shown_since_the_request_and_since_the_one_before() {
        let timing = Timing {
            vmm_ns: Some(3_000_000),
            entry_ns: Some(4_500_000),
            exit_ns: Some(9_000_000),
            ..Timing::default()
        };
        let moments = Moments {
            request_ns: 1_000_000,
            unpacked_ns: Some(2_000_000),
            cleaned_ns: 10_000_000,
        };
        let text = render(&timing, None, moments);
        let cells: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|c| !c.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            cells,
            [
                vec!["STAGE", "MS", "DELTA"],
                vec!["request", "0.0", "0.0"],
                vec!["image unpacked", "1.0", "1.0"],
                vec!["VMM start", "2.0", "1.0"],
                vec!["kernel entry", "3.5", "1.5"],
                vec!["exit", "8.0", "4.5"],
                vec!["cleaned up", "9.0", "1.0"],
            ]
        );
    }

    #[test]
    fn a_program_gets_the_moments_themselves() {
        let timing = Timing {
            vmm_ns: Some(3_000_000),
            exit_ns: Some(9_000_000),
            origin: Some(Origin::Container),
            ..Timing::default()
        };
        let moments = Moments {
            request_ns: 1_000_000,
            unpacked_ns: None,
            cleaned_ns: 10_000_000,
        };
        let stages = serde_json::json!({"request": 1_000_000, "VMM start": 3_000_000, "exit": 9_000_000, "cleaned up": 10_000_000});
        let value = json(&timing, moments);
        assert_eq!(
            (&value["stages"], &value["origin"]),
            (&stages, &"container".into())
        );
    }

    #[test]
    fn the_parts_of_an_unpack_are_shown() {
        let timing = unpack::Timing {
            began_ns: 1_000_000,
            ready_ns: 3_000_000,
            unpacked_ns: 13_500_000,
            done_ns: 14_000_000,
            costs: UnpackCosts {
                read_us: 1_000,
                decompress_us: 2_500,
                hash_us: 500,
                write_us: 4_000,
                rest_us: 1_500,
            },
            compressed_bytes: 1_000_000,
            bytes: 3_000_000,
            inodes: 17,
        };
        let text = render_unpack(&timing);
        for part in [
            "guest start      2.0",
            "decompress       2.5",
            "in the guest     10.5",
            "unpack           13.0",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(
            text.ends_with("1MB of layers, 3MB unpacked, 17 files\n"),
            "{text}"
        );
    }

    #[test]
    fn what_the_host_was_asked_for_is_a_table_or_a_reason() {
        let mut host = HostCosts {
            counters: Err("no perf events".into()),
            rows: Vec::new(),
        };
        host.reached("process exec");
        let text = render(&Timing::default(), Some(&host), Moments::default());
        assert!(text.ends_with("not counted: no perf events\n"), "{text}");
        host = HostCosts::start();
        host.reached("process exec");
        let text = render(&Timing::default(), Some(&host), Moments::default());
        assert_eq!(text.contains("not counted"), host.counters.is_err(), "{text}");
        assert_eq!(
            text.lines().any(|line| line.starts_with("process exec")),
            host.counters.is_ok()
        );
    }

    #[test]
    fn a_cold_boot_is_told_from_a_restore() {
        let text = |origin, template_ns| {
            let timing = Timing {
                origin: Some(origin),
                template_ns,
                entry_ns: Some(2_000_000),
                ..Timing::default()
            };
            let moments = Moments {
                cleaned_ns: 3_000_000,
                ..Moments::default()
            };
            render(&timing, None, moments)
        };
        let cold = text(Origin::Boot, None);
        assert!(
            cold.contains("kernel entry") && cold.ends_with("cold boot\n"),
            "{cold}"
        );
        let restored = text(Origin::Template, None);
        assert!(restored.contains("guest resumed") && restored.ends_with("restored from a template\n"));
        let made = text(Origin::Template, Some(1_000_000));
        assert!(made.contains("template made") && made.ends_with("which was made in this start\n"));
    }
}
