//! A cluster's endpoints: who is there, in which order, and in which state.
//!
//! An update zips the old and the new list from both ends and hashes only what is between, so that one changed
//! endpoint of ten thousand costs two walks and no rebuild. States are counted per priority as they change.
//! No clock, no socket and no task here: the worker brings them.

use super::{
    backend::{Backend, Counted, DialId},
    wanted::{Wanted, joined},
};
use crate::{
    balance::{Connections, Turn, priority::ConnectivityState},
    chunks::Chunks,
    endpoint::Endpoint,
};
use mesh_xds::resource::{Addresses, ClusterLoadAssignment, DropOverload, LbPolicy};
use rustc_hash::FxHashMap;
use slotmap::{SlotMap, new_key_type};
use std::{ops::Range, sync::Arc};
use tokio::{task::AbortHandle, time::Instant};

new_key_type! {
    /// An endpoint within its roster: events carry it, so that those of a removed endpoint find nobody.
    pub(super) struct Id;
}

/// The endpoints of a cluster.
#[derive(Debug, Default)]
pub(super) struct Roster {
    backends: SlotMap<Id, Backend>,
    /// In the order of the assignment.
    order: Vec<Id>,
    priorities: Vec<Priority>,
    drops: Arc<[DropOverload]>,
}

/// One priority's localities, and how many of its endpoints are in which state.
#[derive(Debug, Default)]
struct Priority {
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
    /// Of the roster's order.
    fn members(&self) -> Range<usize> {
        let start = self.localities.first().map_or(0, |first| first.members.start);
        start..self.localities.last().map_or(0, |last| last.members.end)
    }
}

#[derive(Debug)]
struct Locality {
    weight: u32,
    turn: Turn,
    /// Of the roster's order.
    members: Range<usize>,
}

impl Roster {
    // === Updates ===

    /// Takes a new assignment. Endpoints whose addresses stay keep their connection. Returns how many dials were stopped.
    pub(super) fn update(&mut self, policy: &LbPolicy, assignment: &ClusterLoadAssignment) -> usize {
        let joined = joined(policy, assignment);
        let wanted = Wanted::new(assignment, joined.as_deref());
        let (order, stopped) = self.reconcile(policy, &wanted.addresses);
        self.order = order;
        self.drops = assignment.drops.as_slice().into();
        let before = std::mem::take(&mut self.priorities);
        let mut next = 0;
        for (index, localities) in wanted.priorities.into_iter().enumerate() {
            let old = before.get(index);
            let mut priority = Priority {
                active: old.is_some_and(|old| old.active),
                ready_version: old.map_or(0, |old| old.ready_version) + 1,
                ..Priority::default()
            };
            for (position, (weight, len)) in localities.into_iter().enumerate() {
                let members = next..next + len;
                next = members.end;
                // The counter goes on where it was, so that small updates do not favour the first endpoints.
                let turn = old
                    .and_then(|old| old.localities.get(position))
                    .map(|locality| &locality.turn)
                    .filter(|turn| turn.serves(policy))
                    .map_or_else(|| Turn::of(policy, fastrand::usize(..1 << 16)), Clone::clone);
                priority.localities.push(Locality { weight, turn, members });
            }
            self.priorities.push(priority);
        }
        for index in 0..self.priorities.len() {
            self.recount(index);
        }
        stopped
    }

    /// Forgets every endpoint. Returns how many dials were stopped.
    pub(super) fn clear(&mut self) -> usize {
        self.order.clear();
        self.priorities.clear();
        self.backends.drain().filter(|(_, backend)| backend.retire()).count()
    }

