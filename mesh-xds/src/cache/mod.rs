//! What is known about each resource, and what an error does to it (A46, A53, A57, A88).
//!
//! ```text
//!              received ok
//! Requested ───────────────► Acked ──── received invalid ───► Nacked      a good value, if any, stays,
//!     │ invalid ─► Nacked      └─────── omitted, error ─────► its error   unless `fail_on_data_errors`
//!     │ timer ───► DoesNotExist | Timeout
//!     └ removed ─► Absent ── timer ──► DoesNotExist
//! ```
//!
//! Whether a good value survives an error is decided here and nowhere else. The cache does NOT know who needs a
//! resource, and does NOT fetch any.

mod sources;

pub(crate) use sources::{Choice, Sources};

use crate::{
    bootstrap::Feature,
    resource::{ByKind, IgnoredField, Kind, Received, ReportedError, Resource},
    status::{Clock, ResourceFailure, ResourceState, ResourceStatus},
};
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Every resource that is subscribed on one server.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: ByKind<FxHashMap<Arc<str>, Entry>>,
    node_id: Arc<str>,
    features: Vec<Feature>,
    /// Why the control plane cannot be reached: an ambient error of everything, and a reason not to wait for what
    /// is not cached.
    unreachable: Option<Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    value: Option<Resource>,
    state: State,
    /// What brought the value.
    accepted: Option<Attempt>,
    /// Explains the state when it is not `Acked`; also the ambient error when there is a value.
    error: Option<Arc<str>>,
    /// What brought the error. Boxed: few entries have one, and there may be many entries.
    failed: Option<Box<Attempt>>,
    ignored: Vec<IgnoredField>,
    deleted: bool,
}

/// One attempt to update a resource, good or bad.
#[derive(Debug)]
struct Attempt {
    /// The resource as it came, if one came: the decoder's own bytes, refcounted.
    raw: Option<Bytes>,
    /// Of the response, empty without one.
    version: Arc<str>,
    at: Instant,
}

/// The response that says something, and when that was.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) version: Arc<str>,
    pub(crate) at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Requested,
    Acked,
    Nacked,
    /// Removed before it ever came: not for good until its timer has fired as well.
    Absent,
    DoesNotExist,
    Timeout,
    ReceivedError,
}

/// What the assembly may do with a resource.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    /// Not known yet.
    Pending,
    /// Good, perhaps with an ambient error.
    Usable {
        value: &'a Resource,
        note: Option<Arc<str>>,
        /// The control plane deleted it, and it is kept.
        deleted: bool,
    },
    /// There is none, and that is the control plane's word.
    Failed(Arc<str>),
    /// There is none, because the control plane cannot be reached: may change by itself.
    Unreachable(Arc<str>),
    /// There is none, and the control plane has said so of a resource that it never sent: perhaps before it came to what
    /// no longer needs it. Who serves something complete waits for the timer; who has nothing need not.
    Absent(Arc<str>),
}

/// What an event changed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Change {
    /// [`Cache::lookup`] gives something else now.
    pub(crate) visible: bool,
    /// An error text that was not there before.
    pub(crate) new_error: Option<Arc<str>>,
    /// Fields without effect that were not there before.
    pub(crate) newly_ignored: Vec<IgnoredField>,
}

impl Cache {
    pub(crate) fn new(node_id: &str, features: &[Feature]) -> Self {
        Self { entries: ByKind::default(), node_id: node_id.into(), features: features.to_vec(), unreachable: None }
    }

    /// A resource was subscribed. What is already known about it, is kept.
    pub(crate) fn requested(&mut self, kind: Kind, name: &Arc<str>) {
        self.entries.of(kind).entry(Arc::clone(name)).or_insert_with(|| Entry {
            value: None,
            state: State::Requested,
            accepted: None,
            error: None,
            failed: None,
            ignored: Vec::new(),
            deleted: false,
        });
    }

    /// A resource was unsubscribed.
    pub(crate) fn forget(&mut self, kind: Kind, name: &str) {
        self.entries.of(kind).remove(name);
    }

