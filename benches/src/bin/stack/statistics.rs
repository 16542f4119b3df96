//! Percentiles, medians and an interval of the median that assumes nothing about the distribution.
//!
//! It does NOT know metrics.

use std::fmt;

/// The value at `rank` (0 to 1) of sorted values; 0 when there are none.
pub(crate) fn percentile(sorted: &[u64], rank: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * rank).round() as usize).copied().unwrap_or(0) as f64
}

/// A median with the interval that holds the true one in about 95 % of all runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Median {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} [{:.2}, {:.2}]", self.value, self.low, self.high)
    }
}

/// The median of values, with its interval from order statistics; `None` when there are no values.
///
/// With fewer than six values not even the extremes reach 95 %; they are given all the same.
pub(crate) fn median(mut values: Vec<f64>) -> Option<Median> {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    let middle = (*values.get(n.checked_sub(1)? / 2)? + values[n / 2]) / 2.0;
    let outside = outside(n);
    Some(Median { value: middle, low: values[outside], high: values[n - 1 - outside] })
}

/// How many values at each end lie outside the interval: the most for which the median is in it with 95 %.
///
/// Each value is below the true median with probability 1/2, so the count of those below is binomial.
fn outside(n: usize) -> usize {
    let mut probability = 0.5_f64.powi(n as i32);
    let mut tail = probability;
    let mut outside = 0;
    while outside + 1 < n / 2 {
        probability *= (n - outside) as f64 / (outside + 1) as f64;
        tail += probability;
        // `tail`: the chance that at most `outside + 1` values lie on one side, so that the narrower interval misses.
        if 2.0 * tail > 0.05 {
            break;
        }
        outside += 1;
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_nine_values_drops_one_at_each_end() {
        let median = median((1..=9).map(f64::from).collect());
        assert_eq!(median, Some(Median { value: 5.0, low: 2.0, high: 8.0 }));
    }

    #[test]
    fn the_interval_matches_the_published_table() {
        // n, values outside at each end: the classic table for the sign test at 5 %.
        for (n, expected) in [(1, 0), (2, 0), (5, 0), (6, 0), (9, 1), (12, 2), (15, 3), (20, 5), (25, 7)] {
            assert_eq!(outside(n), expected, "n = {n}");
        }
    }

    #[test]
    fn no_values_have_no_median() {
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn percentiles_are_taken_from_the_values() {
        assert_eq!(percentile(&[10, 20, 30], 0.5), 20.0);
        assert_eq!(percentile(&[10, 20, 30], 0.99), 30.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
