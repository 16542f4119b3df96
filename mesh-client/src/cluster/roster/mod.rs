//! A cluster's endpoints: who is there, in which order, and in which state.
//!
//! A cluster has one leaf, itself, or those that it aggregates; their priorities follow each other in one list (A37).
//! What a leaf is given stays its own: the same address in two leaves is two endpoints, as each leaf has its own
//! security. States are counted per priority as they change. No clock, no socket and no task here: the worker brings them.

mod update;

use super::backend::{Backend, Counted, DialId};
use crate::{
    balance::{Connections, Turn, priority::ConnectivityState},
    chunks::Chunks,
    endpoint::Endpoint,
};
use mesh_xds::{
    ResolvedCluster,
    resource::{Discovery, DropOverload},
};
use slotmap::{SlotMap, new_key_type};
use std::{ops::Range, sync::Arc};
use tokio::{task::AbortHandle, time::Instant};

new_key_type! {
    /// An endpoint within its roster: events carry it, so that those of a removed endpoint find nobody.
    pub(super) struct Id;
}

/// Names a priority for as long as its leaf has one at that place, wherever in the list that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child(u64);

/// The endpoints of a cluster.
#[derive(Debug, Default)]
pub(super) struct Roster {
    backends: SlotMap<Id, Backend>,
    leaves: Vec<Leaf>,
    /// Of all leaves, one after the other.
    priorities: Vec<Priority>,
    last_child: u64,
}

/// Where a priority comes from.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// Position of its leaf.
    pub(super) leaf: usize,
    pub(super) source: &'a ResolvedCluster,
    /// Within the leaf's assignment.
    pub(super) priority: usize,
}

/// One leaf's endpoints.
#[derive(Debug)]
struct Leaf {
    /// What it was made of.
    source: Arc<ResolvedCluster>,
    /// In the order of the assignment.
    order: Vec<Id>,
    drops: Arc<[DropOverload]>,
    /// Whether its endpoints have hostnames (A81).
    named: bool,
    /// Where its priorities are in the list.
    priorities: Range<usize>,
}

/// One priority's localities, and how many of its endpoints are in which state.
#[derive(Debug)]
struct Priority {
    child: Child,
    /// Position of its leaf.
    leaf: usize,
    localities: Vec<Locality>,
    /// Dialled at all.
    active: bool,
    /// It is not, but an update has moved endpoints here that are.
    has_strays: bool,
    ready: usize,
    failed: usize,
    total: usize,
    /// Grows when the set of READY endpoints changes.
    ready_version: u64,
}

impl Priority {
    /// Of the leaf's order.
    fn members(&self) -> Range<usize> {
        let start = self.localities.first().map_or(0, |first| first.members.start);
        start..self.localities.last().map_or(0, |last| last.members.end)
    }
}

#[derive(Debug)]
struct Locality {
    weight: u32,
    turn: Turn,
    /// Of the leaf's order.
    members: Range<usize>,
}

impl Roster {
    // === States ===

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Backend> {
        self.backends.get_mut(id)
    }

    /// To be called after a state of `id` was changed.
    pub(super) fn changed(&mut self, id: Id) {
        let Some(backend) = self.backends.get_mut(id) else { return };
        backend.endpoint.set_state(backend.public_state());
        let (before, after) = (backend.counted, backend.counts_as());
        backend.counted = after;
        let Some(priority) = self.priorities.get_mut(backend.priority) else { return };
        match before {
            Counted::Ready => priority.ready -= 1,
            Counted::Failed => priority.failed -= 1,
            Counted::Other => {}
        }
        match after {
            Counted::Ready => priority.ready += 1,
            Counted::Failed => priority.failed += 1,
            Counted::Other => {}
        }
        if before == Counted::Ready || after == Counted::Ready {
            priority.ready_version += 1;
        }
    }

    // Idle => Queued, for every endpoint of a priority. Returns the ones to dial.
    pub(super) fn activate(&mut self, index: usize) -> Vec<Id> {
        let Some(priority) = self.priorities.get_mut(index) else { return Vec::new() };
        (priority.active, priority.has_strays) = (true, false);
        let members = self.leaves[priority.leaf].order[priority.members()].iter().copied();
        members.filter(|id| self.backends.get_mut(*id).is_some_and(Backend::enqueue)).collect()
    }

    // any => Idle, for every endpoint of a priority that is not needed any more. Returns how many dials were stopped.
    pub(super) fn deactivate(&mut self, index: usize) -> usize {
        let Some(priority) = self.priorities.get_mut(index) else { return 0 };
        (priority.active, priority.has_strays) = (false, false);
        priority.ready_version += 1;
        let (leaf, mut stopped) = (priority.leaf, 0);
        for position in priority.members() {
            let id = self.leaves[leaf].order[position];
            if let Some(backend) = self.backends.get_mut(id).filter(|backend| !backend.is_idle()) {
                stopped += usize::from(backend.rest());
                self.changed(id);
            }
        }
        stopped
    }

    /// Lets go of what an update has moved into a priority that is not dialled, once it is known which ones are. Returns
    /// how many dials were stopped.
    pub(super) fn deactivate_strays(&mut self) -> usize {
        let mut stopped = 0;
        for index in 0..self.priorities.len() {
            if self.priorities[index].has_strays {
                stopped += self.deactivate(index);
            }
        }
        stopped
    }

    // Backoff => Queued, if that very backoff still stands.
    pub(super) fn backoff_over(&mut self, id: Id, due: Instant) -> bool {
        self.backends.get_mut(id).is_some_and(|backend| backend.backoff_over(due))
    }

