//! Which priority of a cluster gets the calls (A56, A115).
//!
//! Priorities are an ordered list of children, the first of which that works is selected. Below it children are made
//! only when they are needed, and kept for a while when they no longer are, so that a fail-over finds connections. Needed
//! are also those that are asked for by a retry which is to go elsewhere than to the selected one.
//!
//! ```text
//!        created, asked for         READY, IDLE, TRANSIENT_FAILURE
//!   absent ─────────────► Pending ──────────────────────────────────► Settled
//!                          │  ▲                                        │ │ ▲
//!                          │  └── CONNECTING after READY or IDLE ──────┘ │ │
//!                     10 s │                                             │ │
//!                          ▼                                             │ │
//!                         Late ◄─ CONNECTING after TRANSIENT_FAILURE ────┘ │
//!                          └───── READY, IDLE, TRANSIENT_FAILURE ──────────┘
//!
//!   Pending: CONNECTING, and the fail-over timer runs. Late: CONNECTING without it. Settled: any other state.
//!   any => absent: at once when gone from the config, 15 minutes after deactivation or after it was last asked for.
//!
//!   The choice walks the list, and ends at the first child that is
//!     READY or IDLE     selected; those behind it are deactivated
//!     Pending           selected; those behind it are left alone
//!     absent            created, therefore Pending, and selected
//!   If there is none, the first CONNECTING one is selected, or else the last.
//! ```
//!
//! The machine is sans-IO: what happened, and when, is passed in. What follows is there to be read after each event:
//! who is [`selected`](Priorities::selected), who [`is_active`](Priorities::is_active), and the
//! [`next_deadline`](Priorities::next_deadline) at which [`timer`](Priorities::timer) must be called.
//!
//! It does NOT know what a child is (a priority's localities, later a leaf of an aggregate cluster), and it does NOT
//! name children: "reuse per locality" (A115) is the caller's business.

use std::time::Duration;
use tokio::time::Instant;

/// How long a child may be CONNECTING before the next one is tried as well (A56).
const FAILOVER: Duration = Duration::from_secs(10);

/// How long a child outlives its deactivation (A56).
const RETENTION: Duration = Duration::from_secs(15 * 60);

/// How a child stands, for who cannot have the selected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody has needed it: it has to be asked for.
    Absent,
    /// It may work in a moment.
    Pending,
    /// It works.
    Works,
    /// It has failed, or is late.
    Failed,
}

/// The connectivity states of gRPC, less SHUTDOWN: what is shut down is absent here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectivityState {
    /// Not connected, and not trying until a call comes.
    Idle,
    /// Trying for the first time, or again after a connection was lost.
    Connecting,
    /// Calls can be sent.
    Ready,
    /// Failed. It lasts until READY, whatever is tried meanwhile (A62).
    TransientFailure,
}

/// The children of a cluster by priority, and the choice among them. `K` names a child.
#[derive(Debug)]
pub(crate) struct Priorities<K> {
    /// Highest priority first.
    entries: Vec<Entry<K>>,
    /// Position of the chosen one; none only while there are no entries.
    selected: Option<usize>,
}

#[derive(Debug)]
struct Entry<K> {
    key: K,
    /// Absent until the entries before it have failed or are late.
    child: Option<Child>,
}

#[derive(Debug)]
struct Child {
    /// As last reported.
    state: ConnectivityState,
    /// The fail-over timer, while it is pending.
    failover: Option<Instant>,
    /// Set while deactivated.
    destroy_at: Option<Instant>,
    /// Set while there are retries that need it: it is not destroyed before that.
    asked_until: Option<Instant>,
}

impl Child {
    // absent => Pending.
    fn new(now: Instant) -> Self {
        Self {
            state: ConnectivityState::Connecting,
            failover: Some(now + FAILOVER),
            destroy_at: None,
            asked_until: None,
        }
    }
}

impl<K> Default for Priorities<K> {
    fn default() -> Self {
        Self { entries: Vec::new(), selected: None }
    }
}

impl<K: Eq> Priorities<K> {
    // === What happened ===

    /// The config names these children, highest priority first; a name that comes again further down is ignored.
    ///
    /// `reports` are the states of children now that the same config was applied to them: "while applying a config
    /// update ignore child-triggered re-choices; choose once at the end" (A56).
    pub(crate) fn update(
        &mut self,
        children: impl IntoIterator<Item = K>,
        reports: impl IntoIterator<Item = (K, ConnectivityState)>,
        now: Instant,
    ) {
        self.fail_over(now);
        let mut before = std::mem::take(&mut self.entries);
        for key in children {
            if self.position(&key).is_none() {
                // Its child moves along, with its timers, to whatever priority it has now.
                let child = before.iter_mut().find(|entry| entry.key == key).and_then(|entry| entry.child.take());
                self.entries.push(Entry { key, child });
            }
        }
        // any => absent: what is left in `before` is dropped. "Child dropped from the config is destroyed at once"
        // (A115): a control plane that keeps moving endpoints would pile up connections otherwise.
        drop(before);
        for (key, state) in reports {
            self.note(&key, state, now);
        }
        self.settle(now);
    }

    /// A child's state is now `state`; the same one may be reported again. Children that are not active have no state:
    /// such a report was on its way when the child was destroyed.
    pub(crate) fn report(&mut self, child: &K, state: ConnectivityState, now: Instant) {
        self.fail_over(now);
        self.note(child, state, now);
        self.settle(now);
    }

