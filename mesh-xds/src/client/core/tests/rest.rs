//! What must hold once nothing moves any more, and how a run gets there.
//!
//! It does NOT know what happened before.

use super::{
    checks,
    run::Run,
    script::Reachable,
    world::{NAMES, Well},
};
use crate::{
    assemble::{Subject, Value},
    resource::{DnsName, Kind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

impl Run {
    // === The end ===

    /// Everything arrives, and the timers of what does not exist fire.
    pub(super) fn come_to_rest(&mut self, reachable: Reachable) {
        self.lookups.is_away = !reachable.dns;
        let reachable = reachable.servers;
        // Long enough for any chain of timers; who needs more goes round in circles.
        for _ in 0..100 {
            for (server, reachable) in reachable.into_iter().enumerate().take(self.ids.len()) {
                if reachable {
                    self.dial(server);
                } else {
                    self.cut(server, true);
                    self.refuse(server);
                }
            }
            let mut steps = 0;
            while self.goes_on() {
                steps += 1;
                assert!(steps < 10_000, "client and server talk for ever");
            }
            // One that was not wanted until now is still to be dialled, with success or without.
            let is_untried = |server: usize| reachable[server] || self.caches[server].is_reachable();
            let is_wanted = (0..self.ids.len()).any(|server| self.is_wanted(server) && is_untried(server));
            match self.core.next_deadline() {
                Some(deadline) => self.wait_until(deadline),
                None if is_wanted => {}
                None => return self.is_at_rest(reachable),
            }
        }
        panic!("no rest");
    }

    /// Something that is on its way arrives.
    fn goes_on(&mut self) -> bool {
        let on_stream = (0..self.ids.len())
            .any(|server| self.take(server) || self.taken(server) || self.read(server) || self.deliver(server, 0));
        on_stream || self.lookups.resolve(0, self.now) || self.hear()
    }

    fn is_at_rest(&self, reachable: [bool; 3]) {
        for (server, link) in self.links.iter().enumerate() {
            let Some(link) = link else { continue };
            assert!(reachable[server]);
            assert_eq!(link.server.unanswered, BTreeSet::new(), "every response is answered");
            for kind in Kind::ALL {
                let names = self.protocol(server).subscribed(kind);
                assert_eq!(link.server.names(kind), names, "no name is lost: {kind} at server {server}");
                for name in names {
                    checks::is_delivered(&self.caches[server], &self.worlds[server], kind, &name);
                }
            }
        }
        for (subject, value) in self.subjects.values() {
            checks::is_settled(subject, value.as_ref());
            let (kind, name) = match subject {
                Subject::Target { listener, .. } => (Kind::Listener, listener),
                Subject::Resource(kind, name) => (*kind, name),
            };
            let asked = self.setting.servers_of(name).first();
            let is_subscribed = asked.is_none_or(|server| self.protocol(*server).is_subscribed(kind, name));
            assert!(is_subscribed, "{kind} {name:?} is watched, and the preferred server is not asked for it");
        }
    }

    /// Every control plane has this, whole and good, and so has DNS.
    pub(super) fn all_is_well(&mut self, well: &Well) {
        for (server, world) in well.worlds.iter().enumerate().take(self.ids.len()) {
            self.worlds[server].clone_from(world);
            for kind in Kind::ALL {
                self.tell(server, kind);
            }
        }
        self.lookups.world.clone_from(&well.dns);
        self.come_to_rest(Reachable::ALL);
        // DNS had said something else before.
        self.all_is_looked_up_again();
        self.come_to_rest(Reachable::ALL);
        let values = self.subjects.values().filter_map(|(_, value)| value.as_ref());
        let served: BTreeSet<DnsName> = values.flat_map(checks::dns_names).collect();
        assert_eq!(*self.lookups.needed(), served, "lookups are for what is served, and for nothing else");
    }

    /// Everybody is away for a while, and back, and nothing has changed, nor does it in between.
    pub(super) fn an_outage_passes(&mut self) {
        let before = self.outcomes();
        self.come_to_rest(Reachable::NOBODY);
        self.all_is_looked_up_again();
        self.come_to_rest(Reachable::NOBODY);
        assert_eq!(self.outcomes(), before, "an outage changed something");
        self.come_to_rest(Reachable::ALL);
        assert_eq!(self.outcomes(), before, "the end of an outage changed something");
    }

    /// On the longest of all curves.
    fn all_is_looked_up_again(&mut self) {
        (0..self.lookups.needed().len()).for_each(|nth| self.lookups.endpoint_fails(nth, self.now));
        self.wait_until(self.now + Duration::from_secs(60));
    }

    /// What every subject came to.
    pub(super) fn outcomes(&self) -> BTreeMap<String, String> {
        let outcome =
            |(subject, value): &(Subject, Option<Value>)| (format!("{subject:?}"), checks::outcome(value.as_ref()));
        self.subjects.values().map(outcome).collect()
    }

    /// When nobody watches, nothing but lingering names is left.
    pub(super) fn ends_with_nothing(&mut self) {
        let all: Vec<_> = self.subjects.keys().copied().collect();
        all.into_iter().for_each(|id| self.unwatch(id));
        for kind in Kind::ALL {
            for server in 0..self.ids.len() {
                let left = self.protocol(server).subscribed(kind);
                assert!(
                    left.len() <= usize::from(self.setting.is_preferred(server) && kind.is_full_state()),
                    "server {server}: {kind} {left:?}"
                );
                let held = NAMES.iter().filter(|name| self.caches[server].holds(kind, name)).count();
                assert!(held <= left.len(), "server {server}: {kind} is held by nobody");
            }
        }
        assert!(self.lookups.needed().is_empty(), "looked up for nobody: {:?}", self.lookups.needed());
    }
}
