//! The counters of each cluster, once per process: channels, meshes and aggregates count together (A32).
//!
//! Held weakly: a cluster that nobody uses is nothing. Looked at when configuration arrives, never by a call.

use super::{Counters, InUse};
use mesh_xds::{
    ResolvedCluster,
    resource::{ClusterName, Discovery},
};
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// "counter process-global per {cluster, EDS service name}" - A32
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    cluster: ClusterName,
    /// Empty for clusters that have no EDS.
    service: String,
}

static COUNTERS: Mutex<FxHashMap<Key, Weak<Counters>>> = Mutex::new(FxHashMap::with_hasher(FxBuildHasher));

/// The counters of a cluster: those that there are, or new ones.
pub(crate) fn counters(leaf: &ResolvedCluster) -> Arc<Counters> {
    let (key, mut all) = (Key::of(leaf), lock());
    if let Some(counters) = all.get(&key).and_then(Weak::upgrade) {
        return counters;
    }
    if all.len() == all.capacity() {
        // About to grow: first forget what is gone.
        all.retain(|_, counters| counters.strong_count() > 0);
    }
    let counters = Arc::default();
    all.insert(key, Arc::downgrade(&counters));
    counters
}

/// What is in use of a cluster.
pub(crate) fn in_use(leaf: &ResolvedCluster) -> InUse {
    let counters = lock().get(&Key::of(leaf)).and_then(Weak::upgrade);
    counters.map(|counters| counters.in_use()).unwrap_or_default()
}

impl Key {
    fn of(leaf: &ResolvedCluster) -> Self {
        let service = match &leaf.cluster.discovery {
            Discovery::Eds { service_name } => service_name.clone(),
            _ => String::new(),
        };
        Self { cluster: leaf.cluster.name.clone(), service }
    }
}

/// Held for a few steps of configuration, and never across a panic of ours.
fn lock() -> MutexGuard<'static, FxHashMap<Key, Weak<Counters>>> {
    COUNTERS.lock().unwrap_or_else(PoisonError::into_inner)
}
