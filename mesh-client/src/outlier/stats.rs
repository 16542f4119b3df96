//! What one host's calls come to: two counts per interval, and failures in a row. Atomics that calls bump.
//!
//! Counted only while somebody watches. Which answer is a success was decided before; who is ejected is decided later.

use super::Ending;
use mesh_xds::resource::OutlierDetection;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// Failures in a row, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streak {
    Errors,
    GatewayFailures,
    LocalOriginFailures,
}

impl Streak {
    pub(crate) const ALL: [Self; 3] = [Self::Errors, Self::GatewayFailures, Self::LocalOriginFailures];
}

/// Calls of one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) succeeded: u32,
    pub(crate) failed: u32,
}

impl Tally {
    pub(crate) fn calls(self) -> u64 {
        u64::from(self.succeeded) + u64::from(self.failed)
    }

    /// A host without any call has no rate.
    pub(crate) fn is_enough(self, volume: u32) -> bool {
        self.calls() >= u64::from(volume.max(1))
    }

    pub(crate) fn success_rate(self) -> f64 {
        f64::from(self.succeeded) / self.calls() as f64
    }
}

/// The counts of one host.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    watched: AtomicBool,
    succeeded: AtomicU32,
    failed: AtomicU32,
    /// By kind: so many in a row, and how many are too many (0: any number is fine).
    streaks: [Count; 3],
    /// Broken connections count by themselves, and not as 503.
    split: AtomicBool,
    /// A bit for each kind that has reached its limit.
    tripped: AtomicU8,
}

#[derive(Debug, Default)]
struct Count {
    length: AtomicU32,
    limit: AtomicU32,
}

impl Stats {
    // === Calls ===

    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// A call has ended. Returns whether there were too many failures in a row just now.
    pub(crate) fn count(&self, ending: Ending) -> bool {
        let bucket = if ending.is_success() { &self.succeeded } else { &self.failed };
        bucket.fetch_add(1, Ordering::Relaxed);
        let split = self.split.load(Ordering::Relaxed);
        match ending {
            Ending::Answered { status, .. } => {
                if split {
                    self.reset(Streak::LocalOriginFailures);
                }
                self.answered(status)
            }
            Ending::Broken | Ending::TimedOut if split => self.one_more(Streak::LocalOriginFailures),
            Ending::Broken => self.answered(503),
            Ending::TimedOut => self.answered(504),
            Ending::Cancelled => false,
        }
    }

    fn answered(&self, status: u16) -> bool {
        let gateway = match status {
            502..=504 => self.one_more(Streak::GatewayFailures),
            _ => {
                self.reset(Streak::GatewayFailures);
                false
            }
        };
        match status {
            500..=599 => self.one_more(Streak::Errors) | gateway,
            _ => {
                self.reset(Streak::Errors);
                false
            }
        }
    }

    fn one_more(&self, streak: Streak) -> bool {
        let count = &self.streaks[streak as usize];
        let length = count.length.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if length != count.limit.load(Ordering::Relaxed) {
            return false;
        }
        let bit = 1 << streak as u8;
        self.tripped.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn reset(&self, streak: Streak) {
        let length = &self.streaks[streak as usize].length;
        // Read first: while all goes well the cache line stays shared by all callers.
        if length.load(Ordering::Relaxed) != 0 {
            length.store(0, Ordering::Relaxed);
        }
    }

    // === The detector's side ===

    /// Counts from now on, by these rules; `None` ends it.
    pub(crate) fn watch(&self, config: Option<&OutlierDetection>) {
        let rules =
            config.map(|it| [it.consecutive_5xx, it.consecutive_gateway_failure, it.consecutive_local_origin_failure]);
        let limits = rules.map_or([0; 3], |rules| rules.map(|rule| rule.map_or(0, |rule| rule.failures)));
        for (count, limit) in self.streaks.iter().zip(limits) {
            count.limit.store(limit, Ordering::Relaxed);
        }
        let split = config.is_some_and(|config| config.consecutive_local_origin_failure.is_some());
        self.split.store(split, Ordering::Relaxed);
        if !self.watched.swap(config.is_some(), Ordering::Relaxed) {
            self.take();
            self.forgive();
        }
    }

    /// What was counted since the last time.
    pub(crate) fn take(&self) -> Tally {
        let take = |bucket: &AtomicU32| bucket.swap(0, Ordering::Relaxed);
        Tally { succeeded: take(&self.succeeded), failed: take(&self.failed) }
    }

    /// Which kinds have reached their limits and were not handled yet.
    pub(crate) fn tripped(&self) -> impl Iterator<Item = Streak> + use<> {
        let tripped = self.tripped.load(Ordering::Relaxed);
        Streak::ALL.into_iter().filter(move |streak| tripped & (1 << *streak as u8) != 0)
    }

    /// "reset the appropriate counter to detect a bout of consecutive error responses" (Envoy).
    pub(crate) fn rearm(&self, streak: Streak) {
        self.reset(streak);
        self.tripped.fetch_and(!(1 << streak as u8), Ordering::Relaxed);
    }

    /// Nothing is held against the host: it has just come back.
    pub(crate) fn forgive(&self) {
        Streak::ALL.into_iter().for_each(|streak| self.rearm(streak));
    }
}
