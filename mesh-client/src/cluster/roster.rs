//! A cluster's endpoints: who is there, in which order, and in which state.
//!
//! An update zips the old and the new list from both ends and hashes only what is between, so that one changed
//! endpoint of ten thousand costs two walks and no rebuild. States are counted per priority as they change.
//! No clock, no socket and no task here: the worker brings them.

use super::worker::{DialId, Id};
use crate::{
    balance::{Turn, priority::ConnectivityState},
    endpoint::{Connection, Endpoint, EndpointState},
};
use mesh_xds::resource::{Addresses, ClusterLoadAssignment, DropOverload, LbPolicy};
use rustc_hash::FxHashMap;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{task::AbortHandle, time::Instant};

/// The endpoints of a cluster.
#[derive(Debug, Default)]
pub(super) struct Roster {
    backends: FxHashMap<Id, Backend>,
    last_id: Id,
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
    ready: usize,
    failed: usize,
    total: usize,
    /// Grows when the set of READY endpoints changes.
    ready_version: u64,
}

#[derive(Debug)]
struct Locality {
    weight: u32,
    turn: Turn,
    members: Vec<Id>,
}

/// One endpoint and its connection.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) endpoint: Arc<Endpoint>,
    /// pick_first: what to dial once the connection that outlived its list is gone.
    successor: Option<Addresses>,
    priority: usize,
    /// Of the newest dial: what older ones still have to say is no news.
    dial: DialId,
    state: State,
    /// In a row.
    failures: u32,
    /// Sticky: "TF→CONNECTING must not move an aggregate out of TF" (A62); cleared by READY.
    failed: bool,
    /// As what it is counted in its priority.
    counted: Counted,
}

#[derive(Debug)]
enum State {
    Idle,
    Queued,
    Dialling(AbortHandle),
    Ready { connection: Arc<Connection>, since: Instant },
    Backoff { until: Instant },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Ready,
    Failed,
    Other,
}

impl Backend {
    fn new(addresses: Addresses) -> Self {
        Self {
            endpoint: Arc::new(Endpoint::new(addresses)),
            successor: None,
            priority: 0,
            dial: 0,
            state: State::Idle,
            failures: 0,
            failed: false,
            counted: Counted::Other,
        }
    }

    // Dialling => Ready: backoff starts over only now, after the server's SETTINGS.
    pub(super) fn ready(&mut self, connection: Arc<Connection>, now: Instant) {
        self.state = State::Ready { connection, since: now };
        self.failures = 0;
        self.failed = false;
    }

    // Dialling => Backoff, counted as failed until Ready.
    pub(super) fn failed(&mut self, now: Instant, backoff: impl FnOnce(u32) -> Duration) -> Instant {
        self.failures += 1;
        self.failed = true;
        let until = now + backoff(self.failures);
        self.state = State::Backoff { until };
        until
    }

    // Ready => (Queued | Backoff): dialled again at once, unless it did not last. Returns when, if later.
    pub(super) fn closed(
        &mut self,
        now: Instant,
        short_lived: Duration,
        pause: impl FnOnce() -> Duration,
    ) -> Option<Instant> {
        let lasted = matches!(&self.state, State::Ready { since, .. } if now - *since >= short_lived);
        if lasted {
            self.state = State::Queued;
            return None;
        }
        let until = now + pause();
        self.state = State::Backoff { until };
        Some(until)
    }

    pub(super) fn priority(&self) -> usize {
        self.priority
    }

    pub(super) fn is_dialled_by(&self, dial: DialId) -> bool {
        self.dial == dial && matches!(self.state, State::Dialling(_))
    }

    pub(super) fn is_connected_by(&self, dial: DialId) -> bool {
        self.dial == dial && matches!(self.state, State::Ready { .. })
    }

    /// What the assignment names it by.
    fn addresses(&self) -> &Addresses {
        self.successor.as_ref().unwrap_or(&self.endpoint.addresses)
    }

    /// Lets go of its connection; calls in flight finish. Returns whether a dial was stopped.
    fn retire(&self) -> bool {
        match &self.state {
            State::Dialling(task) => task.abort(),
            State::Ready { connection, .. } => connection.retire(),
            State::Idle | State::Queued | State::Backoff { .. } => {}
        }
        matches!(self.state, State::Dialling(_))
    }

    fn counts_as(&self) -> Counted {
        match self.state {
            State::Ready { .. } => Counted::Ready,
            _ if self.failed => Counted::Failed,
            _ => Counted::Other,
        }
    }

    fn public_state(&self) -> EndpointState {
        match self.state {
            State::Ready { .. } => EndpointState::Ready,
            _ if self.failed => EndpointState::TransientFailure,
            State::Idle => EndpointState::Idle,
            State::Queued | State::Dialling(_) | State::Backoff { .. } => EndpointState::Connecting,
        }
    }
}

impl Roster {
    // === Updates ===

