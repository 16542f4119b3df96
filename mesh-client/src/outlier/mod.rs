//! Outlier detection (A50, and Envoy's consecutive errors and errors of local origin): who gets no calls for a while, for how its calls ended.
//!
//! ```text
//!  calls ── Ending ──► Stats ── Tallies, at each sweep; a Streak, at once ──► Detector ──► ejected, returned
//! ```
//!
//! [`Stats`] are atomics that calls bump, while somebody watches; the [`Detector`] is a machine without clock, dice or
//! sockets, which the cluster's worker owns. What becomes of an ejected endpoint is NOT decided here.

mod detector;
mod ending;
mod group;
mod layer;
mod rates;
mod stats;

pub(crate) use detector::{Change, Detector, Trip};
pub(crate) use ending::{Course, Ending};
pub use layer::{Outlier, OutlierBody, OutlierFuture, OutlierLayer};
pub(crate) use stats::{Stats, Streak, Tallies, Tally};
