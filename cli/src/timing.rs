//! The table that `--timing` prints.

use std::fmt::Write;

use brig_engine::{
    clock::{Counters, Stage, Timing},
    guest::Origin,
    kvm,
};

use crate::table;

/// Where the time went from `request_ns`, when the command began, to `cleaned_ns`, when nothing was left to do. Both are
/// of `CLOCK_MONOTONIC`.
pub fn render(timing: &Timing, request_ns: u64, cleaned_ns: u64) -> String {
    let restored = timing.origin.is_some_and(|origin| origin != Origin::Boot);
    let entry = if restored { "guest resumed" } else { "kernel entry" };
    let stages = [
        ("request", Some(request_ns)),
        ("template made", timing.template_ns),
        ("supervisor", timing.supervisor_ns),
        ("VMM start", timing.vmm_ns),
        (entry, timing.entry_ns),
        ("init", timing.init_ns),
        ("agent ready", timing.ready_ns),
        ("process exec", timing.exec_ns),
        ("first output byte", timing.output_ns),
        ("exit", timing.exit_ns),
        ("cleaned up", Some(cleaned_ns)),
    ];
    let mut reached: Vec<(&str, u64)> = stages
        .into_iter()
        .filter_map(|(stage, ns)| ns.map(|ns| (stage, ns)))
        .collect();
    // The first byte may come before the word that the exec succeeded.
    reached.sort_by_key(|(_, ns)| *ns);
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
    let mut text = table::render(&["STAGE", "MS", "DELTA"], &rows);
    if !timing.costs.is_empty() {
        text += "\n";
        text += &costs(&timing.costs);
    }
    // Writing to a String cannot fail.
    if let Some(origin) = timing.origin {
        let how = match origin {
            Origin::Boot => "cold boot",
            Origin::Template => "restored from a template",
            Origin::Snapshot => "restored from a snapshot",
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
    use super::*;

    #[test]
    fn stages_are_shown_since_the_request_and_since_the_one_before() {
        let timing = Timing {
            vmm_ns: Some(3_000_000),
            entry_ns: Some(4_500_000),
            exit_ns: Some(9_000_000),
            ..Timing::default()
        };
        let text = render(&timing, 1_000_000, 10_000_000);
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
                vec!["VMM start", "2.0", "2.0"],
                vec!["kernel entry", "3.5", "1.5"],
                vec!["exit", "8.0", "4.5"],
                vec!["cleaned up", "9.0", "1.0"],
            ]
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
            render(&timing, 0, 3_000_000)
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
