//! An embeddable service mesh: what a sidecar gives, inside the process, as tower services for tonic and hyper.
//!
//! A [`Mesh`] follows an xDS control plane. A [`MeshChannel`] carries calls to one service: which cluster, within which
//! deadline, to which endpoint, over which connection, is decided in this process, without another hop.
//!
//! ```no_run
//! # use {bytes::Bytes, http::Request, http_body_util::Empty, mesh_client::Mesh};
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mesh = Mesh::from_env().await?; // GRPC_XDS_BOOTSTRAP / GRPC_XDS_BOOTSTRAP_CONFIG
//! let channel = mesh.channel("xds:///greeter.prod:8080")?;
//! // let mut greeter = GreeterClient::new(channel); // tonic's generated client, unchanged
//!
//! let http = mesh.http_client(); // many hosts, one handle
//! let items = Request::get("http://catalog.prod:8080/items").body(Empty::<Bytes>::new())?;
//! let response = http.request(items).await?;
//! # Ok(())
//! # }
//! ```
//!
//! * [`Mesh::channel_builder`] has the settings; [`MeshChannel::ready`] waits and says what is missing.
//! * A call that fails here says why: [`MeshError`] with its [`Cause`], as a gRPC status or an HTTP response.
//! * [`Mesh::status`] shows what was received, what is applied, and which fields had no effect.
//! * Feature `http1` (default): HTTP/1.1 to endpoints. Feature `testing`: [`Mesh`]es from a directory or a string of YAML.
//!
//! It does NOT speak TLS to endpoints yet: a cluster that asks for it fails its calls, and is never called in plaintext.

mod apply;
mod balance;
mod breaker;
mod builder;
mod call;
mod channel;
mod chunks;
mod cluster;
mod deadline;
mod endpoint;
mod error;
mod filter;
mod http_client;
mod idle;
mod later;
mod load;
mod mesh;
mod outlier;
mod reply;
pub mod retry;
pub mod route;
mod status;
mod task;
#[cfg(feature = "testing")]
pub mod testing;
mod upload;
mod wakeups;

/// Circuit breaking: on any service, by [`CircuitBreakerLayer`](circuit_breaking::CircuitBreakerLayer), with the rules that the
/// mesh has from the control plane (A32).
pub mod circuit_breaking {
    pub use crate::breaker::{CircuitBreaker, CircuitBreakerBody, CircuitBreakerFuture, CircuitBreakerLayer};
    pub use mesh_xds::resource::{CircuitBreakers, RetryBudget};
}

/// Fault injection: on any service, by [`FaultLayer`](fault::FaultLayer), with the rules that the mesh has from the control
/// plane (A33).
pub mod fault {
    pub use crate::filter::{Fault, FaultFuture, FaultLayer, active_faults};
    pub use mesh_xds::resource::{AbortSource, DelaySource, FaultAbort, FaultDelay, FaultPercentage, HttpFault};
    /// For which requests a fault is meant.
    pub use mesh_xds::resource::{
        ClusterName, FullRegex, HeaderField, HeaderMatch, HeaderValueMatch, PseudoHeader, StringMatch,
    };
}

/// Timeouts: on any service, by [`TimeoutLayer`](timeout::TimeoutLayer), with the rules that the mesh has from the control
/// plane (A31; Envoy's `timeout`).
pub mod timeout {
    pub use crate::deadline::{Timeout, TimeoutBody, TimeoutFuture, TimeoutLayer, Timeouts};
}

/// Outlier detection in a program's own words: on any services, by [`OutlierLayer`](outlier_detection::OutlierLayer), and for
/// clusters whose control plane does not speak of it (A50).
pub mod outlier_detection {
    pub use crate::outlier::{Outlier, OutlierBody, OutlierFuture, OutlierLayer};
    pub use mesh_xds::resource::{Consecutive, FailurePercentage, LocalOrigin, OutlierDetection, SuccessRate};
}

pub use builder::{ChannelBuilder, MeshBuilder};
pub use call::{CallAuthority, ResponseBody, WaitForReady};
#[cfg(feature = "http1")]
pub use channel::HttpVersion;
pub use channel::{FailingCluster, MeshChannel, NotReady, ResponseFuture};
pub use cluster::EndpointReport;
pub use endpoint::EndpointState;
pub use error::{Cause, MeshError, ReplyForm};
pub use filter::{Filter, FilterLayer, FilterRequest, Filtered, FilteredFuture, Outcome, Verdict};
pub use http_client::HttpClient;
pub use mesh::{Mesh, TargetError};
pub use mesh_xds::{Bootstrap, BootstrapError};
pub use reply::{Reply, ReplyBody};
pub use status::{ChannelState, ChannelStatus, ClusterStatus, MeshStatus};
