//! What one host's calls come to: successes and failures of an interval, and failures in a row. Atomics that calls bump.
//!
//! Counted only while somebody watches. Which answer is a success was decided before; who is ejected is decided later.

use super::{Ending, Trip};
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

/// What one host's calls of an interval say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tallies {
    /// By its answers; and by all that came to no answer, unless that is split off.
    pub(crate) external: Tally,
    /// Whether there were answers. Nothing is counted unless it is split off.
    pub(crate) local_origin: Tally,
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
    external: Bucket,
    local_origin: Bucket,
    /// By kind: so many in a row, and how many are too many (0: any number is fine).
    streaks: [Count; 3],
    /// What came to no answer is of local origin, and not a 503 or 504.
    split: AtomicBool,
    /// A bit for each kind that has reached its limit.
    tripped: AtomicU8,
}

#[derive(Debug, Default)]
struct Bucket {
    succeeded: AtomicU32,
    failed: AtomicU32,
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
        let split = self.split.load(Ordering::Relaxed);
        if split && matches!(ending, Ending::Broken | Ending::TimedOut) {
            self.local_origin.count(false);
            return self.one_more(Streak::LocalOriginFailures);
        }
        self.external.count(ending.is_success());
        match ending {
            Ending::Answered { status, .. } => {
                if split {
                    self.local_origin.count(true);
                    self.reset(Streak::LocalOriginFailures);
                }
                self.answered(status)
            }
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
        let local_origin = config.and_then(|config| config.local_origin);
        let in_a_row = local_origin.and_then(|rules| rules.consecutive_failure);
        let rules = config.map(|config| [config.consecutive_5xx, config.consecutive_gateway_failure, in_a_row]);
        let limits = rules.map_or([0; 3], |rules| rules.map(|rule| rule.map_or(0, |rule| rule.failures)));
        for (count, limit) in self.streaks.iter().zip(limits) {
            count.limit.store(limit, Ordering::Relaxed);
        }
        self.split.store(local_origin.is_some(), Ordering::Relaxed);
        if !self.watched.swap(config.is_some(), Ordering::Relaxed) {
            self.take();
            self.forgive();
        }
    }

    /// What was counted since the last time.
    pub(crate) fn take(&self) -> Tallies {
        Tallies { external: self.external.take(), local_origin: self.local_origin.take() }
    }

    /// Lets `judge` look at each kind of which there were too many in a row. Returns whether the host was ejected.
    pub(crate) fn judged(&self, mut judge: impl FnMut(Streak) -> Trip) -> bool {
        let mut ejected = false;
        for streak in self.tripped() {
            match judge(streak) {
                Trip::Ejected => ejected = true,
                Trip::Spared => {}
                // Until the next sweep, which may make room: an alarm for nothing is rung once.
                Trip::Capped => continue,
            }
            self.rearm(streak);
        }
        ejected
    }

    /// A sweep is over: a host that the cap has spared may fail again.
    pub(crate) fn swept(&self) {
        self.tripped().for_each(|streak| self.rearm(streak));
    }

    /// Which kinds have reached their limits and were not handled yet.
    fn tripped(&self) -> impl Iterator<Item = Streak> + use<> {
        let tripped = self.tripped.load(Ordering::Relaxed);
        Streak::ALL.into_iter().filter(move |streak| tripped & (1 << *streak as u8) != 0)
    }

    /// "reset the appropriate counter to detect a bout of consecutive error responses" (Envoy).
    fn rearm(&self, streak: Streak) {
        self.reset(streak);
        self.tripped.fetch_and(!(1 << streak as u8), Ordering::Relaxed);
    }

    /// Nothing is held against the host: it has just come back.
    pub(crate) fn forgive(&self) {
        Streak::ALL.into_iter().for_each(|streak| self.rearm(streak));
    }
}

impl Bucket {
    fn count(&self, success: bool) {
        let bucket = if success { &self.succeeded } else { &self.failed };
        bucket.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> Tally {
        let take = |bucket: &AtomicU32| bucket.swap(0, Ordering::Relaxed);
        Tally { succeeded: take(&self.succeeded), failed: take(&self.failed) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ending, Stats, Tallies, Tally};
    use mesh_xds::resource::{LocalOrigin, OutlierDetection};

    #[test]
    fn what_came_to_no_answer_is_a_failed_answer_unless_it_is_split_off() {
        let tally = |succeeded, failed| Tally { succeeded, failed };
        let endings = [
            Ending::Answered { success: true, status: 200 },
            Ending::Answered { success: false, status: 503 },
            Ending::Broken,
            Ending::TimedOut,
            Ending::Cancelled,
        ];
        for (local_origin, counted) in [
            (None, Tallies { external: tally(1, 4), local_origin: tally(0, 0) }),
            (Some(LocalOrigin::default()), Tallies { external: tally(1, 2), local_origin: tally(2, 2) }),
        ] {
            let stats = Stats::default();
            stats.watch(Some(&OutlierDetection { local_origin, ..OutlierDetection::default() }));
            for ending in endings {
                stats.count(ending);
            }
            assert_eq!(stats.take(), counted);
            assert_eq!(stats.take(), Tallies::default(), "each is counted once");
        }
    }
}