    /// After a connection was lost: turns to the addresses that the assignment names by now. Returns whether they are
    /// others.
    pub(super) fn readdress(&mut self, id: Id) -> bool {
        self.backends.get_mut(id).is_some_and(Backend::readdress)
    }

    /// The endpoint to dial and the position of its leaf, if `id` still waits for that.
    pub(super) fn queued(&self, id: Id) -> Option<(Arc<Endpoint>, usize)> {
        let backend = self.backends.get(id).filter(|backend| backend.is_queued())?;
        Some((Arc::clone(&backend.endpoint), self.priorities.get(backend.priority)?.leaf))
    }

    // Queued => Dialling.
    pub(super) fn dialling(&mut self, id: Id, dial: DialId, task: AbortHandle) {
        if let Some(backend) = self.backends.get_mut(id) {
            backend.dialling(dial, task);
        }
    }

    // === Readings ===

    /// The leaves with their endpoints.
    pub(super) fn leaves(&self) -> impl Iterator<Item = (&Arc<ResolvedCluster>, &[Id])> {
        self.leaves.iter().map(|leaf| (&leaf.source, leaf.order.as_slice()))
    }

    pub(super) fn endpoint(&self, id: Id) -> Option<&Arc<Endpoint>> {
        self.backends.get(id).map(|backend| &backend.endpoint)
    }

    /// How many endpoints of a priority are ejected.
    pub(super) fn ejected(&self, index: usize) -> usize {
        let Some(priority) = self.priorities.get(index) else { return 0 };
        let members = self.leaves[priority.leaf].order[priority.members()].iter();
        members.filter(|id| self.backends.get(**id).is_some_and(Backend::is_ejected)).count()
    }

    /// Every endpoint, in the order of the assignment.
    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<Id> {
        self.leaves.iter().flat_map(|leaf| leaf.order.iter().copied()).collect()
    }

    /// The priorities in order, by name.
    pub(super) fn children(&self) -> impl Iterator<Item = Child> {
        self.priorities.iter().map(|priority| priority.child)
    }

    /// The name of a priority.
    pub(super) fn child(&self, index: usize) -> Option<Child> {
        self.priorities.get(index).map(|priority| priority.child)
    }

    /// Where the priority of this name is.
    pub(super) fn position(&self, child: Child) -> Option<usize> {
        self.priorities.iter().position(|priority| priority.child == child)
    }

    /// How the endpoints of a priority are found.
    pub(super) fn discovery(&self, index: usize) -> Option<&Discovery> {
        let priority = self.priorities.get(index)?;
        Some(&self.leaves[priority.leaf].source.cluster.discovery)
    }

    pub(super) fn priorities(&self) -> usize {
        self.priorities.len()
    }

    pub(super) fn is_active(&self, index: usize) -> bool {
        self.priorities.get(index).is_some_and(|priority| priority.active)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Whose priority that is, and which of its own.
    pub(super) fn place(&self, index: usize) -> Option<Place<'_>> {
        let priority = self.priorities.get(index)?;
        let leaf = self.leaves.get(priority.leaf)?;
        Some(Place { leaf: priority.leaf, source: &leaf.source, priority: index - leaf.priorities.start })
    }

    /// The drops of the leaf that a priority belongs to (A37).
    pub(super) fn drops(&self, index: usize) -> Arc<[DropOverload]> {
        self.priorities.get(index).map(|priority| Arc::clone(&self.leaves[priority.leaf].drops)).unwrap_or_default()
    }

    /// The aggregated state of a priority, as round_robin reports it.
    pub(super) fn state(&self, index: usize) -> ConnectivityState {
        match self.priorities.get(index) {
            Some(priority) if !priority.active => ConnectivityState::Idle,
            Some(priority) if priority.ready > 0 => ConnectivityState::Ready,
            Some(priority) if priority.failed < priority.total => ConnectivityState::Connecting,
            // All failed, or there is none: fail over at once.
            _ => ConnectivityState::TransientFailure,
        }
    }

    pub(super) fn ready_version(&self, index: usize) -> u64 {
        self.priorities.get(index).map_or(0, |priority| priority.ready_version)
    }

    /// Weight, turn and READY connections of each locality of a priority; `before` are those of the last time.
    pub(super) fn ready(&self, index: usize, before: &[Connections]) -> Vec<(u32, Turn, Connections)> {
        let Some(priority) = self.priorities.get(index) else { return Vec::new() };
        let order = &self.leaves[priority.leaf].order;
        let ready = |(position, locality): (usize, &Locality)| {
            let members = order[locality.members.clone()].iter();
            let connections = members.filter_map(|id| self.backends.get(*id)?.offered());
            let list = match before.get(position) {
                Some(before) => before.followed_by(connections),
                None => Chunks::default().followed_by(connections),
            };
            (locality.weight, locality.turn.clone(), Arc::new(list))
        };
        priority.localities.iter().enumerate().map(ready).collect()
    }

    /// Every endpoint by priority, for `status()`; `before` are those of the last time.
    pub(super) fn endpoints(&self, before: &[Chunks<Arc<Endpoint>>]) -> Vec<Chunks<Arc<Endpoint>>> {
        let of_priority = |(index, priority): (usize, &Priority)| {
            let members = self.leaves[priority.leaf].order[priority.members()].iter();
            let endpoints = members.filter_map(|id| Some(&self.backends.get(*id)?.endpoint));
            match before.get(index) {
                Some(before) => before.followed_by(endpoints),
                None => Chunks::default().followed_by(endpoints),
            }
        };
        self.priorities.iter().enumerate().map(of_priority).collect()
    }
}

impl Drop for Roster {
    fn drop(&mut self) {
        self.update([]);
    }
}
