//! Resources that are watched by themselves, beside the graph.
//!
//! They refer to nothing: a value is whatever the cache has, with its ambient error. It does NOT know targets.

use super::{TargetId, references::References};
use crate::{
    cache::{Lookup, Sources},
    resource::{ByKind, Kind, Resource},
};
use rustc_hash::FxHashMap;
use std::{collections::BTreeSet, sync::Arc};

/// What a watcher of one resource sees.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    /// Not known yet.
    Pending,
    /// In use, perhaps with an ambient error.
    Usable { value: Resource, error: Option<Arc<str>> },
    /// There is none, and this is why.
    Failed(Arc<str>),
}

#[derive(Debug, Default)]
pub(super) struct Singles {
    watched: FxHashMap<TargetId, (Kind, Arc<str>, Found)>,
    users: ByKind<References<TargetId>>,
    dirty: BTreeSet<TargetId>,
}

impl Singles {
    pub(super) fn add(&mut self, id: TargetId, kind: Kind, name: Arc<str>) {
        self.users.of(kind).add(&name, id);
        self.watched.insert(id, (kind, name, Found::Pending));
        self.dirty.insert(id);
    }

    pub(super) fn remove(&mut self, id: TargetId) {
        let Some((kind, name, _)) = self.watched.remove(&id) else { return };
        self.users.of(kind).remove(&name, id);
        self.dirty.remove(&id);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    pub(super) fn changed(&mut self, kind: Kind, name: &str) {
        self.dirty.extend(self.users.get(kind).map(|users| users.users(name)).unwrap_or_default());
    }

    pub(super) fn all_changed(&mut self) {
        self.dirty.extend(self.watched.keys());
    }

    /// Looks at the next one that may have changed: which it is, and its value if that is different now.
    pub(super) fn look(&mut self, sources: &Sources<'_>) -> Option<(TargetId, Option<Found>)> {
        let id = self.dirty.pop_first()?;
        let Some((kind, name, held)) = self.watched.get_mut(&id) else { return Some((id, None)) };
        let found = match sources.lookup(*kind, name) {
            Lookup::Pending => Found::Pending,
            Lookup::Usable { value, note, .. } => Found::Usable { value: value.clone(), error: note },
            Lookup::Failed(text) | Lookup::Unreachable(text) | Lookup::Absent(text) => Found::Failed(text),
        };
        let is_news = *held != found;
        if is_news {
            held.clone_from(&found);
        }
        Some((id, is_news.then_some(found)))
    }

    /// Whether there is nothing to look at.
    pub(super) fn are_settled(&self) -> bool {
        self.dirty.is_empty()
    }

    /// The next name that became needed or stopped being needed.
    pub(super) fn next_change(&mut self) -> Option<(Kind, Arc<str>)> {
        self.users.kinds().into_iter().find_map(|kind| Some((kind, self.users.of(kind).next_change()?)))
    }

    pub(super) fn is_used(&self, kind: Kind, name: &str) -> bool {
        self.users.get(kind).is_some_and(|users| users.is_used(name))
    }

    /// The resource behind an id.
    pub(super) fn resource(&self, id: TargetId) -> Option<(Kind, &Arc<str>)> {
        self.watched.get(&id).map(|(kind, name, _)| (*kind, name))
    }
}
