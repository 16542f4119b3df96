//! LDS and RDS: what faults are injected, and into which calls (A33; Envoy where gRPC reads nothing).
//!
//! These are the rules only: dice are thrown, and headers of a request read, where filters run.

use super::{ClusterName, HeaderMatch, Millionths};
use http::StatusCode;
use std::time::Duration;

/// A validated `envoy.extensions.filters.http.fault.v3.HTTPFault`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpFault {
    /// Comes first.
    pub delay: Option<FaultDelay>,
    /// Comes second, and ends the call.
    pub abort: Option<FaultAbort>,
    /// While this many calls of the process are being faulted no other is. 0: none ever is.
    pub max_active_faults: Option<u32>,
    /// Only calls to this cluster.
    pub upstream_cluster: Option<ClusterName>,
    /// Only calls whose `x-envoy-downstream-service-node` is one of these; empty for all calls.
    pub downstream_nodes: Vec<String>,
    /// Only calls whose headers match, all of them.
    pub headers: Vec<HeaderMatch>,
}

/// `HTTPFault.delay`.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultDelay {
    /// For how long.
    pub source: DelaySource,
    /// How many calls.
    pub percentage: FaultPercentage,
}

/// Who says for how long a call is delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelaySource {
    /// `fixed_delay`; zero is no delay.
    Fixed(Duration),
    /// `header_delay`: the request, in `x-envoy-fault-delay-request`.
    Header,
}

/// `HTTPFault.abort`.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultAbort {
    /// With which status.
    pub source: AbortSource,
    /// How many calls.
    pub percentage: FaultPercentage,
    /// `response_body`: the text of the answer; `None` is Envoy's own.
    pub text: Option<String>,
}

/// Who says with which status a call is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortSource {
    /// `http_status`.
    Http(StatusCode),
    /// `grpc_status`, at most 16.
    Grpc(u8),
    /// `header_abort`: the request, in `x-envoy-fault-abort-request` or `x-envoy-fault-abort-grpc-request`.
    Header,
}

/// A share whose numerator a request may lower: "the percentage header can only lower the configured numerator" (A33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPercentage {
    /// Of `denominator`; more than that is always.
    pub numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl FaultPercentage {
    /// Never.
    pub const NONE: Self = Self { numerator: 0, denominator: 100 };

    /// The share.
    pub fn share(self) -> Millionths {
        Millionths::from_ratio(self.numerator, self.denominator)
    }

    /// The same with this numerator, unless it is the greater one.
    #[must_use]
    pub fn lowered_to(self, numerator: u32) -> Self {
        Self { numerator: self.numerator.min(numerator), ..self }
    }
}
