//! Small control planes, one per variant of the protocol, written from its rules and not from our client.
//!
//! They assert what a client must never do. What lies between them and the client is `run`'s.

use super::{
    script::Manners,
    world::{ERROR, World, resource, spelled},
};
use crate::{
    ads::{Asks, Request, Response},
    name::canonical_string,
    resource::{ByKind, Kind, Received, ReportedError},
};
use std::collections::{BTreeMap, BTreeSet};

type Numbers = BTreeMap<&'static str, u32>;

/// One stream, as its server sees it.
#[derive(Debug)]
pub(super) struct Server {
    manners: Manners,
    /// What it may be asked for: those of its authorities.
    names: Vec<&'static str>,
    saw_node: bool,
    types: ByKind<Subscription>,
    nonces: u32,
    /// Of the last push; istiod's answers carry it.
    pushes: u32,
    /// On their way to the client.
    pub(super) responses: Vec<Response>,
    /// Nonces that have not been answered.
    pub(super) unanswered: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Subscription {
    asked: bool,
    names: BTreeSet<&'static str>,
    /// Delta: what the client has said, whatever the server forgot of it.
    said: BTreeSet<&'static str>,
    /// Delta: nothing was left of an LDS or CDS subscription, so now it is one for everything (istiod), and stays so.
    wildcard: bool,
    /// SotW: of the newest response.
    nonce: String,
    /// What the client has, as far as the server told.
    told: Numbers,
}

impl Server {
    pub(super) fn new(manners: Manners, names: Vec<&'static str>) -> Self {
        Self {
            manners,
            names,
            saw_node: false,
            types: ByKind::default(),
            nonces: 0,
            pushes: 0,
            responses: Vec::new(),
            unanswered: BTreeSet::new(),
        }
    }

    /// What the client is subscribed to, as the server believes.
    pub(super) fn names(&self, kind: Kind) -> BTreeSet<String> {
        let names = self.types.get(kind).map(|subscription| &subscription.names);
        names.into_iter().flatten().map(|name| (*name).to_owned()).collect()
    }

    pub(super) fn hears(&mut self, request: &Request, world: &World) {
        assert_eq!(request.with_node, !self.saw_node, "the node is in the first request, and in no other");
        self.saw_node = true;
        let is_answer = self.unanswered.remove(&*request.nonce);
        assert!(request.nack.is_none() || is_answer, "a response is refused once: {request:?}");
        match &request.asks {
            Asks::All { names, .. } => {
                assert!(!self.manners.delta, "the variant of the bootstrap");
                let names = self.known(names.iter().map(|name| &**name));
                self.hears_all(request, names, world);
            }
            Asks::Change { subscribe, unsubscribe, held } => {
                assert!(self.manners.delta, "the variant of the bootstrap");
                assert!(request.nonce.is_empty() || is_answer, "a nonce is said once: {request:?}");
                let held = held.iter().map(|(name, version)| {
                    let name = self.known([&**name]).pop_first().expect("one of ours");
                    (name, version.parse().expect("one of ours"))
                });
                let [subscribe, unsubscribe] =
                    [subscribe, unsubscribe].map(|names| self.known(names.iter().map(|name| &**name)));
                self.hears_change(request, subscribe, unsubscribe, held.collect(), world);
            }
        }
    }

    /// The world changed.
    pub(super) fn tells(&mut self, kind: Kind, world: &World) {
        self.pushes += 1;
        if !self.manners.delta {
            return self.push_all(kind, world);
        }
        let subscription = self.types.of(kind);
        let told = |name: &&'static str| subscription.wildcard || subscription.names.contains(name);
        let is_due = |name: &&'static str| world.get(&(kind, *name)) != subscription.told.get(*name);
        let due: BTreeSet<_> = self.names.iter().copied().filter(told).filter(is_due).collect();
        if self.manners.istiod {
            // A removal ends the subscription, too.
            subscription.names.retain(|name| !due.contains(name) || world.contains_key(&(kind, *name)));
        }
        self.send_change(kind, &due, world);
    }

    // === State of the world ===

    fn hears_all(&mut self, request: &Request, names: BTreeSet<&'static str>, world: &World) {
        assert!(!names.is_empty() || !request.kind.is_full_state(), "an empty LDS or CDS list is a wildcard");
        let subscription = self.types.of(request.kind);
        let is_stale = *request.nonce != subscription.nonce;
        if is_stale || (request.nack.is_some() && self.manners.istiod) {
            return;
        }
        let is_more = !subscription.asked || names.difference(&subscription.names).next().is_some();
        subscription.asked = true;
        subscription.told.retain(|name, _| names.contains(name));
        subscription.names = names;
        if is_more {
            self.push_all(request.kind, world);
        }
    }

