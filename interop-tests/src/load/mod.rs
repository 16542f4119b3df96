//! What `xds_interop_client` does with a channel: calls at a fixed rate, counted as the PSM suite wants them counted.
//!
//! Generic over the channel, so that a plain one can be measured by the same means as the mesh's. It does NOT make
//! channels.
//!
//! ```text
//! Configure ─► Plan ─► send: one tick = one RPC of each type ─► call ─► Statistics ─► GetClientStats
//! ```

mod call;
mod plan;
mod send;
mod services;
mod statistics;

pub use call::Channel;
pub use plan::{Payloads, Plan, RpcType};
pub use send::{Counted, send};
pub use services::{Configure, Stats};
pub use statistics::Statistics;
