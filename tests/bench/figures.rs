//! What benchmarks share: figures by name, and tables of them.

use std::collections::BTreeMap;

/// Milliseconds and counts by name, a value a round.
pub type Figures = BTreeMap<&'static str, Vec<f64>>;

/// Prints the figures of `names`, a line each.
pub fn table(title: &str, names: &[&str], figures: &Figures) {
    println!(
        "\n{title}\n{:<24}{:>12}{:>12}{:>12}{:>12}{:>6}",
        "", "min", "median", "p95", "max", "runs"
    );
    for name in names {
        let Some(values) = figures.get(name).filter(|values| !values.is_empty()) else {
            continue;
        };
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
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted[index.saturating_sub(1).min(sorted.len() - 1)]
}
