//! One ADS stream as a state machine, without I/O: requests in, the next answer out, in SotW or delta.
//!
//! Per type:
//! ```text
//!   request ──► subscribed, an answer is due ──► answered (nonce N) ──► ACK(N)  | NACK(N, why)
//!                         ▲                                              │
//!                         └── names added, or a resource changed ────────┘      any other nonce: stale
//! ```
//! A stale request is ignored in SotW, whose list may be old; in delta it says what changed, and counts. Which resources
//! exist is in the [`Snapshot`], how to misbehave in [`Hooks`]; this file does NOT keep either, nor does it know about
//! transports or tasks.

use self::{
    answer::Content,
    subscription::{News, Subscription},
};
pub(super) use self::{
    answer::{Answer, Raw},
    request::{Asked, Manners},
};
use super::{
    events::{Dialect, Event, Verdict},
    hooks::Hooks,
    snapshot::{Entry, Snapshot},
};
use crate::{name::canonical, resource::Kind};
use envoy_types::pb::envoy::config::core::v3::Node;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

mod answer;
mod request;
mod subscription;
#[cfg(test)]
mod tests;
mod wanted;

/// Who is at the other end.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: Arc<str>,
    /// Which snapshot it gets.
    pub(super) key: Arc<str>,
    pub(super) described: Node,
}

/// Everything known about one stream.
#[derive(Debug)]
pub(super) struct Session {
    stream: u64,
    dialect: Dialect,
    node: Option<Client>,
    /// In the order in which types are pushed.
    types: BTreeMap<(u8, Arc<str>), Subscription>,
    raw: VecDeque<Raw>,
    nonces: u64,
}

/// Clusters before what refers to them: "make before break" (xDS protocol, "Eventual consistency considerations").
fn push_order(type_url: &str) -> u8 {
    match Kind::from_type_url(type_url) {
        Some(Kind::Cluster) => 0,
        Some(Kind::Endpoints) => 1,
        Some(Kind::Listener) => 2,
        Some(Kind::RouteConfig) => 3,
        Some(Kind::Other(_)) | None => 4,
    }
}

/// In which order types are pruned: "stale CDS clusters and related EDS endpoints (ones no longer being referenced) can
/// then be removed".
const REMOVAL_ORDER: [u8; 5] = [2, 3, 0, 1, 4];

impl Session {
    pub(super) fn new(stream: u64, dialect: Dialect) -> Self {
        Self { stream, dialect, node: None, types: BTreeMap::new(), raw: VecDeque::new(), nonces: 0 }
    }

    /// The client, known from the first request on.
    pub(super) fn node(&self) -> Option<&Client> {
        self.node.as_ref()
    }

    /// Takes a request in; returns what it was. `key` says which snapshot a node gets.
    pub(super) fn received(&mut self, asked: Asked, manners: Manners, key: impl FnOnce(&Node) -> String) -> Event {
        // "Only the first request on a stream is guaranteed to carry the node identifier." - DiscoveryRequest
        let client = self.node.get_or_insert_with(|| {
            let described = asked.node.unwrap_or_default();
            Client { id: described.id.as_str().into(), key: key(&described).into(), described }
        });
        let node = client.id.clone();
        let dialect = self.dialect;
        let subscription = Self::of_type(&mut self.types, &asked.type_url, dialect);
        let verdict = subscription.judge(&asked.nonce, asked.error.as_ref());
        let counts = match (&verdict, dialect, manners) {
            (_, Dialect::Delta, _) => true,
            (Verdict::Stale, ..) => false,
            (Verdict::Nack { .. }, _, Manners::Istiod) => false,
            _ => true,
        };
        if counts {
            subscription.ask(&asked.names, manners);
        }
        let (names, unsubscribed, held) = asked.names.into_parts();
        Event::Request {
            stream: self.stream,
            node,
            type_url: asked.type_url,
            version: asked.version,
            nonce: asked.nonce,
            names,
            unsubscribed,
            held,
            verdict,
        }
    }

    /// Queues a hand-made response; it overtakes everything else.
    pub(super) fn push_raw(&mut self, raw: Raw) {
        self.raw.push_back(raw);
    }

