//! Who watches what: the watchers of each subject, and what they were told last.
//!
//! Watchers of the same subject share its subscriptions and its assembly. It does NOT assemble.

use crate::{
    assemble::{Found, Subject, TargetId, Value},
    snapshot::Target,
};
use rustc_hash::FxHashMap;
use tokio::sync::watch;

/// Names a watch within one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WatchId(pub(super) u64);

/// Where news of a subject go. Latest wins: a reader that is slow sees only the newest value.
#[derive(Debug)]
pub(super) enum Watcher {
    Target(watch::Sender<Target>),
    Resource(watch::Sender<Found>),
}

#[derive(Debug, Default)]
pub(super) struct Watches {
    by_subject: FxHashMap<Subject, TargetId>,
    by_watch: FxHashMap<WatchId, TargetId>,
    entries: FxHashMap<TargetId, Watched>,
    next: u64,
}

#[derive(Debug)]
struct Watched {
    subject: Subject,
    current: Option<Value>,
    watchers: FxHashMap<WatchId, Watcher>,
}

impl Watches {
    /// The first watch of a subject gives it an id; later ones get what there is.
    pub(super) fn add(&mut self, id: WatchId, subject: Subject, watcher: Watcher) -> Option<TargetId> {
        let known = self.by_subject.get(&subject).copied();
        let target = known.unwrap_or_else(|| {
            self.next += 1;
            TargetId(self.next)
        });
        let watched = self.entries.entry(target).or_insert_with(|| Watched {
            subject: subject.clone(),
            current: None,
            watchers: FxHashMap::default(),
        });
        if let Some(current) = &watched.current {
            watcher.tell(current);
        }
        watched.watchers.insert(id, watcher);
        self.by_watch.insert(id, target);
        self.by_subject.insert(subject, target);
        known.is_none().then_some(target)
    }

    /// Returns the subject that nobody watches any more.
    pub(super) fn remove(&mut self, id: WatchId) -> Option<TargetId> {
        let target = self.by_watch.remove(&id)?;
        let watched = self.entries.get_mut(&target)?;
        watched.watchers.remove(&id);
        if !watched.watchers.is_empty() {
            return None;
        }
        let watched = self.entries.remove(&target)?;
        self.by_subject.remove(&watched.subject);
        Some(target)
    }

    /// Everything that is watched.
    pub(super) fn all(&self) -> Vec<(TargetId, Subject)> {
        self.entries.iter().map(|(id, watched)| (*id, watched.subject.clone())).collect()
    }

    pub(super) fn subject(&self, id: TargetId) -> Option<&Subject> {
        self.entries.get(&id).map(|watched| &watched.subject)
    }

    pub(super) fn publish(&mut self, id: TargetId, value: Value) {
        let Some(watched) = self.entries.get_mut(&id) else { return };
        // What was complete goes on: a client that starts anew does not take it away before it knows better.
        if value.is_pending() && watched.current.as_ref().is_some_and(Value::is_usable) {
            return;
        }
        watched.watchers.values().for_each(|watcher| watcher.tell(&value));
        watched.current = Some(value);
    }
}

impl Watcher {
    fn tell(&self, value: &Value) {
        match (self, value) {
            (Self::Target(sender), Value::Target(target)) => drop(sender.send_replace(target.clone())),
            (Self::Resource(sender), Value::Resource(found)) => drop(sender.send_replace(found.clone())),
            // A subject is one or the other for ever.
            (Self::Target(_), Value::Resource(_)) | (Self::Resource(_), Value::Target(_)) => {}
        }
    }
}
