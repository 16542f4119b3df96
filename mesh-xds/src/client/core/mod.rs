//! The machines joined, without I/O: one synchronous turn per input.
//!
//! ```text
//! input ─► protocol, cache ─► assembler.settle() ─► protocol.update() ─► requests
//!                                   └─► new Targets
//! ```
//!
//! It decides nothing itself: `protocol` knows what to say, `cache` what survives an error, `assemble` what is
//! needed. Time comes in as a value, and the cache too, since `status()` reads it between turns.

mod views;

use super::complaints::Complaints;
use crate::{
    Bootstrap,
    ads::{Protocol, Request, Response, Verdict},
    assemble::{Needs, Subject, TargetId, Value},
    bootstrap::{ServerId, XdsServer},
    cache::{Cache, Change, Lookup, Said},
    dns::Answered,
    log::Limiter,
    resource::{DnsName, Kind, Received},
};
use rustc_hash::FxHashSet;
use std::sync::Arc;
use tokio::time::Instant;
use views::Views;

/// What can happen.
#[derive(Debug)]
pub(super) enum Input {
    /// A target is watched from now on.
    Added(TargetId, Subject),
    /// Nobody watches it any more.
    Removed(TargetId),
    /// A server's stream is up.
    Connected(ServerId),
    /// It took a request.
    Sent { server: ServerId, kind: Kind, serial: u64 },
    /// It brought a response.
    Received(ServerId, Response),
    /// It is down, and why, when nothing was received on it.
    Disconnected { server: ServerId, cause: Option<String> },
    /// Nobody tries to reach the server, since nothing is subscribed there.
    Idle(ServerId),
    /// A DNS lookup is done.
    Answered(Answered),
    /// [`Core::next_deadline`] has come.
    TimerFired,
}

/// Protocol and assembly of one client.
#[derive(Debug)]
pub(super) struct Core {
    bootstrap: Arc<Bootstrap>,
    /// By server.
    protocols: Vec<Protocol>,
    views: Views,
    /// Names that became needed or stopped being needed in the last turn.
    names: Needs<DnsName>,
    errors: Limiter,
    nacks: Limiter,
    ignored: Limiter,
}

impl Core {
    pub(super) fn new(bootstrap: Arc<Bootstrap>) -> Self {
        let protocol =
            |server: &XdsServer| Protocol::new(server.transport(), server.resource_timeout(&bootstrap.transport));
        Self {
            protocols: bootstrap.servers().map(|(_, server)| protocol(server)).collect(),
            views: Views::new(&bootstrap.authorities),
            names: Needs::default(),
            bootstrap,
            errors: Limiter::default(),
            nacks: Limiter::default(),
            ignored: Limiter::default(),
        }
    }

    /// One turn. `caches` are in the order of the servers' numbers. Returns the subjects that have a new value.
    pub(super) fn turn(&mut self, caches: &mut [Cache], input: Input, now: Instant) -> Vec<(TargetId, Value)> {
        match input {
            Input::Added(id, subject) => self.views.add(id, subject),
            Input::Removed(id) => self.views.remove(id),
            Input::TimerFired => self.expire(caches, now),
            Input::Answered(answered) => self.views.answered(answered),
            Input::Connected(server) => {
                let cache = &caches[server.index()];
                self.protocol(server).connected(|kind, name| cache.held_version(kind, name));
            }
            Input::Sent { server, kind, serial } => {
                self.protocol(server).sent(kind, serial, now);
                // Who has nothing to tell, does not answer: a delta server whose resources are all held, or a SotW server
                // that is told its own version.
                let cache = &mut caches[server.index()];
                if !cache.is_reachable() && self.protocol(server).awaits_nothing() {
                    self.reachable(cache);
                }
            }
            Input::Received(server, response) => self.received(server, response, &mut caches[server.index()], now),
            Input::Disconnected { server, cause } => self.disconnected(server, cause, &mut caches[server.index()]),
            // Who comes next waits for a dial, instead of failing for what was true long ago.
            Input::Idle(server) => self.reachable(&mut caches[server.index()]),
        }
        let settled = self.views.settle(&self.bootstrap.authorities, caches);
        for ((server, kind), needs) in settled.needs {
            let cache = &mut caches[server.index()];
            for name in &needs.watch {
                cache.requested(kind, name);
            }
            for name in self.protocol(server).update(kind, &needs.watch, &needs.unwatch) {
                cache.forget(kind, &name);
            }
        }
        self.names = settled.names;
        settled.publish
    }

    /// Names to be looked up from now on, and those not any more: to be taken after each turn.
    pub(super) fn take_names(&mut self) -> Needs<DnsName> {
        std::mem::take(&mut self.names)
    }

    /// Subjects of which more is ACKed than they serve: a part that the news refers to is missing.
    pub(super) fn behind(&self) -> impl Iterator<Item = TargetId> {
        self.views.behind()
    }

    /// What uses a resource of a server.
    pub(super) fn users(&self, server: ServerId, kind: Kind, name: &str) -> impl Iterator<Item = &Subject> {
        self.views.users(&self.bootstrap.authorities, server, kind, name)
    }

    /// What has to be sent to a server, in order.
    pub(super) fn take_requests(&mut self, server: ServerId) -> Vec<Request> {
        self.protocol(server).take_requests()
    }

