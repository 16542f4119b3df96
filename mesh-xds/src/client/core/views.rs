//! Fallback (A71): which servers each subject is assembled from.
//!
//! A view is a choice of one server for each authority, with an assembler that sees no others. Every subject lives in
//! the view of the preferred servers. While an outage keeps something from it there, it is assembled in a second view
//! as well, with the next server of the authorities concerned, and so on down their lists:
//!
//! ```text
//!                  waits for a resource whose server is away
//! preferred ──────────────────────────────────────────────────► + next view ─► + next ...
//!     ▲                                                             │
//!     └───── the first view in which all is decided wins; those after it are left ◄──┘
//! ```
//!
//! What is decided stays so when its server dies: "with everything cached nothing falls back" (A71). The streams are
//! shared: a server's subscriptions are those of all views that chose it. This file does NOT know protocols.

use crate::{
    assemble::{self, Assembler, Found, Settled, Subject, TargetId, Value},
    bootstrap::{Authorities, ServerId},
    budget::Budget,
    cache::{Cache, Choice, Lookup, Sources},
    dns::{Answered, Answers},
    resource::{DnsName, Kind},
    snapshot::{Snapshot, Target},
};
use rustc_hash::FxHashMap;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

#[derive(Debug)]
pub(super) struct Views {
    preferred: Choice,
    /// The preferred one is always there.
    all: BTreeMap<Choice, Assembler>,
    /// Of DNS, for all views.
    answers: Answers,
    subjects: FxHashMap<TargetId, Followed>,
    /// Of the turn that is under way: what was looked at ...
    looked_at: BTreeSet<TargetId>,
    /// ... and what of it may now need another view.
    unchosen: BTreeSet<TargetId>,
}

/// A subject and the views it is assembled in, the preferred one first.
#[derive(Debug)]
struct Followed {
    subject: Subject,
    chain: Vec<Link>,
    /// The place in the chain whose value was told last.
    in_use: Option<usize>,
    /// Whether that value is the control plane's last word.
    is_decided: bool,
    /// Whether it can serve.
    serves: bool,
}

#[derive(Debug)]
struct Link {
    choice: Choice,
    value: Option<Value>,
    /// Whether `value` is newer than what was told.
    is_news: bool,
}

/// A name whose users changed, and what came of that in all views.
#[derive(Debug)]
pub(super) enum Need {
    Resource {
        server: ServerId,
        kind: Kind,
        name: Arc<str>,
        is_needed: bool,
    },
    /// Of DNS.
    Name {
        name: DnsName,
        is_needed: bool,
    },
}

impl Views {
    pub(super) fn new(authorities: &Authorities) -> Self {
        let preferred = Choice::preferred(authorities);
        let all = BTreeMap::from([(preferred.clone(), Assembler::default())]);
        Self {
            preferred,
            all,
            answers: Answers::default(),
            subjects: FxHashMap::default(),
            looked_at: BTreeSet::new(),
            unchosen: BTreeSet::new(),
        }
    }

    pub(super) fn add(&mut self, id: TargetId, subject: Subject) {
        self.all.entry(self.preferred.clone()).or_default().add(id, subject.clone());
        let chain = vec![Link::new(self.preferred.clone())];
        self.subjects.insert(id, Followed { subject, chain, in_use: None, is_decided: false, serves: false });
    }

    pub(super) fn remove(&mut self, id: TargetId) {
        for link in self.subjects.remove(&id).into_iter().flat_map(|followed| followed.chain) {
            if let Some(assembler) = self.all.get_mut(&link.choice) {
                assembler.remove(id);
            }
        }
    }

    /// A resource looks different at a server.
    pub(super) fn changed(&mut self, authorities: &Authorities, server: ServerId, kind: Kind, name: &str) {
        for (choice, assembler) in &mut self.all {
            if choice.server(authorities, name) == Some(server) {
                assembler.changed(kind, name);
            }
        }
    }

    /// A lookup is done.
    pub(super) fn answered(&mut self, Answered { name, result }: Answered) {
        if self.answers.answered(&name, result) {
            self.all.values_mut().for_each(|assembler| assembler.name_changed(&name));
        }
    }

