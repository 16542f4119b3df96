//! The hosts of one layer, judged together: where there is no worker, whoever comes by does its work.
//!
//! It does NOT know services, and who asks when a sweep is due waits by itself.

use super::{Change, Detector, Ending, Stats};
use mesh_xds::resource::OutlierDetection;
use rustc_hash::FxHashMap;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};
use tokio::time::Instant;

/// The hosts of one layer.
pub(super) struct Group {
    config: OutlierDetection,
    hosts: Mutex<Hosts>,
}

struct Hosts {
    detector: Detector<u64>,
    /// Held weakly: a host leaves with the last of its services.
    known: FxHashMap<u64, Weak<Host>>,
    last: u64,
}

/// One service, with all its clones.
pub(super) struct Host {
    id: u64,
    stats: Stats,
    ejected: AtomicBool,
}

impl Group {
    pub(super) fn new(config: OutlierDetection, now: Instant) -> Self {
        let detector = Detector::new(Arc::new(config.clone()), now);
        Self { config, hosts: Mutex::new(Hosts { detector, known: FxHashMap::default(), last: 0 }) }
    }

    pub(super) fn config(&self) -> &OutlierDetection {
        &self.config
    }

    /// One more, until it is dropped.
    pub(super) fn add_host(&self) -> Arc<Host> {
        let mut hosts = self.hosts();
        hosts.last += 1;
        let host = Arc::new(Host { id: hosts.last, stats: Stats::default(), ejected: AtomicBool::new(false) });
        host.stats.watch(Some(&self.config));
        hosts.known.insert(host.id, Arc::downgrade(&host));
        host
    }

    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sweeps, if it is time. Returns when it is time again.
    pub(super) fn swept(&self, now: Instant) -> Instant {
        let mut hosts = self.hosts();
        if hosts.detector.next_sweep() > now {
            return hosts.detector.next_sweep();
        }
        let alive = hosts.alive();
        let tallies: Vec<_> = alive.iter().map(|host| (host.id, host.stats.take())).collect();
        let changes = hosts.detector.sweep(now, &tallies, &mut |below| fastrand::u32(..below));
        for host in &alive {
            host.stats.swept();
            if let Some((_, change)) = changes.iter().find(|(id, _)| *id == host.id) {
                host.ejected.store(*change == Change::Ejected, Ordering::Relaxed);
                host.stats.forgive();
            }
        }
        hosts.detector.next_sweep()
    }

    /// A call to a host has ended.
    pub(super) fn ended(&self, host: &Host, ending: Ending) {
        if !host.stats.count(ending) {
            return;
        }
        let (mut hosts, now) = (self.hosts(), Instant::now());
        let count = hosts.alive().len();
        let draw = &mut |below| fastrand::u32(..below);
        if host.stats.judged(|streak| hosts.detector.tripped(now, host.id, streak, count, draw)) {
            host.ejected.store(true, Ordering::Relaxed);
        }
    }
}

impl Host {
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }
}

impl Hosts {
    /// The hosts that are left; the others are forgotten.
    fn alive(&mut self) -> Vec<Arc<Host>> {
        let mut alive = Vec::with_capacity(self.known.len());
        self.known.retain(|_, host| {
            let host = host.upgrade();
            alive.extend(host.clone());
            host.is_some()
        });
        self.detector.retain(|id| self.known.contains_key(id));
        alive
    }
}
