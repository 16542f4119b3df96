//! One cluster of the graph: its resource and its endpoints, or why there are none.
//!
//! Shared by every target that refers to it. While an update is incomplete (the new EDS resource has not come) the
//! last complete value stays. It does NOT know which targets refer to it.

use super::References;
use crate::{
    cache::{Cache, Lookup},
    resource::{Cluster, ClusterLoadAssignment, ClusterName, Discovery, Kind, Resource},
    snapshot::{ClusterConfig, ClusterError, ResolvedCluster},
};
use rustc_hash::FxHashMap;
use std::{collections::BTreeSet, sync::Arc};

#[derive(Debug, Default)]
pub(super) struct Node {
    /// The last complete value.
    config: Option<Arc<ClusterConfig>>,
    /// What a first configuration is made with while the control plane cannot be reached.
    unreachable: Option<Arc<ClusterConfig>>,
    /// EDS resources that `config`, or the value to come, is made of.
    endpoints: BTreeSet<Arc<str>>,
    /// An update is incomplete, and `config` is what was complete before it.
    behind: bool,
}

/// What the cache makes of a cluster.
enum Outcome {
    Complete(Result<ResolvedCluster, ClusterError>),
    /// Would change by itself once the control plane is back.
    Unreachable(Result<ResolvedCluster, ClusterError>),
    Incomplete,
}

impl Node {
    /// The complete value.
    pub(super) fn config(&self) -> Option<&Arc<ClusterConfig>> {
        self.config.as_ref()
    }

    /// The complete value, or the error that stands for it during an outage.
    pub(super) fn config_or_unreachable(&self) -> Option<&Arc<ClusterConfig>> {
        self.config.as_ref().or(self.unreachable.as_ref())
    }

    /// Whether the cluster's resource is newer than the complete value.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// For people: `waiting for Cluster "c"`.
    pub(super) fn describe_missing(&self, name: &ClusterName) -> String {
        match self.endpoints.last() {
            None => format!("waiting for {} {name:?}", Kind::Cluster),
            Some(endpoints) => format!("waiting for {} {endpoints:?} of cluster {name:?}", Kind::Endpoints),
        }
    }

    /// Looks again. Returns whether targets see a difference.
    pub(super) fn resolve(
        &mut self,
        name: &ClusterName,
        cache: &Cache,
        references: &mut References<ClusterName>,
    ) -> bool {
        let (outcome, wanted) = self.outcome(name, cache);
        let mut wants_more = false;
        if let Some(wanted) = &wanted
            && self.endpoints.insert(Arc::clone(wanted))
        {
            references.add(wanted, name.clone());
            wants_more = true;
        }
        self.behind = matches!(outcome, Outcome::Incomplete) && self.config.is_some();
        let differs = match outcome {
            Outcome::Complete(state) => {
                let changed = set(&mut self.config, name, state);
                let recovered = self.unreachable.take().is_some();
                changed || recovered
            }
            Outcome::Unreachable(state) => set(&mut self.unreachable, name, state),
            // What is missing is something else now.
            Outcome::Incomplete => self.unreachable.take().is_some() || wants_more,
        };
        // What neither the value that is kept nor the one to come is made of is given up.
        let serving = self.config.as_ref().and_then(|config| service_name(config));
        self.endpoints.retain(|held| {
            let keep = wanted.as_ref() == Some(held) || serving == Some(&**held);
            if !keep {
                references.remove(held, name.clone());
            }
            keep
        });
        differs
    }

    /// Gives up what it needs.
    pub(super) fn release(self, name: &ClusterName, references: &mut References<ClusterName>) {
        for held in self.endpoints {
            references.remove(&held, name.clone());
        }
    }

    fn outcome(&self, name: &ClusterName, cache: &Cache) -> (Outcome, Option<Arc<str>>) {
        let (cluster, note, deleted) = match cache.lookup(Kind::Cluster, name.as_str()) {
            Lookup::Usable { value: Resource::Cluster(cluster), note, deleted } => (cluster, note, deleted),
            Lookup::Usable { .. } | Lookup::Pending => return (Outcome::Incomplete, None),
            Lookup::Failed(text) => return (Outcome::Complete(Err(ClusterError(text))), None),
            Lookup::Unreachable(text) => return (Outcome::Unreachable(Err(ClusterError(text))), None),
        };
        let unsupported = |what: &str| {
            let text = cache.text(Kind::Cluster, name.as_str(), format_args!("{what} is not supported yet"));
            (Outcome::Complete(Err(ClusterError(text))), None)
        };
        match &cluster.discovery {
            Discovery::Static(endpoints) => (self.complete(cluster, endpoints, note), None),
            Discovery::LogicalDns { .. } => unsupported("type: LOGICAL_DNS"),
            Discovery::Aggregate(_) => unsupported("cluster_type: envoy.clusters.aggregate"),
            Discovery::Eds { service_name } => {
                let outcome = self.with_endpoints(cluster, service_name, note, deleted, cache);
                (outcome, Some(service_name.as_str().into()))
            }
        }
    }

