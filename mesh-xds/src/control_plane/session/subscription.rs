//! What one stream was told about one resource type, and what it must be told next.
//!
//! ```text
//!   names asked for ───┐
//!   resources changed ─┼─► unsettled ─► compared with what was told ─┬─► updated: said at once
//!   hooks released ────┘                                             └─► gone: said when no type has updates left
//! ```
//! Both dialects keep the same books and differ in what they say: delta the difference, SotW everything (LDS and CDS) or
//! what was updated (other types). A change costs what it touches, however many names there are. This file does NOT
//! build responses.

use super::{
    request::{Manners, Names},
    wanted::{Change, Wanted},
};
use crate::{
    control_plane::{
        events::{Dialect, Verdict},
        hooks::Hooks,
        snapshot::{Entry, TypeSet},
    },
    resource::Kind,
};
use envoy_types::pb::google::rpc::Status;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How many bytes of resources go into one response when the rest may follow in another: gRPC clients refuse messages
/// of more than 4 MiB unless they were told otherwise.
pub(super) const RESPONSE_SIZE: usize = 2 << 20;

/// How differences are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// SotW, LDS and CDS: every response has all resources, so that absence is removal.
    FullState,
    /// SotW, all other types: a response has what was updated; a removal can not be told.
    Updates,
    /// Delta: a response has what was updated, and the names that are gone.
    Delta,
}

/// What is to be sent.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) removed: Vec<Arc<str>>,
    /// Resources are inside that are gone already and will be left out of the next response.
    pub(super) has_stale: bool,
}

/// What a client was told about one resource.
#[derive(Debug)]
struct Told {
    state: State,
    /// The response that said so; 0 for one of an earlier stream.
    nonce: u64,
    /// Whether that response was refused.
    refused: bool,
}

#[derive(Debug)]
enum State {
    Is(Arc<Entry>),
    Absent,
    /// The client says that it holds this version, from an earlier stream.
    Holds(String),
}

#[derive(Debug)]
pub(super) struct Subscription {
    type_url: Arc<str>,
    style: Style,
    wanted: Wanted,
    has_asked: bool,
    /// An answer is owed even if no resource changed: first request, or names were added.
    due: bool,
    told: BTreeMap<Arc<str>, Told>,
    /// Names of which what was told has to be compared with what is.
    unsettled: BTreeSet<Arc<str>>,
    /// Names that the client holds and that are no more.
    gone: BTreeSet<Arc<str>>,
    /// What `unsettled` was made from; `None` when everything has to be looked at.
    seen: Option<(Option<Arc<TypeSet>>, Arc<Hooks>)>,
    /// The newest nonce, and the newest that was answered; 0 before the first.
    newest: u64,
    answered: u64,
    verdict: Option<Verdict>,
}

impl Told {
    fn new(state: State, nonce: u64) -> Self {
        Self { state, nonce, refused: false }
    }
}

impl Subscription {
    pub(super) fn new(type_url: &Arc<str>, dialect: Dialect) -> Self {
        let is_full_state = Kind::from_type_url(type_url).is_some_and(Kind::is_full_state);
        let style = match dialect {
            Dialect::Delta => Style::Delta,
            Dialect::Sotw if is_full_state => Style::FullState,
            Dialect::Sotw => Style::Updates,
        };
        Self {
            type_url: type_url.clone(),
            style,
            wanted: Wanted::new(is_full_state),
            has_asked: false,
            due: false,
            told: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            gone: BTreeSet::new(),
            seen: None,
            newest: 0,
            answered: 0,
            verdict: None,
        }
    }

    // === Requests ===

    /// Takes in what a request says about the response whose nonce it carries.
    pub(super) fn judge(&mut self, nonce: &str, error: Option<&Status>) -> Verdict {
        // Before the first answer a nonce can only be left over from an earlier stream; without a nonce the client had
        // not seen our answer yet: both change the subscription and judge nothing.
        if nonce.is_empty() || self.newest == 0 {
            return Verdict::Request;
        }
        let Some(nonce) = nonce.parse::<u64>().ok().filter(|nonce| *nonce <= self.newest) else {
            return Verdict::Stale;
        };
        let is_second = nonce <= self.answered;
        self.answered = self.answered.max(nonce);
        if error.is_some() {
            self.told.values_mut().filter(|told| told.nonce == nonce).for_each(|told| told.refused = true);
        }
        // With delta several responses may be under way, each to be answered.
        if nonce != self.newest && self.style != Style::Delta {
            return Verdict::Stale;
        }
        let verdict = match error {
            Some(status) => Verdict::Nack { message: status.message.clone() },
            // A second request with the same nonce changes names only; go-control-plane counts it as an ACK too.
            None if is_second && matches!(self.verdict, Some(Verdict::Nack { .. })) => return Verdict::Request,
            None => Verdict::Ack,
        };
        self.verdict = Some(verdict.clone());
        verdict
    }

