//! HTTP filters: what looks at a call between its route and its cluster, once per call (A39).
//!
//! ```text
//!  configuration   declared filters + overrides ─► levels/ ─► one Chain per route or share of a split; often none
//!  request         Chain ─► Filter::request, in order: on, an answer, or a wait
//!  response        Chain ─► Filter::response, in reverse order, for those that let the request pass
//! ```
//!
//! One seam, [`Filter`], serves the filters that are known here and those that a user brings along, and says nothing of
//! which side of a connection it is on. To add a filter is to add
//!
//! * its configuration to `mesh_xds::resource` and its decoder to `mesh_xds::decode`,
//! * one arm in [`Makers`], and one file here, which touches [`FilterRequest`] and [`Reply`] alone:
//!   header mutation changes both heads; a rewrite changes the request's URI; a rate limit keeps its tokens in the filter and
//!   answers with a [`Reply`]; an authorization service is a [`Verdict::Wait`], which answers, or adds what it was told to
//!   the head, and to the response by way of the request's extensions.
//!
//! A filter does NOT see bodies, and does NOT choose routes or clusters.

mod chain;
mod fault;
mod layer;
mod levels;
mod makers;
mod request;

pub(crate) use chain::{Chain, Passed};
pub use fault::{Fault, FaultFuture, FaultLayer, active_faults};
pub use layer::{FilterLayer, Filtered, FilteredFuture};
pub(crate) use levels::{Level, LevelBuilder};
pub(crate) use makers::Makers;
pub use request::{Filter, FilterRequest, Outcome, Verdict};

use crate::reply::Reply;
