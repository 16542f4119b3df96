//! Who stands out by the rates of an interval's calls: the arithmetic of A50, and Envoy's where A50 has no word.
//!
//! Whether an outlier is ejected is NOT decided here.

use super::Tally;
use mesh_xds::resource::{FailurePercentage, SuccessRate};

/// Whose word counts where the two part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Book {
    A50,
    Envoy,
}

/// Hosts whose success rate is far below the others'.
pub(super) fn far_below<K: Copy>(rule: SuccessRate, hosts: &[(K, Tally)]) -> Vec<K> {
    let rates: Vec<_> = hosts
        .iter()
        .filter(|(_, tally)| tally.is_enough(rule.request_volume))
        .map(|(host, tally)| (*host, tally.success_rate()))
        .collect();
    if rates.is_empty() || rates.len() < rule.minimum_hosts as usize {
        return Vec::new();
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    // "population stdev" - A50
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    let lowest = mean - variance.sqrt() * f64::from(rule.stdev_factor) / 1000.0;
    rates.into_iter().filter(|(_, rate)| *rate < lowest).map(|(host, _)| host).collect()
}

/// Hosts of whose calls too many fail.
pub(super) fn failing<K: Copy>(rule: FailurePercentage, book: Book, hosts: &[(K, Tally)]) -> Vec<K> {
    let busy = || hosts.iter().filter(|(_, tally)| tally.is_enough(rule.request_volume));
    if busy().count() < rule.minimum_hosts as usize {
        return Vec::new();
    }
    let too_many = |tally: &Tally| {
        let (failed, most) = (u64::from(tally.failed) * 100, u64::from(rule.threshold).saturating_mul(tally.calls()));
        match book {
            // ">", as the algorithm says, and not "≥", as a comment of A50 does.
            Book::A50 => failed > most,
            // "is greater than or equal to this value" (`failure_percentage_threshold`).
            Book::Envoy => failed >= most,
        }
    };
    busy().filter(|(_, tally)| too_many(tally)).map(|(host, _)| *host).collect()
}
