//! Foreign implementations at the other end of the wire: grpc-go's control plane, C-core and Envoy.
//!
//! What the mesh calls right should not be judged by its own code alone. The peers set themselves up on first use
//! (`setup`) and run as child processes (`Process`) that end with the test. It does NOT judge; the wire tests do.

mod process;

pub use process::{PeerError, Process, listening};
