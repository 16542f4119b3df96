//! Which route of a virtual host takes a request, and which of its clusters (A28, A63).
//!
//! Everything that can be decided when the configuration arrives is decided then: [`RouteMatcher`] is compiled once
//! per virtual host, and a request only looks things up in it.
//!
//! This room does NOT know what a route's action means to a call: that is the channel's affair.

mod candidates;
mod paths;
mod request;
mod table;
#[cfg(test)]
mod tests;
mod weighted;

pub use request::RequestHead;
pub use table::RouteMatcher;
pub(crate) use weighted::WeightedChoice;
