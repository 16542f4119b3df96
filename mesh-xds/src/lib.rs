//! What the control plane said: an xDS client that turns ADS bytes into plain, validated, consistent values.

mod ads;
mod assemble;
mod bootstrap;
mod cache;
mod client;
#[cfg(feature = "control-plane")]
pub mod control_plane;
pub mod decode;
mod in_process;
mod log;
pub mod resource;
mod snapshot;
mod status;

pub use bootstrap::{Bootstrap, BootstrapBuilder, BootstrapError, ServerAddress};
pub use client::{Closed, TargetName, TargetWatch, XdsClient};
pub use in_process::InProcess;
pub use log::Limiter;
pub use snapshot::{ClusterConfig, ClusterError, ResolvedCluster, Snapshot, Target};
pub use status::{ResourceState, ResourceStatus, ServerStatus, Status, StreamState};
