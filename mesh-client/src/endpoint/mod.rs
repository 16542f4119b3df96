//! A backend and the connections to it: dialled, proven, counted, drained.
//!
//! ```text
//!            dial              TCP + SETTINGS + PONG            closed, GOAWAY
//!   Idle ──────────► Connecting ─────────────────────► Ready ─────────────────► Idle
//!                        │  refused, silent, timed out            (dialled again at once)
//!                        ▼
//!                 TransientFailure ── backoff ──► Connecting (still counted as failed until Ready: A62)
//! ```
//!
//! The worker of a cluster owns that state; this room owns what one connection does. h2 and hyper are named here
//! and nowhere else: the rest of the crate sees [`Slot::send`] and its [`SendFailure`].
//! It does NOT choose endpoints and does NOT decide about retries.

mod connect;
mod dial;
#[cfg(feature = "http1")]
mod h1;
mod h2;
mod rest;
mod slot;

pub(crate) use connect::{DialOptions, Keepalive, MAX_WINDOW, interleaved};
pub(crate) use dial::Dial;
pub(crate) use rest::Rest;
pub(crate) use slot::Slot;

use crate::{
    breaker::Breaker,
    outlier::{Ending, Stats},
    wakeups::Wakeups,
};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::uri::Authority;
use http_body::Frame;
use mesh_xds::resource::{Addresses, ClusterName, OutlierDetection};
use slot::Claim;
use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::sync::Notify;

/// Which HTTP version a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Http2,
    #[cfg(feature = "http1")]
    Http1,
}

/// A backend as EDS names it, with what is counted about it. Lives as long as the assignment (or a call) holds it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) addresses: Addresses,
    /// What to call it in `:authority`, where a route says so (A81).
    hostname: ArcSwapOption<Authority>,
    attempts: AtomicU64,
    /// `usize::MAX` if it is in none (any more). Written by the cluster worker.
    priority: AtomicUsize,
    /// An [`EndpointState`], written by the cluster worker, read by `status()`.
    state: AtomicU8,
    /// Likewise.
    ejected: AtomicBool,
    /// How its calls end, while its cluster detects outliers.
    pub(crate) outcomes: Stats,
    /// Wakes the worker, who has to look at that.
    alarm: OnceLock<Arc<Notify>>,
}

/// The connection state of an endpoint, in gRPC's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Not dialled: no call needed it yet.
    Idle,
    /// Being dialled.
    Connecting,
    /// Gets calls.
    Ready,
    /// The last dial failed; dialled again after a backoff.
    TransientFailure,
}

impl Endpoint {
    pub(crate) fn new(addresses: Addresses) -> Self {
        Self {
            addresses,
            hostname: ArcSwapOption::empty(),
            attempts: AtomicU64::new(0),
            priority: AtomicUsize::new(usize::MAX),
            state: AtomicU8::new(0),
            ejected: AtomicBool::new(false),
            outcomes: Stats::default(),
            alarm: OnceLock::new(),
        }
    }

