//! One cluster of the graph: its resource and what that resolves to, or why it resolves to nothing.
//!
//! Shared by every target and every aggregate that refers to it. While an update is incomplete (the new EDS resource
//! has not come) the last complete value stays. What an aggregate refers to is looked up by the assembler, which then
//! says what came of it. It does NOT know who refers to it.

use super::{References, dns};
use crate::{
    bootstrap::ServerId,
    cache::{Lookup, Sources},
    dns::Answers,
    resource::{Cluster, ClusterLoadAssignment, ClusterName, Discovery, DnsName, Kind, Resource},
    snapshot::{ClusterConfig, ClusterError, Leaves, ResolvedCluster},
};
use rustc_hash::FxHashMap;
use std::{collections::BTreeSet, sync::Arc};

#[derive(Debug, Default)]
pub(super) struct Node {
    /// Who answers for its name.
    server: Option<ServerId>,
    /// The last complete value.
    config: Option<Arc<ClusterConfig>>,
    /// What a first configuration is made with while the control plane cannot be reached, or as long as it may have said
    /// too early that a part does not exist.
    unreachable: Option<Arc<ClusterConfig>>,
    /// EDS resources that `config`, or the value to come, is made of.
    endpoints: BTreeSet<Arc<str>>,
    /// DNS names, likewise.
    names: BTreeSet<DnsName>,
    /// An update is incomplete, and targets have what there was before it: `config`, or the error that stood for it.
    behind: bool,
    /// What its newest resource makes of it.
    role: Role,
    /// Clusters below it that are referred to on its behalf.
    members: BTreeSet<ClusterName>,
    /// What an aggregate waits for.
    missing: Option<Arc<str>>,
}

/// What a cluster is to the aggregates above it.
#[derive(Debug, Default, PartialEq)]
enum Role {
    #[default]
    Pending,
    Leaf,
    Aggregate(Arc<[ClusterName]>),
    Failed(ClusterError),
    Unreachable(ClusterError),
}

/// EDS resources and DNS names, and the clusters that are made of them.
#[derive(Debug, Default)]
pub(super) struct Origins {
    pub(super) endpoints: References<ClusterName>,
    pub(super) names: References<ClusterName, DnsName>,
}

/// What the newest resource of a cluster is made of.
#[derive(Debug, Default)]
struct Wanted {
    endpoints: Option<Arc<str>>,
    names: BTreeSet<DnsName>,
}

/// What a lookup makes of a cluster.
#[derive(Debug)]
pub(super) enum Outcome {
    Complete(Result<Leaves, ClusterError>),
    /// Would change by itself once the control plane is back, or has more to say.
    Unreachable(Result<Leaves, ClusterError>),
    Incomplete,
}

