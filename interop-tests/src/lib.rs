//! The other end of the wire, for tests: gRPC's PSM interop services, in-process backends and foreign peers.
//!
//! The two binaries (`xds_interop_client`, `xds_interop_server`) are thin over these modules, and the wire tests of the
//! workspace start the same parts in-process. It does NOT contain anything that a user of the mesh links.

pub mod admin;
pub mod backend;
pub mod flags;
pub mod load;
pub mod nack_table;
pub mod peers;
pub mod proto;
pub mod proxy;
pub mod raw;
pub mod recordings;
pub mod scripted;
