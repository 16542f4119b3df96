//! When something of a call last moved, and when its caller had given the whole request.
//!
//! Shared by whatever moves and the timers that ask. It does NOT end a call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Of `complete`: the caller has not given everything yet.
const OPEN: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Moments>);

#[derive(Debug)]
struct Moments {
    begin: Instant,
    /// In nanoseconds since `begin`, as the next one.
    last: AtomicU64,
    complete: AtomicU64,
    is_taken: AtomicBool,
}

impl Activity {
    pub(crate) fn now() -> Self {
        Self(Arc::new(Moments {
            begin: Instant::now(),
            last: AtomicU64::new(0),
            complete: AtomicU64::new(OPEN),
            is_taken: AtomicBool::new(false),
        }))
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

    /// Whether an attempt takes what the caller gives. Between attempts nobody does.
    pub(crate) fn set_taken(&self, is_taken: bool) {
        self.0.is_taken.store(is_taken, Ordering::Relaxed);
    }

    /// Whether it is the caller who is waited for.
    pub(crate) fn waits_for_caller(&self) -> bool {
        self.0.is_taken.load(Ordering::Relaxed) && self.0.complete.load(Ordering::Relaxed) == OPEN
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
