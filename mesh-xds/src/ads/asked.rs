//! Which names were last asked for on one stream: what is worth decoding, and worth remembering.
//!
//! The side that writes knows, the side that reads needs it. It does NOT know who wants the names.

use super::protocol::{Asks, Request};
use crate::resource::{ByKind, Kind};
use rustc_hash::FxHashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The names of every type. Held for a look, never across an await.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<ByKind<Names>>);

/// As the variants of the protocol tell them.
#[derive(Debug)]
pub(super) enum Names {
    /// SotW: sorted.
    List(Arc<[Arc<str>]>),
    /// Delta.
    Set(FxHashSet<Arc<str>>),
}

impl Asked {
    /// A request goes out.
    pub(super) fn note(&self, request: &Request) {
        let mut types = self.lock();
        let names = types.of(request.kind);
        match &request.asks {
            Asks::All { names: all, .. } => *names = Names::List(Arc::clone(all)),
            Asks::Change { subscribe, unsubscribe, .. } => {
                let mut set = match std::mem::take(names) {
                    Names::Set(set) => set,
                    Names::List(_) => FxHashSet::default(),
                };
                for name in unsubscribe {
                    set.remove(name);
                }
                set.extend(subscribe.iter().cloned());
                *names = Names::Set(set);
            }
        }
    }

    /// The type behind a type URL, if it is one of the four, or one that this stream was asked for.
    pub(super) fn kind(&self, type_url: &str) -> Option<Kind> {
        self.lock().iter().map(|(kind, _)| kind).find(|kind| kind.type_url() == type_url)
    }

    /// Looks at the names of one type.
    pub(super) fn with<T>(&self, kind: Kind, look: impl FnOnce(&Names) -> T) -> T {
        look(self.lock().of(kind))
    }

    fn lock(&self) -> MutexGuard<'_, ByKind<Names>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::List(list) => list.len(),
            Self::Set(set) => set.len(),
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        match self {
            Self::List(list) => list.binary_search_by(|entry| (**entry).cmp(name)).is_ok(),
            Self::Set(set) => set.contains(name),
        }
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::Set(FxHashSet::default())
    }
}
