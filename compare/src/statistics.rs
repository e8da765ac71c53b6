//! Figures of a handful of runs: medians and quantiles, which one slow run does not move.

/// What a number of runs came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many there were; at least one.
    pub runs: usize,
    /// The least.
    pub min: f64,
    /// A quarter is below.
    pub p25: f64,
    /// Half is below.
    pub median: f64,
    /// A quarter is above.
    pub p75: f64,
    /// One in twenty is above.
    pub p95: f64,
    /// One in a hundred is above.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Summary {
    /// Of these values; `None` when there are none. What is no number is left out.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            runs: sorted.len(),
            min,
            p25: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            p75: quantile(&sorted, 0.75),
            p95: quantile(&sorted, 0.95),
            p99: quantile(&sorted, 0.99),
            max,
        })
    }

    /// Half of the middle half's width: the spread that is shown behind a median.
    pub fn spread(&self) -> f64 {
        (self.p75 - self.p25) / 2.0
    }
}

/// The value below which `part` of the sorted ones are, between two of them where it falls between (Hyndman and Fan's type 7).
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = part * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0, 5.0]).unwrap();
        assert_eq!(
            (summary.runs, summary.min, summary.median, summary.max),
            (5, 1.0, 3.0, 5.0)
        );
        assert_eq!((summary.p25, summary.p75), (2.0, 4.0));
        assert!(close(summary.p95, 4.8) && close(summary.p99, 4.96), "{summary:?}");
        assert!(close(summary.spread(), 1.0));
    }

    #[test]
    fn an_even_number_has_its_median_between_two() {
        assert!(close(Summary::of(&[1.0, 2.0, 10.0, 40.0]).unwrap().median, 6.0));
    }

    #[test]
    fn one_slow_run_does_not_move_the_median() {
        let mut values = vec![10.0; 20];
        values.push(1e9);
        let summary = Summary::of(&values).unwrap();
        assert_eq!((summary.median, summary.p95, summary.spread()), (10.0, 10.0, 0.0));
        assert!(summary.p99 > 10.0);
    }

    #[test]
    fn a_single_run_is_its_own_summary() {
        let summary = Summary::of(&[7.0]).unwrap();
        assert_eq!((summary.min, summary.median, summary.p99), (7.0, 7.0, 7.0));
        assert!(close(summary.spread(), 0.0));
    }

    #[test]
    fn nothing_and_what_is_no_number_have_none() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN, f64::INFINITY]), None);
        assert_eq!(Summary::of(&[f64::NAN, 3.0]).unwrap().runs, 1);
    }
}
