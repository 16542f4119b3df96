//! The work of a turn: what is to be done stands in queues, and is done one thing after the other.
//!
//! ```text
//! references given up ─► targets planned ─► references taken ─► clusters resolved ─► aggregates joined, composed
//!        ▲                                                                                   │
//!        └─────────────────────────── targets looked at and published ◄──────────────────────┘
//! ```
//!
//! The order is that of references, so each thing is done once, however many refer to it; and since every queue survives a
//! slice, a turn may end one anywhere. What the things are, is NOT said here.

use super::{Assembler, ClusterUser, Need, Settled, TargetId, Value, cluster::Node, target::Released};
use crate::{
    budget::Budget,
    cache::Sources,
    dns::Answers,
    resource::{ClusterName, Kind},
};
use std::{collections::BTreeSet, mem};

/// To plan is one step. For so many clusters it costs as much as a step elsewhere.
const PLANNED_FOR_ONE: usize = 8;

impl Assembler {
    /// Follows the references of what changed, as far as the budget goes. Returns whether all is done.
    pub(crate) fn settle(&mut self, cache: &Sources<'_>, answers: &Answers, budget: &mut Budget) -> bool {
        while !self.is_settled() {
            if budget.is_spent() {
                return false;
            }
            budget.spend();
            self.step(cache, answers, budget);
        }
        true
    }

    /// What came of it so far.
    pub(crate) fn take_settled(&mut self) -> Settled {
        mem::take(&mut self.settled)
    }

    /// The next name of which that is news, to be asked when all is settled.
    pub(crate) fn next_need(&mut self) -> Option<Need> {
        let resource = |kind| move |name| Need::Resource(kind, name);
        let of_targets = self.listeners.next_change().map(resource(Kind::Listener));
        of_targets
            .or_else(|| self.routes.next_change().map(resource(Kind::RouteConfig)))
            .or_else(|| self.clusters.next_change().map(resource(Kind::Cluster)))
            .or_else(|| self.origins.endpoints.next_change().map(resource(Kind::Endpoints)))
            .or_else(|| self.singles.next_change().map(|(kind, name)| Need::Resource(kind, name)))
            .or_else(|| self.origins.names.next_change().map(Need::Name))
    }

    fn is_settled(&self) -> bool {
        self.releasing.is_empty()
            && self.dirty_targets.is_empty()
            && self.referring.is_empty()
            && self.dirty_nodes.is_empty()
            && self.unjoined.is_empty()
            && self.dirty_aggregates.is_empty()
            && self.unpublished.is_empty()
            && self.singles.are_settled()
    }

    /// Does one thing of what is to be done first.
    fn step(&mut self, cache: &Sources<'_>, answers: &Answers, budget: &mut Budget) {
        if let Some((id, name)) = self.releasing.pop() {
            self.release(id, &name);
        // Listener and routes first: they say which clusters are needed ...
        } else if let Some(id) = self.dirty_targets.pop_first() {
            self.plan(id, cache, budget);
        } else if let Some((id, name)) = self.referring.pop() {
            self.take_reference(id, name);
        // ... then the clusters, each once for all targets ...
        } else if let Some(name) = self.dirty_nodes.pop_first() {
            self.resolve(&name, cache, answers);
        // (what an aggregate names may be new here: one more level)
        } else if let Some(name) = self.unjoined.pop_first() {
            self.join(&name);
        } else if let Some(name) = self.dirty_aggregates.pop_first() {
            self.compose(&name, cache);
        // ... then what that makes of each target. Only here are references given up.
        } else if let Some(id) = self.unpublished.first().copied() {
            if self.targets.get_mut(&id).is_none_or(|target| target.look(&self.nodes, budget)) {
                self.unpublished.remove(&id);
                self.publish(id);
            }
        } else if let Some((id, found)) = self.singles.look(cache) {
            self.settled.looked_at.insert(id);
            self.settled.publish.extend(found.map(|found| (id, Value::Resource(found))));
        }
    }