    /// Somebody cannot have the selected child, and wants this one: it is created if need be, and kept for a while.
    pub(crate) fn ask(&mut self, child: &K, now: Instant) {
        self.fail_over(now);
        if let Some(at) = self.position(child) {
            let child = self.entries[at].child.get_or_insert_with(|| Child::new(now));
            child.asked_until = Some(now + RETENTION);
        }
        self.settle(now);
    }

    /// Time has passed. Harmless at any time.
    pub(crate) fn timer(&mut self, now: Instant) {
        self.fail_over(now);
        self.settle(now);
    }

    // === What follows ===

    /// The child that calls go to. `None` if the list is empty: "TF, UNAVAILABLE" (A56).
    pub(crate) fn selected(&self) -> Option<&K> {
        Some(&self.entries[self.selected?].key)
    }

    /// Whether this child has to exist: it is to connect, and to keep its connections. One that is not active (any
    /// more) has none.
    pub(crate) fn is_active(&self, child: &K) -> bool {
        self.position(child).is_some_and(|at| self.entries[at].child.is_some())
    }

    /// How this child stands.
    pub(crate) fn standing(&self, child: &K) -> Standing {
        let child = self.position(child).and_then(|at| self.entries[at].child.as_ref());
        match child {
            None => Standing::Absent,
            Some(Child { state: ConnectivityState::Ready | ConnectivityState::Idle, .. }) => Standing::Works,
            Some(Child { failover: Some(_), .. }) => Standing::Pending,
            Some(_) => Standing::Failed,
        }
    }

    /// Whether somebody has asked for any of them, not too long ago.
    pub(crate) fn is_asked(&self) -> bool {
        self.entries.iter().filter_map(|entry| entry.child.as_ref()).any(|child| child.asked_until.is_some())
    }

    /// When [`timer`](Self::timer) is to be called: later than the last event, whatever it was.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let children = self.entries.iter().filter_map(|entry| entry.child.as_ref());
        children.flat_map(|child| [child.failover, child.asked_until.or(child.destroy_at)]).flatten().min()
    }

    // === Transitions ===

    fn position(&self, key: &K) -> Option<usize> {
        self.entries.iter().position(|entry| entry.key == *key)
    }

    /// Fires the fail-over timers that are due, also when another event was faster than the caller's timer.
    fn fail_over(&mut self, now: Instant) {
        for child in self.entries.iter_mut().filter_map(|entry| entry.child.as_mut()) {
            // Pending => Late: it goes on trying, but no longer keeps others from being tried.
            child.failover.take_if(|deadline| *deadline <= now);
        }
    }

    fn note(&mut self, key: &K, state: ConnectivityState, now: Instant) {
        use ConnectivityState::{Connecting, Idle, Ready, TransientFailure};
        let Some(child) = self.position(key).and_then(|at| self.entries[at].child.as_mut()) else { return };
        child.failover = match (child.state, state) {
            // Pending => Pending, Late => Late: another endpoint is being tried; "must not restart it" (A56).
            (Connecting, Connecting) => child.failover,
            // Settled => Pending: it worked, and gets its time to work again. "READY/IDLE was reported more recently
            // than TRANSIENT_FAILURE" (A56) is just this, since one of the three comes before any new CONNECTING.
            (Ready | Idle, Connecting) => Some(now + FAILOVER),
            // Settled => Late: it has failed, and only READY or IDLE can make up for that.
            (TransientFailure, Connecting) => None,
            // any => Settled: "cancelled by READY, IDLE, TF" (A56).
            (_, Ready | Idle | TransientFailure) => None,
        };
        child.state = state;
    }

    /// Chooses, and then destroys what nobody has needed for 15 minutes; in this order, so that a child whose time is
    /// up just when it is needed again keeps its connections.
    fn settle(&mut self, now: Instant) {
        self.selected = self.choose(now);
        for entry in &mut self.entries {
            // any => absent.
            entry.child.take_if(|child| {
                child.asked_until.take_if(|deadline| *deadline <= now);
                child.asked_until.is_none() && child.destroy_at.is_some_and(|deadline| deadline <= now)
            });
        }
    }

    /// A56's ChoosePriority. Idempotent: without an event in between it changes nothing.
    fn choose(&mut self, now: Instant) -> Option<usize> {
        for at in 0..self.entries.len() {
            // absent => Pending: everything before it has failed or is late.
            let child = self.entries[at].child.get_or_insert_with(|| Child::new(now));
            // Needed again, or still.
            child.destroy_at = None;
            match child.state {
                ConnectivityState::Ready | ConnectivityState::Idle => {
                    self.deactivate_behind(at, now);
                    return Some(at);
                }
                // It may still make it. Those behind it are left alone: calls may be on them.
                _ if child.failover.is_some() => return Some(at),
                _ => {}
            }
        }
        // All have failed or are late. One that is still trying is better than one that has given up.
        let connecting = |child: &Child| child.state == ConnectivityState::Connecting;
        let trying = self.entries.iter().position(|entry| entry.child.as_ref().is_some_and(connecting));
        trying.or_else(|| self.entries.len().checked_sub(1))
    }

    fn deactivate_behind(&mut self, at: usize, now: Instant) {
        for child in self.entries[at + 1..].iter_mut().filter_map(|entry| entry.child.as_mut()) {
            // One that is deactivated already keeps its date.
            child.destroy_at.get_or_insert(now + RETENTION);
        }
    }
}

#[cfg(test)]
#[path = "priority_tests.rs"]
mod tests;
