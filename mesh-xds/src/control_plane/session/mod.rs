//! One ADS stream as a state machine, without I/O: requests in, the next answer out (SotW).
//!
//! Per type:
//! ```text
//!   request ──► subscribed, an answer is due ──► answered (nonce N) ──► ACK(N)  | NACK(N, why)
//!                         ▲                                              │
//!                         └── names added, or a resource changed ────────┘      any other nonce: stale, ignored
//! ```
//! Which resources exist is in the [`Snapshot`], how to misbehave in [`Hooks`]; this file does NOT keep either, nor
//! does it know about transports or tasks. Delta will be a second machine of the same shape.

use self::subscription::{Subscription, is_full_state};
use super::{
    events::{Event, Verdict},
    hooks::Hooks,
    snapshot::{Entry, Snapshot},
};
use crate::resource::Kind;
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::core::v3::ControlPlane as Identity,
        service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    },
    google::protobuf::Any,
};
use prost::Message;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

mod subscription;
#[cfg(test)]
mod tests;

/// A DiscoveryResponse in encoded pieces, most of them shared with other streams.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) event: Option<Event>,
    pub(super) pieces: Vec<Bytes>,
}

/// A hand-made response that waits for its turn.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) type_url: String,
    pub(super) version: String,
    pub(super) resources: Vec<Any>,
}

/// Everything known about one stream.
#[derive(Debug)]
pub(super) struct Session {
    stream: u64,
    node: Option<Arc<str>>,
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

impl Session {
    pub(super) fn new(stream: u64) -> Self {
        Self { stream, node: None, types: BTreeMap::new(), raw: VecDeque::new(), nonces: 0 }
    }

    /// The node id, known from the first request on.
    pub(super) fn node(&self) -> Option<&Arc<str>> {
        self.node.as_ref()
    }

    /// Takes a request in; returns what it was.
    pub(super) fn received(&mut self, request: DiscoveryRequest) -> Event {
        // "Only the first request on a stream is guaranteed to carry the node identifier." - DiscoveryRequest
        let node = self.node.get_or_insert_with(|| request.node.map(|node| node.id).unwrap_or_default().into()).clone();
        let key = (push_order(&request.type_url), Arc::from(request.type_url.as_str()));
        let subscription = self.types.entry(key).or_default();
        let verdict = subscription.classify(&request.response_nonce, request.error_detail);
        match &verdict {
            Verdict::Stale => {}
            verdict => {
                if matches!(verdict, Verdict::Ack | Verdict::Nack { .. }) {
                    subscription.verdict = Some(verdict.clone());
                }
                subscription.subscribe(&request.resource_names, is_full_state(&request.type_url));
            }
        }
        Event::Request {
            stream: self.stream,
            node,
            type_url: request.type_url,
            version: request.version_info,
            nonce: request.response_nonce,
            names: request.resource_names,
            verdict,
        }
    }

    /// Queues a hand-made response; it overtakes everything else.
    pub(super) fn push_raw(&mut self, raw: Raw) {
        self.raw.push_back(raw);
    }

    /// The next answer that the client should get, if any. Linear in the number of subscribed names, and free for
    /// types of which nothing changed.
    pub(super) fn next(&mut self, snapshot: &Snapshot, hooks: &Arc<Hooks>, observed: bool) -> Option<Answer> {
        if let Some(raw) = self.raw.pop_front() {
            return Some(self.answer_raw(raw, observed));
        }
        if hooks.silent {
            return None;
        }
        let due = self.types.iter_mut().find_map(|((_, type_url), subscription)| {
            if hooks.held.contains(&**type_url) {
                return None;
            }
            let set = snapshot.set(type_url);
            let entries = subscription.turn(type_url, set, hooks)?;
            // An empty version would make the ACK look like a NACK of a client that accepted nothing yet.
            let version = set.map_or_else(|| "0".to_owned(), |set| set.version.clone());
            Some((type_url.clone(), version, entries))
        });
        let (type_url, version, entries) = due?;
        let names = observed.then(|| entries.iter().map(|entry| entry.name.to_string()).collect());
        let frames = entries.iter().map(|entry| entry.frame.clone());
        Some(self.answer(&type_url, version, names, frames))
    }

    /// Whether the client has acknowledged `current` as the state of this resource.
    pub(super) fn has_acked(&self, type_url: &str, name: &str, current: Option<&Arc<Entry>>) -> bool {
        self.subscription(type_url).is_some_and(|subscription| {
            let told = subscription.sent.get(name);
            let same = match (told, current) {
                (Some(told), Some(current)) => Arc::ptr_eq(told, current),
                (None, None) => subscription.covers(name),
                _ => false,
            };
            same && !subscription.due && subscription.verdict == Some(Verdict::Ack)
        })
    }

    /// Why the newest answer of this type was refused, if it was.
    pub(super) fn nack(&self, type_url: &str) -> Option<&str> {
        match self.subscription(type_url)?.verdict.as_ref()? {
            Verdict::Nack { message } => Some(message),
            _ => None,
        }
    }

    /// Whether the client is subscribed to this name.
    pub(super) fn wants(&self, type_url: &str, name: &str) -> bool {
        self.subscription(type_url).is_some_and(|subscription| subscription.covers(name))
    }

    fn subscription(&self, type_url: &str) -> Option<&Subscription> {
        self.types.get(&(push_order(type_url), type_url.into()))
    }

    fn answer_raw(&mut self, raw: Raw, observed: bool) -> Answer {
        let frame = DiscoveryResponse { resources: raw.resources, ..Default::default() }.encode_to_vec();
        self.answer(&raw.type_url, raw.version, observed.then(Vec::new), [frame.into()].into_iter())
    }

    fn answer(
        &mut self,
        type_url: &str,
        version: String,
        names: Option<Vec<String>>,
        frames: impl Iterator<Item = Bytes>,
    ) -> Answer {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        // Unsolicited only for hand-made responses: everything else has a subscription already.
        let subscription = self.types.entry((push_order(type_url), type_url.into())).or_default();
        subscription.nonce.clone_from(&nonce);
        subscription.verdict = None;
        let head = DiscoveryResponse {
            version_info: version.clone(),
            type_url: type_url.to_owned(),
            nonce: nonce.clone(),
            control_plane: Some(Identity { identifier: "mesh-xds".to_owned() }),
            ..Default::default()
        };
        let event = names.map(|names| Event::Response {
            stream: self.stream,
            node: self.node.clone().unwrap_or_default(),
            type_url: type_url.to_owned(),
            version,
            nonce,
            names,
        });
        Answer { event, pieces: std::iter::once(head.encode_to_vec().into()).chain(frames).collect() }
    }
}
