//! DNS, and the lookups of one client: which names it has looked up, what is under way, and what it has not heard yet.
//!
//! When a name is looked up is the real [`Schedule`]'s to say; what carries lookups out, and their answers back, is
//! modelled, so that an answer can be late. It does NOT know clusters.

use super::world::addresses;
use crate::{
    client::core::NameNeeds,
    dns::{Answered, Schedule},
    resource::DnsName,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct Lookups {
    /// What each host stands for; one that is not here does not exist.
    pub(super) world: BTreeMap<&'static str, u32>,
    /// Nobody reaches it.
    pub(super) is_away: bool,
    schedule: Schedule,
    /// What the client has looked up.
    needed: BTreeSet<DnsName>,
    under_way: Vec<DnsName>,
    /// Done, and not heard.
    done: VecDeque<Answered>,
}

impl Lookups {
    /// What the client says after a turn.
    pub(super) fn told(&mut self, NameNeeds { watch, unwatch }: NameNeeds, now: Instant) {
        for name in unwatch {
            assert!(self.needed.remove(&name), "{name} was given up without having been needed");
            self.schedule.unwatch(&name);
        }
        for name in watch {
            assert!(self.needed.insert(name.clone()), "{name} was needed already");
            self.schedule.watch(name, now);
        }
        self.start(now);
    }

    /// Whatever is due begins.
    pub(super) fn start(&mut self, now: Instant) {
        for name in self.schedule.start(now, usize::MAX) {
            assert!(self.needed.contains(&name), "{name} is looked up for nobody");
            self.under_way.push(name);
        }
    }

    /// A lookup is done: its answer is on the way, unless nobody needs it.
    pub(super) fn resolve(&mut self, nth: usize, now: Instant) -> bool {
        if self.under_way.is_empty() {
            return false;
        }
        let name = self.under_way.remove(nth % self.under_way.len());
        let found = self.world.get(&*name.host).map(|number| addresses(*number)).filter(|found| !found.is_empty());
        let (is_needed, result) = match found.filter(|_| !self.is_away) {
            Some(found) => (self.schedule.answered(&name, None, now), Ok(found.into())),
            None => (self.schedule.failed(&name, 0.5, now), Err("no answer".into())),
        };
        assert_eq!(is_needed, self.needed.contains(&name), "{name}");
        if is_needed {
            self.done.push_back(Answered { name, result });
        }
        true
    }

    /// What the client hears next.
    pub(super) fn next(&mut self) -> Option<Answered> {
        self.done.pop_front()
    }

    pub(super) fn endpoint_fails(&mut self, nth: usize, now: Instant) {
        if let Some(name) = self.needed.iter().nth(nth % self.needed.len().max(1)) {
            self.schedule.endpoint_failed(name, now);
        }
        self.start(now);
    }

    /// What the client has looked up.
    pub(super) fn needed(&self) -> &BTreeSet<DnsName> {
        &self.needed
    }
}
