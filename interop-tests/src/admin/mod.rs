//! The admin services that the PSM suite expects of its binaries, but for CSDS, which is the library's own.
//!
//! Each takes its facts as plain values from whoever has them. It does NOT watch anything itself.

mod channelz;
mod health;

pub use channelz::{CallCounts, Channelz, TopChannel};
pub use health::UpdateHealth;
