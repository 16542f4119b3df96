//! Lookups for LOGICAL_DNS and STRICT_DNS clusters (A37, Envoy): who looks, when, and what is known.
//!
//! ```text
//!  assemble ── names it needs ─► client/driver.rs ─► task.rs ── schedule.rs: when ──► Resolve
//!     ▲                                                 │
//!     └─ answers.rs: what is known ◄─ client/core ◄─────┘ (name, addresses or error)
//! ```
//!
//! One task per client looks up each name once, for all targets. A failure never takes an answer away. This room does
//! NOT know clusters.

mod answers;
mod schedule;
mod task;

pub(crate) use answers::{Answer, Answers};
#[cfg(test)]
pub(crate) use schedule::Schedule;
pub(crate) use task::{Answered, Lookups};

use crate::resource::DnsName;
use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

/// Looks names up, in place of the system's resolver.
///
/// ```
/// use mesh_xds::{Lookup, Resolve, Resolved};
///
/// #[derive(Debug)]
/// struct Fixed;
///
/// impl Resolve for Fixed {
///     fn resolve(&self, _host: &str, port: u16) -> Lookup {
///         Box::pin(async move { Ok(Resolved::from(vec![([127, 0, 0, 1], port).into()])) })
///     }
/// }
/// fn with_fixed_names(bootstrap: mesh_xds::Bootstrap) -> mesh_xds::Bootstrap {
///     bootstrap.with_resolver(Fixed)
/// }
/// ```
pub trait Resolve: fmt::Debug + Send + Sync + 'static {
    /// Starts to look up every address of `host`, of both families; those that a cluster does not want are left out
    /// later. It is asked again as the cluster says; after 10 s without an answer the lookup has failed.
    fn resolve(&self, host: &str, port: u16) -> Lookup;

    /// How soon after an answer a name may be looked up again because the endpoint behind it fails: 30 s, unless the
    /// resolver says otherwise, so that servers of DNS are not asked by every connection that is lost.
    fn min_time_between(&self) -> Duration {
        MIN_TIME_BETWEEN
    }
}

/// "GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS: default 30 s" (gRPC).
const MIN_TIME_BETWEEN: Duration = Duration::from_secs(30);

/// A lookup on its way.
pub type Lookup = Pin<Box<dyn Future<Output = io::Result<Resolved>> + Send>>;

/// What a name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// In the order in which they are to be tried. None at all counts as a failure.
    pub addresses: Vec<SocketAddr>,
    /// For `respect_dns_ttl`.
    pub ttl: Option<Duration>,
}

impl From<Vec<SocketAddr>> for Resolved {
    fn from(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, ttl: None }
    }
}

impl Resolved {
    /// The same, good for so long.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }
}

/// The resolver of a client: the system's, or the user's. Two of the user's are equal if they are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolver(Option<Arc<dyn Resolve>>);

impl Resolver {
    pub(crate) fn new(resolver: impl Resolve) -> Self {
        Self(Some(Arc::new(resolver)))
    }

    fn lookup(&self, name: &DnsName) -> Lookup {
        match (name.host.parse(), &self.0) {
            (Ok(ip), _) => {
                let address = SocketAddr::new(ip, name.port);
                Box::pin(async move { Ok(Resolved::from(vec![address])) })
            }
            (Err(_), Some(resolver)) => resolver.resolve(&name.host, name.port),
            (Err(_), None) => SystemResolver.resolve(&name.host, name.port),
        }
    }

    fn min_time_between(&self) -> Duration {
        self.0.as_ref().map_or(MIN_TIME_BETWEEN, |resolver| resolver.min_time_between())
    }
}

impl PartialEq for Resolver {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Eq for Resolver {}

/// `getaddrinfo`, with whatever the system consults. It tells no TTL.
#[derive(Debug)]
struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> Lookup {
        let host = host.to_owned();
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host, port)).await?;
            Ok(Resolved::from(addresses.collect::<Vec<_>>()))
        })
    }
}
