//! One configuration with the calls that try it, and what came of them on one side.
//!
//! The configuration is Envoy's own JSON, so that both sides read the same protobuf. It does NOT know which side it is
//! for.

use super::script::{Act, Script};
use serde_json::{Value, json};
use std::time::Duration;

/// A route with a cluster of its own, and the calls that are made there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Case {
    /// Its own among all; part of a path.
    pub(super) name: String,
    /// Fields of the RouteAction.
    pub(super) route: Value,
    /// The route's HTTPFault, if any.
    pub(super) fault: Value,
    /// Fields of the Cluster.
    pub(super) cluster: Value,
    pub(super) upstream: Upstream,
    /// By priority.
    pub(super) endpoints: Vec<Vec<Place>>,
    pub(super) calls: Vec<Call>,
    /// So many of the first calls are under way at once; the others come after them, one by one.
    pub(super) together: usize,
    /// Where attempts are so far apart that a back-off can be told from none.
    pub(super) backoff: Option<Backoff>,
    pub(super) compared: Compared,
}

/// What the cluster's endpoints are spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upstream {
    Http1,
    Http2,
}

/// Where an endpoint of a case is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The backend of this number.
    Up(usize),
    /// A port that refuses.
    Closed,
}

/// What is compared of the attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// Each call's, in order. Endpoints are known by who came first: a round robin may begin anywhere.
    EachCall,
    /// How many of all calls arrived at which backend, give or take `slack`, and how many results there were of each kind.
    Sums { slack: usize },
}

/// `retry_back_off`, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    pub(super) base: u64,
    pub(super) max: u64,
}

impl Backoff {
    /// The longest delay before this retry, the first being 1.
    pub(super) fn bound(self, retry: usize) -> Duration {
        Duration::from_millis((self.base << (retry - 1)).min(self.max))
    }
}

/// One call of a case.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) grpc: bool,
    pub(super) headers: Vec<(String, String)>,
    pub(super) script: Script,
    /// A POST whose body ends so late.
    pub(super) upload: Option<Duration>,
}

/// A gRPC call whose attempts meet these ends, the last one again and again.
pub(super) fn grpc(acts: impl Into<Vec<Act>>) -> Call {
    Call { grpc: true, headers: Vec::new(), script: Script::ByAttempt(acts.into()), upload: None }
}

/// An HTTP request whose attempts meet these ends, the last one again and again.
pub(super) fn http(acts: impl Into<Vec<Act>>) -> Call {
    Call { grpc: false, ..grpc(acts) }
}

impl Call {
    /// An HTTP request with a body that ends so many milliseconds after it began.
    pub(super) fn upload(self, millis: u64) -> Self {
        Self { upload: Some(Duration::from_millis(millis)), ..self }
    }

    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

impl Case {
    /// One call over HTTP/2 to one endpoint, by a route that says nothing.
    pub(super) fn new(name: impl Into<String>, calls: impl Into<Vec<Call>>) -> Self {
        Self {
            name: name.into(),
            route: json!({}),
            fault: Value::Null,
            cluster: json!({}),
            upstream: Upstream::Http2,
            endpoints: vec![vec![Place::Up(0)]],
            calls: calls.into(),
            together: 0,
            backoff: None,
            compared: Compared::EachCall,
        }
    }

    pub(super) fn route(self, route: Value) -> Self {
        Self { route, ..self }
    }

    /// The first `count` backends, of one priority.
    pub(super) fn endpoints(self, count: usize) -> Self {
        Self { endpoints: vec![(0..count).map(Place::Up).collect()], ..self }
    }

    /// These backends, of the next priority.
    pub(super) fn priority(mut self, backends: impl IntoIterator<Item = usize>) -> Self {
        self.endpoints.push(backends.into_iter().map(Place::Up).collect());
        self
    }
}

// === Seen ===

/// What came of one call on one side.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The backend of each attempt.
    pub(super) endpoints: Vec<usize>,
    /// Before the first attempt, between attempts, and from the last one to the result.
    pub(super) gaps: Vec<Duration>,
    /// How the call stood before the next one began, while calls are under way together.
    pub(super) stand: Option<Stand>,
    pub(super) got: Got,
}

/// How a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// An attempt is at the gate.
    Held,
    /// Nothing of it has come to a gate.
    Waiting,
    /// The caller has its result.
    Over,
}

/// What the caller got.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Got {
    /// The HTTP status; none if there were no headers.
    pub(super) status: Option<u16>,
    /// The gRPC status of headers or trailers.
    pub(super) grpc: Option<u16>,
    /// Which attempt was answered; none if the answer is the client's, or the proxy's.
    pub(super) attempt: Option<usize>,
    /// `x-envoy-overloaded` is there, in an answer that is not gRPC's.
    pub(super) overloaded: bool,
    /// The response came to its end.
    pub(super) whole: bool,
}