    /// Whether a stream to a server is worth having. A fallback's is only while something falls back (A71); a
    /// preferred one that is up stays.
    pub(super) fn wants_stream(&self, server: ServerId) -> bool {
        let protocol = &self.protocols[server.index()];
        match self.bootstrap.authorities.is_preferred(server) {
            true => protocol.has_subscriptions(),
            false => protocol.is_wanted(),
        }
    }

    /// When the next turn is due without anything else happening.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.protocols.iter().filter_map(Protocol::next_deadline).min()
    }

    /// There is one for each server, and ids come from the same bootstrap.
    fn protocol(&mut self, server: ServerId) -> &mut Protocol {
        &mut self.protocols[server.index()]
    }

    fn expire(&mut self, caches: &mut [Cache], now: Instant) {
        let bootstrap = Arc::clone(&self.bootstrap);
        for (id, server) in bootstrap.servers() {
            let timeout = server.resource_timeout(&bootstrap.transport);
            for (kind, name) in self.protocol(id).expire(now) {
                // A stream that is up and silent is no outage.
                self.reachable(&mut caches[id.index()]);
                let change = caches[id.index()].timed_out(kind, &name, timeout, now);
                self.changed(id, kind, &name, change, now);
            }
        }
    }

    fn disconnected(&mut self, server: ServerId, cause: Option<String>, cache: &mut Cache) {
        for (kind, name) in self.protocol(server).disconnected() {
            cache.forget(kind, &name);
        }
        // "Stream ended after >= 1 response = not an error, no watcher call" - A57.
        if let Some(cause) = cause
            && cache.unreachable(&cause)
        {
            self.views.all_changed();
        }
    }

    fn reachable(&mut self, cache: &mut Cache) {
        if cache.reachable() {
            self.views.all_changed();
        }
    }

    fn received(&mut self, server: ServerId, response: Response, cache: &mut Cache, now: Instant) {
        let Response { kind, version, nonce, resources, removed, errors } = response;
        if !self.protocol(server).asked(kind) {
            // "Response with a type URL never requested: neither ACK nor NACK" - grpc-go.
            return;
        }
        self.reachable(cache);
        let said = Said { version: Arc::clone(&version), at: now };
        let mut present = FxHashSet::default();
        let mut complaints = Complaints::default();
        // First: should a response remove what it also brings, then it is there.
        for name in removed {
            if self.protocol(server).is_subscribed(kind, &name) {
                let held = cache.holds(kind, &name);
                let change = cache.removed(kind, &name, &said);
                match cache.lookup(kind, &name) {
                    Lookup::Absent(_) => self.protocol(server).removed_early(kind, &name),
                    _ => self.protocol(server).removed(kind, &name, held),
                }
                self.changed(server, kind, &name, change, now);
            }
        }
        for received in resources {
            let Received { name: Some(name), .. } = &received else {
                // "a resource that cannot be decoded has no name, .. and affects no watcher" - A46.
                complaints.nameless(kind, &received);
                continue;
            };
            if !self.protocol(server).is_subscribed(kind, name) {
                continue;
            }
            let name = name.clone();
            complaints.add(kind, &name, &received);
            self.protocol(server).answered(kind, &name);
            let said = Said { version: received.version.clone().unwrap_or_else(|| Arc::clone(&version)), at: now };
            let change = cache.received(kind, &name, received, &said);
            self.changed(server, kind, &name, change, now);
            present.insert(name);
        }
        for error in errors {
            if !self.protocol(server).is_subscribed(kind, &error.name) {
                continue;
            }
            // "a status of NOT_FOUND should be treated the same as .. removed_resources" - DeltaDiscoveryResponse.
            if error.is_not_found() {
                self.protocol(server).removed(kind, &error.name, cache.holds(kind, &error.name));
            } else {
                self.protocol(server).answered(kind, &error.name);
            }
            let change = cache.reported(kind, &error, &said);
            self.changed(server, kind, &error.name, change, now);
            present.insert(error.name);
        }
        // A resource without a name may be any of those that seem to be missing.
        if self.protocol(server).absence_is_deletion(kind) && !complaints.any_nameless() {
            for (name, change) in cache.omitted(kind, |name| present.contains(name), &said) {
                self.changed(server, kind, &name, change, now);
            }
        }
        let verdict = complaints.verdict();
        if let Verdict::Nack(reason) = &verdict
            && let Some(suppressed) = self.nacks.permit(now)
        {
            tracing::warn!(%kind, %version, %reason, suppressed, "xDS response NACKed");
        }
        self.protocol(server).acknowledge(kind, &version, &nonce, verdict);
    }

    fn changed(&mut self, server: ServerId, kind: Kind, name: &str, change: Change, now: Instant) {
        if change.visible {
            self.views.changed(&self.bootstrap.authorities, server, kind, name);
        }
        if let Some(error) = change.new_error
            && let Some(suppressed) = self.errors.permit(now)
        {
            tracing::warn!(%kind, resource = name, %error, suppressed, "xDS resource error");
        }
        for field in change.newly_ignored {
            if let Some(suppressed) = self.ignored.permit(now) {
                let (path, reason) = (field.path, field.reason);
                tracing::info!(%kind, resource = name, path, reason, suppressed, "xDS field has no effect");
            }
        }
    }
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
