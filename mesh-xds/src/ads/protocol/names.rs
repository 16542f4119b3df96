//! The names of one type that a server was asked for, and how long each may stay unanswered (A57).
//!
//! ```text
//!            sent(): the transport took the request
//!   Unsent ─────────────────────────────────────────► Armed(deadline)
//!      ▲                                                 │ answered() ─► Done
//!      └── detached(): timers run only on a live stream ─┤ expire()   ─► Done
//! ```
//!
//! Both variants of the protocol share this, since what is wanted and what is missing do not depend on how it is said.
//! It does NOT say anything: `sotw` and `delta` do.

use crate::resource::Kind;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
    /// Names that are new in a request which the transport has not taken yet.
    unsent: VecDeque<(u64, Vec<Arc<str>>)>,
    /// Whether this stream was asked for this type.
    asked: bool,
}

/// What is known about the answer for one name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    Unsent,
    Armed(Instant),
    Done,
}

/// How a list of names changed.
#[derive(Debug)]
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

    /// Changes what is wanted. What is told as having left is no longer kept up to date.
    pub(super) fn change(
        &mut self,
        kind: Kind,
        wanted: &[Arc<str>],
        unwanted: &[Arc<str>],
        attached: bool,
        timers: &mut Timers,
    ) -> Change {
        // What came and went within one turn was never asked for, so it cannot be given up; what only lingers has left.
        let is_left = |name: &&Arc<str>| self.waits.contains_key(*name) && self.lingering.as_ref() != Some(*name);
        let mut left: Vec<_> = unwanted.iter().filter(is_left).cloned().collect();
        if !wanted.is_empty()
            && let Some(name) = self.lingering.take()
            && !wanted.contains(&name)
        {
            left.push(name);
        }
        let mut new = Vec::new();
        for name in wanted {
            if !self.waits.contains_key(name) {
                self.waits.insert(Arc::clone(name), Wait::Unsent);
                new.push(Arc::clone(name));
            }
        }
        // An LDS or CDS subscription without names is a wildcard to istiod, in both variants, and stays one: the last
        // name stays until another replaces it.
        if kind.is_full_state() && self.waits.len() == left.len() && attached {
            self.lingering = left.pop();
        }
        for name in &left {
            if let Some(Wait::Armed(deadline)) = self.waits.remove(name) {
                timers.stop(deadline, kind, name);
            }
        }
        Change { new, left }
    }

    /// A request was made, and in it these names are new.
    pub(super) fn queued(&mut self, serial: u64, new: Vec<Arc<str>>) {
        self.asked = true;
        if !new.is_empty() {
            self.unsent.push_back((serial, new));
        }
    }

    /// The transport took a request: now, and not before, its new names may be missed.
    pub(super) fn sent(&mut self, kind: Kind, serial: u64, now: Instant, timers: &mut Timers) {
        while self.unsent.front().is_some_and(|(first, _)| *first <= serial) {
            let (_, names) = self.unsent.pop_front().unwrap_or_default();
            for name in names {
                // Unsent => Armed. A name that was answered, or unsubscribed, meanwhile has nothing to wait for.
                if let Some(wait @ Wait::Unsent) = self.waits.get_mut(&name) {
                    *wait = Wait::Armed(timers.start(now, kind, name));
                }
            }
        }
    }

    /// The server said something about a name, good or bad.
    pub(super) fn answered(&mut self, kind: Kind, name: &str, timers: &mut Timers) {
        if let Some(wait) = self.waits.get_mut(name)
            && let Wait::Armed(deadline) = std::mem::replace(wait, Wait::Done)
        {
            timers.stop(deadline, kind, name);
        }
    }

    /// A name's timer fired.
    pub(super) fn expired(&mut self, name: &str) {
        if let Some(wait) = self.waits.get_mut(name) {
            *wait = Wait::Done;
        }
    }

    /// The stream is gone. Returns the name that was only lingering and is now forgotten.
    pub(super) fn detached(&mut self) -> Option<Arc<str>> {
        self.asked = false;
        self.unsent.clear();
        for wait in self.waits.values_mut().filter(|wait| **wait != Wait::Done) {
            *wait = Wait::Unsent;
        }
        let forgotten = self.lingering.take();
        if let Some(name) = &forgotten {
            self.waits.remove(name);
        }
        forgotten
    }
}

// === Timers ===

/// The does-not-exist timers of one server.
#[derive(Debug)]
pub(super) struct Timers {
    timeout: Duration,
    deadlines: BTreeSet<(Instant, Kind, Arc<str>)>,
}

impl Timers {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, deadlines: BTreeSet::new() }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, ..)| *deadline)
    }

    /// A name whose time is over, if there is one.
    pub(super) fn expire(&mut self, now: Instant) -> Option<(Kind, Arc<str>)> {
        let due = self.next().is_some_and(|deadline| deadline <= now);
        let (_, kind, name) = due.then(|| self.deadlines.pop_first()).flatten()?;
        Some((kind, name))
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.deadlines.iter().map(|(_, kind, name)| (*kind, &**name))
    }

    pub(super) fn clear(&mut self) {
        self.deadlines.clear();
    }

    fn start(&mut self, now: Instant, kind: Kind, name: Arc<str>) -> Instant {
        let deadline = now + self.timeout;
        self.deadlines.insert((deadline, kind, name));
        deadline
    }

    fn stop(&mut self, deadline: Instant, kind: Kind, name: &str) {
        self.deadlines.remove(&(deadline, kind, Arc::from(name)));
    }
}
