//! The names of one type that a server was asked for, and how long each may stay unanswered (A57).
//!
//! ```text
//!                          sent(): the transport took the request, and the batch's timer runs
//!   want() ─► In(batch) ──────────────────────────────────────────────────────────────────► answered(), expired() ─► Done
//!                ▲ └ all names that were new in one request                          │
//!                └───────────── detached(): timers run only on a live stream ────────┘
//! ```
//!
//! A request may have 10,000 new names: they share a timer, so that to start it is one step. Both variants of the protocol
//! share this, since what is wanted and what is missing do not depend on how it is said. It does NOT say anything: `sotw`
//! and `delta` do.

use crate::{later::later, resource::Kind};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// One type's names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// What the server is asked for, lingering name included.
    waits: BTreeMap<Arc<str>, Wait>,
    /// A name that nobody wants any more, kept because the list must not become empty.
    lingering: Option<Arc<str>>,
    /// What changed since the last request that told of names.
    untold: Change,
    /// The batch of names that no request has told.
    next: u64,
    /// Requests with new names that are not all answered.
    batches: BTreeMap<u64, Batch>,
    /// Whether this stream was asked for this type.
    asked: bool,
}

/// What is known about the answer for one name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    In(u64),
    Done,
}

/// The names that are new in one request.
#[derive(Debug)]
struct Batch {
    serial: u64,
    names: Vec<Arc<str>>,
    unanswered: usize,
    /// Once the transport took the request.
    deadline: Option<Instant>,
}

/// How a list of names changed.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) new: Vec<Arc<str>>,
    pub(super) left: Vec<Arc<str>>,
}

impl Names {
    /// All names, sorted.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<str>> {
        self.waits.keys()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// Whether there is a name that does not just linger.
    pub(super) fn is_wanted(&self) -> bool {
        self.waits.len() > usize::from(self.lingering.is_some())
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.waits.contains_key(name)
    }

    /// Whether there is a name of which the server has said nothing.
    pub(super) fn awaits_some(&self) -> bool {
        self.waits.values().any(|wait| *wait != Wait::Done)
    }

    /// All names of which the server has said nothing.
    pub(super) fn unanswered(&self) -> Vec<Arc<str>> {
        self.waits.iter().filter(|(_, wait)| **wait != Wait::Done).map(|(name, _)| Arc::clone(name)).collect()
    }

    pub(super) fn asked(&self) -> bool {
        self.asked
    }

    /// A name is wanted. Returns the name that lingered and leaves for it.
    pub(super) fn want(&mut self, kind: Kind, name: &Arc<str>, timers: &mut Timers) -> Option<Arc<str>> {
        let lingered = self.lingering.take();
        if !self.waits.contains_key(name) {
            self.waits.insert(Arc::clone(name), Wait::In(self.next));
            self.untold.new.push(Arc::clone(name));
        }
        let left = lingered.filter(|lingered| lingered != name)?;
        self.leave(kind, &left, timers);
        Some(left)
    }

    /// A name is not wanted any more. Returns whether it leaves the list: then it is no longer kept up to date.
    pub(super) fn unwant(&mut self, kind: Kind, name: &Arc<str>, attached: bool, timers: &mut Timers) -> bool {
        // What came and went within one turn was never asked for, so it cannot be given up; what only lingers has left.
        if !self.waits.contains_key(name) || self.lingering.as_ref() == Some(name) {
            return false;
        }
        // An LDS or CDS subscription without names is a wildcard to istiod, in both variants, and stays one: the last
        // name stays until another replaces it.
        if kind.is_full_state() && attached && self.waits.len() == 1 {
            self.lingering = Some(Arc::clone(name));
            return false;
        }
        self.leave(kind, name, timers);
        true
    }

    fn leave(&mut self, kind: Kind, name: &Arc<str>, timers: &mut Timers) {
        self.answered(kind, name, timers);
        self.waits.remove(name);
        self.untold.left.push(Arc::clone(name));
    }

