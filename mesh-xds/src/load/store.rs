//! The books of one LRS server: counters that calls bump, and what was reported of them. No I/O, no clock.
//!
//! Counters only grow, by relaxed atomics; a report is the difference to what the transport took before, so that a
//! stream that breaks loses nothing, and what is in progress is what began and did not end. The lock is for who configures
//! and who reports: calls do NOT meet it.

use super::metrics::{MetricSums, Metrics};
use crate::{
    orca::BackendMetrics,
    resource::{ClusterName, LoadReporting, LocalityId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Clusters that are gone from the configuration, with counts that no stream has taken yet: an outage of the LRS server
/// must not keep each cluster that there ever was.
const MAX_GONE: usize = 1024;

// === Counters ===

/// The calls of one locality of a cluster. Bumped without a lock and without an allocation.
#[derive(Clone, Debug)]
pub struct LocalityLoad(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    started: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    metrics: Option<Metrics>,
}

/// The calls that one category of a cluster dropped.
#[derive(Clone, Debug)]
pub struct DropLoad(Arc<AtomicU64>);

/// A call that was given to an endpoint: in progress until this is dropped, and failed unless it was said to have
/// succeeded.
#[derive(Debug)]
pub struct CallLoad {
    counters: Arc<Counters>,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Succeeded,
    Failed,
}

impl LocalityLoad {
    /// A call begins.
    pub fn start(self) -> CallLoad {
        self.0.started.fetch_add(1, Ordering::Relaxed);
        CallLoad { counters: self.0, outcome: Outcome::Failed }
    }
}

impl CallLoad {
    /// Whether the call counts as a success when it ends; the last word counts.
    pub fn succeeded(&mut self, succeeded: bool) {
        self.outcome = if succeeded { Outcome::Succeeded } else { Outcome::Failed };
    }

    /// Adds what the backend says in the trailers, if any of that is to be reported. Nothing is parsed if not.
    pub fn trailers(&self, trailers: &http::HeaderMap) {
        if let Some(metrics) = &self.counters.metrics
            && let Some(reported) = BackendMetrics::from_trailers(trailers)
        {
            metrics.add(&reported);
        }
    }
}

impl Drop for CallLoad {
    fn drop(&mut self) {
        let ended = match self.outcome {
            Outcome::Succeeded => &self.counters.succeeded,
            Outcome::Failed => &self.counters.failed,
        };
        ended.fetch_add(1, Ordering::Release);
    }
}

impl DropLoad {
    /// A call was dropped.
    pub fn dropped(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counters {
    fn totals(&self) -> Totals {
        // Who ended has begun before: with the ends read first, there are never more of them.
        let (succeeded, failed) = (self.succeeded.load(Ordering::Acquire), self.failed.load(Ordering::Acquire));
        Totals { started: self.started.load(Ordering::Relaxed), succeeded, failed }
    }
}

/// What the counters of a locality said at some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    started: u64,
    succeeded: u64,
    failed: u64,
}

// === Reports ===

/// One cluster in one report.
#[derive(Debug, PartialEq)]
pub(super) struct ClusterReport {
    pub(super) cluster: ClusterName,
    pub(super) service: Option<Arc<str>>,
    /// Since the report before, or since the cluster has been there.
    pub(super) elapsed: Duration,
    pub(super) localities: BTreeMap<LocalityId, LocalityReport>,
    pub(super) dropped: BTreeMap<Arc<str>, u64>,
}

/// One locality in one report.
#[derive(Debug, Default, PartialEq)]
pub(super) struct LocalityReport {
    pub(super) issued: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) in_progress: u64,
    pub(super) metrics: MetricSums,
}

/// Which clusters a server wants to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    Only(BTreeSet<String>),
}

impl Wanted {
    fn includes(&self, cluster: &ClusterName) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(cluster.as_str()),
        }
    }
}

// === Books ===

/// What is counted together: "the propagation set is part of the stats key" (A85), though not of the report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) cluster: ClusterName,
    pub(super) service: Option<Arc<str>>,
    pub(super) reporting: LoadReporting,
}

/// All clusters that report to one server.
#[derive(Debug, Default)]
pub(super) struct Books {
    clusters: BTreeMap<Key, Entry>,
    /// Entries without a handle.
    gone: usize,
}

#[derive(Debug)]
struct Entry {
    handles: usize,
    /// When the last report was taken.
    since: Instant,
    /// When the report was made that is on its way.
    offered: Option<Instant>,
    localities: BTreeMap<LocalityId, Tracked>,
    drops: BTreeMap<Arc<str>, Dropped>,
}

#[derive(Debug)]
struct Tracked {
    counters: Arc<Counters>,
    reported: Totals,
    offered: Totals,
    /// Taken from the counters, and in no report that was taken.
    metrics: MetricSums,
}

#[derive(Debug, Default)]
struct Dropped {
    counter: Arc<AtomicU64>,
    reported: u64,
    offered: u64,
}

impl Books {
    /// A handle more for a cluster.
    pub(super) fn join(&mut self, key: &Key, now: Instant) {
        let entry = self.clusters.entry(key.clone()).or_insert_with(|| {
            self.gone += 1;
            let (localities, drops) = (BTreeMap::new(), BTreeMap::new());
            Entry { handles: 0, since: now, offered: None, localities, drops }
        });
        self.gone -= usize::from(entry.handles == 0);
        entry.handles += 1;
    }

    /// A handle less; what was counted stays until it is reported.
    pub(super) fn leave(&mut self, key: &Key) {
        let Some(entry) = self.clusters.get_mut(key) else { return };
        entry.handles -= 1;
        if entry.handles == 0 {
            if self.gone < MAX_GONE {
                self.gone += 1;
            } else {
                self.clusters.remove(key);
            }
        }
    }

