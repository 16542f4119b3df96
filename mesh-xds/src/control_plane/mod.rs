//! An embedded control plane: a snapshot cache behind an ADS server, "go-control-plane for Rust".
//!
//! It is the default control plane of the examples, the rig of the tests, and a product of its own: it serves any xDS
//! client (this crate's, gRPC's, Envoy) over TCP, a Unix socket or a pipe inside the process, and it can misbehave on
//! request. It works on protobuf messages and shares nothing with this crate's client side. Clients choose between SotW
//! and delta; what they are told is the same.
//!
//! ```no_run
//! use mesh_xds::control_plane::{ControlPlane, Resources};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mesh_xds::control_plane::resources::{cluster_eds, endpoints, listener, route_config, virtual_host};
//! let control_plane = ControlPlane::new();
//! control_plane.set(
//!     Resources::default()
//!         .with(listener("greeter:80", "greeter-routes"))
//!         .with(route_config("greeter-routes", vec![virtual_host("*", "greeter")]))
//!         .with(cluster_eds("greeter"))
//!         .with(endpoints("greeter", &["127.0.0.1:50051".parse()?, "127.0.0.1:50052".parse()?])),
//! )?;
//! let serving = control_plane.listen("127.0.0.1:18000").await?;
//! println!("xDS clients are welcome at {}", serving.local_addr()?);
//! // Later: a new snapshot. Only what changed is pushed.
//! control_plane.set(Resources::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! * **Who gets what**: everybody the same, or [`set_for`](ControlPlane::set_for) a node, or a group of nodes that
//!   [`node_hash`](ControlPlaneBuilder::node_hash) puts together. `examples/src/bin/own_control_plane.rs` is a whole one in less than 50
//!   lines.
//! * **Consistency**: a snapshot whose resources name others that are not there is refused;
//!   [`set_unchecked`](ControlPlane::set_unchecked) does not ask.
//! * **Versions** come from the content: equal resources have equal versions, also after a restart, so that only what
//!   changed is sent, and a delta client that comes back is told the difference.
//! * **Order**: what is new comes before what refers to it, and what is gone goes last.
//! * **Authorities**: resources of any number of them may be set; `xdstp://` names are names, whatever the order of their
//!   context parameters.
//!
//! The same from files: a directory of Envoy-format YAML or JSON, followed as it changes.
//!
//! ```no_run
//! # use mesh_xds::control_plane::ControlPlane;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let control_plane = ControlPlane::new();
//! let mut loader = control_plane.watch_dir("/etc/mesh")?;
//! let serving = control_plane.listen("127.0.0.1:18000").await?;
//! loop {
//!     match loader.reloaded().await {
//!         Ok(()) => println!("loaded"),
//!         Err(mistakes) => println!("still serving what was there before: {mistakes}"),
//!     }
//! }
//! # }
//! ```

mod access;
mod check;
mod digest;
mod events;
mod files;
mod hooks;
mod json;
mod load;
mod loader;
pub mod resources;
mod server;
mod serving;
mod session;
mod snapshot;
mod stream;
mod wire;

pub use crate::tls::{ClientCertificates, TlsServerConfig};
pub use access::Caller;
pub use check::{Inconsistent, Missing};
pub use envoy_types::pb as proto;
pub use events::{Dialect, Event, EventReceiver, Missed, Verdict};
pub use files::{LoadError, Mistake};
pub use load::{LoadReport, LoadReportReceiver, ReportedClusters};
pub use loader::DirectoryLoader;
pub use resources::Resources;
pub use server::{ControlPlane, ControlPlaneBuilder};
pub use serving::Serving;
