//! Which control plane to ask, and who is asking: the gRPC xDS bootstrap (A27, A30, A47, A65, A97).
//!
//! The same JSON that every gRPC implementation reads, from `GRPC_XDS_BOOTSTRAP` (a path) or
//! `GRPC_XDS_BOOTSTRAP_CONFIG` (the JSON itself), or the same thing built in code. Keys that nobody here knows
//! are ignored, since every control plane writes some of its own; a wrong value in a known key is an error with
//! its place. This room does NOT dial, and it does NOT know protobuf.

mod authority;
mod builder;
mod credentials;
mod load;
mod parse;
mod server;

pub(crate) use authority::{Authorities, AuthorityId};
pub use builder::{Authority, BootstrapBuilder};
pub(crate) use credentials::{CallCredentials, ChannelCredentials};
pub(crate) use server::{Feature, Transport};
pub use server::{ServerAddress, ServerId, XdsServer};

use crate::{
    dns::{Resolve, Resolver},
    name::percent_encode,
    registry::Registry,
    resource::{FilterConfig, Invalid},
    tls::CryptoProvider,
};
use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

/// A validated bootstrap. Two with the same servers and node share one `XdsClient`.
///
/// ```
/// use mesh_xds::Bootstrap;
/// let bootstrap = Bootstrap::parse(
///     r#"{"xds_servers": [{"server_uri": "127.0.0.1:18000", "channel_creds": [{"type": "insecure"}]}],
///         "node": {"id": "client-1"}}"#,
/// )?;
/// assert_eq!(bootstrap.node_id(), "client-1");
/// assert_eq!(bootstrap.listener_name("greeter.prod:8080"), "greeter.prod:8080");
/// # Ok::<(), mesh_xds::BootstrapError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    pub(crate) authorities: Authorities,
    pub(crate) node: Node,
    /// Names of `certificate_providers` of a plugin that is known: a TLS context may refer to no others (A29).
    pub(crate) certificate_providers: BTreeSet<String>,
    pub(crate) transport: TransportOptions,
    /// For clusters whose endpoints are looked up by DNS.
    pub(crate) resolver: Resolver,
    /// What of the program's own may come in resources.
    pub(crate) extensions: Registry,
}

/// Who is asking. `metadata` goes to the control plane verbatim: istiod finds a workload by it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) cluster: String,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) sub_zone: String,
    pub(crate) metadata: serde_json::Map<String, serde_json::Value>,
}

impl Node {
    /// What this library is called, and its version.
    pub(crate) const USER_AGENT: (&'static str, &'static str) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));

    /// What a control plane may take for granted (A27).
    pub(crate) const CLIENT_FEATURES: &'static [&'static str] =
        &["envoy.lb.does_not_support_overprovisioning", "xds.config.resource-in-sotw"];
}

/// What the JSON has no words for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransportOptions {
    pub(crate) max_message_size: usize,
    pub(crate) connect_timeout: Duration,
    /// `None`: what a server's features call for.
    pub(crate) resource_timeout: Option<Duration>,
}

impl Default for TransportOptions {
    fn default() -> Self {
        // 64 MiB hold some 100,000 clusters; gRPC's usual 4 MiB are too few for 10,000.
        // "minimum connect timeout 20 s" (gRPC connection backoff).
        Self { max_message_size: 64 * 1024 * 1024, connect_timeout: Duration::from_secs(20), resource_timeout: None }
    }
}

impl Bootstrap {
    /// How long [`Bootstrap::from_env`] waits for a file or socket that is not there yet.
    pub const DEFAULT_WAIT: Duration = Duration::from_secs(30);

    /// Starts a bootstrap in code.
    pub fn builder() -> BootstrapBuilder {
        BootstrapBuilder::default()
    }

    /// Reads bootstrap JSON.
    ///
    /// # Errors
    /// [`BootstrapError::Invalid`] with the place of the first mistake.
    pub fn parse(json: &str) -> Result<Self, BootstrapError> {
        parse::bootstrap(json).map_err(BootstrapError::Invalid)
    }

