//! An embeddable service mesh: what a sidecar gives, inside the process, as tower services for tonic and hyper.

mod apply;
mod balance;
mod builder;
mod call;
mod channel;
mod chunks;
mod cluster;
mod deadline;
mod endpoint;
mod error;
mod http_client;
mod mesh;
pub mod route;
mod status;
mod task;
#[cfg(feature = "testing")]
pub mod testing;
mod wakeups;

pub use builder::{ChannelBuilder, MeshBuilder};
pub use call::{ResponseBody, WaitForReady};
#[cfg(feature = "http1")]
pub use channel::HttpVersion;
pub use channel::{FailingCluster, MeshChannel, NotReady, ResponseFuture};
pub use cluster::EndpointReport;
pub use endpoint::EndpointState;
pub use error::{Cause, MeshError};
pub use http_client::HttpClient;
pub use mesh::{Mesh, TargetError};
pub use mesh_xds::{Bootstrap, BootstrapError};
pub use status::{ChannelState, ChannelStatus, ClusterStatus, MeshStatus};
