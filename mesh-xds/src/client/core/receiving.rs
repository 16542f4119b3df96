//! A response, taken in piece by piece and answered once.
//!
//! ```text
//! removed names ─► resources ─► errors ─► what a full-state response leaves out ─► ACK or NACK
//! ```
//!
//! It may have 10,000 of each, so a slice of the turn takes in what its budget allows. Only when everything is in, is it
//! known what is missing and what there is to refuse. It does NOT assemble.

use super::{Core, complaints::Complaints};
use crate::{
    ads::{Response, Verdict},
    bootstrap::ServerId,
    budget::Budget,
    cache::{Cache, Lookup, Said},
    resource::{Kind, Received, ReportedError},
};
use rustc_hash::FxHashSet;
use std::{sync::Arc, vec};
use tokio::time::Instant;

/// The response that the turn is about, and what is left of it.
#[derive(Debug)]
pub(super) struct Receiving {
    server: ServerId,
    kind: Kind,
    nonce: Arc<str>,
    said: Said,
    removed: vec::IntoIter<String>,
    resources: vec::IntoIter<Received>,
    errors: vec::IntoIter<ReportedError>,
    /// Known once everything else is in.
    omitted: Option<vec::IntoIter<Arc<str>>>,
    /// What it has something of, if it matters what it leaves out.
    present: Option<FxHashSet<String>>,
    complaints: Complaints,
}

impl Core {
    /// A response has come.
    pub(super) fn received(&mut self, server: ServerId, response: Response, cache: &mut Cache, now: Instant) {
        let Response { kind, version, nonce, resources, removed, errors } = response;
        if !self.protocol(server).asked(kind) {
            // "Response with a type URL never requested: neither ACK nor NACK" - grpc-go.
            return;
        }
        self.reachable(cache);
        self.receiving = Some(Receiving {
            server,
            kind,
            nonce,
            said: Said { version, at: now },
            // First: should a response remove what it also brings, then it is there.
            removed: removed.into_iter(),
            resources: resources.into_iter(),
            errors: errors.into_iter(),
            omitted: None,
            present: self.protocol(server).absence_is_deletion(kind).then(FxHashSet::default),
            complaints: Complaints::default(),
        });
    }

    /// Takes in what the budget allows. Returns whether there is nothing more to take in.
    pub(super) fn take_in(&mut self, caches: &mut [Cache], now: Instant, budget: &mut Budget) -> bool {
        let Some(mut response) = self.receiving.take() else { return true };
        let cache = &mut caches[response.server.index()];
        while !budget.is_spent() {
            budget.spend();
            if let Some(name) = response.removed.next() {
                self.is_removed(&response, &name, cache, now);
            } else if let Some(received) = response.resources.next() {
                self.is_there(&mut response, received, cache, now);
            } else if let Some(error) = response.errors.next() {
                self.is_an_error(&mut response, error, cache, now);
            } else if let Some(name) = response.omitted(cache).next() {
                let change = cache.removed(response.kind, &name, &response.said);
                self.changed(response.server, response.kind, &name, change, now);
            } else {
                self.answer(response, now);
                return true;
            }
        }
        self.receiving = Some(response);
        false
    }

    fn is_removed(&mut self, response: &Receiving, name: &str, cache: &mut Cache, now: Instant) {
        let (server, kind) = (response.server, response.kind);
        if self.protocol(server).is_subscribed(kind, name) {
            let held = cache.holds(kind, name);
            let change = cache.removed(kind, name, &response.said);
            match cache.lookup(kind, name) {
                Lookup::Absent(_) => self.protocol(server).removed_early(kind, name),
                _ => self.protocol(server).removed(kind, name, held),
            }
            self.changed(server, kind, name, change, now);
        }
    }

    fn is_there(&mut self, response: &mut Receiving, received: Received, cache: &mut Cache, now: Instant) {
        let (server, kind) = (response.server, response.kind);
        let Some(name) = received.name.clone() else {
            // "a resource that cannot be decoded has no name, .. and affects no watcher" - A46.
            response.complaints.nameless(kind, &received);
            return;
        };
        if !self.protocol(server).is_subscribed(kind, &name) {
            return;
        }
        response.complaints.add(kind, &name, &received);
        self.protocol(server).answered(kind, &name);
        let version = received.version.as_ref().unwrap_or(&response.said.version);
        let said = Said { version: Arc::clone(version), at: response.said.at };
        let change = cache.received(kind, &name, received, &said);
        self.changed(server, kind, &name, change, now);
        response.has(name);
    }

    fn is_an_error(&mut self, response: &mut Receiving, error: ReportedError, cache: &mut Cache, now: Instant) {
        let (server, kind) = (response.server, response.kind);
        if !self.protocol(server).is_subscribed(kind, &error.name) {
            return;
        }
        // "a status of NOT_FOUND should be treated the same as .. removed_resources" - DeltaDiscoveryResponse.
        if error.is_not_found() {
            self.protocol(server).removed(kind, &error.name, cache.holds(kind, &error.name));
        } else {
            self.protocol(server).answered(kind, &error.name);
        }
        let change = cache.reported(kind, &error, &response.said);
        self.changed(server, kind, &error.name, change, now);
        response.has(error.name);
    }

    fn answer(&mut self, response: Receiving, now: Instant) {
        let Receiving { server, kind, nonce, said: Said { version, .. }, complaints, .. } = response;
        let verdict = complaints.verdict();
        if let Verdict::Nack(reason) = &verdict
            && let Some(suppressed) = self.nacks.permit(now)
        {
            tracing::warn!(%kind, %version, %reason, suppressed, "xDS response NACKed");
        }
        self.protocol(server).acknowledge(kind, &version, &nonce, verdict);
    }
}

impl Receiving {
    fn has(&mut self, name: String) {
        if let Some(present) = &mut self.present {
            present.insert(name);
        }
    }

    /// What it takes away by not having it; to be asked when everything else is in.
    fn omitted(&mut self, cache: &Cache) -> &mut vec::IntoIter<Arc<str>> {
        self.omitted.get_or_insert_with(|| {
            // A resource without a name may be any of those that seem to be missing.
            let present = self.present.as_ref().filter(|_| !self.complaints.any_nameless());
            let omitted = present.map(|present| cache.omitted(self.kind, |name| present.contains(name)));
            omitted.unwrap_or_default().into_iter()
        })
    }
}
