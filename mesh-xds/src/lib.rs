//! What the control plane said: an xDS client that turns ADS bytes into plain, validated, consistent values.
//!
//! A [`Bootstrap`] says where the control plane is, [`XdsClient`] follows it, [`XdsClient::watch`] gives one [`Snapshot`]
//! after another: each complete, with everything that one target needs (A74). What the control plane got wrong is NACKed
//! with the field's path, and the last good value stays. [`resource`] has the values, without protobuf.
//! [`XdsClient::watch_resource`] follows one resource by itself, of any type: [`resource::ResourceType`] is for your own.
//!
//! Feature `control-plane`: the other end, for tests, laptops and products. It does NOT carry calls: `mesh-client` does.

mod ads;
mod assemble;
mod bootstrap;
mod budget;
mod cache;
mod client;
mod cluster_map;
#[cfg(feature = "control-plane")]
pub mod control_plane;
mod csds;
pub mod decode;
mod dns;
mod in_process;
mod later;
pub mod load;
mod log;
mod name;
mod orca;
mod registry;
pub mod resource;
mod snapshot;
mod status;
mod tls;

pub use bootstrap::{Authority, Bootstrap, BootstrapBuilder, BootstrapError, ServerAddress, ServerId, XdsServer};
pub use client::{Closed, NameFailures, ResourceUpdate, ResourceWatch, TargetName, TargetWatch, XdsClient};
pub use cluster_map::ClusterMap;
pub use csds::CsdsService;
pub use dns::{Lookup, Resolve, Resolved};
pub use in_process::InProcess;
pub use log::Limiter;
pub use registry::Registry;
pub use snapshot::{ClusterConfig, ClusterError, Leaves, ResolvedCluster, Snapshot, Target};
pub use status::{NodeStatus, ResourceFailure, ResourceState, ResourceStatus, ServerStatus, Status, StreamState};
pub use tls::{CryptoProvider, TlsConfig};
