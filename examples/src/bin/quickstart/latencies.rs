//! A histogram of latencies: bounded however long the quickstart is played with, exact to 3 %.
//!
//! It does NOT know what was timed.

use std::time::Duration;

/// Buckets for each power of two.
const STEPS: usize = 32;

/// Counts of microseconds: one bucket each below 2 * `STEPS`, then `STEPS` buckets for each power of two.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    buckets: Vec<u64>,
    count: u64,
}

impl Latencies {
    pub(crate) fn add(&mut self, latency: Duration) {
        let bucket = bucket(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
    }

    /// The latency that `per_mille` of 1000 calls did not exceed; `None` without a call.
    pub(crate) fn at(&self, per_mille: u64) -> Option<Duration> {
        let rank = (self.count * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_micros(lowest(bucket)))
    }
}

fn bucket(micros: u64) -> usize {
    let doublings = (micros / STEPS as u64).checked_ilog2().unwrap_or(0) as usize;
    // Below 2^64 this is at most 60 * 32.
    doublings * STEPS + (micros >> doublings) as usize
}

/// The smallest number in a bucket.
fn lowest(bucket: usize) -> u64 {
    let doublings = (bucket / STEPS).saturating_sub(1);
    ((bucket - doublings * STEPS) as u64) << doublings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_numbers_that_differ_by_3_percent() {
        for micros in (0..200).chain([1_000, 4_095, 4_096, 1_000_000, u64::MAX]) {
            let lowest = lowest(bucket(micros));
            assert!(lowest <= micros && micros - lowest <= micros / 32, "{micros}: {lowest}");
        }
    }

    #[test]
    fn percentiles_of_a_thousand_calls() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.at(500), None);
        for micros in 1..=1000 {
            latencies.add(Duration::from_micros(micros));
        }
        for (per_mille, exact) in [(500, 500), (990, 990), (1000, 1000)] {
            let found = latencies.at(per_mille).unwrap().as_micros();
            assert!(found <= exact && exact - found <= exact / 32, "{per_mille}: {found}");
        }
    }
}
