//! Which resources of one type a client wants: names, and the wildcard with its history.
//!
//! SotW replaces the list with each request, delta changes it; both end up here. What the client was told is NOT known
//! here.

use super::request::Manners;
use std::{collections::BTreeSet, sync::Arc};

/// Whether all resources of the type are wanted, without naming them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wildcard {
    #[default]
    No,
    /// Nothing was ever named.
    Legacy,
    /// `*` was.
    Explicit,
}

#[derive(Debug)]
pub(super) struct Wanted {
    /// Only listeners and clusters have wildcards.
    has_wildcards: bool,
    wildcard: Wildcard,
    names: BTreeSet<Arc<str>>,
    /// Some request named something, so that naming nothing is no wildcard any more.
    has_named: bool,
}

/// What a request did to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// Something is covered now that was not.
    Grown,
    Shrunk,
}

impl Wanted {
    pub(super) fn new(has_wildcards: bool) -> Self {
        Self { has_wildcards, wildcard: Wildcard::No, names: BTreeSet::new(), has_named: false }
    }

    pub(super) fn covers(&self, name: &str) -> bool {
        self.covers_all() || self.names.contains(name)
    }

    pub(super) fn covers_all(&self) -> bool {
        self.wildcard != Wildcard::No
    }

    /// Whether it is wanted by its name, whatever the wildcard.
    pub(super) fn names(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn all_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }

    /// SotW: this is the whole list now.
    pub(super) fn replace(&mut self, names: &[String], manners: Manners) -> Change {
        let wildcard = match manners {
            Manners::Istiod if self.has_wildcards && names.is_empty() => Wildcard::Legacy,
            _ => self.wildcard_of(names),
        };
        self.has_named |= !names.is_empty();
        let listed = names.iter().filter(|name| !self.is_star(name)).count();
        let is_same = wildcard == self.wildcard
            && listed == self.names.len()
            && names.iter().all(|name| self.is_star(name) || self.names.contains(name.as_str()));
        if is_same {
            return Change::Nothing;
        }
        let names = names.iter().filter(|name| !self.is_star(name)).map(|name| name.as_str().into()).collect();
        let before = std::mem::replace(&mut self.names, names);
        let covered_all = self.covers_all();
        self.wildcard = wildcard;
        match (self.covers_all() && !covered_all) || self.names.iter().any(|name| !before.contains(name)) {
            true => Change::Grown,
            false => Change::Shrunk,
        }
    }

    /// Delta: these are wanted, too. Tells what happened to the wildcard; the names are new to whoever asks.
    pub(super) fn subscribe(&mut self, names: &[String]) -> Change {
        let covered_all = self.covers_all();
        match self.wildcard_of(names) {
            // "once the client does explicitly subscribe to a resource name (whether it be * or any other name), then
            // this legacy semantic is no longer available" - xDS protocol
            Wildcard::No if self.wildcard == Wildcard::Legacy => self.wildcard = Wildcard::No,
            // A request without names changes nothing after the first.
            Wildcard::No => {}
            wildcard => self.wildcard = wildcard,
        }
        self.has_named |= !names.is_empty();
        for name in
            names.iter().filter(|name| !self.is_star(name)).map(|name| Arc::from(name.as_str())).collect::<Vec<_>>()
        {
            self.names.insert(name);
        }
        match (covered_all, self.covers_all()) {
            (false, true) => Change::Grown,
            (true, false) => Change::Shrunk,
            _ => Change::Nothing,
        }
    }

    /// Delta: this name is not wanted any more; tells whether it was.
    pub(super) fn unsubscribe(&mut self, name: &str) -> bool {
        if self.is_star(name) {
            return std::mem::take(&mut self.wildcard) != Wildcard::No;
        }
        self.names.remove(name)
    }

    /// "if the client sends a request for a given resource type but has never explicitly subscribed to any resource
    /// names, the server should treat that identically to how it would treat the client having explicitly subscribed to
    /// *" - xDS protocol, "How the client specifies what resources to return"
    fn wildcard_of(&self, names: &[String]) -> Wildcard {
        match names {
            _ if !self.has_wildcards => Wildcard::No,
            [] if !self.has_named => Wildcard::Legacy,
            names if names.iter().any(|name| self.is_star(name)) => Wildcard::Explicit,
            _ => Wildcard::No,
        }
    }

    fn is_star(&self, name: &str) -> bool {
        self.has_wildcards && name == "*"
    }
}