    /// Everything may look different: a server went away or came back.
    pub(super) fn all_changed(&mut self) {
        self.all.values_mut().for_each(Assembler::all_changed);
    }

    /// Follows what changed until nothing moves any more: no longer than the lists of servers are. Returns whether that is
    /// done; otherwise it goes on with the next budget.
    pub(super) fn settle(&mut self, authorities: &Authorities, caches: &[Cache], budget: &mut Budget) -> bool {
        loop {
            for (choice, assembler) in &mut self.all {
                let is_settled = assembler.settle(&Sources::new(caches, authorities, choice), &self.answers, budget);
                let Settled { looked_at, publish } = assembler.take_settled();
                self.looked_at.extend(&looked_at);
                self.unchosen.extend(looked_at);
                for (id, value) in publish {
                    let link = self.subjects.get_mut(&id).and_then(|followed| followed.link(choice));
                    if let Some(link) = link {
                        (link.value, link.is_news) = (Some(value), true);
                    }
                }
                if !is_settled {
                    return false;
                }
            }
            if budget.is_spent() && !self.unchosen.is_empty() {
                return false;
            }
            let Some(id) = self.unchosen.pop_first() else { return true };
            budget.spend();
            self.choose(id, authorities, caches);
        }
    }

    /// What became of the next name whose users changed, to be asked when all is settled: for a name of several views as
    /// often, and always the same.
    pub(super) fn next_need(&mut self, authorities: &Authorities) -> Option<Need> {
        loop {
            let next = |(choice, assembler): (&Choice, &mut Assembler)| Some((choice.clone(), assembler.next_need()?));
            let (choice, need) = self.all.iter_mut().find_map(next)?;
            match need {
                assemble::Need::Resource(kind, name) => {
                    // A name that nobody can be asked for is looked up as failed.
                    let Some(server) = choice.server(authorities, &name) else { continue };
                    let is_needed = self.is_needed(authorities, server, kind, &name);
                    return Some(Need::Resource { server, kind, name, is_needed });
                }
                assemble::Need::Name(name) => {
                    let is_needed = self.all.values().any(|assembler| assembler.needs_name(&name));
                    let is_news = if is_needed { self.answers.requested(&name) } else { self.answers.forget(&name) };
                    if is_news {
                        return Some(Need::Name { name, is_needed });
                    }
                }
            }
        }
    }

    /// What is new for watchers, at the end of a turn.
    pub(super) fn news(&mut self) -> Vec<(TargetId, Value)> {
        self.all.retain(|choice, assembler| *choice == self.preferred || !assembler.is_empty());
        let looked_at = mem::take(&mut self.looked_at).into_iter();
        looked_at.filter_map(|id| Some((id, self.subjects.get_mut(&id)?.news()?))).collect()
    }

    /// Subjects of which more was received than is published.
    pub(super) fn behind(&self) -> impl Iterator<Item = TargetId> {
        let in_use = |choice, id: &TargetId| self.subjects.get(id).is_some_and(|followed| followed.uses(choice));
        self.all.iter().flat_map(move |(choice, assembler)| assembler.behind().filter(move |id| in_use(choice, id)))
    }

    /// What uses a resource of a server, or will: in an outage, a subject has resources of each server it waits for.
    pub(super) fn users(
        &self,
        authorities: &Authorities,
        server: ServerId,
        kind: Kind,
        name: &str,
    ) -> impl Iterator<Item = &Subject> {
        let chose = move |(choice, _): &(&Choice, &Assembler)| choice.server(authorities, name) == Some(server);
        // In each of its views a subject may need the same resource: a fallback is of some authorities.
        let ids: BTreeSet<_> =
            self.all.iter().filter(chose).flat_map(|(_, assembler)| assembler.users(kind, name)).collect();
        ids.into_iter().filter_map(|id| Some(&self.subjects.get(&id)?.subject))
    }

