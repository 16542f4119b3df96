//! The machines joined, without I/O: one synchronous turn per input.
//!
//! ```text
//! input ─► protocol, cache ─► assembler.settle() ─► protocol.update() ─► requests
//!                                   └─► new Targets
//! ```
//!
//! It decides nothing itself: `protocol` knows what to say, `cache` what survives an error, `assemble` what is
//! needed. Time comes in as a value, and the cache too, since `status()` reads it between turns.

use super::{TargetName, complaints::Complaints};
use crate::{
    ads::{Protocol, Request, Response, Verdict},
    assemble::{Assembler, TargetId},
    bootstrap::Transport,
    cache::{Cache, Change, Said},
    log::Limiter,
    resource::{Kind, Received},
    snapshot::Target,
};
use rustc_hash::FxHashSet;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// What can happen.
#[derive(Debug)]
pub(super) enum Input {
    /// A target is watched from now on.
    Added(TargetId, TargetName),
    /// Nobody watches it any more.
    Removed(TargetId),
    /// A stream is up.
    Connected,
    /// It took a request.
    Sent { kind: Kind, serial: u64 },
    /// It brought a response.
    Received(Response),
    /// It is down, and why, when nothing was received on it.
    Disconnected { cause: Option<String> },
    /// Nobody tries to reach the server, since nothing is subscribed.
    Idle,
    /// [`Core::next_deadline`] has come.
    TimerFired,
}

/// Protocol and assembly of one client.
#[derive(Debug)]
pub(super) struct Core {
    protocol: Protocol,
    assembler: Assembler,
    /// Of the does-not-exist timers.
    timeout: Duration,
    errors: Limiter,
    nacks: Limiter,
    ignored: Limiter,
}

impl Core {
    pub(super) fn new(transport: Transport, timeout: Duration) -> Self {
        Self {
            protocol: Protocol::new(transport, timeout),
            assembler: Assembler::default(),
            timeout,
            errors: Limiter::default(),
            nacks: Limiter::default(),
            ignored: Limiter::default(),
        }
    }

    /// One turn. Returns the targets that have a new value.
    pub(super) fn turn(&mut self, cache: &mut Cache, input: Input, now: Instant) -> Vec<(TargetId, Target)> {
        match input {
            Input::Added(id, TargetName { listener, authority }) => self.assembler.add(id, listener, authority),
            Input::Removed(id) => self.assembler.remove(id),
            Input::Connected => self.protocol.connected(|kind, name| cache.held_version(kind, name)),
            Input::Sent { kind, serial } => {
                self.protocol.sent(kind, serial, now);
                // Who has nothing to tell, does not answer: a delta server whose resources are all held, or a SotW server
                // that is told its own version.
                if !cache.is_reachable() && self.protocol.awaits_nothing() {
                    self.reachable(cache);
                }
            }
            Input::Received(response) => self.received(response, cache, now),
            Input::Disconnected { cause } => self.disconnected(cause, cache),
            // Who comes next waits for a dial, instead of failing for what was true long ago.
            Input::Idle => self.reachable(cache),
            Input::TimerFired => {
                for (kind, name) in self.protocol.expire(now) {
                    // A stream that is up and silent is no outage.
                    self.reachable(cache);
                    let change = cache.timed_out(kind, &name, self.timeout, now);
                    self.changed(kind, &name, change, now);
                }
            }
        }
        let settled = self.assembler.settle(cache);
        for (kind, needs) in Kind::ALL.into_iter().zip(settled.needs) {
            for name in &needs.watch {
                cache.requested(kind, name);
            }
            for name in self.protocol.update(kind, &needs.watch, &needs.unwatch) {
                cache.forget(kind, &name);
            }
        }
        settled.publish
    }

    /// Targets of which more is ACKed than they serve: a part that the news refers to is missing.
    pub(super) fn behind(&self) -> impl Iterator<Item = TargetId> {
        self.assembler.behind()
    }

    /// What has to be sent, in order.
    pub(super) fn take_requests(&mut self) -> Vec<Request> {
        self.protocol.take_requests()
    }

    /// Whether a stream is worth having.
    pub(super) fn has_subscriptions(&self) -> bool {
        self.protocol.has_subscriptions()
    }

    /// When the next turn is due without anything else happening.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.protocol.next_deadline()
    }

    fn disconnected(&mut self, cause: Option<String>, cache: &mut Cache) {
        for (kind, name) in self.protocol.disconnected() {
            cache.forget(kind, &name);
        }
        // "Stream ended after >= 1 response = not an error, no watcher call" - A57.
        if let Some(cause) = cause
            && cache.unreachable(&cause)
        {
            self.assembler.all_changed();
        }
    }

    fn reachable(&mut self, cache: &mut Cache) {
        if cache.reachable() {
            self.assembler.all_changed();
        }
    }

    fn received(&mut self, response: Response, cache: &mut Cache, now: Instant) {
        let Response { kind, version, nonce, resources, removed, errors } = response;
        if !self.protocol.asked(kind) {
            // "Response with a type URL never requested: neither ACK nor NACK" - grpc-go.
            return;
        }
        self.reachable(cache);
        let said = Said { version: Arc::clone(&version), at: now };
        let mut present = FxHashSet::default();
        let mut complaints = Complaints::default();
        // First: should a response remove what it also brings, then it is there.
        for name in removed {
            if self.protocol.is_subscribed(kind, &name) {
                self.protocol.removed(kind, &name, cache.holds(kind, &name));
                let change = cache.removed(kind, &name, &said);
                self.changed(kind, &name, change, now);
            }
        }
        for received in resources {
            let Received { name: Some(name), .. } = &received else {
                // "a resource that cannot be decoded has no name, .. and affects no watcher" - A46.
                complaints.nameless(kind, &received);
                continue;
            };
            if !self.protocol.is_subscribed(kind, name) {
                continue;
            }
            let name = name.clone();
            complaints.add(kind, &name, &received);
            self.protocol.answered(kind, &name);
            let said = Said { version: received.version.clone().unwrap_or_else(|| Arc::clone(&version)), at: now };
            let change = cache.received(kind, &name, received, &said);
            self.changed(kind, &name, change, now);
            present.insert(name);
        }
        for error in errors {
            if !self.protocol.is_subscribed(kind, &error.name) {
                continue;
            }
            // "a status of NOT_FOUND should be treated the same as .. removed_resources" - DeltaDiscoveryResponse.
            if error.is_not_found() {
                self.protocol.removed(kind, &error.name, cache.holds(kind, &error.name));
            } else {
                self.protocol.answered(kind, &error.name);
            }
            let change = cache.reported(kind, &error, &said);
            self.changed(kind, &error.name, change, now);
            present.insert(error.name);
        }
        // A resource without a name may be any of those that seem to be missing.
        if self.protocol.absence_is_deletion(kind) && !complaints.any_nameless() {
            for (name, change) in cache.omitted(kind, |name| present.contains(name), &said) {
                self.changed(kind, &name, change, now);
            }
        }
        let verdict = complaints.verdict();
        if let Verdict::Nack(reason) = &verdict
            && let Some(suppressed) = self.nacks.permit(now)
        {
            tracing::warn!(%kind, %version, %reason, suppressed, "xDS response NACKed");
        }
        self.protocol.acknowledge(kind, &version, &nonce, verdict);
    }

    fn changed(&mut self, kind: Kind, name: &str, change: Change, now: Instant) {
        if change.visible {
            self.assembler.changed(kind, name);
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
mod tests;