    /// Whether it gets no calls, for how those before have ended.
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    pub(crate) fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Ordering::Relaxed);
    }

    /// Counts how calls end, by these rules, and rings `alarm` when too many fail in a row; `None` ends that.
    pub(crate) fn watch(&self, detection: Option<&OutlierDetection>, alarm: &Arc<Notify>) {
        self.alarm.get_or_init(|| Arc::clone(alarm));
        self.outcomes.watch(detection);
    }

    /// A call has ended here.
    pub(crate) fn count(&self, ending: Ending) {
        if self.outcomes.count(ending)
            && let Some(alarm) = self.alarm.get()
        {
            alarm.notify_one();
        }
    }

    pub(crate) fn hostname(&self) -> Option<Authority> {
        self.hostname.load().as_deref().cloned()
    }

    /// One that cannot be an authority is none.
    pub(crate) fn set_hostname(&self, hostname: Option<&str>) {
        let is_same = self.hostname.load().as_deref().map(Authority::as_str) == hostname;
        if !is_same {
            self.hostname.store(hostname.and_then(|name| Authority::try_from(name).ok()).map(Arc::new));
        }
    }

    /// The priority that it is in; 0 is the highest.
    pub(crate) fn priority(&self) -> Option<usize> {
        Some(self.priority.load(Ordering::Relaxed)).filter(|priority| *priority != usize::MAX)
    }

    pub(crate) fn set_priority(&self, priority: Option<usize>) {
        self.priority.store(priority.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Calls that were given to it, ever.
    pub(crate) fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    pub(crate) fn state(&self) -> EndpointState {
        match self.state.load(Ordering::Relaxed) {
            0 => EndpointState::Idle,
            1 => EndpointState::Connecting,
            2 => EndpointState::Ready,
            _ => EndpointState::TransientFailure,
        }
    }

    pub(crate) fn set_state(&self, state: EndpointState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

// === Connection ===

/// A READY connection: the handle that pickers hold. Dropping the last one lets the socket close once idle.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) endpoint: Arc<Endpoint>,
    /// The cluster that dialled it, and the xDS node that we are, for error texts.
    cluster: ClusterName,
    node: Arc<str>,
    /// The address that won among the endpoint's.
    pub(crate) peer: SocketAddr,
    gate: Arc<Gate>,
    transport: Transport,
}

#[derive(Debug)]
enum Transport {
    H2(h2::Sender),
    #[cfg(feature = "http1")]
    H1(h1::Pool),
}

/// Who may pass: the part of a connection that its driver writes and its callers read.
#[derive(Debug)]
pub(crate) struct Gate {
    open: AtomicBool,
    /// Streams in flight, counted by us, so that no call ever waits inside h2's own queue.
    active: AtomicUsize,
    /// How many the peer allows now (SETTINGS_MAX_CONCURRENT_STREAMS).
    quota: AtomicUsize,
    /// Why the driver gave the connection up, where the socket itself would not say.
    lost: OnceLock<String>,
    wakeups: Arc<Wakeups>,
}

impl Gate {
    fn new(wakeups: Arc<Wakeups>) -> Self {
        Self {
            open: AtomicBool::new(true),
            active: AtomicUsize::new(0),
            quota: AtomicUsize::new(usize::MAX),
            lost: OnceLock::new(),
            wakeups,
        }
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.open.store(false, Ordering::Release);
    }

    fn set_quota(&self, quota: usize) {
        if self.quota.swap(quota, Ordering::Relaxed) < quota {
            self.wakeups.all();
        }
    }

    fn enter(&self) -> bool {
        // Never above the quota, not even for a moment: another caller would see a full connection, and giving the
        // surplus back would wake a waiter (this one, as like as not) for nothing.
        let quota = self.quota.load(Ordering::Relaxed);
        let below = |active| (active < quota).then_some(active + 1);
        self.active.fetch_update(Ordering::SeqCst, Ordering::SeqCst, below).is_ok()
    }

    fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    fn leave(&self) {
        self.active.fetch_sub(1, Ordering::SeqCst);
        self.wakeups.one();
    }
}

impl Connection {
    /// Takes a stream of this connection, if it is open and has one left. Of a pool that is a connection: an idle one, or
    /// one more, if the circuit breaker has room for it.
    pub(crate) fn slot(self: &Arc<Self>, breaker: Option<&Breaker>) -> Option<Slot> {
        let claim = if self.gate.is_open() { self.claim(breaker)? } else { return None };
        Some(Slot::new(Arc::clone(self), claim))
    }

    #[cfg_attr(
        not(feature = "http1"),
        expect(unused_variables, reason = "HTTP/2 has one connection for each endpoint")
    )]
    fn claim(&self, breaker: Option<&Breaker>) -> Option<Claim> {
        match &self.transport {
            Transport::H2(_) => self.gate.enter().then_some(Claim::Stream),
            #[cfg(feature = "http1")]
            Transport::H1(pool) => pool.claim(breaker).map(Claim::Connection),
        }
    }

    /// Takes no new calls; those in flight finish, then the socket closes.
    pub(crate) fn retire(&self) {
        self.gate.close();
        match &self.transport {
            Transport::H2(sender) => sender.retire(),
            #[cfg(feature = "http1")]
            Transport::H1(pool) => pool.retire(),
        }
    }
}

// === Failures ===

/// What became of an attempt that got no response headers. Nothing outside this room looks at an h2 error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendFailure {
    /// No byte of it was written: it may be sent again, any number of times.
    Unsent(String),
    /// The server says that it did not look at it: REFUSED_STREAM.
    Refused,
    /// The server said GOAWAY and will not look at it: its stream id is above the last one.
    GoneAway,
    /// The server reset the stream, with this HTTP/2 error code.
    Reset(u32),
    /// We reset the stream, because the response cannot be taken: headers too large, or malformed.
    Unacceptable(String),
    /// The connection broke after the request was (perhaps) sent.
    Io(String),
    /// The caller's own request body failed.
    RequestBody(String),
    /// The request cannot be sent at all (a header that HTTP/2 forbids, ...).
    Invalid(String),
}

/// How a response ended early, after its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecvFailure {
    /// The server reset the stream, with this HTTP/2 error code.
    Reset(u32),
    /// We reset the stream, because the rest of the response cannot be taken.
    Unacceptable(String),
    /// The connection broke.
    Io(String),
}

/// What a connection tells the cluster worker.
#[derive(Debug)]
pub(crate) enum ConnectionEvent {
    /// It may be picked.
    Ready(Arc<Connection>),
    /// It could not be made.
    Failed(String),
    /// It was READY and takes no more calls (GOAWAY, closed, keepalive failed).
    Closed(String),
}

// === RecvBody ===

/// The response as it arrives, whichever protocol carries it.
#[derive(Debug)]
pub(crate) enum RecvBody {
    H2(h2::RecvBody),
    #[cfg(feature = "http1")]
    H1(h1::RecvBody),
}

impl RecvBody {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RecvFailure>>> {
        match self {
            Self::H2(body) => body.poll_frame(cx),
            #[cfg(feature = "http1")]
            Self::H1(body) => body.poll_frame(cx),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::H2(body) => body.is_end_stream(),
            #[cfg(feature = "http1")]
            Self::H1(body) => body.is_end_stream(),
        }
    }

    pub(crate) fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::H2(_) => http_body::SizeHint::default(),
            #[cfg(feature = "http1")]
            Self::H1(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Arc, Connection, Endpoint, Gate, Transport, Wakeups, h2};

    /// A READY connection of `endpoint` with room for so many streams; nobody listens at its other end.
    pub(crate) async fn connection(endpoint: Arc<Endpoint>, quota: usize) -> Arc<Connection> {
        let gate = Arc::new(Gate::new(Arc::new(Wakeups::default())));
        gate.set_quota(quota);
        let (peer, transport) = (endpoint.addresses.first, Transport::H2(h2::Sender::unheard().await));
        Arc::new(Connection { endpoint, cluster: "c".into(), node: "n".into(), peer, gate, transport })
    }
}
