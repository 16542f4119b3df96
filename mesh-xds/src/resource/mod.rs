//! What xDS resources mean, as plain validated Rust values.
//!
//! A value of one of these types is usable as it stands: `decode` is the only maker, and it refuses
//! what gRPC and Envoy refuse. No protobuf, no tokio and no I/O live here, so that everything above
//! (cache, assembly, the data plane) can be tested with literals.
//!
//! This room does NOT decode, cache or fetch anything.

mod cluster;
mod endpoints;
mod invalid;
mod lb_policy;
mod listener;
mod matcher;
mod received;
mod route;
mod tls;

pub use cluster::*;
pub use endpoints::*;
pub use invalid::*;
pub use lb_policy::*;
pub use listener::*;
pub use matcher::*;
pub use received::*;
pub use route::*;
pub use tls::*;

use std::{fmt, sync::Arc};

/// The four resource types of gRPC's xDS, in the order in which they refer to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// LDS: `envoy.config.listener.v3.Listener`.
    Listener,
    /// RDS: `envoy.config.route.v3.RouteConfiguration`.
    RouteConfig,
    /// CDS: `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// EDS: `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoints,
}

impl Kind {
    /// All kinds, in reference order.
    pub const ALL: [Self; 4] = [Self::Listener, Self::RouteConfig, Self::Cluster, Self::Endpoints];

    /// The type URL that stands for this kind on the wire.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::RouteConfig => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        }
    }

    /// The kind behind a type URL, if it is one of the four.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a SotW response lists every subscribed resource, so that absence means deletion.
    ///
    /// "only LDS and CDS responses are full-state" (xDS protocol, SotW).
    pub const fn is_full_state(self) -> bool {
        matches!(self, Self::Listener | Self::Cluster)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listener => "Listener",
            Self::RouteConfig => "RouteConfiguration",
            Self::Cluster => "Cluster",
            Self::Endpoints => "ClusterLoadAssignment",
        })
    }
}

/// A valid resource of one of the four kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// LDS.
    Listener(Arc<Listener>),
    /// RDS.
    RouteConfig(Arc<RouteConfig>),
    /// CDS.
    Cluster(Arc<Cluster>),
    /// EDS.
    Endpoints(Arc<ClusterLoadAssignment>),
}

impl Resource {
    /// Which kind this is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Listener(_) => Kind::Listener,
            Self::RouteConfig(_) => Kind::RouteConfig,
            Self::Cluster(_) => Kind::Cluster,
            Self::Endpoints(_) => Kind::Endpoints,
        }
    }

    /// The resource's own name.
    pub fn name(&self) -> &str {
        match self {
            Self::Listener(listener) => &listener.name,
            Self::RouteConfig(routes) => &routes.name,
            Self::Cluster(cluster) => cluster.name.as_str(),
            Self::Endpoints(endpoints) => &endpoints.name,
        }
    }
}
