//! What a backend saw: connections and calls, countable and awaitable.
//!
//! Tests compare a caller's count with the backend's own, and wait for an event here instead of sleeping. It does NOT
//! decide how a call is answered.

use http::{HeaderMap, Method, Request, Uri, Version};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time};

/// How long [`super::Backend::wait_for`] waits.
const PATIENCE: Duration = Duration::from_secs(15);

/// Counts since a backend was made; they go on through restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Connections that were accepted.
    pub connections: u64,
    /// Connections that are open now.
    pub open_connections: u64,
    /// Calls whose request headers arrived.
    pub calls: u64,
    /// Calls that were answered: OK, or an HTTP status below 400.
    pub succeeded: u64,
    /// Calls that were answered with a failure.
    pub failed: u64,
    /// Calls that ended before there was an answer: reset by the caller, or the connection went.
    pub cancelled: u64,
}

/// The head of a call as it arrived.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CallHead {
    /// The method.
    pub method: Method,
    /// The HTTP version.
    pub version: Version,
    /// The URI; over HTTP/2 with scheme and `:authority`.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
}

impl CallHead {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            version: request.version(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        }
    }

    /// `:authority`, or the `host` header of HTTP/1.1.
    pub fn authority(&self) -> Option<&str> {
        let host = || self.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        self.uri.authority().map(http::uri::Authority::as_str).or_else(host)
    }
}

/// The counters of one backend and its last call.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counters: watch::Sender<Counters>,
    last: Mutex<Option<CallHead>>,
}

impl Tally {
    pub(crate) fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    pub(crate) fn last_call(&self) -> Option<CallHead> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits, bounded, until `what` holds; the counters then, or those at the end of patience.
    pub(crate) async fn wait_for(&self, mut what: impl FnMut(&Counters) -> bool) -> Result<Counters, Counters> {
        let mut counters = self.counters.subscribe();
        match time::timeout(PATIENCE, counters.wait_for(|counters| what(counters))).await {
            Ok(Ok(counters)) => Ok(*counters),
            // The sender is `self`: it is not closed while we wait.
            Ok(Err(_)) | Err(_) => Err(self.counters()),
        }
    }

    pub(crate) fn connected(self: &Arc<Self>) -> OpenConnection {
        self.counters.send_modify(|counters| {
            counters.connections += 1;
            counters.open_connections += 1;
        });
        OpenConnection { tally: self.clone() }
    }

    pub(crate) fn called<B>(self: &Arc<Self>, request: &Request<B>) -> OpenCall {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(CallHead::of(request));
        self.counters.send_modify(|counters| counters.calls += 1);
        OpenCall { tally: self.clone(), outcome: Outcome::Cancelled }
    }
}

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    tally: Arc<Tally>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.tally.counters.send_modify(|counters| counters.open_connections -= 1);
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Succeeded,
    Failed,
    Cancelled,
}

/// Counts how a call ended when it is dropped.
#[derive(Debug)]
pub(crate) struct OpenCall {
    tally: Arc<Tally>,
    outcome: Outcome,
}

impl OpenCall {
    pub(crate) fn answered<B>(mut self, response: &http::Response<B>) {
        // A gRPC failure is trailers-only: its status is among the headers.
        let grpc_failure = response.headers().get("grpc-status").is_some_and(|status| status != "0");
        let http_failure = response.status().as_u16() >= 400;
        self.outcome = if grpc_failure || http_failure { Outcome::Failed } else { Outcome::Succeeded };
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let outcome = self.outcome;
        self.tally.counters.send_modify(|counters| match outcome {
            Outcome::Succeeded => counters.succeeded += 1,
            Outcome::Failed => counters.failed += 1,
            Outcome::Cancelled => counters.cancelled += 1,
        });
    }
}
