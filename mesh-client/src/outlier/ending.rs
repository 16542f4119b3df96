//! How a call that reached a host ended, and which endings are successes: the one place that says so, for the books of load
//! reports and for outlier detection, with a mesh and without.

use crate::error::http_status_of;
use http::{HeaderMap, StatusCode};

/// How a call that reached a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With an answer: whether it is a success, and as which HTTP status it counts in a row (of gRPC: what stands for it).
    Answered { success: bool, status: u16 },
    /// The connection broke, or the stream was reset: Envoy's 503.
    Broken,
    /// No answer came in time: Envoy's 504.
    TimedOut,
    /// Given up by the caller: "anything else failure" (A50), and nothing in a row (Envoy).
    Cancelled,
}

impl Ending {
    /// Of a response that is not gRPC's. As in Envoy: errors are the server's errors; 4xx is an answer.
    pub(crate) fn of_http(status: StatusCode) -> Self {
        Self::Answered { success: !status.is_server_error(), status: status.as_u16() }
    }

    /// Of gRPC's trailers, or of the head that stands in their place.
    pub(crate) fn of_grpc(trailers: &HeaderMap) -> Self {
        let status = trailers.get("grpc-status").map(|status| status.as_bytes());
        Self::Answered { success: status == Some(b"0"), status: status.map_or(500, http_status_of) }
    }

    pub(crate) fn is_success(self) -> bool {
        matches!(self, Self::Answered { success: true, .. })
    }
}
