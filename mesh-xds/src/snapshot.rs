//! What the data plane gets: one target's complete, consistent configuration (A74).
//!
//! Values that did not change keep their `Arc` from one snapshot to the next, so a reader compares with
//! `Arc::ptr_eq` and does no work for what stayed; [`ClusterMap::changes_since`] says which clusters are worth comparing.
//! A snapshot does NOT say how to run anything.

use crate::resource::{Cluster, ClusterLoadAssignment, ClusterName, HttpConnectionManager, RouteConfig, VirtualHost};
use crate::{ClusterMap, ServerId};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Everything a client channel needs to run one target.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Grows with every snapshot made in this process: of two values for one cluster, the greater is newer.
    pub generation: u64,
    /// Name of the Listener resource.
    pub listener_name: Arc<str>,
    /// The listener's connection manager.
    pub http: Arc<HttpConnectionManager>,
    /// The whole route configuration (RDS or inline).
    pub routes: Arc<RouteConfig>,
    /// The virtual host that serves the target; `None` when no domain matches: calls fail UNAVAILABLE.
    pub virtual_host: Option<Arc<VirtualHost>>,
    /// Every cluster that the virtual host refers to, resolved or failed.
    pub clusters: ClusterMap<Arc<ClusterConfig>>,
}

impl Snapshot {
    /// Of two snapshots of this process, the greater one is newer, whichever client made it.
    pub(crate) fn next_generation() -> u64 {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        GENERATION.fetch_add(1, Ordering::Relaxed)
    }
}

/// One cluster of a snapshot: where its calls can go, or why nowhere.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// The cluster's name.
    pub name: ClusterName,
    /// The server that it came from; clusters of one name and two servers are two clusters (A71). `None` when the name
    /// is of an authority that the bootstrap does not have.
    pub server: Option<ServerId>,
    /// Resources with their endpoints, or the reason for which calls fail.
    pub state: Result<Leaves, ClusterError>,
}

/// The clusters whose endpoints take the calls, in order of preference: the cluster itself, or the leaves of an
/// aggregate (A37). Each brings its own policy, security and limits (A75); one that stayed equal keeps its `Arc`.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaves {
    /// The one that is preferred.
    pub first: Arc<ResolvedCluster>,
    /// Those for fail-over, in order. One leaf is the rule.
    pub rest: Box<[Arc<ResolvedCluster>]>,
}

impl Leaves {
    /// Just one.
    pub fn one(leaf: Arc<ResolvedCluster>) -> Self {
        Self { first: leaf, rest: Box::default() }
    }

    /// All of them, unless there are none.
    pub fn new(leaves: impl IntoIterator<Item = Arc<ResolvedCluster>>) -> Option<Self> {
        let mut leaves = leaves.into_iter();
        Some(Self { first: leaves.next()?, rest: leaves.collect() })
    }

    /// In order of preference.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ResolvedCluster>> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Whether these are the very same leaves, by identity.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.rest.len() == other.rest.len() && self.iter().zip(other.iter()).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// A cluster with endpoints, never an aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedCluster {
    /// The CDS resource.
    pub cluster: Arc<Cluster>,
    /// The server that the resource came from, which is where its load is reported.
    pub server: Option<ServerId>,
    /// From EDS or from the Cluster itself. Empty priorities mean "no endpoints".
    pub endpoints: Arc<ClusterLoadAssignment>,
    /// Why the endpoints may be missing or stale (A74 `resolution_note`); part of the error of a failed pick.
    pub note: Option<Arc<str>>,
}

/// Why a cluster is in a snapshot without being usable. Its text goes to callers, with UNAVAILABLE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterError(pub Arc<str>);

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a watcher of a target sees: latest wins.
#[derive(Clone, Debug)]
pub enum Target {
    /// Nothing complete has arrived and nothing has failed yet: calls wait. Says what is missing, for `ready()`.
    Pending {
        /// For people: `waiting for RouteConfiguration "r"`.
        missing: Arc<str>,
    },
    /// Calls can be routed.
    Ready(Arc<Snapshot>),
    /// No configuration can be used: calls fail UNAVAILABLE with this text.
    Failed(Arc<str>),
}