    fn plan(&mut self, id: TargetId, cache: &Sources<'_>, budget: &mut Budget) {
        self.unpublished.insert(id);
        let Some(target) = self.targets.get_mut(&id) else { return };
        let new = target.plan(cache);
        if let Some(routes) = &new.routes {
            self.routes.add(routes, id);
        }
        budget.spend_many(new.clusters.len() / PLANNED_FOR_ONE);
        self.referring.extend(new.clusters.into_iter().map(|name| (id, name)));
    }

    fn take_reference(&mut self, id: TargetId, name: ClusterName) {
        self.refer(&name, ClusterUser::Target(id));
        if self.nodes[&name].is_composed() {
            // Others passed through it; now somebody wants what it comes to.
            self.aggregate_changed(name);
        }
    }

    pub(super) fn refer(&mut self, name: &ClusterName, user: ClusterUser) {
        self.clusters.add(name.as_shared(), user);
        if !self.nodes.contains_key(name) {
            self.dirty_nodes.insert(name.clone());
            self.nodes.insert(name.clone(), Node::default());
        }
    }

    fn aggregate_changed(&mut self, name: ClusterName) {
        self.unjoined.insert(name.clone());
        self.dirty_aggregates.insert(name);
    }

    // === Clusters ===

    fn resolve(&mut self, name: &ClusterName, cache: &Sources<'_>, answers: &Answers) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let changed = node.resolve(name, cache, answers, &mut self.origins);
        if node.is_composed() {
            if self.clusters.any(name.as_str(), |user| matches!(user, ClusterUser::Target(_))) {
                self.aggregate_changed(name.clone());
            } else {
                node.rest(name, &mut self.origins);
            }
        }
        self.note(name, changed);
    }

    /// Passes on what became of a cluster.
    pub(super) fn note(&mut self, name: &ClusterName, changed: bool) {
        if self.nodes.get(name).is_some_and(Node::is_behind) {
            self.behind_nodes.insert(name.clone());
        } else {
            self.behind_nodes.remove(name);
        }
        if !changed {
            return;
        }
        for user in self.clusters.users(name.as_str()) {
            match user {
                ClusterUser::Target(id) => {
                    if let Some(target) = self.targets.get_mut(&id) {
                        target.cluster_changed(name);
                        self.unpublished.insert(id);
                    }
                }
                ClusterUser::Aggregate(above) => self.aggregate_changed(above),
            }
        }
    }

    // === Targets ===

    fn publish(&mut self, id: TargetId) {
        self.settled.looked_at.insert(id);
        let Some(target) = self.targets.get_mut(&id) else { return };
        let (value, released) = target.publish(&self.nodes);
        self.settled.publish.extend(value.map(|value| (id, Value::Target(value))));
        if target.is_behind() {
            self.behind.insert(id);
        } else {
            self.behind.remove(&id);
        }
        self.give_up(id, released);
    }

    pub(super) fn give_up(&mut self, id: TargetId, released: Released) {
        for routes in released.routes {
            self.routes.remove(&routes, id);
        }
        self.releasing.extend(released.clusters.into_iter().map(|name| (id, name)));
    }

    fn release(&mut self, id: TargetId, name: &ClusterName) {
        self.clusters.remove(name.as_shared(), ClusterUser::Target(id));
        let wanted = self.clusters.any(name.as_str(), |user| matches!(user, ClusterUser::Target(_)));
        if !wanted && self.nodes.get(name).is_some_and(Node::is_composed) {
            self.keep_members(name, BTreeSet::new());
            if let Some(node) = self.nodes.get_mut(name) {
                node.rest(name, &mut self.origins);
            }
        }
        self.drop_if_unused(name);
    }

    /// Nobody refers to it: forgotten, so that it returns fresh.
    pub(super) fn drop_if_unused(&mut self, name: &ClusterName) {
        if !self.clusters.is_used(name.as_str())
            && let Some(node) = self.nodes.remove(name)
        {
            self.behind_nodes.remove(name);
            node.release(name, &mut self.origins);
        }
    }
}
