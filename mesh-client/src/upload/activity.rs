//! When something of a call last moved, and when its caller had given the whole request.
//!
//! Shared by whatever moves and the timers that ask. It does NOT end a call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Of `complete`: the caller has not given everything yet.
const OPEN: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Moments>);

/// In nanoseconds since `begin`.
#[derive(Debug)]
struct Moments {
    begin: Instant,
    last: AtomicU64,
    complete: AtomicU64,
}

impl Activity {
    pub(crate) fn now() -> Self {
        let moments = Moments { begin: Instant::now(), last: AtomicU64::new(0), complete: AtomicU64::new(OPEN) };
        Self(Arc::new(moments))
    }

    /// Something has moved.
    pub(crate) fn touch(&self) {
        self.0.last.store(self.since(), Ordering::Relaxed);
    }

    /// The caller has given the whole request. Only the first time counts: attempts are sent again from what was kept.
    pub(crate) fn complete(&self) {
        if self.0.complete.load(Ordering::Relaxed) == OPEN {
            self.0.complete.store(self.since(), Ordering::Relaxed);
        }
    }

    pub(crate) fn last(&self) -> Instant {
        self.at(self.0.last.load(Ordering::Relaxed))
    }

    pub(crate) fn completed(&self) -> Option<Instant> {
        let complete = self.0.complete.load(Ordering::Relaxed);
        (complete != OPEN).then(|| self.at(complete))
    }

    fn since(&self) -> u64 {
        self.0.begin.elapsed().as_nanos().try_into().unwrap_or(OPEN - 1)
    }

    fn at(&self, nanos: u64) -> Instant {
        self.0.begin + Duration::from_nanos(nanos)
    }
}