    /// Largest message that is accepted from the control plane; 64 MiB unless set.
    #[must_use]
    pub fn with_max_message_size(mut self, bytes: usize) -> Self {
        self.transport.max_message_size = bytes;
        self
    }

    /// Does TLS to control planes with this provider of rustls 0.23, but for servers whose [`TlsConfig`](crate::TlsConfig)
    /// names another; for bootstraps that were read as JSON. Unless set, the cargo features say: `tls-ring`, which wins,
    /// or `tls-aws-lc`.
    #[must_use]
    pub fn with_crypto_provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        for server in self.authorities.servers_mut() {
            if let ChannelCredentials::Tls(config) = &mut server.credentials {
                config.provider_unless_set(&provider);
            }
        }
        self
    }

    /// How long name lookup, connecting and the HTTP/2 handshake may take together; 20 s unless set.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.transport.connect_timeout = timeout;
        self
    }

    /// Who looks up the names of LOGICAL_DNS and STRICT_DNS clusters, in place of the system's resolver.
    ///
    /// Bootstraps with different resolvers have different clients.
    #[must_use]
    pub fn with_resolver(mut self, resolver: impl Resolve) -> Self {
        self.resolver = Resolver::new(resolver);
        self
    }

    /// Understands a type of HTTP filter of the program's own, in listeners and in overrides (A39).
    ///
    /// Bootstraps with different extensions have different clients.
    #[must_use]
    pub fn with_filter<C: FilterConfig>(mut self) -> Self {
        self.extensions = self.extensions.with_filter::<C>();
        self
    }

    /// How long after it was asked for a resource may be missing before it counts as not existing; unless set, 15 s
    /// (A57), or 30 s for a server whose timer is transient (A88).
    #[must_use]
    pub fn with_resource_timeout(mut self, timeout: Duration) -> Self {
        self.transport.resource_timeout = Some(timeout);
        self
    }

    /// Every server, each once.
    pub(crate) fn servers(&self) -> impl Iterator<Item = (ServerId, &XdsServer)> {
        self.authorities.servers()
    }

    /// A server as the bootstrap names it.
    pub(crate) fn server_name(&self, id: ServerId) -> String {
        self.authorities.server(id).map(ToString::to_string).unwrap_or_default()
    }

    /// Whether one client can serve both: all but what only names listeners.
    pub(crate) fn is_same_client(&self, other: &Self) -> bool {
        self.authorities.is_same_client(&other.authorities)
            && (&self.node, &self.certificate_providers, &self.transport, &self.resolver, &self.extensions)
                == (&other.node, &other.certificate_providers, &other.transport, &other.resolver, &other.extensions)
    }

    /// The node id, which every error text carries.
    pub fn node_id(&self) -> &str {
        &self.node.id
    }

    /// The name of the Listener resource for a target (`client_default_listener_resource_name_template`).
    ///
    /// "`%s` is percent-encoded only when the template starts with `xdstp:`; `/` is left alone" - A47.
    pub fn listener_name(&self, target: &str) -> String {
        // The top level is always there.
        self.authorities.listener_name(None, target).unwrap_or_default()
    }

    /// The same for a target with an authority, `xds://authority/target` (`authorities[..]`,
    /// `client_listener_resource_name_template`). `None` when the bootstrap does not have that authority.
    pub fn listener_name_at(&self, authority: &str, target: &str) -> Option<String> {
        self.authorities.listener_name(Some(authority), target)
    }
}

/// Why there is no bootstrap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// Neither environment variable is set.
    #[error("no xDS bootstrap: set {path} to a file or {inline} to the JSON itself", path = load::PATH_VAR, inline = load::INLINE_VAR)]
    NotConfigured,
    /// The file did not appear.
    #[error("xDS bootstrap {} did not appear within {waited:?}", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// For how long we looked.
        waited: Duration,
    },
    /// The file is there and cannot be read.
    #[error("xDS bootstrap {}: {reason}", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The content is wrong.
    #[error("xDS bootstrap: {0}")]
    Invalid(Invalid),
}

#[cfg(test)]
mod tests;
