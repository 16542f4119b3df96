//! The words of ADS without I/O: subscriptions, versions, nonces, ACK and NACK, does-not-exist timers.
//!
//! One machine per server, over any number of streams. Which variant the server speaks is said once:
//!
//! ```text
//!              names.rs   what is wanted, and how long it may stay unanswered
//! Protocol ──┬ sotw.rs    the full list in each request, a version of the whole
//!            └ delta.rs   what changes, a version of each resource, removals
//! ```
//!
//! Calls return nothing to send; requests queue up in order and [`Protocol::take_requests`] hands them out, so that
//! one turn of the driver sends the ACK first and new names after it. The machine does NOT decode, does NOT keep
//! resources and does NOT read the clock.

mod delta;
mod names;
mod sotw;

use crate::{
    bootstrap::Transport,
    resource::{ByKind, Kind},
};
use delta::Delta;
use names::{Names, Timers};
use sotw::Sotw;
use std::{mem, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A `DiscoveryRequest` or `DeltaDiscoveryRequest`, before protobuf.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    /// Counts the requests of one stream; names a request in [`Protocol::sent`].
    pub(crate) serial: u64,
    /// Whether this is the stream's first request, which tells the node.
    pub(crate) with_node: bool,
    /// Nonce of a response on this stream, or empty.
    pub(crate) nonce: Arc<str>,
    /// Why the response with that nonce is refused.
    pub(crate) nack: Option<String>,
    pub(crate) asks: Asks,
}

/// What a request says about names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asks {
    /// SotW.
    All {
        /// Sorted.
        names: Arc<[Arc<str>]>,
        /// Version of the last response that was accepted as a whole, also of an earlier stream.
        version: Arc<str>,
    },
    /// Delta.
    Change {
        subscribe: Vec<Arc<str>>,
        unsubscribe: Vec<Arc<str>>,
        /// `initial_resource_versions`: names, and the versions in which they are held.
        held: Vec<(Arc<str>, Arc<str>)>,
    },
}

/// How the server's answer has to be acknowledged.
#[derive(Debug)]
pub(crate) enum Verdict {
    Ack,
    Nack(String),
}

/// The machine. See the module's picture.
#[derive(Debug)]
pub(crate) struct Protocol {
    names: ByKind<Names>,
    variant: Variant,
    timers: Timers,
    /// Of the stream that is up.
    next_serial: Option<u64>,
    requests: Vec<Request>,
}

#[derive(Debug)]
enum Variant {
    Sotw(ByKind<Sotw>),
    Delta(ByKind<Delta>),
}

/// A request without what all requests share.
#[derive(Debug)]
struct Say {
    nonce: Arc<str>,
    nack: Option<String>,
    asks: Asks,
}

impl Protocol {
    /// `timeout` is that of the does-not-exist timers.
    pub(crate) fn new(transport: Transport, timeout: Duration) -> Self {
        let variant = match transport {
            Transport::Sotw => Variant::Sotw(Default::default()),
            Transport::Delta => Variant::Delta(Default::default()),
        };
        Self {
            names: Default::default(),
            variant,
            timers: Timers::new(timeout),
            next_serial: None,
            requests: Vec::new(),
        }
    }

    /// A stream is up: ask for everything, in reference order, with the versions already held. `held` tells those of
    /// single resources, for delta.
    ///
    /// "types with no subscriptions are not sent on a fresh stream" - A57. To delta that is more than thrift: a first
    /// request without names would be a wildcard.
    pub(crate) fn connected(&mut self, held: impl Fn(Kind, &str) -> Option<Arc<str>>) {
        self.next_serial = Some(0);
        for kind in self.names.kinds() {
            let names = &*self.names.of(kind);
            if names.is_empty() {
                continue;
            }
            let new = names.unanswered();
            let say = match &mut self.variant {
                Variant::Sotw(types) => types.of(kind).first(names),
                Variant::Delta(_) => Delta::first(names, |name| held(kind, name)),
            };
            self.request(kind, new, say);
        }
    }

    /// The stream is gone. Timers stop: they run only for requests on a live stream (A57). Returns the names that
    /// were only lingering and are now forgotten.
    pub(crate) fn disconnected(&mut self) -> Vec<(Kind, Arc<str>)> {
        self.next_serial = None;
        self.timers.clear();
        self.requests.clear();
        let mut forgotten = Vec::new();
        for kind in self.names.kinds() {
            forgotten.extend(self.names.of(kind).detached().map(|name| (kind, name)));
            match &mut self.variant {
                Variant::Sotw(types) => types.of(kind).detached(),
                Variant::Delta(types) => types.of(kind).detached(),
            }
        }
        forgotten
    }

    /// A name is wanted from now on. Nothing is said before [`Protocol::tell`]. Returns the name that leaves the wire list
    /// for it: what is known about that one is no longer kept up to date.
    pub(crate) fn want(&mut self, kind: Kind, name: &Arc<str>) -> Option<Arc<str>> {
        self.names.of(kind).want(kind, name, &mut self.timers)
    }

    /// A name is not wanted any more. Returns whether it leaves the wire list.
    pub(crate) fn unwant(&mut self, kind: Kind, name: &Arc<str>) -> bool {
        let attached = self.next_serial.is_some();
        self.names.of(kind).unwant(kind, name, attached, &mut self.timers)
    }