    pub(super) fn ask(&mut self, names: &Names, manners: Manners) {
        let is_first = !std::mem::replace(&mut self.has_asked, true);
        match names {
            Names::All(names) => match self.wanted.replace(names, manners) {
                Change::Nothing => {}
                change => {
                    self.due |= change == Change::Grown;
                    self.rewind();
                }
            },
            Names::Change { subscribe, unsubscribe, held } => {
                self.subscribe(subscribe);
                unsubscribe.iter().for_each(|name| self.unsubscribe(name));
                // "initial_resource_versions must be populated for first request of stream" - DeltaDiscoveryRequest
                if is_first {
                    held.iter().for_each(|(name, version)| self.resume(name, version));
                }
            }
        }
    }

    fn subscribe(&mut self, names: &[String]) {
        match self.wanted.subscribe(names) {
            Change::Nothing => {}
            change => {
                // An empty world is news to a client that asked for all of it.
                self.due |= change == Change::Grown;
                self.rewind();
            }
        }
        for name in names.iter().filter(|name| self.wanted.names(name)) {
            // "the server must respond with all resources listed in resource_names_subscribe, even if it believes the
            // client has the most recent version of them" - DeltaDiscoveryRequest
            self.told.remove(name.as_str());
            self.unsettled.insert(name.as_str().into());
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        let covered_all = self.wanted.covers_all();
        if !self.wanted.unsubscribe(name) {
            return;
        }
        match (covered_all, self.wanted.covers_all()) {
            (true, false) => self.rewind(),
            // Whether the wildcard still covers it, the client can not know: it waits for the resource or its removal.
            (_, true) => {
                self.told.insert(name.into(), Told::new(State::Holds(String::new()), 0));
                self.unsettled.insert(name.into());
            }
            // Forgotten, so that it is told again when it is wanted again.
            (false, false) => {
                self.told.remove(name);
                self.gone.remove(name);
            }
        }
    }

    fn resume(&mut self, name: &str, version: &str) {
        if self.wanted.covers(name) {
            self.told.insert(name.into(), Told::new(State::Holds(version.to_owned()), 0));
            self.unsettled.insert(name.into());
            // Whoever remembers the world needs no answer to know that it is the same.
            self.due = false;
        }
    }

    /// Everything is looked at again, and what is not wanted any more forgotten.
    fn rewind(&mut self) {
        self.seen = None;
        self.gone.clear();
        if !self.wanted.covers_all() {
            self.told.retain(|name, _| self.wanted.names(name));
        }
    }

    // === Answers ===

    /// Whether there may be something to tell.
    pub(super) fn is_unsettled(&mut self, set: Option<&Arc<TypeSet>>, hooks: &Arc<Hooks>) -> bool {
        self.look(set, hooks);
        !self.unsettled.is_empty()
    }

    /// What the client must be told now, in response `nonce`; removals wait for [`removals`](Self::removals), and so does
    /// what never was, unless this type is `alone` in being unsettled.
    pub(super) fn updates(
        &mut self,
        set: Option<&Arc<TypeSet>>,
        hooks: &Arc<Hooks>,
        nonce: u64,
        alone: bool,
    ) -> Option<News> {
        self.look(set, hooks);
        let withheld = hooks.withheld.get(&*self.type_url);
        let (mut news, mut size) = (News::default(), 0);
        while let Some(name) = self.unsettled.pop_first() {
            self.gone.remove(&name);
            // A withheld resource stays as this client knows it.
            if withheld.is_some_and(|names| names.contains(&*name)) {
                continue;
            }
            if let Some(entry) = self.compare(name, set, nonce, alone, &mut news.removed) {
                size += entry.frame.len();
                news.entries.push(entry);
            }
            if size >= RESPONSE_SIZE && self.style != Style::FullState {
                break;
            }
        }
        let is_due = std::mem::take(&mut self.due);
        (is_due || !news.entries.is_empty() || !news.removed.is_empty()).then(|| self.tell(news, nonce))
    }

    /// What the client must be told to be gone, in response `nonce`. To be asked when no type has updates left: "make
    /// before break" (xDS protocol, "Eventual consistency considerations").
    pub(super) fn removals(&mut self, nonce: u64) -> Option<News> {
        if self.gone.is_empty() {
            return None;
        }
        let removed: Vec<_> = std::mem::take(&mut self.gone).into_iter().collect();
        for name in &removed {
            self.told.remove(name);
            if self.wanted.names(name) {
                self.told.insert(name.clone(), Told::new(State::Absent, nonce));
            }
        }
        Some(self.tell(News { removed, ..News::default() }, nonce))
    }

    /// Collects the names that may have news.
    fn look(&mut self, set: Option<&Arc<TypeSet>>, hooks: &Arc<Hooks>) {
        let changed = match &self.seen {
            Some((seen, old_hooks)) if Arc::ptr_eq(old_hooks, hooks) => TypeSet::changes(seen.as_ref(), set),
            _ => None,
        };
        match changed {
            Some(changed) if changed.is_empty() => return,
            Some(changed) => {
                let relevant = changed.into_iter().filter(|name| self.wanted.covers(name));
                self.unsettled.extend(relevant.cloned());
            }
            None => {
                self.unsettled.extend(self.wanted.all_names().chain(self.told.keys()).cloned());
                if self.wanted.covers_all() {
                    self.unsettled.extend(set.into_iter().flat_map(|set| set.entries.keys()).cloned());
                }
            }
        }
        self.seen = Some((set.cloned(), hooks.clone()));
    }

    /// Compares what was told of one resource with what is, and notes what will have been told; returns an update.
    fn compare(
        &mut self,
        name: Arc<str>,
        set: Option<&Arc<TypeSet>>,
        nonce: u64,
        alone: bool,
        removed: &mut Vec<Arc<str>>,
    ) -> Option<Arc<Entry>> {
        if !self.wanted.covers(&name) {
            self.told.remove(&name);
            return None;
        }
        let now = set.and_then(|set| set.entries.get(&name));
        match (self.told.get_mut(&name), now) {
            (Some(told), Some(now)) if told.state.is(now) => {
                told.state = State::Is(now.clone());
                None
            }
            (_, Some(now)) => {
                self.told.insert(name, Told::new(State::Is(now.clone()), nonce));
                Some(now.clone())
            }
            (Some(Told { state: State::Absent, .. }), None) => None,
            (Some(told), None) => {
                match self.style {
                    // It will never be told, and is as good as told.
                    Style::Updates => told.state = State::Absent,
                    Style::FullState | Style::Delta => drop(self.gone.insert(name)),
                }
                None
            }
            (None, None) => {
                if self.wanted.names(&name) {
                    match self.style {
                        // What refers to it may be about to change, and a client that hears first that it does not exist
                        // could act on that.
                        Style::Delta if !alone => drop(self.gone.insert(name)),
                        style => {
                            self.told.insert(name.clone(), Told::new(State::Absent, nonce));
                            if style == Style::Delta {
                                removed.push(name);
                            }
                        }
                    }
                }
                None
            }
        }
    }

    fn tell(&mut self, mut news: News, nonce: u64) -> News {
        if self.style == Style::FullState {
            self.told.values_mut().for_each(|told| (told.nonce, told.refused) = (nonce, false));
            let entries = self.told.values().filter_map(|told| match &told.state {
                State::Is(entry) => Some(entry.clone()),
                State::Absent | State::Holds(_) => None,
            });
            news.entries = entries.collect();
            news.has_stale = !self.gone.is_empty();
        }
        if self.style != Style::Delta {
            news.removed.clear();
        }
        news
    }

    /// Response `nonce` is on its way.
    pub(super) fn answered_with(&mut self, nonce: u64) {
        self.newest = nonce;
        self.verdict = None;
    }

    // === Questions ===

    /// Whether the client has acknowledged `current` as the state of this resource.
    pub(super) fn has_acked(&self, name: &str, current: Option<&Arc<Entry>>) -> bool {
        if self.due || self.unsettled.contains(name) {
            return false;
        }
        match (self.told.get(name), current) {
            (Some(told), current) => {
                let is_current = match (&told.state, current) {
                    (State::Absent, None) => true,
                    (state, Some(current)) => state.is(current),
                    (_, None) => false,
                };
                is_current && told.nonce <= self.answered && !told.refused
            }
            (None, None) => self.wanted.covers(name) && self.verdict == Some(Verdict::Ack),
            (None, Some(_)) => false,
        }
    }

    /// Why the newest answered response was refused, if it was.
    pub(super) fn nack(&self) -> Option<&str> {
        match self.verdict.as_ref()? {
            Verdict::Nack { message } => Some(message),
            _ => None,
        }
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wanted.covers(name)
    }
}

impl State {
    /// Whether this is what is served now. Versions come from the content, so that equal ones are the same resource.
    fn is(&self, now: &Entry) -> bool {
        match self {
            Self::Is(entry) => entry.version == now.version,
            Self::Holds(version) => *version == *now.version,
            Self::Absent => false,
        }
    }
}