    fn with_endpoints(
        &self,
        cluster: &Arc<Cluster>,
        service_name: &str,
        note: Option<Arc<str>>,
        deleted: bool,
        cache: &Cache,
    ) -> Outcome {
        // "endpoint problems become a resolution_note plus empty endpoints" - A74.
        let none = |text| {
            let held = self.held_endpoints(service_name).filter(|held| ***held == empty(service_name));
            let endpoints = held.map_or_else(|| Arc::new(empty(service_name)), Arc::clone);
            Ok(ResolvedCluster { cluster: Arc::clone(cluster), endpoints, note: Some(text) })
        };
        match cache.lookup(Kind::Endpoints, service_name) {
            Lookup::Usable { value: Resource::Endpoints(endpoints), note: endpoints_note, .. } => {
                let note = endpoints_note.or(note);
                match self.held_endpoints(service_name) {
                    Some(held) if deleted => self.complete(cluster, &only_removed(held, endpoints), note),
                    _ => self.complete(cluster, endpoints, note),
                }
            }
            Lookup::Usable { .. } | Lookup::Pending => Outcome::Incomplete,
            Lookup::Failed(text) => Outcome::Complete(none(text)),
            Lookup::Unreachable(text) => Outcome::Unreachable(none(text)),
        }
    }

    fn complete(
        &self,
        cluster: &Arc<Cluster>,
        endpoints: &Arc<ClusterLoadAssignment>,
        note: Option<Arc<str>>,
    ) -> Outcome {
        let (cluster, endpoints) = (Arc::clone(cluster), Arc::clone(endpoints));
        Outcome::Complete(Ok(ResolvedCluster { cluster, endpoints, note }))
    }

    fn held_endpoints(&self, service_name: &str) -> Option<&Arc<ClusterLoadAssignment>> {
        let config = self.config.as_ref().filter(|config| self::service_name(config) == Some(service_name))?;
        config.state.as_ref().ok().map(|held| &held.endpoints)
    }
}

/// The EDS resource that a value was made of.
fn service_name(config: &ClusterConfig) -> Option<&str> {
    match &config.state.as_ref().ok()?.cluster.discovery {
        Discovery::Eds { service_name } => Some(service_name),
        _ => None,
    }
}

/// Replaces a value unless it is equal: by identity, since the cache keeps that for equal values.
fn set(
    slot: &mut Option<Arc<ClusterConfig>>,
    name: &ClusterName,
    state: Result<ResolvedCluster, ClusterError>,
) -> bool {
    let same = slot.as_ref().is_some_and(|held| match (&held.state, &state) {
        (Ok(a), Ok(b)) => {
            Arc::ptr_eq(&a.cluster, &b.cluster) && Arc::ptr_eq(&a.endpoints, &b.endpoints) && a.note == b.note
        }
        (Err(a), Err(b)) => a == b,
        _ => false,
    });
    if !same {
        *slot = Some(Arc::new(ClusterConfig { name: name.clone(), state }));
    }
    !same
}

fn empty(service_name: &str) -> ClusterLoadAssignment {
    ClusterLoadAssignment { name: service_name.to_owned(), priorities: Vec::new(), drops: Vec::new() }
}

/// The endpoints of a cluster that the control plane deleted and we keep: EDS may take some away, or their health,
/// but not add or reweight any. istiod answers for a deleted subset with ALL endpoints of the service.
fn only_removed(held: &Arc<ClusterLoadAssignment>, new: &ClusterLoadAssignment) -> Arc<ClusterLoadAssignment> {
    let health: FxHashMap<_, _> = new.endpoints().map(|endpoint| (&endpoint.addresses, endpoint.health)).collect();
    let unchanged = held.endpoints().all(|endpoint| health.get(&endpoint.addresses) == Some(&endpoint.health));
    if unchanged {
        return Arc::clone(held);
    }
    let mut kept = ClusterLoadAssignment::clone(held);
    for locality in kept.priorities.iter_mut().flatten() {
        locality.endpoints.retain_mut(|endpoint| {
            let now = health.get(&endpoint.addresses);
            endpoint.health = now.copied().unwrap_or(endpoint.health);
            now.is_some()
        });
    }
    Arc::new(kept)
}
