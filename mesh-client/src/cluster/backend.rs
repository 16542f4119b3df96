//! One endpoint of a cluster: the states of its connection, and how each follows from the one before.
//!
//! ```text
//!   Idle ──► Queued ──► Dialling ──► Ready ──► Queued        (it lasted: dialled again at once)
//!                          │           └─────► Backoff       (it did not)
//!                          └──► Backoff ──► Queued
//!   any => Idle: its priority is not needed any more.
//! ```
//!
//! The roster owns it and keeps the counts; the worker brings clock, dials and events. Nothing here waits.

use crate::endpoint::{Connection, Endpoint, EndpointState};
use http::uri::Authority;
use mesh_xds::resource::Addresses;
use std::{sync::Arc, time::Duration};
use tokio::{task::AbortHandle, time::Instant};

/// The number of a dial within its worker: an endpoint that is dialled again has a new one.
pub(super) type DialId = u64;

/// One endpoint and its connection.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) endpoint: Arc<Endpoint>,
    /// pick_first: what to dial once the connection that outlived its list is gone.
    successor: Option<Addresses>,
    pub(super) priority: usize,
    /// Of the newest dial: what older ones still have to say is no news.
    dial: DialId,
    state: State,
    /// In a row.
    failures: u32,
    /// Sticky: "TF→CONNECTING must not move an aggregate out of TF" (A62); cleared by READY.
    failed: bool,
    /// "Ejected: TRANSIENT_FAILURE for whoever picks" (A50); its connection stays.
    ejected: bool,
    /// As what its priority counts it.
    pub(super) counted: Counted,
}

#[derive(Debug)]
enum State {
    Idle,
    Queued,
    Dialling(AbortHandle),
    Ready { connection: Arc<Connection>, since: Instant },
    Backoff { until: Instant },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    Ready,
    Failed,
    Other,
}

impl Backend {
    pub(super) fn new(addresses: Addresses) -> Self {
        Self {
            endpoint: Arc::new(Endpoint::new(addresses)),
            successor: None,
            priority: 0,
            dial: 0,
            state: State::Idle,
            failures: 0,
            failed: false,
            ejected: false,
            counted: Counted::Other,
        }
    }

    // === Transitions ===

    // Idle => Queued. Returns whether it was idle.
    pub(super) fn enqueue(&mut self) -> bool {
        let idle = matches!(self.state, State::Idle);
        if idle {
            self.state = State::Queued;
            self.endpoint.set_state(self.public_state());
        }
        idle
    }

    // Queued => Dialling.
    pub(super) fn dialling(&mut self, dial: DialId, task: AbortHandle) {
        (self.dial, self.state) = (dial, State::Dialling(task));
    }

    // Dialling => Ready: backoff starts over only now, after the server's SETTINGS.
    pub(super) fn ready(&mut self, connection: Arc<Connection>, now: Instant) {
        self.state = State::Ready { connection, since: now };
        (self.failed, self.failures) = (false, 0);
    }

    // Dialling => Backoff, counted as failed until Ready.
    pub(super) fn failed(&mut self, now: Instant, backoff: impl FnOnce(u32) -> Duration) -> Instant {
        self.failures = self.failures.saturating_add(1);
        self.failed = true;
        let until = now + backoff(self.failures);
        self.state = State::Backoff { until };
        until
    }

    // Ready => (Queued | Backoff): dialled again at once, unless it did not last. Returns when, if later.
    pub(super) fn closed(
        &mut self,
        now: Instant,
        short_lived: Duration,
        pause: impl FnOnce() -> Duration,
    ) -> Option<Instant> {
        let lasted = matches!(&self.state, State::Ready { since, .. } if now - *since >= short_lived);
        if lasted {
            self.state = State::Queued;
            return None;
        }
        let until = now + pause();
        self.state = State::Backoff { until };
        Some(until)
    }

    // Backoff => Queued, if that very backoff still stands.
    pub(super) fn backoff_over(&mut self, due: Instant) -> bool {
        let stands = matches!(self.state, State::Backoff { until } if until == due);
        if stands {
            self.state = State::Queued;
        }
        stands
    }

    // any => Idle: what comes of it later starts afresh. Returns whether a dial was stopped.
    pub(super) fn rest(&mut self) -> bool {
        let stopped = self.retire();
        (self.state, self.failed, self.failures) = (State::Idle, false, 0);
        stopped
    }

    /// Lets go of its connection; calls in flight finish. Returns whether a dial was stopped.
    pub(super) fn retire(&self) -> bool {
        match &self.state {
            State::Dialling(task) => task.abort(),
            State::Ready { connection, .. } => connection.retire(),
            State::Idle | State::Queued | State::Backoff { .. } => {}
        }
        matches!(self.state, State::Dialling(_))
    }

    // === Addresses ===

    /// What the assignment names it by.
    pub(super) fn addresses(&self) -> &Addresses {
        self.successor.as_ref().unwrap_or(&self.endpoint.addresses)
    }

    /// The assignment names it by other addresses now, among them the one it is connected to.
    pub(super) fn succeeded_by(&mut self, addresses: Addresses) {
        self.successor = Some(addresses);
    }

    /// Turns to the addresses that the assignment names by now. Returns whether they are others.
    pub(super) fn readdress(&mut self) -> bool {
        let Some(addresses) = self.successor.take() else { return false };
        let hostname = self.endpoint.hostname();
        self.endpoint = Arc::new(Endpoint::new(addresses));
        self.endpoint.set_hostname(hostname.as_ref().map(Authority::as_str));
        self.endpoint.set_priority(Some(self.priority));
        true
    }

    // === Readings ===

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub(super) fn is_queued(&self) -> bool {
        matches!(self.state, State::Queued)
    }

    #[cfg(test)]
    pub(super) fn dial(&self) -> DialId {
        self.dial
    }

    pub(super) fn is_dialled_by(&self, dial: DialId) -> bool {
        self.dial == dial && matches!(self.state, State::Dialling(_))
    }

    pub(super) fn is_connected_by(&self, dial: DialId) -> bool {
        self.dial == dial && matches!(self.state, State::Ready { .. })
    }

    pub(super) fn connection(&self) -> Option<&Arc<Connection>> {
        match &self.state {
            State::Ready { connection, .. } => Some(connection),
            _ => None,
        }
    }

    /// The connection that calls may have.
    pub(super) fn offered(&self) -> Option<&Arc<Connection>> {
        self.connection().filter(|_| !self.ejected)
    }

    pub(super) fn set_ejected(&mut self, ejected: bool) {
        self.ejected = ejected;
        self.endpoint.set_ejected(ejected);
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejected
    }

    pub(super) fn counts_as(&self) -> Counted {
        match self.state {
            _ if self.ejected => Counted::Failed,
            State::Ready { .. } => Counted::Ready,
            _ if self.failed => Counted::Failed,
            _ => Counted::Other,
        }
    }

    pub(super) fn public_state(&self) -> EndpointState {
        match self.state {
            State::Ready { .. } => EndpointState::Ready,
            _ if self.failed => EndpointState::TransientFailure,
            State::Idle => EndpointState::Idle,
            State::Queued | State::Dialling(_) | State::Backoff { .. } => EndpointState::Connecting,
        }
    }
}