    /// A subscribed resource arrived. An equal value keeps its identity and is no change.
    pub(crate) fn received(&mut self, kind: Kind, name: &str, received: Received, said: &Said) -> Change {
        let attempt = Attempt { raw: Some(received.raw), version: Arc::clone(&said.version), at: said.at };
        let value = match received.value {
            Ok(value) => value,
            Err(invalid) => {
                // "client NACK: Err | ambient | Err, drop cache" - A88.
                let text = format_args!("invalid: {invalid}");
                return self.failed(kind, name, State::Nacked, Droppable::Yes, &text, attempt);
            }
        };
        let Some(entry) = self.entries.of(kind).get_mut(name) else { return Change::default() };
        let newly_ignored = received.ignored.iter().filter(|field| !entry.ignored.contains(field)).cloned().collect();
        let same = entry.value.as_ref().is_some_and(|held| same(held, &value));
        let visible = !same || entry.error.is_some() || entry.deleted;
        if !same {
            entry.value = Some(value);
        }
        entry.state = State::Acked;
        entry.accepted = Some(attempt);
        entry.error = None;
        entry.failed = None;
        entry.ignored = received.ignored;
        entry.deleted = false;
        Change { visible, new_error: None, newly_ignored }
    }

    /// What a full-state response takes away by silence: everything of `kind` for which `present` is false, and of which
    /// each is then [`removed`](Self::removed).
    ///
    /// A resource that never came is not deleted; its timer decides.
    pub(crate) fn omitted(&self, kind: Kind, present: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let gone = |(name, entry): (&Arc<str>, &Entry)| {
            // An error that the server reported lasts until the resource comes (TP3).
            let known = matches!(entry.state, State::Acked | State::Nacked);
            (known && !present(name)).then(|| Arc::clone(name))
        };
        self.entries.get(kind).into_iter().flatten().filter_map(gone).collect()
    }

    /// The server said that a subscribed resource is not there.
    pub(crate) fn removed(&mut self, kind: Kind, name: &str, said: &Said) -> Change {
        // "LDS/CDS omission: n/a | ambient (NOT_FOUND), keep | Err, drop cache" - A88. Delta can say it of every type, and
        // of a resource that never came. "Removed resources for missing resources can be ignored" - DeltaDiscoveryResponse:
        // many servers answer a subscription that way moments before they send the resource, or routes that do not need
        // it. So that is an error for who has nothing else, and takes nothing from who has, before the time that SotW
        // gives it (A57).
        let absent = "does not exist: the control plane says so";
        let (state, text) = match self.entries.of(kind).get(name).map(|entry| (entry.state, &entry.value)) {
            // Said before, perhaps of a value that was dropped then.
            Some((State::DoesNotExist | State::Absent, _)) | None => return Change::default(),
            Some((_, Some(_))) => (State::DoesNotExist, "was deleted by the control plane"),
            Some((State::Requested, None)) => (State::Absent, absent),
            Some((_, None)) => (State::DoesNotExist, absent),
        };
        self.failed(kind, name, state, Droppable::Yes, &format_args!("{text}"), Attempt::without_resource(said))
    }

    /// Whether there is a value that, as far as the server has said, the server has too.
    pub(crate) fn holds(&self, kind: Kind, name: &str) -> bool {
        // A NACK leaves the value of before. After a deletion or an error even the same value would be news.
        self.accepted(kind, name, |state| matches!(state, State::Acked | State::Nacked)).is_some()
    }

    /// The version of a value that is the server's newest, as far as it has said, if it has a version.
    pub(crate) fn held_version(&self, kind: Kind, name: &str) -> Option<Arc<str>> {
        // After a NACK, a server that has gone back to the version of before would not send it, and the error would stay.
        let version = &self.accepted(kind, name, |state| state == State::Acked)?.version;
        (!version.is_empty()).then(|| Arc::clone(version))
    }

