//! The admin services that the PSM suite expects of its binaries: health, channelz and CSDS.
//!
//! Each takes its facts as plain values from whoever has them. It does NOT watch anything itself.

mod channelz;
mod csds;
mod health;

pub use channelz::{CallCounts, Channelz, TopChannel};
pub use csds::{Csds, XdsConfigs};
pub use health::UpdateHealth;