    /// "LDS/CDS answers are always the full set of subscribed names; EDS pushes are partial" - istiod.
    fn push_all(&mut self, kind: Kind, world: &World) {
        let subscription = self.types.of(kind);
        let has = |name: &&'static str| Some((*name, *world.get(&(kind, *name))?));
        let mut due: Numbers = subscription.names.iter().filter_map(has).collect();
        if !kind.is_full_state() {
            due.retain(|name, number| subscription.told.get(name) != Some(number));
        }
        if subscription.names.is_empty() || (due.is_empty() && !kind.is_full_state()) {
            return;
        }
        subscription.told.extend(due.clone());
        let nonce = self.send(kind, due, Vec::new());
        self.types.of(kind).nonce = nonce;
    }

    // === Delta ===

    fn hears_change(
        &mut self,
        request: &Request,
        subscribe: BTreeSet<&'static str>,
        unsubscribe: BTreeSet<&'static str>,
        held: Numbers,
        world: &World,
    ) {
        let kind = request.kind;
        let subscription = self.types.of(kind);
        let is_first = !std::mem::replace(&mut subscription.asked, true);
        assert!(!is_first || !subscribe.is_empty(), "a first request without names is a wildcard");
        assert!(is_first || held.is_empty(), "versions are told in the first request of a stream");
        if request.nack.is_some() && self.manners.istiod {
            return;
        }
        for name in &unsubscribe {
            subscription.said.remove(name);
            subscription.names.remove(name);
            subscription.told.remove(name);
        }
        subscription.said.extend(&subscribe);
        subscription.names.extend(&subscribe);
        if kind.is_full_state() && subscription.names.is_empty() {
            // The client can not know what was forgotten a moment ago; what it says itself must not come to this.
            assert!(!subscription.said.is_empty(), "an LDS or CDS subscription without names is a wildcard");
            subscription.wildcard = true;
        }
        // What is subscribed is sent, known or not, but for what the client says to have.
        let is_held = |name: &&&str| world.get(&(kind, **name)).is_some_and(|number| held.get(**name) == Some(number));
        let same: BTreeSet<_> = subscribe.iter().filter(is_held).copied().collect();
        subscription.told.extend(held);
        self.send_change(kind, &subscribe.difference(&same).copied().collect(), world);
    }

    fn send_change(&mut self, kind: Kind, due: &BTreeSet<&'static str>, world: &World) {
        let subscription = self.types.of(kind);
        let mut resources = Numbers::new();
        let mut removed = Vec::new();
        for name in due {
            match world.get(&(kind, *name)) {
                Some(number) => {
                    subscription.told.insert(name, *number);
                    resources.insert(name, *number);
                }
                None => {
                    if subscription.told.remove(name).is_some() || self.manners.says_absent {
                        removed.push((*name).to_owned());
                    }
                }
            }
        }
        if !resources.is_empty() || !removed.is_empty() {
            self.send(kind, resources, removed);
        }
    }

    fn send(&mut self, kind: Kind, numbers: Numbers, removed: Vec<String>) -> String {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        self.unanswered.insert(nonce.clone());
        let (mut resources, mut errors) = (Vec::new(), Vec::new());
        // Nobody has to write a name as the client does; `decode` and `messages` see to that.
        let how = self.nonces as usize;
        let arrives = |name: &str| canonical_string(spelled(name, how));
        for (name, number) in numbers {
            if number >= ERROR {
                let code = i32::try_from(number - ERROR).expect("a code");
                errors.push(ReportedError { name: arrives(name), code, message: "reported".to_owned() });
                continue;
            }
            resources.push(Received {
                name: Some(arrives(name)),
                value: resource(kind, name, number),
                version: self.manners.delta.then(|| number.to_string().into()),
                ignored: Vec::new(),
                raw: bytes::Bytes::new(),
            });
        }
        let version = if self.manners.istiod { self.pushes.to_string() } else { "constant".to_owned() };
        let removed = removed.iter().map(|name| arrives(name)).collect();
        let response =
            Response { kind, version: version.into(), nonce: nonce.as_str().into(), resources, removed, errors };
        self.responses.push(response);
        nonce
    }

    /// The oldest response of the `nth` type that has one: servers answer types in any order.
    pub(super) fn next(&mut self, nth: usize) -> Option<Response> {
        let kinds: BTreeSet<_> = self.responses.iter().map(|response| response.kind).collect();
        let kind = *kinds.iter().nth(nth % kinds.len().max(1))?;
        let index = self.responses.iter().position(|response| response.kind == kind)?;
        Some(self.responses.remove(index))
    }

    /// The same names, of ours.
    fn known<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'static str> {
        let find = |name: &str| self.names.iter().find(|known| **known == name).copied();
        let expect = |name| find(name).unwrap_or_else(|| panic!("others answer for {name:?}"));
        names.into_iter().map(expect).collect()
    }
}