    fn accepted(&self, kind: Kind, name: &str, is_wanted: impl Fn(State) -> bool) -> Option<&Attempt> {
        let entry = self.entries.get(kind)?.get(name)?;
        entry.accepted.as_ref().filter(|_| is_wanted(entry.state))
    }

    /// The server reported an error for a subscribed resource.
    pub(crate) fn reported(&mut self, kind: Kind, error: &ReportedError, said: &Said) -> Change {
        // "TP3 NOT_FOUND / PERMISSION_DENIED: .. drop cache; TP3 other code: .. ambient" - A88.
        let droppable = if error.is_not_found() || error.code == 7 { Droppable::Yes } else { Droppable::No };
        let text = format_args!("the control plane reports code {}: {}", error.code, error.message);
        // "Set the cache entry's status to `RECEIVED_ERROR`", whatever the code is - A88.
        let attempt = Attempt::without_resource(said);
        let change = self.failed(kind, &error.name, State::ReceivedError, droppable, &text, attempt);
        // But a value that is kept although the server does not have it, is one that it deleted.
        if let Some(entry) = self.entries.of(kind).get_mut(&*error.name).filter(|_| error.is_not_found()) {
            entry.deleted = entry.value.is_some();
        }
        change
    }

    /// The does-not-exist timer fired.
    pub(crate) fn timed_out(&mut self, kind: Kind, name: &str, after: Duration, at: Instant) -> Change {
        if let Some(entry) = self.entries.of(kind).get_mut(name).filter(|entry| entry.state == State::Absent) {
            // What the server said is true, for all that it has said since.
            entry.state = State::DoesNotExist;
            return Change { visible: true, ..Change::default() };
        }
        let attempt = Attempt { raw: None, version: Arc::default(), at };
        if self.features.contains(&Feature::ResourceTimerIsTransient) {
            let text = format_args!("the control plane did not answer within {after:?}");
            self.failed(kind, name, State::Timeout, Droppable::No, &text, attempt)
        } else {
            let text = format_args!("does not exist: the control plane did not send it within {after:?}");
            self.failed(kind, name, State::DoesNotExist, Droppable::No, &text, attempt)
        }
    }

    /// The control plane cannot be reached. "connect TF / stream failed before response: Err | ambient | ambient".
    /// Returns whether that is news.
    pub(crate) fn unreachable(&mut self, cause: &str) -> bool {
        let news = self.unreachable.as_deref() != Some(cause);
        if news {
            self.unreachable = Some(cause.into());
        }
        news
    }

    /// The control plane answers again. Returns whether that is news.
    pub(crate) fn reachable(&mut self) -> bool {
        self.unreachable.take().is_some()
    }

    pub(crate) fn is_reachable(&self) -> bool {
        self.unreachable.is_none()
    }

