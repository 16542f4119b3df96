//! Who is ejected, for how long, and who returns (A50): a machine without clock, dice or sockets.
//!
//! ```text
//!   in the set ── outlier at a sweep, or too many failures in a row ──► ejected (multiplier + 1)
//!       ▲                                                                  │
//!       └── at a sweep after min(base × multiplier, max(base, max)) + jitter
//!
//!   at each sweep in the set: multiplier - 1, down to 0
//! ```
//!
//! What each host did since the last sweep, the time, and a number for each draw are passed in; what follows is returned.
//! It does NOT count calls, and it does NOT know what a host is.

use super::{
    Streak, Tallies,
    rates::{self, Book},
};
use crate::later::later;
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
    jitter: Duration,
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
        later(self.since, self.config.interval.max(SHORTEST_INTERVAL))
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
        hosts: &[(K, Tallies)],
        draw: &mut impl FnMut(u32) -> u32,
    ) -> Vec<(K, Change)> {
        self.since = now;
        let (config, mut changes) = (Arc::clone(&self.config), Vec::new());
        let external: Vec<_> = hosts.iter().map(|(host, tallies)| (*host, tallies.external)).collect();
        let mut judge = |detector: &mut Self, outliers: Vec<K>, book, enforcing| {
            for host in outliers {
                if detector.has_room(book, hosts.len())
                    && draw(100) < enforcing
                    && detector.eject(host, now, &mut *draw)
                {
                    changes.push((host, Change::Ejected));
                }
            }
        };
        if let Some(rule) = config.success_rate {
            judge(self, rates::far_below(rule, &external), Book::A50, rule.enforcing);
        }
        if let Some(rule) = config.failure_percentage {
            judge(self, rates::failing(rule, Book::A50, &external), Book::A50, rule.enforcing);
        }
        if let Some(rules) = config.local_origin {
            // "Don't do work if the host is already ejected." (Envoy)
            let staying = hosts.iter().filter(|(host, _)| !self.is_ejected(host));
            let local: Vec<_> = staying.map(|(host, tallies)| (*host, tallies.local_origin)).collect();
            if let Some(rule) = rules.success_rate {
                judge(self, rates::far_below(rule, &local), Book::Envoy, rule.enforcing);
            }
            if let Some(rule) = rules.failure_percentage {
                judge(self, rates::failing(rule, Book::Envoy, &local), Book::Envoy, rule.enforcing);
            }
        }
        self.age(now, &mut changes);
        changes
    }

    fn age(&mut self, now: Instant, changes: &mut Vec<(K, Change)>) {
        let (base, max) = (self.config.base_ejection_time, self.config.max_ejection_time);
        self.records.retain(|host, record| {
            match record.ejected_at {
                None => record.multiplier = record.multiplier.saturating_sub(1),
                Some(at) => {
                    let time = base.saturating_mul(record.multiplier).min(max.max(base));
                    if now.saturating_duration_since(at) > time.saturating_add(record.jitter) {
                        record.ejected_at = None;
                        changes.push((*host, Change::Returned));
                    }
                }
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
            Streak::LocalOriginFailures => self.config.local_origin.and_then(|rules| rules.consecutive_failure),
        };
        let Some(rule) = rule.filter(|_| !self.is_ejected(&host)) else { return Trip::Spared };
        if !self.has_room(Book::Envoy, hosts) {
            return Trip::Capped;
        }
        if draw(100) >= rule.enforcing {
            return Trip::Spared;
        }
        self.eject(host, now, draw);
        Trip::Ejected
    }

    // === Ejections ===

    /// Whether one more of so many may go.
    fn has_room(&self, book: Book, hosts: usize) -> bool {
        let (ejected, hosts) = (self.ejected().count() as u64, hosts as u64);
        let most = u64::from(self.config.max_ejection_percent).saturating_mul(hosts);
        match book {
            // "If ejected/total·100 ≥ max_ejection_percent → no" - A50. Asked before each, so that one may always go.
            Book::A50 => ejected * 100 < most,
            // "ejected_percent = 100.0 * (ejections_active + 1) / hosts" (Envoy).
            Book::Envoy => (ejected + 1) * 100 <= most || self.config.always_eject_one_host && ejected == 0,
        }
    }

    /// Whether it was in the set.
    fn eject(&mut self, host: K, now: Instant, draw: &mut impl FnMut(u32) -> u32) -> bool {
        let jitter = self.config.max_ejection_time_jitter;
        let record = self.records.entry(host).or_default();
        // Calls that were in flight when it was ejected end later, and must not make it longer.
        if record.ejected_at.is_some() {
            return false;
        }
        record.ejected_at = Some(now);
        record.multiplier = record.multiplier.saturating_add(1);
        // "random() % (max_ejection_time_jitter + 1)" of milliseconds (Envoy).
        record.jitter = match u32::try_from(jitter.as_millis()).unwrap_or(u32::MAX) {
            0 => Duration::ZERO,
            most => Duration::from_millis(draw(most.saturating_add(1)).into()),
        };
        true
    }
}

#[cfg(test)]
#[path = "detector_tests.rs"]
mod tests;
