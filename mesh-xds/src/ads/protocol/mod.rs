//! State-of-the-world ADS without I/O: subscriptions, versions, nonces, ACK and NACK, does-not-exist timers.
//!
//! One machine per server, over any number of streams:
//!
//! ```text
//!            connected()                                   sent(): the transport took the request
//! Detached ──────────────► Attached    a name:   Unsent ─────────────────► Armed(deadline)
//!     ▲   ask for all names    │                    ▲   disconnected()          │ received() ─► Done
//!     └──── disconnected() ────┘                    └───────────────────────────┤ expire()   ─► Done
//! ```
//!
//! Calls return nothing to send; requests queue up in order and [`Protocol::take_requests`] hands them out, so that
//! one turn of the driver sends the ACK first and new names after it. The machine does NOT decode, does NOT keep
//! resources and does NOT read the clock.

use crate::resource::{ByKind, Kind};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// A `DiscoveryRequest`, before protobuf.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    /// Counts the requests of one stream; names a request in [`Protocol::sent`].
    pub(crate) serial: u64,
    /// Always the full list, sorted.
    pub(crate) names: Arc<[Arc<str>]>,
    /// Version of the last response that was accepted as a whole, also of an earlier stream.
    pub(crate) version: Arc<str>,
    /// Nonce of the newest response on this stream, or empty.
    pub(crate) nonce: Arc<str>,
    /// Why the response with that nonce is refused.
    pub(crate) nack: Option<String>,
    /// Whether this is the stream's first request, which tells the node.
    pub(crate) with_node: bool,
}

/// How many names that left a list are remembered on a stream.
const MOST_DROPPED: usize = 4096;

/// How the server's answer has to be acknowledged.
#[derive(Debug)]
pub(crate) enum Verdict {
    Ack,
    Nack(String),
}

/// The machine. See the module's picture.
#[derive(Debug)]
pub(crate) struct Protocol {
    types: ByKind<Subscriptions>,
    stream: Option<Stream>,
    /// Of the does-not-exist timers.
    timeout: Duration,
    deadlines: BTreeSet<(Instant, Kind, Arc<str>)>,
    requests: Vec<Request>,
}

/// What lasts as long as one stream.
#[derive(Debug, Default)]
struct Stream {
    next_serial: u64,
}

/// One type's side of the conversation.
#[derive(Debug, Default)]
struct Subscriptions {
    /// What the wire list holds, lingering name included.
    names: BTreeMap<Arc<str>, Wait>,
    /// The list as it was last sent, shared by all requests until it changes.
    list: Option<Arc<[Arc<str>]>>,
    /// A name that nobody wants any more, kept because the list must not become empty.
    lingering: Option<Arc<str>>,
    version: Arc<str>,
    nonce: Arc<str>,
    /// Whether this stream was asked for this type.
    asked: bool,
    /// Whether the list changed on this stream after the first request: then it may not have got through.
    changed: bool,
    /// Names that left the list on this stream; for those that are back, see [`Protocol::acknowledge`].
    dropped: BTreeSet<Arc<str>>,
    /// Names that are new in a request which the transport has not taken yet.
    unsent: VecDeque<(u64, Vec<Arc<str>>)>,
}

/// What is known about the answer for one name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    Unsent,
    Armed(Instant),
    Done,
}

