//! The machines joined, without I/O: one turn per input, in slices.
//!
//! ```text
//! input ─► protocol, cache ─► assembler.settle() ─► protocol.tell() ─► requests
//!                                   └─► new Targets
//! ```
//!
//! A turn with much to do is done in slices ([`Core::go_on`]), so that nothing else on the thread waits for long. It is one
//! turn nevertheless: no other input comes in between, and what it comes to goes out at its end. It decides nothing itself:
//! `protocol` knows what to say, `cache` what survives an error, `assemble` what is needed. Time comes in as a value, and
//! the cache too, since `status()` reads it between slices.

mod receiving;
mod views;

use super::complaints;
use crate::{
    Bootstrap,
    ads::{Protocol, Request, Response},
    assemble::{Subject, TargetId, Value},
    bootstrap::{ServerId, XdsServer},
    budget::Budget,
    cache::{Cache, Change},
    dns::Answered,
    log::Limiter,
    resource::{DnsName, Kind},
};
use receiving::Receiving;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;
use views::{Need, Views};

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

/// DNS names that became needed, or stopped being needed.
#[derive(Debug, Default)]
pub(super) struct NameNeeds {
    pub(super) watch: Vec<DnsName>,
    pub(super) unwatch: Vec<DnsName>,
}

/// Protocol and assembly of one client.
#[derive(Debug)]
pub(super) struct Core {
    bootstrap: Arc<Bootstrap>,
    /// By server.
    protocols: Vec<Protocol>,
    views: Views,
    /// Names that became needed or stopped being needed in the last turn.
    names: NameNeeds,
    /// Of does-not-exist timers, by server.
    timeouts: Vec<Duration>,
    /// How much a slice does.
    slice: usize,
    is_under_way: bool,
    /// Of the turn that is under way: names whose timers fired.
    expired: VecDeque<(ServerId, Kind, Arc<str>)>,
    /// Likewise: the response that it is about.
    receiving: Option<Receiving>,
    errors: Limiter,
    nacks: Limiter,
    ignored: Limiter,
}

impl Core {
    pub(super) fn new(bootstrap: Arc<Bootstrap>) -> Self {
        let timeout = |server: &XdsServer| server.resource_timeout(&bootstrap.transport);
        let protocol = |server: &XdsServer| Protocol::new(server.transport(), timeout(server));
        Self {
            protocols: bootstrap.servers().map(|(_, server)| protocol(server)).collect(),
            timeouts: bootstrap.servers().map(|(_, server)| timeout(server)).collect(),
            views: Views::new(&bootstrap.authorities),
            names: NameNeeds::default(),
            slice: Budget::SLICE,
            is_under_way: false,
            expired: VecDeque::new(),
            receiving: None,
            bootstrap,
            errors: Limiter::default(),
            nacks: Limiter::default(),
            ignored: Limiter::default(),
        }
    }

    /// One turn, or its first slice if there is [more](Self::is_under_way) to it. `caches` are in the order of the servers'
    /// numbers. Returns the subjects that have a new value.
    pub(super) fn turn(&mut self, caches: &mut [Cache], input: Input, now: Instant) -> Vec<(TargetId, Value)> {
        match input {
            Input::Added(id, subject) => self.views.add(id, subject),
            Input::Removed(id) => self.views.remove(id),
            Input::TimerFired => self.expire(now),
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
        self.go_on(caches, now)
    }

    /// Whether the last turn is not done: then [`Core::go_on`] comes before any other input.
    pub(super) fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// The next slice of a turn. Returns what [`Core::turn`] would, once it is done.
    pub(super) fn go_on(&mut self, caches: &mut [Cache], now: Instant) -> Vec<(TargetId, Value)> {
        let mut budget = Budget::new(self.slice);
        self.is_under_way = !self.is_done_within(&mut budget, caches, now);
        if self.is_under_way { Vec::new() } else { self.views.news() }
    }

    fn is_done_within(&mut self, budget: &mut Budget, caches: &mut [Cache], now: Instant) -> bool {
        while let Some((server, kind, name)) = self.expired.pop_front() {
            self.timed_out(server, kind, &name, &mut caches[server.index()], now);
            budget.spend();
            if budget.is_spent() {
                return false;
            }
        }
        if !self.take_in(caches, now, budget) {
            return false;
        }
        let bootstrap = Arc::clone(&self.bootstrap);
        if !self.views.settle(&bootstrap.authorities, caches, budget) {
            return false;
        }
        // Only now, when nothing moves any more, each name is judged, and once.
        while let Some(need) = self.views.next_need(&bootstrap.authorities) {
            self.needs(need, caches);
            budget.spend();
            if budget.is_spent() {
                return false;
            }
        }
        self.protocols.iter_mut().for_each(Protocol::tell);
        true
    }

    fn needs(&mut self, need: Need, caches: &mut [Cache]) {
        match need {
            Need::Resource { server, kind, name, is_needed: true } => {
                let cache = &mut caches[server.index()];
                cache.requested(kind, &name);
                if let Some(left) = self.protocol(server).want(kind, &name) {
                    cache.forget(kind, &left);
                }
            }
            Need::Resource { server, kind, name, is_needed: false } => {
                if self.protocol(server).unwant(kind, &name) {
                    caches[server.index()].forget(kind, &name);
                }
            }
            Need::Name { name, is_needed: true } => self.names.watch.push(name),
            Need::Name { name, is_needed: false } => self.names.unwatch.push(name),
        }
    }

    /// Names to be looked up from now on, and those not any more: to be taken after each turn.
    pub(super) fn take_names(&mut self) -> NameNeeds {
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

    fn expire(&mut self, now: Instant) {
        let bootstrap = Arc::clone(&self.bootstrap);
        for (id, _) in bootstrap.servers() {
            let expired = self.protocol(id).expire(now).into_iter();
            self.expired.extend(expired.map(|(kind, name)| (id, kind, name)));
        }
    }

    fn timed_out(&mut self, server: ServerId, kind: Kind, name: &str, cache: &mut Cache, now: Instant) {
        // A stream that is up and silent is no outage.
        self.reachable(cache);
        let timeout = self.timeouts[server.index()];
        let change = cache.timed_out(kind, name, timeout, now);
        self.changed(server, kind, name, change, now);
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