    /// Tells what changed in what is wanted, with one request for each type. In between no name may come and go.
    pub(crate) fn tell(&mut self) {
        for kind in self.names.kinds() {
            let names = self.names.of(kind);
            let change = names.take_change();
            if self.next_serial.is_none() || (change.new.is_empty() && change.left.is_empty()) {
                continue;
            }
            let say = match &mut self.variant {
                Variant::Sotw(types) => types.of(kind).changed(names, &change),
                Variant::Delta(types) => types.of(kind).changed(&change),
            };
            self.request(kind, change.new, say);
        }
    }

    /// The transport took a request: now, and not before, its new names may be missed.
    pub(crate) fn sent(&mut self, kind: Kind, serial: u64, now: Instant) {
        self.names.of(kind).sent(kind, serial, now, &mut self.timers);
    }

    /// Whether the server has said something about every name: then it may keep silent for ever.
    pub(crate) fn awaits_nothing(&self) -> bool {
        self.names.iter().all(|(_, names)| !names.awaits_some())
    }

    /// Whether a response of this type was asked for on this stream. If not it gets neither ACK nor NACK.
    pub(crate) fn asked(&self, kind: Kind) -> bool {
        self.names.get(kind).is_some_and(Names::asked)
    }

    /// Whether a resource was asked for. Others are ignored.
    pub(crate) fn is_subscribed(&self, kind: Kind, name: &str) -> bool {
        self.names.get(kind).is_some_and(|names| names.contains(name))
    }

    /// Whether what a response of this type does not hold, is deleted.
    pub(crate) fn absence_is_deletion(&self, kind: Kind) -> bool {
        matches!(self.variant, Variant::Sotw(_)) && kind.is_full_state()
    }

    /// The server sent a resource, good or bad, or an error for it: its timer stops.
    pub(crate) fn answered(&mut self, kind: Kind, name: &str) {
        self.names.of(kind).answered(kind, name, &mut self.timers);
        match &mut self.variant {
            Variant::Sotw(types) => types.of(kind).answered(name),
            Variant::Delta(types) => types.of(kind).answered(name),
        }
    }

    /// The server said that there is no such resource: its timer stops. `held` is whether there was one.
    pub(crate) fn removed(&mut self, kind: Kind, name: &str, held: bool) {
        self.names.of(kind).answered(kind, name, &mut self.timers);
        if let Variant::Delta(types) = &mut self.variant {
            types.of(kind).removed(name, held);
        }
    }

    /// The same of a resource that never came: its timer runs on, since the server may have said so too early.
    pub(crate) fn removed_early(&mut self, kind: Kind, name: &str) {
        if let Variant::Delta(types) = &mut self.variant {
            types.of(kind).removed(name, false);
        }
    }

    /// Answers a response, once everything in it was told by [`answered`](Self::answered), [`removed`](Self::removed) or
    /// [`removed_early`](Self::removed_early).
    pub(crate) fn acknowledge(&mut self, kind: Kind, version: &Arc<str>, nonce: &Arc<str>, verdict: Verdict) {
        let names = &*self.names.of(kind);
        let says = match &mut self.variant {
            Variant::Sotw(types) => types.of(kind).answer(kind, names, version, nonce, verdict),
            Variant::Delta(types) => types.of(kind).answer(version, nonce, verdict),
        };
        for say in says {
            self.request(kind, Vec::new(), say);
        }
    }

    /// Names whose time is over. They do not exist, as far as this server says.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Kind, Arc<str>)> {
        let mut expired = Vec::new();
        while let Some((kind, batch)) = self.timers.expire(now) {
            expired.extend(self.names.of(kind).expired(batch).into_iter().map(|name| (kind, name)));
        }
        expired
    }

    /// When to call [`Protocol::expire`] next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whether anything is subscribed at all, so that a stream is worth having.
    pub(crate) fn has_subscriptions(&self) -> bool {
        self.names.iter().any(|(_, names)| !names.is_empty())
    }

    /// Whether somebody needs what is subscribed: a name that lingers is none.
    pub(crate) fn is_wanted(&self) -> bool {
        self.names.iter().any(|(_, names)| names.is_wanted())
    }

    /// What has to be sent, in order.
    pub(crate) fn take_requests(&mut self) -> Vec<Request> {
        mem::take(&mut self.requests)
    }

    /// What a timer runs for.
    #[cfg(test)]
    pub(crate) fn timed(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.names.iter().flat_map(|(kind, names)| names.timed().map(move |name| (kind, name)))
    }

    /// What the server is asked for.
    #[cfg(test)]
    pub(crate) fn subscribed(&self, kind: Kind) -> std::collections::BTreeSet<String> {
        self.names.get(kind).into_iter().flat_map(Names::all).map(|name| name.to_string()).collect()
    }

    /// Queues a request, if there is a stream; `new` are its names that have not been asked for before.
    fn request(&mut self, kind: Kind, new: Vec<Arc<str>>, Say { nonce, nack, asks }: Say) {
        let Some(next) = &mut self.next_serial else { return };
        let serial = *next;
        *next += 1;
        self.names.of(kind).queued(serial, new);
        self.requests.push(Request { kind, serial, with_node: serial == 0, nonce, nack, asks });
    }
}

impl Asks {
    /// Delta: no name comes and none goes.
    const NOTHING: Self = Self::Change { subscribe: Vec::new(), unsubscribe: Vec::new(), held: Vec::new() };
}

impl Say {
    /// A request that answers nothing.
    fn unasked(asks: Asks) -> Self {
        Self { nonce: Arc::default(), nack: None, asks }
    }
}

#[cfg(test)]
mod delta_tests;
#[cfg(test)]
mod tests;