impl Protocol {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { types: Default::default(), stream: None, timeout, deadlines: BTreeSet::new(), requests: Vec::new() }
    }

    /// A stream is up: ask for everything, in reference order, with the versions already held.
    ///
    /// "types with no subscriptions are not sent on a fresh stream" - A57.
    pub(crate) fn connected(&mut self) {
        self.stream = Some(Stream::default());
        for kind in self.types.kinds() {
            let subscriptions = self.types.of(kind);
            let unanswered = |(name, wait): (&Arc<str>, &Wait)| (*wait != Wait::Done).then(|| Arc::clone(name));
            let names: Vec<_> = subscriptions.names.iter().filter_map(unanswered).collect();
            if !subscriptions.names.is_empty() {
                self.request(kind, names, None);
            }
        }
    }

    /// The stream is gone. Timers stop: they run only for requests on a live stream (A57). Returns the names that
    /// were only lingering and are now forgotten.
    pub(crate) fn disconnected(&mut self) -> Vec<(Kind, Arc<str>)> {
        self.stream = None;
        self.deadlines.clear();
        self.requests.clear();
        let mut forgotten = Vec::new();
        for kind in self.types.kinds() {
            let subscriptions = self.types.of(kind);
            subscriptions.nonce = Arc::default();
            subscriptions.asked = false;
            subscriptions.changed = false;
            subscriptions.dropped.clear();
            subscriptions.unsent.clear();
            if let Some(name) = subscriptions.lingering.take() {
                subscriptions.names.remove(&name);
                subscriptions.list = None;
                forgotten.push((kind, name));
            }
            for wait in subscriptions.names.values_mut().filter(|wait| **wait != Wait::Done) {
                *wait = Wait::Unsent;
            }
        }
        forgotten
    }

    /// Changes what is subscribed, with one request for the whole change. Returns the names that left the wire
    /// list: what is known about them is no longer kept up to date.
    pub(crate) fn update(&mut self, kind: Kind, wanted: &[Arc<str>], unwanted: &[Arc<str>]) -> Vec<Arc<str>> {
        let subscriptions = self.types.of(kind);
        let mut left: Vec<_> = unwanted.to_vec();
        if !wanted.is_empty()
            && let Some(name) = subscriptions.lingering.take()
            && !wanted.contains(&name)
        {
            left.push(name);
        }
        let mut new = Vec::new();
        for name in wanted {
            if !subscriptions.names.contains_key(name) {
                subscriptions.names.insert(Arc::clone(name), Wait::Unsent);
                new.push(Arc::clone(name));
            }
        }
        // An empty LDS or CDS list is a wildcard to istiod, and stays one: the last name stays until another
        // replaces it.
        if kind.is_full_state() && subscriptions.names.len() == left.len() && self.stream.is_some() {
            subscriptions.lingering = left.pop();
        }
        for name in &left {
            if let Some(Wait::Armed(deadline)) = subscriptions.names.remove(name) {
                self.deadlines.remove(&(deadline, kind, Arc::clone(name)));
            }
        }
        if self.stream.is_some() {
            // Bounded: what is forgotten here only loses the second chance of `acknowledge`.
            if subscriptions.dropped.len() + left.len() > MOST_DROPPED {
                subscriptions.dropped.clear();
            }
            subscriptions.dropped.extend(left.iter().take(MOST_DROPPED).cloned());
        }
        if !(new.is_empty() && left.is_empty()) {
            subscriptions.list = None;
            subscriptions.changed = subscriptions.asked;
            if self.stream.is_some() {
                self.request(kind, new, None);
            }
        }
        left
    }

    /// The transport took a request: now, and not before, its new names may be missed.
    pub(crate) fn sent(&mut self, kind: Kind, serial: u64, now: Instant) {
        let subscriptions = self.types.of(kind);
        while subscriptions.unsent.front().is_some_and(|(first, _)| *first <= serial) {
            let (_, names) = subscriptions.unsent.pop_front().unwrap_or_default();
            for name in names {
                // Unsent => Armed. A name that was answered, or unsubscribed, meanwhile has nothing to wait for.
                if let Some(wait @ Wait::Unsent) = subscriptions.names.get_mut(&name) {
                    let deadline = now + self.timeout;
                    *wait = Wait::Armed(deadline);
                    self.deadlines.insert((deadline, kind, name));
                }
            }
        }
    }

    /// Whether a response of this type was asked for on this stream. If not it gets neither ACK nor NACK.
    pub(crate) fn asked(&self, kind: Kind) -> bool {
        self.types.get(kind).is_some_and(|subscriptions| subscriptions.asked)
    }

    /// Whether a resource was asked for. Others are ignored.
    pub(crate) fn is_subscribed(&self, kind: Kind, name: &str) -> bool {
        self.types.get(kind).is_some_and(|subscriptions| subscriptions.names.contains_key(name))
    }

    /// The server said something about a name, good or bad: its timer stops.
    pub(crate) fn answered(&mut self, kind: Kind, name: &str) {
        let names = &mut self.types.of(kind).names;
        let Some(name) = names.get_key_value(name).map(|(name, _)| Arc::clone(name)) else { return };
        if let Some(Wait::Armed(deadline)) = names.insert(Arc::clone(&name), Wait::Done) {
            self.deadlines.remove(&(deadline, kind, name));
        }
    }

    /// Answers a response, with the full list of names, and makes sure that the list got through.
    ///
    /// istiod drops a list that carries a stale nonce, and does not look at the list of a NACK. Whether a change got
    /// through cannot be known: responses may have crossed with any of the requests that told it. So the last word
    /// after a response is always a list that counts. And a name that left and came back while its leaving was
    /// dropped would meet silence, since the server sees no change: it leaves and comes back once more.
    pub(crate) fn acknowledge(&mut self, kind: Kind, version: &Arc<str>, nonce: &Arc<str>, verdict: Verdict) {
        let subscriptions = self.types.of(kind);
        subscriptions.nonce = Arc::clone(nonce);
        let (nack, repeat) = match verdict {
            Verdict::Ack => {
                subscriptions.version = Arc::clone(version);
                (None, false)
            }
            Verdict::Nack(text) => (Some(text), subscriptions.changed),
        };
        let without = subscriptions.without_the_returned(kind);
        self.request(kind, Vec::new(), nack);
        if let Some(without) = without {
            self.types.of(kind).list = Some(without);
            self.request(kind, Vec::new(), None);
            self.types.of(kind).list = None;
            self.request(kind, Vec::new(), None);
        } else if repeat {
            self.request(kind, Vec::new(), None);
        }
    }

    /// Names whose time is over. They do not exist, as far as this server says.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Kind, Arc<str>)> {
        let mut expired = Vec::new();
        while let Some((deadline, kind, name)) = self.deadlines.first().cloned()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.types.of(kind).names.insert(Arc::clone(&name), Wait::Done);
            expired.push((kind, name));
        }
        expired
    }

    /// When to call [`Protocol::expire`] next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, ..)| *deadline)
    }

    /// Whether anything is subscribed at all, so that a stream is worth having.
    pub(crate) fn has_subscriptions(&self) -> bool {
        self.types.iter().any(|(_, subscriptions)| !subscriptions.names.is_empty())
    }

    /// What has to be sent, in order.
    pub(crate) fn take_requests(&mut self) -> Vec<Request> {
        mem::take(&mut self.requests)
    }

    fn request(&mut self, kind: Kind, new: Vec<Arc<str>>, nack: Option<String>) {
        let Some(stream) = &mut self.stream else { return };
        let serial = stream.next_serial;
        stream.next_serial += 1;
        let subscriptions = self.types.of(kind);
        subscriptions.asked = true;
        if !new.is_empty() {
            subscriptions.unsent.push_back((serial, new));
        }
        let names = subscriptions.list.get_or_insert_with(|| subscriptions.names.keys().cloned().collect());
        self.requests.push(Request {
            kind,
            serial,
            names: Arc::clone(names),
            version: Arc::clone(&subscriptions.version),
            nonce: Arc::clone(&subscriptions.nonce),
            nack,
            with_node: serial == 0,
        });
    }
}

impl Subscriptions {
    /// The list without names that left, came back and are not answered; none if there are no such names.
    fn without_the_returned(&self, kind: Kind) -> Option<Arc<[Arc<str>]>> {
        let returned = |name: &&Arc<str>| self.names.get(*name).is_some_and(|wait| *wait != Wait::Done);
        // A full-state response brings whatever the server believes to be subscribed.
        if kind.is_full_state() || !self.dropped.iter().any(|name| returned(&name)) {
            return None;
        }
        Some(self.names.keys().filter(|name| !(self.dropped.contains(*name) && returned(name))).cloned().collect())
    }
}

#[cfg(test)]
mod tests;
