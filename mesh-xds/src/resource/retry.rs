//! `retry_policy` of a route or virtual host: when an attempt is repeated, how often, how soon, and where (A6, A44).
//!
//! One policy serves two kinds of calls. gRPC reads the five status codes and the backoff (A44); Envoy's conditions are for
//! everything else. Which call is which, and what follows from it, is NOT decided here.

use super::HeaderMatch;
use http::HeaderName;
use std::{num::NonZeroU32, time::Duration};

/// A validated `envoy.config.route.v3.RetryPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// `retry_on`. Nothing usable in it still hides the virtual host's policy (A44).
    pub retry_on: RetryOn,
    /// `num_retries`, at least 1. A gRPC call makes no more than 5 attempts whatever this says (A6).
    pub num_retries: u32,
    /// `retry_back_off.base_interval`: 25 ms unless set, at least 1 ms.
    pub base_interval: Duration,
    /// `retry_back_off.max_interval`: ten times the base unless set, at least `base_interval`.
    pub max_interval: Duration,
    /// `per_try_timeout`, if there is one: how long an attempt may take to its response headers, once the request is complete.
    pub per_try_timeout: Option<Duration>,
    /// `per_try_idle_timeout`, if there is one: how long an attempt may pause, once the request is complete.
    pub per_try_idle_timeout: Option<Duration>,
    /// `retriable_status_codes`, for [`RetryCondition::RetriableStatusCodes`].
    pub retriable_status_codes: Vec<u16>,
    /// `retriable_headers` of responses, for [`RetryCondition::RetriableHeaders`]. One is enough. None counts for gRPC calls
    /// (A44).
    pub retriable_headers: Vec<HeaderMatch>,
    /// `retriable_request_headers`: where not empty, only requests that match one of them are repeated. gRPC calls are
    /// repeated whether they do or not (A44).
    pub retriable_request_headers: Vec<HeaderMatch>,
    /// `rate_limited_retry_back_off`.
    pub rate_limited: Option<RateLimitedBackOff>,
    /// `retry_host_predicate` names previous_hosts: a retry goes to another endpoint, if it can.
    pub avoid_previous_hosts: bool,
    /// `host_selection_retry_max_attempts`: how many more endpoints are looked at to avoid one. 1 unless set.
    pub host_selection_attempts: u32,
    /// `retry_priority` is previous_priorities, with this `update_frequency`: after every so many attempts, those to come go to a
    /// priority that none of them went to, if there is one that works. When there is none, it starts over.
    pub previous_priorities: Option<NonZeroU32>,
}

impl RetryPolicy {
    /// One retry on any of these conditions, and for everything else what is so unless it is set.
    ///
    /// ```
    /// use mesh_xds::resource::{RetryCondition, RetryPolicy};
    ///
    /// let policy = RetryPolicy { num_retries: 3, ..RetryPolicy::on([RetryCondition::Unavailable]) };
    /// assert_eq!(policy.base_interval.as_millis(), 25);
    /// ```
    pub fn on(conditions: impl IntoIterator<Item = RetryCondition>) -> Self {
        Self {
            retry_on: conditions.into_iter().collect(),
            num_retries: 1,
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            per_try_timeout: None,
            per_try_idle_timeout: None,
            retriable_status_codes: Vec::new(),
            retriable_headers: Vec::new(),
            retriable_request_headers: Vec::new(),
            rate_limited: None,
            avoid_previous_hosts: false,
            host_selection_attempts: 1,
            previous_priorities: None,
        }
    }
}

/// `rate_limited_retry_back_off`: the server says when to come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitedBackOff {
    /// In order; the first that is there and not too long decides.
    pub reset_headers: Vec<ResetHeader>,
    /// What is longer does not count. 300 s unless set.
    pub max_interval: Duration,
}

/// A response header with the time to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetHeader {
    /// Its name: `retry-after`, say.
    pub name: HeaderName,
    /// How to read it.
    pub format: ResetFormat,
}

/// `RetryPolicy.ResetHeaderFormat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetFormat {
    /// Seconds from now.
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

// === Conditions ===

/// One condition of `retry_on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCondition {
    /// gRPC status 1.
    Cancelled,
    /// gRPC status 4.
    DeadlineExceeded,
    /// gRPC status 8.
    ResourceExhausted,
    /// gRPC status 13.
    Internal,
    /// gRPC status 14.
    Unavailable,
    /// `5xx`: a status 500 to 599, or no response at all.
    ServerError,
    /// `gateway-error`: 502, 503, 504, or no response at all.
    GatewayError,
    /// `reset`: no response at all.
    Reset,
    /// `reset-before-request`: no response, and nothing of the request was sent.
    ResetBeforeRequest,
    /// `connect-failure`: no connection to the endpoint.
    ConnectFailure,
    /// `refused-stream`: REFUSED_STREAM.
    RefusedStream,
    /// `retriable-4xx`: 409.
    Retriable4xx,
    /// `retriable-status-codes`.
    RetriableStatusCodes,
    /// `retriable-headers`.
    RetriableHeaders,
    /// `envoy-ratelimited`: also a response that says `x-envoy-ratelimited`, which otherwise is never repeated.
    EnvoyRateLimited,
}

impl RetryCondition {
    const ALL: [(&str, Self); 15] = [
        ("cancelled", Self::Cancelled),
        ("deadline-exceeded", Self::DeadlineExceeded),
        ("resource-exhausted", Self::ResourceExhausted),
        ("internal", Self::Internal),
        ("unavailable", Self::Unavailable),
        ("5xx", Self::ServerError),
        ("gateway-error", Self::GatewayError),
        ("reset", Self::Reset),
        ("reset-before-request", Self::ResetBeforeRequest),
        ("connect-failure", Self::ConnectFailure),
        ("refused-stream", Self::RefusedStream),
        ("retriable-4xx", Self::Retriable4xx),
        ("retriable-status-codes", Self::RetriableStatusCodes),
        ("retriable-headers", Self::RetriableHeaders),
        ("envoy-ratelimited", Self::EnvoyRateLimited),
    ];

    /// The condition that `retry_on` calls so, in any case; `None` for one that nobody here knows.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(known, condition)| known.eq_ignore_ascii_case(name).then_some(condition))
    }

    /// The condition for a gRPC status code, if it is one of the five (A44).
    pub fn of_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Cancelled),
            4 => Some(Self::DeadlineExceeded),
            8 => Some(Self::ResourceExhausted),
            13 => Some(Self::Internal),
            14 => Some(Self::Unavailable),
            _ => None,
        }
    }
}

/// The conditions of a policy: a set.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn(u16);

impl RetryOn {
    /// Whether the condition is in it.
    pub fn has(self, condition: RetryCondition) -> bool {
        self.0 & 1 << condition as u16 != 0
    }

    /// Whether one of these is in it.
    pub fn has_any(self, conditions: &[RetryCondition]) -> bool {
        conditions.iter().any(|condition| self.has(*condition))
    }
}

impl FromIterator<RetryCondition> for RetryOn {
    fn from_iter<I: IntoIterator<Item = RetryCondition>>(conditions: I) -> Self {
        Self(conditions.into_iter().fold(0, |set, condition| set | 1 << condition as u16))
    }
}

impl std::fmt::Debug for RetryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = RetryCondition::ALL.into_iter().filter(|(_, condition)| self.has(*condition));
        f.debug_set().entries(known.map(|(name, _)| name)).finish()
    }
}
