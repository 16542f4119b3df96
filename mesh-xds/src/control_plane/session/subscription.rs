//! What one stream was told about one resource type, and what it must be told next.
//!
//! Pure bookkeeping: names wanted, entries sent, the newest nonce and its verdict. It does NOT build responses.

use crate::{
    control_plane::{
        events::Verdict,
        hooks::Hooks,
        snapshot::{Entry, TypeSet, same_entries},
    },
    resource::Kind,
};
use envoy_types::pb::google::rpc::Status;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

#[derive(Debug, Default)]
pub(super) struct Subscription {
    names: BTreeSet<Arc<str>>,
    wildcard: bool,
    /// The client has named resources before, so that an empty list is no wildcard any more.
    has_named: bool,
    /// An answer is owed even if no resource changed: first request, or names were added.
    pub(super) due: bool,
    /// The newest nonce; empty before the first answer.
    pub(super) nonce: String,
    pub(super) verdict: Option<Verdict>,
    /// What the client was last told about each resource that it is subscribed to.
    pub(super) sent: BTreeMap<Arc<str>, Arc<Entry>>,
    /// What `sent` was computed from: nothing is due while it is the same.
    seen: Option<(Option<Arc<TypeSet>>, Arc<Hooks>)>,
}

pub(super) fn is_full_state(type_url: &str) -> bool {
    Kind::from_type_url(type_url).is_some_and(Kind::is_full_state)
}

impl Subscription {
    pub(super) fn classify(&self, nonce: &str, error: Option<Status>) -> Verdict {
        match error {
            // Before the first answer a nonce can only be left over from an earlier stream; without a nonce the client
            // had not seen our answer yet: both change the subscription and judge nothing.
            _ if nonce.is_empty() || self.nonce.is_empty() => Verdict::Request,
            _ if nonce != self.nonce => Verdict::Stale,
            Some(status) => Verdict::Nack { message: status.message },
            // A second request with the same nonce changes names only; go-control-plane counts it as an ACK too.
            None => match &self.verdict {
                Some(Verdict::Nack { .. }) => Verdict::Request,
                _ => Verdict::Ack,
            },
        }
    }

    pub(super) fn subscribe(&mut self, names: &[String], full_state: bool) {
        // "the client may send an empty list: wildcard", but only while it never named a resource on this stream;
        // afterwards an empty list unsubscribes (xDS protocol, "How the client specifies what resources to return").
        let wildcard = full_state && (names.iter().any(|name| name == "*") || (names.is_empty() && !self.has_named));
        self.has_named |= !names.is_empty();
        let listed = names.iter().filter(|name| !(full_state && *name == "*")).count();
        let unchanged = wildcard == self.wildcard
            && listed == self.names.len()
            && names.iter().all(|name| name == "*" || self.names.contains(name.as_str()));
        if unchanged {
            return;
        }
        let before = std::mem::take(&mut self.names);
        self.names =
            names.iter().filter(|name| !(full_state && *name == "*")).map(|name| name.as_str().into()).collect();
        self.due |= (wildcard && !self.wildcard) || self.names.iter().any(|name| !before.contains(name));
        self.wildcard = wildcard;
        // What was unsubscribed is forgotten, so that it is told again when it is wanted again.
        if !wildcard {
            let names = &self.names;
            self.sent.retain(|name, _| names.contains(name));
        }
        self.seen = None;
    }

    pub(super) fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// What to send now; `None` when the client already knows everything.
    pub(super) fn turn(
        &mut self,
        type_url: &str,
        set: Option<&Arc<TypeSet>>,
        hooks: &Arc<Hooks>,
    ) -> Option<Vec<Arc<Entry>>> {
        let unchanged = self.seen.as_ref().is_some_and(|(seen_set, seen_hooks)| {
            Arc::ptr_eq(seen_hooks, hooks) && seen_set.as_ref().map(Arc::as_ptr) == set.map(Arc::as_ptr)
        });
        if unchanged && !self.due {
            return None;
        }
        let visible = self.visible(type_url, set, hooks);
        self.seen = Some((set.cloned(), hooks.clone()));
        let entries: Vec<_> = if is_full_state(type_url) {
            if !self.due && same_entries(&visible, &self.sent) {
                return None;
            }
            visible.values().cloned().collect()
        } else {
            let known = |entry: &Arc<Entry>| self.sent.get(&entry.name).is_some_and(|sent| Arc::ptr_eq(sent, entry));
            visible.values().filter(|entry| !known(entry)).cloned().collect()
        };
        self.sent = visible;
        // Absence means nothing outside LDS and CDS, so that a removal alone is not told.
        (std::mem::take(&mut self.due) || is_full_state(type_url) || !entries.is_empty()).then_some(entries)
    }

    fn visible(&self, type_url: &str, set: Option<&Arc<TypeSet>>, hooks: &Hooks) -> BTreeMap<Arc<str>, Arc<Entry>> {
        let withheld = hooks.withheld.get(type_url);
        let is_withheld = |name: &str| withheld.is_some_and(|names| names.contains(name));
        let exists = |name: &Arc<str>| match is_withheld(name) {
            // A withheld resource stays as this client knows it.
            true => self.sent.get(name),
            false => set.and_then(|set| set.entries.get(name)),
        };
        if self.wildcard {
            let everything = set.into_iter().flat_map(|set| set.entries.keys());
            let kept = self.sent.keys().filter(|name| is_withheld(name));
            return everything.chain(kept).filter_map(|name| Some((name.clone(), exists(name)?.clone()))).collect();
        }
        self.names.iter().filter_map(|name| Some((name.clone(), exists(name)?.clone()))).collect()
    }
}
