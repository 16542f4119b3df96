//! Certificates, keys and trusted roots, and the TLS that is made of them.
//!
//! ```text
//!  Sources ──► Material ──► Store, which reads again every refresh_interval
//!  (files, PEM, the       │     │ the last good material
//!   system's roots)       │     ▼
//!                         ├─► Connector: a socket ─► TLS to a named server, for one dial
//!                         └─► Acceptor:  a socket ─► TLS from a client, for one accept
//! ```
//!
//! The reload rules are those of gRPC's `file_watcher` (A29, A65): certificate and key change as one pair, what cannot be
//! read changes nothing, and connections that are up are left alone. The crypto provider is an argument everywhere;
//! none is ever installed for the process. This room does NOT dial, and it does NOT know xDS.

#[cfg(feature = "control-plane")]
mod acceptor;
mod config;
mod connector;
mod material;
mod provider;
mod source;
mod store;

#[cfg(feature = "control-plane")]
pub(crate) use acceptor::Acceptor;
#[cfg(feature = "control-plane")]
pub use acceptor::{ClientCertificates, TlsServerConfig};
pub use config::TlsConfig;
pub(crate) use connector::Connector;
use material::{Roots, Sources};
use provider::Provider;
pub use rustls::crypto::CryptoProvider;
use source::Source;
use store::Store;

use std::time::Duration;

/// "default 600 s" - A65.
const REFRESH_INTERVAL: Duration = Duration::from_secs(600);

/// "ALPN `h2` always" - A29.
const ALPN: &[u8] = b"h2";

#[cfg(all(test, any(feature = "tls-ring", feature = "tls-aws-lc")))]
mod tests;