    /// Makes a subject's chain shorter or longer, if it is time.
    fn choose(&mut self, id: TargetId, authorities: &Authorities, caches: &[Cache]) {
        let Some(followed) = self.subjects.get_mut(&id) else { return };
        let is_decided = |link: &Link| {
            let sources = Sources::new(caches, authorities, &link.choice);
            self.all.get(&link.choice).is_some_and(|assembler| assembler.is_decided(id, &sources))
        };
        let decided = followed.chain.iter().position(is_decided);
        followed.is_decided = decided.is_some();
        if let Some(decided) = decided {
            followed.switch_to(decided);
            let left = followed.chain.split_off(decided + 1);
            for link in &left {
                if let Some(assembler) = self.all.get_mut(&link.choice) {
                    assembler.remove(id);
                }
            }
            return;
        }
        if caches.iter().all(Cache::is_reachable) {
            return;
        }
        let Some(last) = followed.chain.last().map(|link| link.choice.clone()) else { return };
        let sources = Sources::new(caches, authorities, &last);
        let waits = self.all.get(&last).map(|assembler| assembler.waits_for(id)).unwrap_or_default();
        let away = waits.iter().filter(|(kind, name)| matches!(sources.lookup(*kind, name), Lookup::Unreachable(_)));
        // "Trigger = connectivity error and at least one watcher without a cached result" - A71.
        let Some(next) = last.next(authorities, away.filter_map(|(_, name)| sources.authority(name))) else {
            return;
        };
        self.all.entry(next.clone()).or_default().add(id, followed.subject.clone());
        followed.chain.push(Link::new(next));
    }

    fn is_needed(&self, authorities: &Authorities, server: ServerId, kind: Kind, name: &str) -> bool {
        let needs = |(choice, assembler): (&Choice, &Assembler)| {
            assembler.needs(kind, name) && choice.server(authorities, name) == Some(server)
        };
        self.all.iter().any(needs)
    }
}

impl Followed {
    fn link(&mut self, choice: &Choice) -> Option<&mut Link> {
        self.chain.iter_mut().find(|link| link.choice == *choice)
    }

    fn uses(&self, choice: &Choice) -> bool {
        self.chain.get(self.in_use.unwrap_or(0)).is_some_and(|link| link.choice == *choice)
    }

    fn switch_to(&mut self, place: usize) {
        let before = self.in_use.replace(place);
        if let Some(link) = self.chain.get_mut(place).filter(|_| before != Some(place)) {
            link.is_news = true;
            if let (Some(value), Some(_)) = (&mut link.value, before) {
                value.renew();
            }
        }
    }

    /// What watchers have to be told.
    fn news(&mut self) -> Option<Value> {
        let usable: fn(&Link) -> bool = |link| link.value.as_ref().is_some_and(Value::is_usable);
        match self.in_use {
            Some(_) if self.is_decided => {}
            Some(place) if self.serves && self.chain.get(place).is_some_and(usable) => {}
            // Nothing is decided. "Watchers hear a connectivity error only when the last server has failed too" (A71), and
            // a configuration with holes in it, which an outage makes, is such an error.
            _ => {
                let last = self.chain.len() - 1;
                let waits: fn(&Link) -> bool = |link| link.value.as_ref().is_none_or(Value::is_pending);
                let usable = self.chain.iter().position(usable).filter(|_| !waits(&self.chain[last]));
                // The last one may be away while one before it is back, and at work.
                let best = usable.or_else(|| self.chain.iter().position(waits));
                self.switch_to(best.unwrap_or(last));
            }
        }
        let link = self.chain.get_mut(self.in_use?)?;
        self.serves = usable(link);
        let is_news = mem::take(&mut link.is_news);
        link.value.as_ref().filter(|_| is_news).cloned()
    }
}

impl Link {
    fn new(choice: Choice) -> Self {
        Self { choice, value: None, is_news: false }
    }
}

impl Value {
    pub(in crate::client) fn is_pending(&self) -> bool {
        matches!(self, Self::Target(Target::Pending { .. }) | Self::Resource(Found::Pending))
    }

    pub(in crate::client) fn is_usable(&self) -> bool {
        matches!(self, Self::Target(Target::Ready(_)) | Self::Resource(Found::Usable { .. }))
    }

    /// A snapshot that is told again after those of another view is the newest one.
    fn renew(&mut self) {
        if let Self::Target(Target::Ready(snapshot)) = self {
            *snapshot = Arc::new(Snapshot { generation: Snapshot::next_generation(), ..Snapshot::clone(snapshot) });
        }
    }
}