/// A cluster as a leaf of an aggregate.
#[derive(Debug)]
pub(super) enum Part<'a> {
    Pending,
    Leaf(Arc<ResolvedCluster>),
    /// Its resource does not exist or cannot be used.
    Failed(&'a ClusterError),
    /// As [`Outcome::Unreachable`].
    Unreachable(Result<Arc<ResolvedCluster>, &'a ClusterError>),
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

    /// The EDS resources that the value, or the one to come, is made of.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Arc<str>> {
        self.endpoints.iter()
    }

    /// Clusters below it that are referred to on its behalf.
    pub(super) fn below(&self) -> impl Iterator<Item = &ClusterName> {
        self.members.iter()
    }

    /// The clusters that its newest resource aggregates.
    pub(super) fn children(&self) -> Option<&[ClusterName]> {
        match &self.role {
            Role::Aggregate(children) => Some(children),
            _ => None,
        }
    }

    /// Whether its value is, was, or is to be made of other clusters.
    pub(super) fn is_composed(&self) -> bool {
        self.children().is_some() || !self.members.is_empty()
    }

    /// For people: `waiting for Cluster "c"`.
    pub(super) fn describe_missing(&self, name: &ClusterName) -> String {
        match (&self.missing, self.endpoints.last(), self.names.last()) {
            (Some(missing), ..) => format!("{missing} of aggregate cluster {name:?}"),
            (None, Some(endpoints), _) => format!("waiting for {} {endpoints:?} of cluster {name:?}", Kind::Endpoints),
            (None, None, Some(dns)) => format!("waiting for DNS name \"{dns}\" of cluster {name:?}"),
            (None, None, None) => format!("waiting for {} {name:?}", Kind::Cluster),
        }
    }

    // === Its own resource ===

    /// Looks at its own resource again. Returns whether anybody sees a difference.
    pub(super) fn resolve(
        &mut self,
        name: &ClusterName,
        cache: &Sources<'_>,
        answers: &Answers,
        origins: &mut Origins,
    ) -> bool {
        self.server = cache.server(name.as_str());
        let (role, outcome, wanted) = self.read(name, cache, answers);
        let mut differs = role != self.role;
        self.role = role;
        if let Some(endpoints) = &wanted.endpoints
            && self.endpoints.insert(Arc::clone(endpoints))
        {
            origins.endpoints.add(endpoints, name.clone());
            differs = true;
        }
        for dns in &wanted.names {
            if self.names.insert(dns.clone()) {
                origins.names.add(dns, name.clone());
                differs = true;
            }
        }
        if self.children().is_none() {
            self.missing = None;
            differs |= self.accept(name, outcome);
        }
        self.keep_origins(name, &wanted, origins);
        differs
    }

    /// What neither the value that is kept nor the one to come is made of is given up.
    fn keep_origins(&mut self, name: &ClusterName, wanted: &Wanted, origins: &mut Origins) {
        let serving = self.config.as_deref().and_then(own_leaf).map(|leaf| &leaf.cluster.discovery);
        self.endpoints.retain(|held| {
            let serves = matches!(serving, Some(Discovery::Eds { service_name }) if **service_name == **held);
            let keep = serves || wanted.endpoints.as_ref() == Some(held);
            if !keep {
                origins.endpoints.remove(held, name.clone());
            }
            keep
        });
        let serving_names = serving.map(dns::names).unwrap_or_default();
        self.names.retain(|held| {
            let keep = wanted.names.contains(held) || serving_names.contains(held);
            if !keep {
                origins.names.remove(held, name.clone());
            }
            keep
        });
    }

    /// Takes what a lookup came to. Returns whether targets see a difference.
    fn accept(&mut self, name: &ClusterName, outcome: Outcome) -> bool {
        let before = self.config.is_some() || self.unreachable.is_some() || self.behind;
        self.behind = matches!(outcome, Outcome::Incomplete) && before;
        match outcome {
            Outcome::Complete(state) => {
                let changed = set(&mut self.config, name, self.server, state);
                let recovered = self.unreachable.take().is_some();
                changed || recovered
            }
            Outcome::Unreachable(state) => set(&mut self.unreachable, name, self.server, state),
            // What is missing is something else now.
            Outcome::Incomplete => self.unreachable.take().is_some(),
        }
    }

    /// Gives up what it needs.
    pub(super) fn release(mut self, name: &ClusterName, origins: &mut Origins) {
        self.rest(name, origins);
    }

    fn read(&self, name: &ClusterName, cache: &Sources<'_>, answers: &Answers) -> (Role, Outcome, Wanted) {
        let nothing = Wanted::default();
        let (cluster, note, deleted) = match cache.lookup(Kind::Cluster, name.as_str()) {
            Lookup::Usable { value: Resource::Cluster(cluster), note, deleted } => (cluster, note, deleted),
            Lookup::Usable { .. } | Lookup::Pending => return (Role::Pending, Outcome::Incomplete, nothing),
            Lookup::Failed(text) => {
                let error = ClusterError(text);
                return (Role::Failed(error.clone()), Outcome::Complete(Err(error)), nothing);
            }
            Lookup::Unreachable(text) | Lookup::Absent(text) => {
                let error = ClusterError(text);
                return (Role::Unreachable(error.clone()), Outcome::Unreachable(Err(error)), nothing);
            }
        };
        match &cluster.discovery {
            Discovery::Static(endpoints) => (Role::Leaf, self.complete(cluster, endpoints, note), nothing),
            Discovery::Aggregate(children) => (Role::Aggregate(Arc::clone(children)), Outcome::Incomplete, nothing),
            Discovery::Eds { service_name } => {
                let outcome = self.with_endpoints(cluster, service_name, note, deleted, cache);
                (Role::Leaf, outcome, Wanted { endpoints: Some(service_name.as_str().into()), ..nothing })
            }
            Discovery::LogicalDns { .. } | Discovery::StrictDns { .. } => {
                let outcome = self.with_answers(cluster, note, cache, answers);
                (Role::Leaf, outcome, Wanted { names: dns::names(&cluster.discovery), ..nothing })
            }
        }
    }

    fn with_answers(
        &self,
        cluster: &Arc<Cluster>,
        note: Option<Arc<str>>,
        cache: &Sources<'_>,
        answers: &Answers,
    ) -> Outcome {
        let Some((endpoints, problem)) = dns::endpoints(cluster, answers) else { return Outcome::Incomplete };
        let problem = problem.map(|problem| cache.text(Kind::Cluster, cluster.name.as_str(), problem));
        let held = self.config_or_unreachable().map(Arc::as_ref).and_then(own_leaf).map(|leaf| &leaf.endpoints);
        let endpoints = match held {
            Some(held) if **held == endpoints => Arc::clone(held),
            _ => Arc::new(endpoints),
        };
        self.complete(cluster, &endpoints, problem.or(note))
    }

    fn with_endpoints(
        &self,
        cluster: &Arc<Cluster>,
        service_name: &str,
        note: Option<Arc<str>>,
        deleted: bool,
        cache: &Sources<'_>,
    ) -> Outcome {
        // "endpoint problems become a resolution_note plus empty endpoints" - A74.
        let none = |text| {
            let held = self.held_endpoints(service_name).filter(|held| ***held == empty(service_name));
            let endpoints = held.map_or_else(|| Arc::new(empty(service_name)), Arc::clone);
            Ok(self.leaf(cluster, &endpoints, Some(text)))
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
            Lookup::Unreachable(text) | Lookup::Absent(text) => Outcome::Unreachable(none(text)),
        }
    }

    fn complete(
        &self,
        cluster: &Arc<Cluster>,
        endpoints: &Arc<ClusterLoadAssignment>,
        note: Option<Arc<str>>,
    ) -> Outcome {
        Outcome::Complete(Ok(self.leaf(cluster, endpoints, note)))
    }

    /// The leaf at hand if nothing changed (by identity, since the cache keeps that for equal values), or a new one.
    fn leaf(&self, cluster: &Arc<Cluster>, endpoints: &Arc<ClusterLoadAssignment>, note: Option<Arc<str>>) -> Leaves {
        let held = self.config_or_unreachable().map(Arc::as_ref).and_then(own_leaf).filter(|held| {
            Arc::ptr_eq(&held.cluster, cluster) && Arc::ptr_eq(&held.endpoints, endpoints) && held.note == note
        });
        let server = self.server;
        let new = || ResolvedCluster { cluster: Arc::clone(cluster), server, endpoints: Arc::clone(endpoints), note };
        Leaves::one(held.map_or_else(|| Arc::new(new()), Arc::clone))
    }

    fn held_endpoints(&self, service_name: &str) -> Option<&Arc<ClusterLoadAssignment>> {
        let held = self.config.as_deref().and_then(own_leaf)?;
        (self::service_name(&held.cluster) == Some(service_name)).then_some(&held.endpoints)
    }

    // === Aggregates ===

    /// What it is to an aggregate that has it as a leaf.
    pub(super) fn part(&self) -> Part<'_> {
        let leaf_of = |config: &'_ Option<Arc<ClusterConfig>>| config.as_deref().and_then(own_leaf).map(Arc::clone);
        match &self.role {
            Role::Failed(error) => Part::Failed(error),
            Role::Unreachable(error) => Part::Unreachable(Err(error)),
            Role::Leaf => match (leaf_of(&self.config), leaf_of(&self.unreachable)) {
                (Some(leaf), _) => Part::Leaf(leaf),
                (None, Some(leaf)) => Part::Unreachable(Ok(leaf)),
                (None, None) => Part::Pending,
            },
            Role::Pending | Role::Aggregate(_) => Part::Pending,
        }
    }

    /// Takes what the clusters below an aggregate came to, and what is missing for the rest. Returns whether targets
    /// see a difference.
    pub(super) fn compose(
        &mut self,
        name: &ClusterName,
        outcome: Outcome,
        missing: Option<Arc<str>>,
        origins: &mut Origins,
    ) -> bool {
        let waits_for_another = std::mem::replace(&mut self.missing, missing) != self.missing;
        let differs = self.accept(name, outcome);
        // Those of the time when it was no aggregate.
        self.keep_origins(name, &Wanted::default(), origins);
        differs || waits_for_another
    }

    /// The leaves of its complete value, if those are other clusters.
    pub(super) fn foreign_leaves(&self) -> Option<&Leaves> {
        let config = self.config.as_deref()?;
        let leaves = config.state.as_ref().ok()?;
        own_leaf(config).is_none().then_some(leaves)
    }

    /// The leaves of the value that is kept have changed. Returns whether they really have.
    pub(super) fn refresh(&mut self, name: &ClusterName, leaves: Leaves) -> bool {
        set(&mut self.config, name, self.server, Ok(leaves))
    }

    /// Waits for an update, as a part of it does.
    pub(super) fn fall_behind(&mut self) {
        self.behind = true;
    }

    /// What [`Node::below`] shows.
    pub(super) fn members(&mut self) -> &mut BTreeSet<ClusterName> {
        &mut self.members
    }

    /// No target refers to an aggregate any more; others may pass through it.
    pub(super) fn rest(&mut self, name: &ClusterName, origins: &mut Origins) {
        (self.config, self.unreachable, self.missing, self.behind) = (None, None, None, false);
        self.keep_origins(name, &Wanted::default(), origins);
    }
}

/// The leaf of a cluster that is no aggregate.
fn own_leaf(config: &ClusterConfig) -> Option<&Arc<ResolvedCluster>> {
    let first = &config.state.as_ref().ok()?.first;
    (first.cluster.name == config.name).then_some(first)
}

/// The EDS resource that a leaf is made of.
fn service_name(cluster: &Cluster) -> Option<&str> {
    match &cluster.discovery {
        Discovery::Eds { service_name } => Some(service_name),
        _ => None,
    }
}

/// Replaces a value unless it is equal.
fn set(
    slot: &mut Option<Arc<ClusterConfig>>,
    name: &ClusterName,
    server: Option<ServerId>,
    state: Result<Leaves, ClusterError>,
) -> bool {
    let same = slot.as_ref().is_some_and(|held| match (&held.state, &state) {
        (Ok(a), Ok(b)) => a.is(b),
        (Err(a), Err(b)) => a == b,
        _ => false,
    });
    if !same {
        *slot = Some(Arc::new(ClusterConfig { name: name.clone(), server, state }));
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
