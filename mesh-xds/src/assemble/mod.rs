//! Listener, routes, clusters and endpoints joined into one consistent configuration per target (A74), without I/O.
//!
//! ```text
//! target ─► Listener ─► RouteConfiguration ─► virtual host ─► Cluster ─► ClusterLoadAssignment
//!                        (or in line)          (selected)      shared by all targets
//!                                                                └─► Cluster ..   of an aggregate (A37)
//! ```
//!
//! A change marks what refers to it; [`Assembler::settle`] then follows the references once, top down, in slices: whatever
//! is to be done stands in queues. What a target serves stays as it is, with its clusters kept up to date, until the next
//! plan is complete (make before break). Nothing that stayed equal changes its identity. The assembler does NOT decide what
//! survives an error (`cache` does) and does NOT fetch: it says what it needs.

mod aggregate;
mod cluster;
mod dns;
mod references;
mod settle;
mod single;
mod target;

use crate::{
    cache::{Lookup, Sources},
    resource::{ClusterName, DnsName, Kind},
    snapshot::Target,
};
use cluster::{Node, Origins};
use references::References;
use rustc_hash::{FxHashMap, FxHashSet};
pub(crate) use single::Found;
use single::Singles;
use std::{collections::BTreeSet, sync::Arc};
use target::TargetState;

/// Names a target, or a resource that is watched by itself, within one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TargetId(pub(crate) u64);

/// All targets of one client.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    targets: FxHashMap<TargetId, TargetState>,
    nodes: FxHashMap<ClusterName, Node>,
    /// Who refers to what; also what is needed at all.
    listeners: References<TargetId>,
    routes: References<TargetId>,
    clusters: References<ClusterUser>,
    origins: Origins,
    /// References that are to be given up.
    releasing: Vec<(TargetId, ClusterName)>,
    /// Targets whose listener or routes may be different.
    dirty_targets: BTreeSet<TargetId>,
    /// References that are to be taken.
    referring: Vec<(TargetId, ClusterName)>,
    /// Clusters whose resource or endpoints may be different.
    dirty_nodes: BTreeSet<ClusterName>,
    /// Aggregates below which there may be other clusters: those are to be referred to ...
    unjoined: BTreeSet<ClusterName>,
    /// ... or something may be different.
    dirty_aggregates: BTreeSet<ClusterName>,
    /// Targets that may have a new value.
    unpublished: BTreeSet<TargetId>,
    settled: Settled,
    /// Targets that do not serve everything that was read for them yet.
    behind: FxHashSet<TargetId>,
    /// Clusters that wait for the endpoints of their newest resource.
    behind_nodes: FxHashSet<ClusterName>,
    singles: Singles,
}

/// What is assembled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    Target {
        listener: Arc<str>,
        authority: Arc<str>,
    },
    /// One resource, by itself.
    Resource(Kind, Arc<str>),
}

/// What became of it.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Target(Target),
    Resource(Found),
}

/// Who refers to a cluster. An aggregate that targets refer to does so for every cluster below it, however deep, so that
/// a cycle keeps nothing alive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ClusterUser {
    Target(TargetId),
    Aggregate(ClusterName),
}

/// What became of the subjects.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Everything that was looked at.
    pub(crate) looked_at: BTreeSet<TargetId>,
    /// New values.
    pub(crate) publish: Vec<(TargetId, Value)>,
}

/// What became needed or stopped being needed.
#[derive(Debug)]
pub(crate) enum Need {
    Resource(Kind, Arc<str>),
    /// Of DNS.
    Name(DnsName),
}

impl Assembler {
    /// Begins to assemble a subject.
    pub(crate) fn add(&mut self, id: TargetId, subject: Subject) {
        match subject {
            Subject::Target { listener, authority } => {
                self.listeners.add(&listener, id);
                self.targets.insert(id, TargetState::new(listener, authority));
                self.dirty_targets.insert(id);
            }
            Subject::Resource(kind, name) => self.singles.add(id, kind, name),
        }
    }

    /// Ends it; the resources that only it needed are unwatched in the next [`Assembler::settle`].
    pub(crate) fn remove(&mut self, id: TargetId) {
        self.singles.remove(id);
        let Some(target) = self.targets.remove(&id) else { return };
        self.listeners.remove(target.listener(), id);
        self.dirty_targets.remove(&id);
        self.behind.remove(&id);
        self.unpublished.remove(&id);
        self.give_up(id, target.into_references());
    }

    /// A resource may look different now.
    pub(crate) fn changed(&mut self, kind: Kind, name: &str) {
        self.singles.changed(kind, name);
        match kind {
            Kind::Listener => self.dirty_targets.extend(self.listeners.users(name)),
            Kind::RouteConfig => self.dirty_targets.extend(self.routes.users(name)),
            Kind::Cluster => self.dirty_nodes.extend(self.nodes.get_key_value(name).map(|(name, _)| name.clone())),
            Kind::Endpoints => self.dirty_nodes.extend(self.origins.endpoints.users(name)),
            // Watched one by one, no part of a target.
            Kind::Other(_) => {}
        }
    }

