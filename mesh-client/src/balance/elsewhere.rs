//! Where a call has been, so that a retry can go elsewhere: to another endpoint (Envoy's previous_hosts), or to another
//! priority (Envoy's previous_priorities).
//!
//! ```text
//!   attempts     P0   P0   P1   P1   P0 ..     update_frequency 2, two priorities
//!   excluded      -    -   P0   P0    -        where the first 2, 4, 6 .. went; nothing is left after P1: it starts over
//! ```
//!
//! Of what is not excluded the first priority that works is taken, as if the excluded ones had failed (A56); one that may
//! work in a moment is waited for. Nobody connects the priorities below the one in use without a need, so the first retry
//! that comes to one asks for it. A call's first attempt looks at nothing here.
//!
//! It does NOT connect, and it does NOT decide that an attempt is repeated.

use super::{Admission, Picker, ReadyPicker, priority::Standing};
use crate::endpoint::{Endpoint, Slot};
use std::{num::NonZeroU32, sync::Arc};

// === Tried ===

/// Where the attempts of a call went.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    /// Most calls try one endpoint.
    first: Option<Arc<Endpoint>>,
    rest: Vec<Arc<Endpoint>>,
    /// How many more endpoints are looked at to avoid those.
    looks: u32,
    priorities: Priorities,
}

/// The same, for priorities.
#[derive(Debug, Default)]
struct Priorities {
    /// `update_frequency`.
    every: Option<NonZeroU32>,
    /// Of the attempt that is under way.
    current: Option<Arc<Endpoint>>,
    /// Of those that failed, since it last started over.
    failed: Vec<Arc<Endpoint>>,
    /// Waits for none.
    hurries: bool,
}

impl Tried {
    /// Remembers where an attempt goes, if those after it shall avoid it: by so many more looks (previous_hosts), and after
    /// so many attempts (previous_priorities).
    pub(crate) fn add(&mut self, slot: &Slot, looks: Option<u32>, every: Option<NonZeroU32>) {
        if let Some(looks) = looks {
            self.looks = looks;
            match self.first {
                None => self.first = Some(Arc::clone(slot.endpoint())),
                Some(_) => self.rest.push(Arc::clone(slot.endpoint())),
            }
        }
        if every.is_some() || self.priorities.every.is_some() {
            self.priorities.attempt(slot.endpoint(), every);
        }
    }

    /// The attempt has failed, and the policy repeats it. What is sent again because nobody has seen it is no attempt here.
    pub(crate) fn failed(&mut self) {
        self.priorities.failed.extend(self.priorities.current.take());
    }

    /// Whether the next attempt is to avoid an endpoint.
    pub(super) fn avoids_hosts(&self) -> bool {
        self.first.is_some()
    }

    /// How many more endpoints are looked at for that.
    pub(super) fn looks(&self) -> u32 {
        self.looks
    }

    /// Whether an attempt went there.
    pub(super) fn has(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.first.iter().chain(&self.rest).any(|tried| Arc::ptr_eq(tried, endpoint))
    }

    /// Whether the next attempt is to avoid a priority.
    pub(crate) fn avoids_priorities(&self) -> bool {
        !self.priorities.excluded().is_empty()
    }

    /// From now on only what works at once will do: the call has waited long enough for what may work in a moment.
    pub(crate) fn hurry(&mut self) {
        self.priorities.hurries = true;
    }
}

impl Priorities {
    fn attempt(&mut self, endpoint: &Arc<Endpoint>, every: Option<NonZeroU32>) {
        self.every = every;
        // "If there are no available priorities left, we reset the attempted priorities" (Envoy): why else would it go there?
        if endpoint.priority().is_some_and(|priority| self.excludes(priority)) {
            self.failed.clear();
        }
        self.current = Some(Arc::clone(endpoint));
    }

    /// Those whose priorities are excluded.
    fn excluded(&self) -> &[Arc<Endpoint>] {
        let Some(every) = self.every else { return &[] };
        // Those that failed since the last update do not count yet.
        let every = every.get() as usize;
        &self.failed[..self.failed.len() / every * every]
    }

    fn excludes(&self, priority: usize) -> bool {
        self.excluded().iter().any(|endpoint| endpoint.priority() == Some(priority))
    }
}

// === Others ===

/// The priorities of a cluster, as far as retries have asked for others than the one that was chosen.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// How many there are.
    pub(crate) count: usize,
    /// The one that was chosen for all calls.
    pub(crate) chosen: usize,
    /// Each of them; empty as long as nobody has asked.
    pub(crate) known: Vec<Other>,
}

/// What a retry can have of a priority.
#[derive(Clone, Debug)]
pub(crate) enum Other {
    /// Nothing now.
    None(Standing),
    /// One of its connections.
    Ready(Arc<OtherPicker>),
}

/// The connections of a priority that was not chosen.
#[derive(Debug)]
pub(crate) struct OtherPicker {
    /// Of its leaf.
    pub(crate) admission: Option<Arc<Admission>>,
    pub(crate) picker: ReadyPicker,
}

/// Where a retry goes.
#[derive(Debug)]
pub(super) enum Choice<'a> {
    /// Where all calls go.
    Chosen,
    /// To a connection of another priority.
    Other(&'a OtherPicker),
    /// Nowhere, until the worker connects this one.
    Ask(usize),
    /// Nowhere yet.
    Wait,
}

impl Others {
    pub(super) fn choose(&self, picker: &Picker, tried: &Tried) -> Choice<'_> {
        let chosen = match picker {
            Picker::Ready(_) => Standing::Works,
            Picker::Wait => Standing::Pending,
            // Everything has failed, or there is nobody to ask.
            Picker::Fail(_) | Picker::Removed => return Choice::Chosen,
        };
        let standing = |priority: usize| match self.known.get(priority) {
            _ if priority == self.chosen => chosen,
            Some(Other::Ready(_)) => Standing::Works,
            Some(Other::None(standing)) => *standing,
            None => Standing::Absent,
        };
        for priority in (0..self.count).filter(|priority| !tried.priorities.excludes(*priority)) {
            return match (standing(priority), self.known.get(priority)) {
                (Standing::Works, Some(Other::Ready(other))) => Choice::Other(other),
                (Standing::Works, _) => Choice::Chosen,
                (Standing::Pending, _) if !tried.priorities.hurries => Choice::Wait,
                (Standing::Absent, _) if !tried.priorities.hurries => Choice::Ask(priority),
                // As in A56: on to the next one.
                (Standing::Pending | Standing::Absent | Standing::Failed, _) => continue,
            };
        }
        Choice::Chosen
    }
}

#[cfg(test)]
#[path = "elsewhere_tests.rs"]
mod tests;
