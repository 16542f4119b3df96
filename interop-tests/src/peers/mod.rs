//! Foreign implementations at the other end of the wire: go-control-plane, grpc-go, C-core, grpc-js and Envoy.
//!
//! What the mesh calls right should not be judged by its own code alone. The peers set themselves up on first use
//! (`setup`) and run as child processes ([`Process`]) that end with the test. They do NOT judge; the wire tests do.

mod backend;
mod client;
mod control_plane;
mod envoy;
mod process;
mod setup;

pub use backend::CoreBackend;
pub use client::{ForeignClient, Grpc, read_csds};
pub use control_plane::GoControlPlane;
pub use envoy::Envoy;
pub use process::{PeerError, Process, listening};
