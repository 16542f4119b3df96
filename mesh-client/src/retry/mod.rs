//! Whether an attempt is repeated, and when (A6, A44; Envoy's `retry_on` for what is not gRPC).
//!
//! ```text
//!  an attempt ended ─┬─ nothing was sent ───────────────► again, at once, as often as it takes        (A6: transparent)
//!                    ├─ refused, or gone away ──────────► again, at once, the first time; then as below
//!                    └─ failed, or answered ─► Plan ──┬─► not a condition of the policy ──► the caller gets it
//!                                                     ├─► no retry left ─────────────────► the caller gets it
//!                                                     └─► again, after a backoff
//! ```
//!
//! It is a machine without I/O: what happened comes in as a value, random numbers and the time of day as closures. It does
//! NOT hold bodies, look at endpoints, sleep, or know the call's deadline.

mod backoff;
mod plan;
#[cfg(test)]
mod tests;
mod throttle;

pub(crate) use plan::{Failure, Plan, Retries, Verdict};
pub use throttle::RetryThrottling;
pub(crate) use throttle::Throttle;
