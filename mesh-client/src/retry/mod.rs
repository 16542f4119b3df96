//! Whether an attempt is repeated, and when (A6, A44; Envoy's `retry_on` for what is not gRPC).
//!
//! Channels obey the policies of their routes. [`RetryLayer`] is for any other service.
//!
//! ```text
//!  an attempt ended ─┬─ nothing was sent ───────────────► again, at once, as often as it takes        (A6: transparent)
//!                    ├─ refused, or gone away ──────────► again, at once, the first time; then as below
//!                    └─ failed, or answered ─► Plan ──┬─► the server wants none ─────────► the caller gets it (throttling counts it)
//!                                                     ├─► not a condition of the policy ──► the caller gets it
//!                                                     ├─► no retry left ─────────────────► the caller gets it (throttling counts it)
//!                                                     └─► again, after a backoff
//! ```
//!
//! It is a machine without I/O: what happened comes in as a value, random numbers and the time of day as closures. It does
//! NOT hold bodies, look at endpoints, sleep, or know the call's deadline; `layer.rs` does, for services of a user's own.

mod backoff;
mod body;
mod layer;
mod plan;
#[cfg(test)]
mod tests;
mod throttle;

pub use body::{ReplayBody, RetryBody};
pub use layer::{Retry, RetryFuture, RetryLayer, TryTimeoutElapsed};
/// Of which responses, and which requests, a policy speaks.
pub use mesh_xds::resource::{FullRegex, HeaderField, HeaderMatch, HeaderValueMatch, PseudoHeader, StringMatch};
pub use mesh_xds::resource::{RateLimitedBackOff, ResetFormat, ResetHeader, RetryCondition, RetryOn, RetryPolicy};
pub(crate) use plan::{Failure, Plan, Retries, Verdict, is_unwanted};
pub use throttle::RetryThrottling;
pub(crate) use throttle::Throttle;

/// In seconds since 1970, for servers that say so when to come again.
#[expect(clippy::disallowed_types, reason = "the one header that counts from 1970")]
pub(crate) fn time_of_day() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