    /// The counters of a locality of a cluster that has a handle.
    pub(super) fn locality(&mut self, key: &Key, locality: &LocalityId) -> LocalityLoad {
        let metrics = || Metrics::of(&key.reporting);
        let Some(entry) = self.clusters.get_mut(key) else {
            return LocalityLoad(Arc::new(Counters { metrics: metrics(), ..Counters::default() }));
        };
        if let Some(known) = entry.localities.get(locality) {
            return LocalityLoad(Arc::clone(&known.counters));
        }
        let counters = Arc::new(Counters { metrics: metrics(), ..Counters::default() });
        let (reported, offered) = (Totals::default(), Totals::default());
        let tracked = Tracked { counters: Arc::clone(&counters), reported, offered, metrics: MetricSums::default() };
        entry.localities.insert(locality.clone(), tracked);
        LocalityLoad(counters)
    }

    /// The counter of a drop category of a cluster that has a handle.
    pub(super) fn category(&mut self, key: &Key, category: &Arc<str>) -> DropLoad {
        let counter = self.clusters.get_mut(key).map(|entry| {
            let dropped = entry.drops.entry(Arc::clone(category)).or_default();
            Arc::clone(&dropped.counter)
        });
        DropLoad(counter.unwrap_or_default())
    }

    /// What there is to say; [`taken`](Self::taken) must follow once the transport has it, or it is said again.
    pub(super) fn report(&mut self, wanted: &Wanted, now: Instant) -> Vec<ClusterReport> {
        // Nobody will ever ask for those.
        self.retain(|key, entry| entry.handles > 0 || wanted.includes(&key.cluster));
        let mut reports: Vec<ClusterReport> = Vec::new();
        for (key, entry) in self.clusters.iter_mut().filter(|(key, _)| wanted.includes(&key.cluster)) {
            let elapsed = now.saturating_duration_since(entry.since);
            // The same cluster with other metrics is its neighbour.
            let same = |last: &&mut ClusterReport| (&last.cluster, &last.service) == (&key.cluster, &key.service);
            if let Some(last) = reports.last_mut().filter(same) {
                last.elapsed = last.elapsed.max(elapsed);
                entry.offer(last, now);
                continue;
            }
            let mut report = ClusterReport {
                cluster: key.cluster.clone(),
                service: key.service.clone(),
                elapsed,
                localities: BTreeMap::new(),
                dropped: BTreeMap::new(),
            };
            entry.offer(&mut report, now);
            reports.push(report);
        }
        reports.retain(|report| !report.localities.is_empty() || !report.dropped.is_empty());
        reports
    }

    /// The transport has taken the last report.
    pub(super) fn taken(&mut self) {
        self.clusters.values_mut().for_each(Entry::taken);
        self.retain(|_, entry| entry.handles > 0 || !entry.is_settled());
    }

    /// Whether no cluster has a handle; then nothing is kept, since nobody is there to report it.
    pub(super) fn close(&mut self) -> bool {
        let unused = self.gone == self.clusters.len();
        if unused {
            self.retain(|_, _| false);
        }
        unused
    }

    fn retain(&mut self, mut keep: impl FnMut(&Key, &mut Entry) -> bool) {
        self.clusters.retain(|key, entry| keep(key, entry));
        self.gone = self.clusters.values().filter(|entry| entry.handles == 0).count();
    }
}

impl Entry {
    fn offer(&mut self, report: &mut ClusterReport, now: Instant) {
        self.offered = Some(now);
        for (id, tracked) in &mut self.localities {
            let (totals, before) = (tracked.counters.totals(), tracked.reported);
            tracked.offered = totals;
            if let Some(metrics) = &tracked.counters.metrics {
                metrics.take(&mut tracked.metrics);
            }
            let issued = totals.started - before.started;
            let in_progress = totals.started - totals.succeeded - totals.failed;
            if (issued, in_progress) == (0, 0) && totals == before && tracked.metrics == MetricSums::default() {
                continue;
            }
            let locality = report.localities.entry(id.clone()).or_default();
            locality.issued += issued;
            locality.succeeded += totals.succeeded - before.succeeded;
            locality.failed += totals.failed - before.failed;
            // "total_requests_in_progress is a level and not reset"
            locality.in_progress += in_progress;
            locality.metrics.add(&tracked.metrics);
        }
        for (category, dropped) in &mut self.drops {
            dropped.offered = dropped.counter.load(Ordering::Relaxed);
            let count = dropped.offered - dropped.reported;
            if count > 0 {
                *report.dropped.entry(Arc::clone(category)).or_default() += count;
            }
        }
    }

    fn taken(&mut self) {
        let Some(at) = self.offered.take() else { return };
        self.since = at;
        // What calls can reach stays; what they cannot goes once everything in it was reported.
        self.localities.retain(|_, tracked| {
            tracked.reported = tracked.offered;
            tracked.metrics = MetricSums::default();
            !tracked.is_settled()
        });
        self.drops.retain(|_, dropped| {
            dropped.reported = dropped.offered;
            !dropped.is_settled()
        });
    }

    fn is_settled(&self) -> bool {
        self.localities.is_empty() && self.drops.is_empty()
    }
}

impl Tracked {
    fn is_settled(&mut self) -> bool {
        // Exclusive: no call, no picker and no worker is left to count in it.
        Arc::get_mut(&mut self.counters).is_some_and(|counters| {
            if let Some(metrics) = &counters.metrics {
                metrics.take(&mut self.metrics);
            }
            counters.totals() == self.reported && self.metrics == MetricSums::default()
        })
    }
}

impl Dropped {
    fn is_settled(&mut self) -> bool {
        let reported = self.reported;
        Arc::get_mut(&mut self.counter).is_some_and(|counter| *counter.get_mut() == reported)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