    /// What a request has to tell.
    pub(super) fn take_change(&mut self) -> Change {
        mem::take(&mut self.untold)
    }

    /// A request was made, and in it these names are new: all that were not in one before.
    pub(super) fn queued(&mut self, serial: u64, new: Vec<Arc<str>>) {
        self.asked = true;
        if !new.is_empty() {
            self.batches.insert(self.next, Batch { serial, unanswered: new.len(), names: new, deadline: None });
            self.next += 1;
        }
    }

    /// The transport took a request: now, and not before, its new names may be missed.
    pub(super) fn sent(&mut self, kind: Kind, serial: u64, now: Instant, timers: &mut Timers) {
        for (number, batch) in &mut self.batches {
            if batch.serial <= serial && batch.deadline.is_none() {
                batch.deadline = Some(timers.start(now, kind, *number));
            }
        }
    }

    /// The server said something about a name, good or bad.
    pub(super) fn answered(&mut self, kind: Kind, name: &str, timers: &mut Timers) {
        let Some(wait) = self.waits.get_mut(name) else { return };
        let Wait::In(number) = mem::replace(wait, Wait::Done) else { return };
        let Some(batch) = self.batches.get_mut(&number) else { return };
        batch.unanswered -= 1;
        if batch.unanswered == 0 {
            if let Some(deadline) = batch.deadline {
                timers.stop(deadline, kind, number);
            }
            self.batches.remove(&number);
        }
    }

    /// A timer fired. Returns the names that it ran for.
    pub(super) fn expired(&mut self, number: u64) -> Vec<Arc<str>> {
        let mut names = self.batches.remove(&number).map(|batch| batch.names).unwrap_or_default();
        names.retain(|name| match self.waits.get_mut(name) {
            Some(wait) if *wait == Wait::In(number) => {
                *wait = Wait::Done;
                true
            }
            _ => false,
        });
        names
    }

    /// The stream is gone. Returns the name that was only lingering and is now forgotten.
    pub(super) fn detached(&mut self) -> Option<Arc<str>> {
        self.asked = false;
        self.batches.clear();
        for wait in self.waits.values_mut().filter(|wait| **wait != Wait::Done) {
            *wait = Wait::In(self.next);
        }
        let forgotten = self.lingering.take();
        if let Some(name) = &forgotten {
            self.waits.remove(name);
        }
        forgotten
    }

    /// The names for which timers run.
    #[cfg(test)]
    pub(super) fn timed(&self) -> impl Iterator<Item = &str> {
        let is_timed = |number| self.batches.get(number).is_some_and(|batch| batch.deadline.is_some());
        let timed = self.waits.iter().filter(move |(_, wait)| matches!(wait, Wait::In(number) if is_timed(number)));
        timed.map(|(name, _)| &**name)
    }
}

// === Timers ===

/// The does-not-exist timers of one server, one for each batch of names.
#[derive(Debug)]
pub(super) struct Timers {
    timeout: Duration,
    deadlines: BTreeSet<(Instant, Kind, u64)>,
}

impl Timers {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, deadlines: BTreeSet::new() }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, ..)| *deadline)
    }

    /// A batch whose time is over, if there is one.
    pub(super) fn expire(&mut self, now: Instant) -> Option<(Kind, u64)> {
        let due = self.next().is_some_and(|deadline| deadline <= now);
        let (_, kind, batch) = due.then(|| self.deadlines.pop_first()).flatten()?;
        Some((kind, batch))
    }

    pub(super) fn clear(&mut self) {
        self.deadlines.clear();
    }

    fn start(&mut self, now: Instant, kind: Kind, batch: u64) -> Instant {
        let deadline = later(now, self.timeout);
        self.deadlines.insert((deadline, kind, batch));
        deadline
    }

    fn stop(&mut self, deadline: Instant, kind: Kind, batch: u64) {
        self.deadlines.remove(&(deadline, kind, batch));
    }
}