    /// Takes a new assignment. Endpoints whose addresses stay keep their connection. Returns how many dials were stopped.
    pub(super) fn update(&mut self, policy: &LbPolicy, assignment: &ClusterLoadAssignment) -> usize {
        let wanted = Wanted::new(policy, assignment);
        let (order, stopped) = self.reconcile(policy, &wanted.addresses);
        self.order = order;
        self.drops = assignment.drops.as_slice().into();
        let before = std::mem::take(&mut self.priorities);
        let mut ids = self.order.iter().copied();
        for (index, localities) in wanted.priorities.into_iter().enumerate() {
            let old = before.get(index);
            let mut priority = Priority {
                active: old.is_some_and(|old| old.active),
                ready_version: old.map_or(0, |old| old.ready_version) + 1,
                ..Priority::default()
            };
            for (position, (weight, len)) in localities.into_iter().enumerate() {
                let members: Vec<Id> = ids.by_ref().take(len).collect();
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
    fn reconcile(&mut self, policy: &LbPolicy, wanted: &[Addresses]) -> (Vec<Id>, usize) {
        let same = |id: &Id, addresses: &Addresses| {
            self.backends.get(id).is_some_and(|backend| backend.addresses() == addresses)
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
            let Some(backend) = self.backends.get(id) else { continue };
            // Of two with the same addresses one can be found again.
            gone.extend(known.insert(backend.addresses().clone(), *id));
        }
        let mut order = Vec::with_capacity(wanted.len());
        order.extend_from_slice(&self.order[..head]);
        let kept_tail = self.order[self.order.len() - tail..].to_vec();
        for addresses in &wanted[head..wanted.len() - tail] {
            let kept = known.remove(addresses).or_else(|| match policy {
                LbPolicy::PickFirst { .. } => self.outlives(&mut known, addresses),
                _ => None,
            });
            order.push(kept.unwrap_or_else(|| {
                self.last_id += 1;
                self.backends.insert(self.last_id, Backend::new(addresses.clone()));
                self.last_id
            }));
        }
        order.extend(kept_tail);
        gone.extend(known.into_values());
        let stopped =
            gone.into_iter().filter_map(|id| self.backends.remove(&id)).filter(|backend| backend.retire()).count();
        (order, stopped)
    }

    /// pick_first: "if the currently selected subchannel's address is in the new list, keep it" (A61, as grpc-go does).
    fn outlives(&mut self, known: &mut FxHashMap<Addresses, Id>, addresses: &Addresses) -> Option<Id> {
        let connected = |id: &Id| match &self.backends.get(id)?.state {
            State::Ready { connection, .. } => Some(connection.peer),
            _ => None,
        };
        let among = |(old, id): (&Addresses, &Id)| {
            let peer = connected(id)?;
            addresses.iter().any(|address| address == peer).then(|| (old.clone(), *id))
        };
        let (old, id) = known.iter().find_map(among)?;
        known.remove(&old);
        self.backends.get_mut(&id)?.successor = Some(addresses.clone());
        Some(id)
    }

    fn recount(&mut self, index: usize) {
        let priority = &mut self.priorities[index];
        (priority.ready, priority.failed, priority.total) = (0, 0, 0);
        for id in priority.localities.iter().flat_map(|locality| &locality.members) {
            let Some(backend) = self.backends.get_mut(id) else { continue };
            backend.priority = index;
            backend.counted = backend.counts_as();
            priority.total += 1;
            match backend.counted {
                Counted::Ready => priority.ready += 1,
                Counted::Failed => priority.failed += 1,
                Counted::Other => {}
            }
        }
    }

    // === States ===

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Backend> {
        self.backends.get_mut(&id)
    }

    /// To be called after a state of `id` was changed.
    pub(super) fn changed(&mut self, id: Id) {
        let Some(backend) = self.backends.get_mut(&id) else { return };
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
        priority.active = true;
        let members = priority.localities.iter().flat_map(|locality| &locality.members);
        let mut queued = Vec::new();
        for id in members {
            if let Some(backend) = self.backends.get_mut(id)
                && matches!(backend.state, State::Idle)
            {
                backend.state = State::Queued;
                backend.endpoint.set_state(EndpointState::Connecting);
                queued.push(*id);
            }
        }
        queued
    }

    // any => Idle, for every endpoint of a priority that is not needed any more. Returns how many dials were stopped.
    pub(super) fn deactivate(&mut self, index: usize) -> usize {
        let Some(priority) = self.priorities.get_mut(index) else { return 0 };
        priority.active = false;
        priority.ready_version += 1;
        let members: Vec<Id> = priority.localities.iter().flat_map(|locality| &locality.members).copied().collect();
        let mut stopped = 0;
        for id in members {
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            if matches!(backend.state, State::Idle) {
                continue;
            }
            stopped += usize::from(backend.retire());
            // What comes of it later starts afresh.
            (backend.state, backend.failed, backend.failures) = (State::Idle, false, 0);
            self.changed(id);
        }
        stopped
    }

    /// Lets go of what an update has moved into a priority that is not dialled, once it is known which ones are. Returns
    /// how many dials were stopped.
    pub(super) fn deactivate_strays(&mut self) -> usize {
        let mut stopped = 0;
        for index in 0..self.priorities.len() {
            if !self.priorities[index].active {
                stopped += self.deactivate(index);
            }
        }
        stopped
    }

    // Backoff => Queued, if that very backoff still stands.
    pub(super) fn backoff_over(&mut self, id: Id, due: Instant) -> bool {
        match self.backends.get_mut(&id) {
            Some(backend) if matches!(backend.state, State::Backoff { until } if until == due) => {
                backend.state = State::Queued;
                true
            }
            _ => false,
        }
    }

    /// After a connection was lost: turns to the addresses that the assignment names by now. Returns whether they are
    /// others.
    pub(super) fn readdress(&mut self, id: Id) -> bool {
        let Some(backend) = self.backends.get_mut(&id) else { return false };
        let Some(addresses) = backend.successor.take() else { return false };
        backend.endpoint = Arc::new(Endpoint::new(addresses));
        true
    }

    /// The endpoint to dial, if `id` still waits for that.
    pub(super) fn queued(&self, id: Id) -> Option<Arc<Endpoint>> {
        let backend = self.backends.get(&id)?;
        matches!(backend.state, State::Queued).then(|| Arc::clone(&backend.endpoint))
    }

    // Queued => Dialling.
    pub(super) fn dialling(&mut self, id: Id, dial: DialId, task: AbortHandle) {
        if let Some(backend) = self.backends.get_mut(&id) {
            (backend.dial, backend.state) = (dial, State::Dialling(task));
        }
    }

    // === Readings ===

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

    /// Weight, turn and READY connections of each locality of a priority.
    pub(super) fn ready(&self, index: usize) -> impl Iterator<Item = (u32, Turn, Vec<Arc<Connection>>)> {
        let localities = self.priorities.get(index).map_or(&[][..], |priority| &priority.localities);
        localities.iter().map(|locality| {
            let ready = |id: &Id| match &self.backends.get(id)?.state {
                State::Ready { connection, .. } => Some(Arc::clone(connection)),
                _ => None,
            };
            (locality.weight, locality.turn.clone(), locality.members.iter().filter_map(ready).collect())
        })
    }

    /// Every endpoint with its priority, for `status()`.
    pub(super) fn endpoints(&self) -> Vec<(usize, Arc<Endpoint>)> {
        let endpoint = |id: &Id| {
            let backend = self.backends.get(id)?;
            Some((backend.priority, Arc::clone(&backend.endpoint)))
        };
        self.order.iter().filter_map(endpoint).collect()
    }
}

impl Drop for Roster {
    fn drop(&mut self) {
        self.clear();
    }
}

// === Wanted ===

/// An assignment as the policy sees it: address lists in order, and how they fall into priorities and localities.
struct Wanted {
    addresses: Vec<Addresses>,
    /// Weight and number of endpoints of each locality of each priority.
    priorities: Vec<Vec<(u32, usize)>>,
}

impl Wanted {
    fn new(policy: &LbPolicy, assignment: &ClusterLoadAssignment) -> Self {
        let mut wanted = Self { addresses: Vec::new(), priorities: Vec::with_capacity(assignment.priorities.len()) };
        for localities in &assignment.priorities {
            let before = wanted.addresses.len();
            // "Only HEALTHY and UNKNOWN endpoints get traffic" (A27).
            let usable = localities.iter().map(|locality| {
                let endpoints = locality.endpoints.iter().filter(|endpoint| endpoint.health.is_usable());
                (locality.weight, endpoints)
            });
            let groups = match policy {
                // One endpoint with every address: Happy Eyeballs over all of them is pick_first (A61, A62).
                LbPolicy::PickFirst { shuffle } => {
                    let mut endpoints: Vec<_> = usable.flat_map(|(_, endpoints)| endpoints).collect();
                    if *shuffle {
                        fastrand::shuffle(&mut endpoints);
                    }
                    let all = endpoints.into_iter().flat_map(|endpoint| endpoint.addresses.iter());
                    wanted.addresses.extend(interleaved(all.collect()));
                    vec![(1, wanted.addresses.len() - before)]
                }
                _ => usable
                    .map(|(weight, endpoints)| {
                        let before = wanted.addresses.len();
                        wanted.addresses.extend(endpoints.map(|endpoint| endpoint.addresses.clone()));
                        (weight, wanted.addresses.len() - before)
                    })
                    .collect(),
            };
            wanted.priorities.push(groups);
        }
        wanted
    }
}

/// Deduplicated, families in turn, starting with the first one's (A61).
fn interleaved(addresses: Vec<std::net::SocketAddr>) -> Option<Addresses> {
    let first_is_v6 = addresses.first()?.is_ipv6();
    let mut seen = BTreeSet::new();
    let unique: Vec<_> = addresses.into_iter().filter(|address| seen.insert(*address)).collect();
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        unique.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut order = Vec::with_capacity(first.len() + second.len());
    while let Some(address) = first.pop_front() {
        order.push(address);
        order.extend(second.pop_front());
    }
    order.extend(second);
    let mut order = order.into_iter();
    Some(Addresses { first: order.next()?, additional: order.collect() })
}
