//! What the control plane said: an xDS client that turns ADS bytes into plain, validated, consistent values.

mod bootstrap;
#[cfg(feature = "control-plane")]
pub mod control_plane;
pub mod decode;
mod in_process;
pub mod resource;
mod snapshot;

pub use bootstrap::{Bootstrap, BootstrapBuilder, BootstrapError, ServerAddress};
pub use in_process::InProcess;
pub use snapshot::{ClusterConfig, ClusterError, ResolvedCluster, Snapshot, Target};
