//! Who is ejected, for how long, and who returns (A50): a machine without clock, dice or sockets.
//!
//! ```text
//!   in the set ── outlier at a sweep, or too many failures in a row ──► ejected (multiplier + 1)
//!       ▲                                                                  │
//!       └── at a sweep after min(base × multiplier, max(base, max)) ───────┘
//!
//!   at each sweep in the set: multiplier - 1, down to 0
//! ```
//!
//! What each host did since the last sweep, the time, and a number for each draw are passed in; what follows is returned.
//! It does NOT count calls, and it does NOT know what a host is.

use super::{Streak, Tally};
use mesh_xds::resource::OutlierDetection;
use rustc_hash::FxHashMap;
use std::{hash::Hash, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Sweeps without a pause would be a hot loop.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// The hosts of one cluster. `K` names a host.
#[derive(Debug)]
pub(crate) struct Detector<K> {
    config: Arc<OutlierDetection>,
    /// The beginning of the interval that runs.
    since: Instant,
    /// Of hosts that are ejected, or were not long ago.
    records: FxHashMap<K, Record>,
}

#[derive(Debug, Default)]
struct Record {
    ejected_at: Option<Instant>,
    multiplier: u32,
}

/// What is new about a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Ejected,
    Returned,
}

/// What came of too many failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trip {
    Ejected,
    /// The dice said no, or it is out already: it begins to count again.
    Spared,
    /// As many are out as may be.
    Capped,
}

impl<K: Copy + Eq + Hash> Detector<K> {
    /// "first active config starts timer and clears counters" - A50
    pub(crate) fn new(config: Arc<OutlierDetection>, now: Instant) -> Self {
        Self { config, since: now, records: FxHashMap::default() }
    }

    /// "later ones re-arm with interval − elapsed (≥0) keeping counters" - A50
    pub(crate) fn reconfigure(&mut self, config: Arc<OutlierDetection>) {
        self.config = config;
    }

    /// When [`sweep`](Self::sweep) is due.
    pub(crate) fn next_sweep(&self) -> Instant {
        self.since + self.config.interval.max(SHORTEST_INTERVAL)
    }

    pub(crate) fn is_ejected(&self, host: &K) -> bool {
        self.records.get(host).is_some_and(|record| record.ejected_at.is_some())
    }

    /// The hosts that are out.
    pub(crate) fn ejected(&self) -> impl Iterator<Item = K> {
        self.records.iter().filter(|(_, record)| record.ejected_at.is_some()).map(|(host, _)| *host)
    }

    /// Forgets hosts that are gone.
    pub(crate) fn retain(&mut self, mut is_there: impl FnMut(&K) -> bool) {
        self.records.retain(|host, _| is_there(host));
    }

    // === Sweeps ===

    /// The interval is over. `hosts` are all of the cluster, with what they did in it.
    pub(crate) fn sweep(
        &mut self,
        now: Instant,
        hosts: &[(K, Tally)],
        draw: &mut impl FnMut(u32) -> u32,
    ) -> Vec<(K, Change)> {
        self.since = now;
        let mut changes = Vec::new();
        self.by_success_rate(now, hosts, draw, &mut changes);
        self.by_failure_percentage(now, hosts, draw, &mut changes);
        self.age(now, &mut changes);
        changes
    }

    fn by_success_rate(
        &mut self,
        now: Instant,
        hosts: &[(K, Tally)],
        draw: &mut impl FnMut(u32) -> u32,
        changes: &mut Vec<(K, Change)>,
    ) {
        let Some(rule) = self.config.success_rate else { return };
        let rates: Vec<_> = hosts
            .iter()
            .filter(|(_, tally)| tally.is_enough(rule.request_volume))
            .map(|(host, tally)| (*host, tally.success_rate()))
            .collect();
        if rates.is_empty() || rates.len() < rule.minimum_hosts as usize {
            return;
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        // "population stdev" - A50
        let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
        let lowest = mean - variance.sqrt() * f64::from(rule.stdev_factor) / 1000.0;
        for (host, rate) in rates {
            if rate < lowest && self.may_eject(hosts.len()) && draw(100) < rule.enforcing {
                self.eject(host, now, changes);
            }
        }
    }

    fn by_failure_percentage(
        &mut self,
        now: Instant,
        hosts: &[(K, Tally)],
        draw: &mut impl FnMut(u32) -> u32,
        changes: &mut Vec<(K, Change)>,
    ) {
        let Some(rule) = self.config.failure_percentage else { return };
        let busy = || hosts.iter().filter(|(_, tally)| tally.is_enough(rule.request_volume));
        if busy().count() < rule.minimum_hosts as usize {
            return;
        }
        for (host, tally) in busy() {
            // ">", as the algorithm says, and not "≥", as a comment of A50 does.
            let too_many = u64::from(tally.failed) * 100 > u64::from(rule.threshold) * tally.calls();
            if too_many && self.may_eject(hosts.len()) && draw(100) < rule.enforcing {
                self.eject(*host, now, changes);
            }
        }
    }

    fn age(&mut self, now: Instant, changes: &mut Vec<(K, Change)>) {
        let (base, max) = (self.config.base_ejection_time, self.config.max_ejection_time);
        self.records.retain(|host, record| {
            match record.ejected_at {
                None => record.multiplier = record.multiplier.saturating_sub(1),
                Some(at) if now > at + base.saturating_mul(record.multiplier).min(max.max(base)) => {
                    record.ejected_at = None;
                    changes.push((*host, Change::Returned));
                }
                Some(_) => {}
            }
            record.ejected_at.is_some() || record.multiplier > 0
        });
    }

    // === Failures in a row ===

    /// A host has failed too often in a row; there are `hosts` in all.
    pub(crate) fn tripped(
        &mut self,
        now: Instant,
        host: K,
        streak: Streak,
        hosts: usize,
        draw: &mut impl FnMut(u32) -> u32,
    ) -> Trip {
        let rule = match streak {
            Streak::Errors => self.config.consecutive_5xx,
            Streak::GatewayFailures => self.config.consecutive_gateway_failure,
            Streak::LocalOriginFailures => self.config.consecutive_local_origin_failure,
        };
        let Some(rule) = rule.filter(|_| !self.is_ejected(&host)) else { return Trip::Spared };
        let ejected = self.ejected().count();
        // "ejected_percent = 100.0 * (ejections_active + 1) / hosts" (Envoy).
        let fits = (ejected + 1) * 100 <= self.config.max_ejection_percent as usize * hosts;
        let may = fits || self.config.always_eject_one_host && ejected == 0;
        if !may {
            return Trip::Capped;
        }
        if draw(100) >= rule.enforcing {
            return Trip::Spared;
        }
        self.eject(host, now, &mut Vec::new());
        Trip::Ejected
    }

    // === Ejections ===

    /// "If ejected/total·100 ≥ max_ejection_percent → no" - A50. Asked before each, so that one may always go.
    fn may_eject(&self, hosts: usize) -> bool {
        self.ejected().count() * 100 < self.config.max_ejection_percent as usize * hosts
    }

    fn eject(&mut self, host: K, now: Instant, changes: &mut Vec<(K, Change)>) {
        let record = self.records.entry(host).or_default();
        // Calls that were in flight when it was ejected end later, and must not make it longer.
        if record.ejected_at.is_none() {
            record.ejected_at = Some(now);
            record.multiplier = record.multiplier.saturating_add(1);
            changes.push((host, Change::Ejected));
        }
    }
}

#[cfg(test)]
#[path = "detector_tests.rs"]
mod tests;