    /// What to do with a resource.
    pub(crate) fn lookup(&self, kind: Kind, name: &str) -> Lookup<'_> {
        let entry = self.entries.get(kind).and_then(|entries| entries.get(name));
        match (entry, &self.unreachable) {
            (Some(Entry { value: Some(value), error, deleted, .. }), unreachable) => {
                let note = error.as_ref().or(unreachable.as_ref()).map(Arc::clone);
                Lookup::Usable { value, note, deleted: *deleted }
            }
            (Some(Entry { state: State::Absent, error: Some(error), .. }), _) => Lookup::Absent(Arc::clone(error)),
            (Some(Entry { error: Some(error), .. }), _) => Lookup::Failed(Arc::clone(error)),
            (_, Some(cause)) => Lookup::Unreachable(self.text(kind, name, cause)),
            (_, None) => Lookup::Pending,
        }
    }

    /// Everything that there is.
    pub(crate) fn names(&self) -> impl Iterator<Item = (Kind, Arc<str>)> {
        self.entries.iter().flat_map(|(kind, entries)| entries.keys().map(move |name| (kind, Arc::clone(name))))
    }

    /// One resource, for people; `None` if it is gone.
    pub(crate) fn status(
        &self,
        kind: Kind,
        name: &Arc<str>,
        server: &Arc<str>,
        clock: &Clock,
    ) -> Option<ResourceStatus> {
        let mut of_kind = self.entries.iter().filter(|(known, _)| *known == kind);
        Some(of_kind.next()?.1.get(name)?.status(kind, name, server, clock))
    }

    /// `Cluster "c": what (xDS node id "n")`.
    pub(crate) fn text(&self, kind: Kind, name: &str, what: impl fmt::Display) -> Arc<str> {
        format!("{kind} {name:?}: {what} (xDS node id {:?})", self.node_id).into()
    }

    /// A88's table: with nothing cached, and where the value may be dropped and the operator wants that, the error
    /// replaces the value; otherwise it is ambient.
    fn failed(
        &mut self,
        kind: Kind,
        name: &str,
        state: State,
        droppable: Droppable,
        what: &fmt::Arguments<'_>,
        attempt: Attempt,
    ) -> Change {
        let text = self.text(kind, name, what);
        let drop_value = droppable == Droppable::Yes && self.features.contains(&Feature::FailOnDataErrors);
        let Some(entry) = self.entries.of(kind).get_mut(name) else { return Change::default() };
        let news = entry.error.as_ref() != Some(&text);
        let dropped = drop_value && entry.value.take().is_some();
        if dropped {
            entry.accepted = None;
            entry.ignored.clear();
        }
        entry.state = state;
        entry.deleted = state == State::DoesNotExist && entry.value.is_some();
        entry.error = Some(Arc::clone(&text));
        entry.failed = Some(Box::new(attempt));
        Change { visible: news || dropped, new_error: news.then_some(text), newly_ignored: Vec::new() }
    }
}

/// Whether `fail_on_data_errors` makes an error drop the value.
#[derive(Clone, Copy, PartialEq)]
enum Droppable {
    Yes,
    No,
}

/// Identity first: `decode` hands back the value it gave before when nothing changed.
fn same(held: &Resource, new: &Resource) -> bool {
    match (held, new) {
        (Resource::Listener(a), Resource::Listener(b)) => Arc::ptr_eq(a, b) || a == b,
        (Resource::RouteConfig(a), Resource::RouteConfig(b)) => Arc::ptr_eq(a, b) || a == b,
        (Resource::Cluster(a), Resource::Cluster(b)) => Arc::ptr_eq(a, b) || a == b,
        (Resource::Endpoints(a), Resource::Endpoints(b)) => Arc::ptr_eq(a, b) || a == b,
        (Resource::Other(a), Resource::Other(b)) => a == b,
        _ => false,
    }
}

impl Attempt {
    fn without_resource(said: &Said) -> Self {
        Self { raw: None, version: Arc::clone(&said.version), at: said.at }
    }
}

impl Entry {
    fn status(&self, kind: Kind, name: &Arc<str>, server: &Arc<str>, clock: &Clock) -> ResourceStatus {
        let error = || self.error.as_deref().unwrap_or_default().to_owned();
        let failure = |failed: &Attempt| ResourceFailure {
            details: error(),
            version: Some(failed.version.to_string()).filter(|version| !version.is_empty()),
            resource: failed.raw.clone(),
            at: clock.wall(failed.at),
        };
        ResourceStatus {
            kind,
            name: name.to_string(),
            server: Arc::clone(server),
            targets: Vec::new(),
            state: match self.state {
                State::Requested => ResourceState::Requested,
                State::Acked => ResourceState::Acked,
                State::Nacked => ResourceState::Nacked { error: error() },
                State::DoesNotExist | State::Absent => ResourceState::DoesNotExist,
                State::Timeout => ResourceState::Timeout,
                State::ReceivedError => ResourceState::ReceivedError,
            },
            version: self.accepted.as_ref().map(|accepted| accepted.version.to_string()),
            resource: self.accepted.as_ref().and_then(|accepted| accepted.raw.clone()),
            last_updated: self.accepted.as_ref().map(|accepted| clock.wall(accepted.at)),
            failure: self.failed.as_deref().map(failure),
            ignored: self.ignored.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