    /// Ids for `wanted`, in order: known ones where the addresses are known; the rest of the old ones are retired.
    fn reconcile(&mut self, policy: &LbPolicy, wanted: &[&Addresses]) -> (Vec<Id>, usize) {
        let same = |id: &Id, addresses: &Addresses| {
            self.backends.get(*id).is_some_and(|backend| backend.addresses() == addresses)
        };
        let head = self.order.iter().zip(wanted).take_while(|(id, addresses)| same(id, addresses)).count();
        let tail = self.order[head..]
            .iter()
            .rev()
            .zip(wanted[head..].iter().rev())
            .take_while(|(id, addresses)| same(id, addresses))
            .count();
        let between = &self.order[head..self.order.len() - tail];
        let mut known = FxHashMap::default();
        let mut gone = Vec::new();
        for id in between {
            let Some(backend) = self.backends.get(*id) else { continue };
            // Of two with the same addresses one can be found again.
            gone.extend(known.insert(backend.addresses().clone(), *id));
        }
        let mut order = Vec::with_capacity(wanted.len());
        order.extend_from_slice(&self.order[..head]);
        let kept_tail = self.order[self.order.len() - tail..].to_vec();
        for &addresses in &wanted[head..wanted.len() - tail] {
            let kept = known.remove(addresses).or_else(|| match policy {
                LbPolicy::PickFirst { .. } => self.outlives(&mut known, addresses),
                _ => None,
            });
            order.push(kept.unwrap_or_else(|| self.backends.insert(Backend::new(Addresses::clone(addresses)))));
        }
        order.extend(kept_tail);
        gone.extend(known.into_values());
        let stopped =
            gone.into_iter().filter_map(|id| self.backends.remove(id)).filter(|backend| backend.retire()).count();
        (order, stopped)
    }

    /// pick_first: "if the currently selected subchannel's address is in the new list, keep it" (A61, as grpc-go does).
    fn outlives(&mut self, known: &mut FxHashMap<Addresses, Id>, addresses: &Addresses) -> Option<Id> {
        let among = |(old, id): (&Addresses, &Id)| {
            let peer = self.backends.get(*id)?.connection()?.peer;
            addresses.iter().any(|address| address == peer).then(|| (old.clone(), *id))
        };
        let (old, id) = known.iter().find_map(among)?;
        known.remove(&old);
        self.backends.get_mut(id)?.succeeded_by(addresses.clone());
        Some(id)
    }

    fn recount(&mut self, index: usize) {
        let priority = &mut self.priorities[index];
        (priority.ready, priority.failed, priority.total) = (0, 0, 0);
        priority.has_strays = false;
        for id in &self.order[priority.members()] {
            let Some(backend) = self.backends.get_mut(*id) else { continue };
            backend.priority = index;
            backend.counted = backend.counts_as();
            priority.total += 1;
            priority.has_strays |= !priority.active && !backend.is_idle();
            match backend.counted {
                Counted::Ready => priority.ready += 1,
                Counted::Failed => priority.failed += 1,
                Counted::Other => {}
            }
        }
    }

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
        let members = self.order[priority.members()].iter().copied();
        members.filter(|id| self.backends.get_mut(*id).is_some_and(Backend::enqueue)).collect()
    }

    // any => Idle, for every endpoint of a priority that is not needed any more. Returns how many dials were stopped.
    pub(super) fn deactivate(&mut self, index: usize) -> usize {
        let Some(priority) = self.priorities.get_mut(index) else { return 0 };
        (priority.active, priority.has_strays) = (false, false);
        priority.ready_version += 1;
        let mut stopped = 0;
        for position in priority.members() {
            let id = self.order[position];
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

    /// The endpoint to dial, if `id` still waits for that.
    pub(super) fn queued(&self, id: Id) -> Option<Arc<Endpoint>> {
        self.backends.get(id).filter(|backend| backend.is_queued()).map(|backend| Arc::clone(&backend.endpoint))
    }

    // Queued => Dialling.
    pub(super) fn dialling(&mut self, id: Id, dial: DialId, task: AbortHandle) {
        if let Some(backend) = self.backends.get_mut(id) {
            backend.dialling(dial, task);
        }
    }

    // === Readings ===

    /// Every endpoint, in the order of the assignment.
    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<Id> {
        self.order.clone()
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

    pub(super) fn drops(&self) -> Arc<[DropOverload]> {
        Arc::clone(&self.drops)
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
        let localities = self.priorities.get(index).map_or(&[][..], |priority| &priority.localities);
        let ready = |(position, locality): (usize, &Locality)| {
            let members = self.order[locality.members.clone()].iter();
            let connections = members.filter_map(|id| self.backends.get(*id)?.connection());
            let list = match before.get(position) {
                Some(before) => before.followed_by(connections),
                None => Chunks::default().followed_by(connections),
            };
            (locality.weight, locality.turn.clone(), Arc::new(list))
        };
        localities.iter().enumerate().map(ready).collect()
    }

    /// Every endpoint by priority, for `status()`; `before` are those of the last time.
    pub(super) fn endpoints(&self, before: &[Chunks<Arc<Endpoint>>]) -> Vec<Chunks<Arc<Endpoint>>> {
        let of_priority = |(index, priority): (usize, &Priority)| {
            let members = self.order[priority.members()].iter();
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
        self.clear();
    }
}
