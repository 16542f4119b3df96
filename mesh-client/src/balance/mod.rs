//! Choosing a connection: one synchronous step on the caller's task, from an immutable picker.
//!
//! The cluster worker builds a [`Picker`] whenever the set of READY connections of the chosen priority changes; a
//! connection that was lost since is skipped by an atomic. drops → breaker → locality → endpoint → stream slot (of
//! HTTP/1.1 a connection), in that order.
//! Nothing here knows HTTP, tokio or xDS messages, and nothing here waits.

mod admission;
mod elsewhere;
pub(crate) mod priority;

pub(crate) use admission::Admission;
pub(crate) use elsewhere::{Other, OtherPicker, Others, Tried};

use crate::{
    breaker::{Breaker, Full},
    chunks::Chunks,
    endpoint::{Connection, Slot},
};
use elsewhere::Choice;
use mesh_xds::{
    load::{DropLoad, LocalityLoad},
    resource::{DropOverload, LbPolicy},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What calls see of a cluster, until the worker publishes the next one.
#[derive(Debug)]
pub(crate) struct Offer {
    /// Of the leaf that was chosen; none as long as there never was one.
    pub(crate) admission: Option<Arc<Admission>>,
    pub(crate) picker: Picker,
    /// The priorities beside the one that was chosen.
    pub(crate) others: Others,
}

/// What a cluster answers to "where to?".
#[derive(Debug)]
pub(crate) enum Picker {
    /// Connections are being made: wait for the next picker.
    Wait,
    /// No endpoint can be reached, or none is configured: fail, unless the call waits for ready.
    Fail(Arc<str>),
    /// The cluster is gone from the routes: the call is routed again.
    Removed,
    /// Connections to choose from.
    Ready(ReadyPicker),
}

/// What came of one pick.
#[derive(Debug)]
pub(crate) enum Picked {
    /// A stream of a READY connection.
    Slot(Slot),
    /// Nothing to give now: wait for a new picker or a free stream.
    Wait,
    /// Wait for a new picker, and ask the worker to connect this priority.
    Ask(usize),
    /// See [`Picker::Fail`].
    Fail(Arc<str>),
    /// See [`Picker::Removed`].
    Removed,
    /// Dropped by this category: fail, never retried.
    Dropped(Arc<str>),
    /// Refused by the circuit breaker: fail, never retried.
    CircuitOpen(Full),
}

impl Offer {
    /// Without a circuit breaker.
    #[cfg(test)]
    pub(crate) fn open(picker: Picker) -> Self {
        Self { admission: None, picker, others: Others::default() }
    }

    /// Chooses. `draw` gives a number below its argument; it is passed in, so that tests decide.
    pub(crate) fn pick(&self, tried: &Tried, draw: &mut impl FnMut(u32) -> u32) -> Picked {
        let admission = self.admission.as_deref();
        let full = || admission.map_or(Ok(()), Admission::check).err();
        if tried.avoids_priorities() {
            match self.others.choose(&self.picker, tried) {
                Choice::Chosen => {}
                Choice::Other(other) => return other.picker.pick(other.admission.as_deref(), tried, draw),
                Choice::Ask(priority) => return full().map_or(Picked::Ask(priority), Picked::CircuitOpen),
                Choice::Wait => return full().map_or(Picked::Wait, Picked::CircuitOpen),
            }
        }
        match &self.picker {
            // Drops come before the breaker.
            Picker::Ready(ready) => ready.pick(admission, tried, draw),
            Picker::Removed => Picked::Removed,
            Picker::Wait => full().map_or(Picked::Wait, Picked::CircuitOpen),
            Picker::Fail(reason) => full().map_or_else(|| Picked::Fail(Arc::clone(reason)), Picked::CircuitOpen),
        }
    }
}

/// READY connections, in the order of the assignment.
pub(crate) type Connections = Arc<Chunks<Arc<Connection>>>;

/// The READY connections of one priority, by locality.
#[derive(Debug)]
pub(crate) struct ReadyPicker {
    drops: Arc<[DropOverload]>,
    /// Of `drops`, in their order; none where the cluster reports no load.
    dropped: Box<[DropLoad]>,
    localities: Vec<LocalityPicker>,
    /// Of the localities' weights, running totals.
    total: u64,
}

/// One locality's READY connections, and whose turn it is.
#[derive(Debug)]
pub(crate) struct LocalityPicker {
    /// Among the localities of its priority.
    position: usize,
    up_to: u64,
    connections: Connections,
    turn: Turn,
    /// Counts its calls, if the cluster reports load.
    load: Option<LocalityLoad>,
}

/// How a locality's next connection is found.
#[derive(Clone, Debug)]
pub(crate) enum Turn {
    /// One after the other; the counter outlives pickers, so that a rebuild does not start over.
    RoundRobin(Arc<AtomicUsize>),
    /// By chance.
    Random,
}

impl Turn {
    pub(crate) fn of(policy: &LbPolicy, start: usize) -> Self {
        match policy {
            LbPolicy::Random => Self::Random,
            // pick_first has one connection at a time. Policies to come are decoded as round_robin (and reported).
            _ => Self::RoundRobin(Arc::new(AtomicUsize::new(start))),
        }
    }

    /// Whether this is a turn of `policy`'s kind.
    pub(crate) fn serves(&self, policy: &LbPolicy) -> bool {
        matches!((self, policy), (Self::Random, LbPolicy::Random))
            || matches!(self, Self::RoundRobin(_)) && !matches!(policy, LbPolicy::Random)
    }

    fn next(&self, len: usize, draw: &mut impl FnMut(u32) -> u32) -> usize {
        match self {
            Self::RoundRobin(counter) => counter.fetch_add(1, Ordering::Relaxed) % len,
            Self::Random => draw(u32::try_from(len).unwrap_or(u32::MAX)) as usize,
        }
    }
}

impl ReadyPicker {
    /// From weight, turn and READY connections of each locality; those without any are left out, so that their
    /// weight goes to the others (A27). `None` if no connection is READY.
    pub(crate) fn new(
        drops: Arc<[DropOverload]>,
        localities: impl IntoIterator<Item = (u32, Turn, Connections)>,
    ) -> Option<Self> {
        let mut total = 0;
        let localities: Vec<_> = localities
            .into_iter()
            .enumerate()
            .filter(|(_, (_, _, connections))| !connections.is_empty())
            .map(|(position, (weight, turn, connections))| {
                total += u64::from(weight);
                LocalityPicker { position, up_to: total, connections, turn, load: None }
            })
            .collect();
        (!localities.is_empty()).then_some(Self { drops, dropped: Box::default(), localities, total })
    }

    /// The same, counting for load reports: what each category drops, and the calls of each locality, by its position and
    /// its first connection.
    pub(crate) fn counting(
        mut self,
        category: impl Fn(&DropOverload) -> DropLoad,
        locality: impl Fn(usize, &Connection) -> Option<LocalityLoad>,
    ) -> Self {
        self.dropped = self.drops.iter().map(category).collect();
        for picker in &mut self.localities {
            picker.load = picker.connections.iter().next().and_then(|first| locality(picker.position, first));
        }
        self
    }

    fn pick(&self, admission: Option<&Admission>, tried: &Tried, draw: &mut impl FnMut(u32) -> u32) -> Picked {
        // "categories evaluated in order, each with its own random draw" (A27), and only when there is an endpoint.
        if let Some(hit) = self.drops.iter().position(|drop| drop.rate.hit(draw(1_000_000))) {
            if let Some(dropped) = self.dropped.get(hit) {
                dropped.dropped();
            }
            return Picked::Dropped(Arc::clone(&self.drops[hit].category));
        }
        let permit = match admission.map(Admission::enter).transpose() {
            Ok(permit) => permit,
            Err(full) => return Picked::CircuitOpen(full),
        };
        let breaker = admission.map(|admission| &admission.breaker);
        let first = match self.localities.len() {
            1 => 0,
            _ => self.by_weight(draw),
        };
        // The chosen locality, then the others: a connection lost a moment ago must not fail the call.
        let (before, from) = self.localities.split_at(first);
        if tried.avoids_hosts() {
            let elsewhere = pick_elsewhere(from.iter().chain(before), breaker, tried, draw);
            return elsewhere.map_or(Picked::Wait, |slot| Picked::Slot(slot.admitted(permit)));
        }
        let slot = from.iter().find_map(|locality| locality.pick(breaker, draw));
        match slot.or_else(|| before.iter().find_map(|locality| locality.pick(breaker, draw))) {
            Some(slot) => Picked::Slot(slot.admitted(permit)),
            // Whoever waits gives its permit back.
            None => Picked::Wait,
        }
    }

    fn by_weight(&self, draw: &mut impl FnMut(u32) -> u32) -> usize {
        // Sums of weights fit u32 within a priority (A27).
        let point = u64::from(draw(u32::try_from(self.total).unwrap_or(u32::MAX)));
        self.localities.partition_point(|locality| locality.up_to <= point).min(self.localities.len() - 1)
    }
}

/// A stream of an endpoint that was not tried, if there is one among as many more as shall be looked at; else of the first
/// that was.
///
/// Envoy's load balancer chooses anew each time; here the next in turn are looked at, so that one look is enough to avoid
/// the only endpoint that failed.
fn pick_elsewhere<'a>(
    localities: impl Iterator<Item = &'a LocalityPicker>,
    breaker: Option<&Breaker>,
    tried: &Tried,
    draw: &mut impl FnMut(u32) -> u32,
) -> Option<Slot> {
    let (mut looks, mut passed_over) = (tried.looks(), None);
    for locality in localities {
        let start = locality.turn.next(locality.connections.len(), draw);
        for connection in locality.connections.iter_from(start) {
            if looks > 0 && tried.has(&connection.endpoint) {
                looks -= 1;
                passed_over = passed_over.or(Some((locality, connection)));
            } else if let Some(slot) = connection.slot(breaker) {
                return Some(slot.counted(locality.load.as_ref()));
            }
        }
    }
    let (locality, connection) = passed_over?;
    connection.slot(breaker).map(|slot| slot.counted(locality.load.as_ref()))
}

impl LocalityPicker {
    fn pick(&self, breaker: Option<&Breaker>, draw: &mut impl FnMut(u32) -> u32) -> Option<Slot> {
        let start = self.turn.next(self.connections.len(), draw);
        let slot = self.connections.iter_from(start).find_map(|connection| connection.slot(breaker));
        slot.map(|slot| slot.counted(self.load.as_ref()))
    }
}

#[cfg(test)]
mod tests;