    /// A DNS name may stand for something else now.
    pub(crate) fn name_changed(&mut self, name: &DnsName) {
        self.dirty_nodes.extend(self.origins.names.users(name));
    }

    /// Everything may look different: the control plane went away or came back.
    pub(crate) fn all_changed(&mut self) {
        self.dirty_targets.extend(self.targets.keys());
        self.dirty_nodes.extend(self.nodes.keys().cloned());
        self.singles.all_changed();
    }

    /// Whether there is nothing to assemble.
    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.singles.is_empty()
    }

    /// The targets that refer to a resource, in what they serve or will serve.
    pub(crate) fn users(&self, kind: Kind, name: &str) -> BTreeSet<TargetId> {
        match kind {
            Kind::Listener => self.listeners.users(name).into_iter().collect(),
            Kind::RouteConfig => self.routes.users(name).into_iter().collect(),
            Kind::Cluster => self.users_of_cluster(name).collect(),
            Kind::Endpoints => {
                let clusters = self.origins.endpoints.users(name);
                clusters.iter().flat_map(|cluster| self.users_of_cluster(cluster.as_str())).collect()
            }
            Kind::Other(_) => BTreeSet::new(),
        }
    }

    fn users_of_cluster(&self, name: &str) -> impl Iterator<Item = TargetId> {
        let target = |user| match user {
            ClusterUser::Target(id) => Some(id),
            ClusterUser::Aggregate(_) => None,
        };
        self.clusters.users(name).into_iter().flat_map(move |user| match user {
            ClusterUser::Target(id) => vec![id],
            ClusterUser::Aggregate(aggregate) => {
                self.clusters.users(aggregate.as_str()).into_iter().filter_map(target).collect()
            }
        })
    }

    /// Whether something refers to a resource.
    pub(crate) fn needs(&self, kind: Kind, name: &str) -> bool {
        self.singles.is_used(kind, name)
            || match kind {
                Kind::Listener => self.listeners.is_used(name),
                Kind::RouteConfig => self.routes.is_used(name),
                Kind::Cluster => self.clusters.is_used(name),
                Kind::Endpoints => self.origins.endpoints.is_used(name),
                Kind::Other(_) => false,
            }
    }

    /// Whether something is made of a DNS name.
    pub(crate) fn needs_name(&self, name: &DnsName) -> bool {
        self.origins.names.is_used(name)
    }

    /// Whether the last word has been said on all that a subject refers to now. An outage is no word.
    pub(crate) fn is_decided(&self, id: TargetId, sources: &Sources<'_>) -> bool {
        match self.targets.get(&id) {
            Some(target) => target.is_decided() && !self.behind_nodes.iter().any(|name| self.refers_to(id, name)),
            None => self.singles.resource(id).is_some_and(|(kind, name)| {
                matches!(sources.lookup(kind, name), Lookup::Usable { .. } | Lookup::Failed(_) | Lookup::Absent(_))
            }),
        }
    }

    /// The resources that a subject waits for.
    pub(crate) fn waits_for(&self, id: TargetId) -> Vec<(Kind, Arc<str>)> {
        let Some(target) = self.targets.get(&id) else {
            return self.singles.resource(id).map(|(kind, name)| (kind, Arc::clone(name))).into_iter().collect();
        };
        let mut waits = target.waits_for();
        let behind = self.behind_nodes.iter().filter(|name| self.refers_to(id, name));
        for name in target.missing().chain(behind) {
            let below = self.nodes.get(name).into_iter().flat_map(Node::below);
            for name in below.chain([name]) {
                waits.push((Kind::Cluster, Arc::clone(name.as_shared())));
                let endpoints = self.nodes.get(name).into_iter().flat_map(Node::endpoints);
                waits.extend(endpoints.map(|name| (Kind::Endpoints, Arc::clone(name))));
            }
        }
        waits
    }

    fn refers_to(&self, id: TargetId, name: &ClusterName) -> bool {
        self.clusters.any(name.as_str(), |user| *user == ClusterUser::Target(id))
    }

    /// Targets whose newest listener, routes or clusters wait for a part that they refer to.
    pub(crate) fn behind(&self) -> impl Iterator<Item = TargetId> {
        let users = self.behind_nodes.iter().flat_map(|name| self.clusters.users(name.as_str()));
        let through_clusters = users.filter_map(|user| match user {
            ClusterUser::Target(id) => Some(id),
            // It is behind itself.
            ClusterUser::Aggregate(_) => None,
        });
        self.behind.iter().copied().chain(through_clusters)
    }
}

#[cfg(test)]
mod tests;
