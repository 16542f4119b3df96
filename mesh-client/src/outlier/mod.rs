//! Outlier detection (A50, and Envoy's consecutive errors): who gets no calls for a while, for how its calls ended.
//!
//! ```text
//!  calls ── Ending ──► Stats ── Tally, at each sweep; a Streak, at once ──► Detector ──► ejected, returned
//! ```
//!
//! [`Stats`] are atomics that calls bump, while somebody watches; the [`Detector`] is a machine without clock, dice or
//! sockets, which the cluster's worker owns. What becomes of an ejected endpoint is NOT decided here.

mod detector;
mod layer;
mod stats;

pub(crate) use detector::{Change, Detector, Trip};
pub use layer::{Outlier, OutlierBody, OutlierFuture, OutlierLayer};
pub(crate) use stats::{Ending, Stats, Streak, Tally};

/// The HTTP status that stands for a gRPC status, as Envoy has it (`Grpc::Utility::grpcToHttpStatus`).
pub(crate) fn http_status_of(grpc_status: &[u8]) -> u16 {
    match grpc_status {
        b"0" => 200,
        b"1" => 499,
        b"3" | b"9" | b"11" => 400,
        b"4" => 504,
        b"5" => 404,
        b"6" | b"10" => 409,
        b"7" => 403,
        b"8" => 429,
        b"12" => 501,
        b"14" => 503,
        b"16" => 401,
        // UNKNOWN, INTERNAL, DATA_LOSS, and what is no code.
        _ => 500,
    }
}