    /// The next answer that the client should get, if any. Free for types of which nothing changed.
    pub(super) fn next(&mut self, snapshot: &Snapshot, hooks: &Arc<Hooks>, observed: bool) -> Option<Answer> {
        if let Some(raw) = self.raw.pop_front() {
            let (type_url, version) = (Arc::from(&*raw.type_url), raw.version.clone());
            return Some(self.answer(&type_url, version, &Content::Raw(raw), observed));
        }
        if hooks.silent {
            return None;
        }
        let (type_url, news) = self.news(snapshot, hooks)?;
        // An empty version would make the ACK look like a NACK of a client that accepted nothing yet.
        let mut version = snapshot.set(&type_url).map_or_else(|| "0".to_owned(), |set| set.version.clone());
        if news.has_stale {
            // On the way to that version.
            version.push('+');
        }
        Some(self.answer(&type_url, version, &Content::News(news), observed))
    }

    fn news(&mut self, snapshot: &Snapshot, hooks: &Arc<Hooks>) -> Option<(Arc<str>, News)> {
        let nonce = self.nonces + 1;
        let is_free = |type_url: &str| !hooks.held.contains(type_url);
        let unsettled = |((_, url), subscription): (&(u8, Arc<str>), &mut Subscription)| {
            is_free(url) && subscription.is_unsettled(snapshot.set(url), hooks)
        };
        let alone = self.types.iter_mut().map(unsettled).filter(|unsettled| *unsettled).count() < 2;
        for ((_, type_url), subscription) in self.types.iter_mut().filter(|((_, url), _)| is_free(url)) {
            if let Some(news) = subscription.updates(snapshot.set(type_url), hooks, nonce, alone) {
                return Some((type_url.clone(), news));
            }
        }
        for order in REMOVAL_ORDER {
            let of_order = self.types.iter_mut().filter(|((of_type, url), _)| *of_type == order && is_free(url));
            for ((_, type_url), subscription) in of_order {
                if let Some(news) = subscription.removals(nonce) {
                    return Some((type_url.clone(), news));
                }
            }
        }
        None
    }

    fn answer(&mut self, type_url: &Arc<str>, version: String, content: &Content, observed: bool) -> Answer {
        self.nonces += 1;
        // Unsolicited only for hand-made responses: everything else has a subscription already.
        Self::of_type(&mut self.types, type_url, self.dialect).answered_with(self.nonces);
        let nonce = self.nonces.to_string();
        let pieces = content.encode(self.dialect, type_url, &version, &nonce);
        let event = observed.then(|| Event::Response {
            stream: self.stream,
            node: self.node.as_ref().map(|client| client.id.clone()).unwrap_or_default(),
            type_url: type_url.to_string(),
            version,
            nonce,
            names: content.names(),
            removed: content.removed(),
        });
        Answer { event, pieces }
    }

    fn of_type<'a>(
        types: &'a mut BTreeMap<(u8, Arc<str>), Subscription>,
        type_url: &str,
        dialect: Dialect,
    ) -> &'a mut Subscription {
        let key = (push_order(type_url), Arc::<str>::from(type_url));
        let name = key.1.clone();
        types.entry(key).or_insert_with(|| Subscription::new(&name, dialect))
    }

    // === Questions ===

    /// Whether the client has acknowledged `current` as the state of this resource.
    pub(super) fn has_acked(&self, type_url: &str, name: &str, current: Option<&Arc<Entry>>) -> bool {
        self.subscription(type_url).is_some_and(|subscription| subscription.has_acked(&canonical(name), current))
    }

    /// Why the newest answered response of this type was refused, if it was.
    pub(super) fn nack(&self, type_url: &str) -> Option<&str> {
        self.subscription(type_url)?.nack()
    }

    /// Whether the client is subscribed to this name.
    pub(super) fn wants(&self, type_url: &str, name: &str) -> bool {
        self.subscription(type_url).is_some_and(|subscription| subscription.wants(&canonical(name)))
    }

    fn subscription(&self, type_url: &str) -> Option<&Subscription> {
        self.types.get(&(push_order(type_url), type_url.into()))
    }
}
