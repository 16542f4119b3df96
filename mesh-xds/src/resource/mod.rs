//! What xDS resources mean, as plain validated Rust values.
//!
//! A value of one of these types is usable as it stands: `decode` is the only maker, and it refuses
//! what gRPC and Envoy refuse. No protobuf, no tokio and no I/O live here, so that everything above
//! (cache, assembly, the data plane) can be tested with literals.
//!
//! This room does NOT decode, cache or fetch anything.

mod circuit_breakers;
mod cluster;
mod custom_filter;
mod dns;
mod endpoints;
mod fault;
mod filter;
mod invalid;
mod kind;
mod lb_policy;
mod listener;
mod load;
mod matcher;
mod other;
mod outlier_detection;
mod received;
mod retry;
mod route;
mod tls;

pub use circuit_breakers::*;
pub use cluster::*;
pub use custom_filter::{CustomFilter, FilterConfig, FilterType};
pub use dns::*;
pub use endpoints::*;
pub use fault::*;
pub use filter::*;
pub use invalid::*;
pub(crate) use kind::ByKind;
pub use kind::Kind;
pub use lb_policy::*;
pub use listener::*;
pub use load::*;
pub use matcher::*;
pub use other::{OtherResource, OtherType, ResourceType, Watchable};
pub use outlier_detection::*;
pub use received::*;
pub use retry::*;
pub use route::*;
pub use tls::*;

use std::sync::Arc;

/// A valid resource.
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
    /// Of a user's own type.
    Other(OtherResource),
}

impl Resource {
    /// Which kind this is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Listener(_) => Kind::Listener,
            Self::RouteConfig(_) => Kind::RouteConfig,
            Self::Cluster(_) => Kind::Cluster,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Other(other) => Kind::Other(other.kind()),
        }
    }

    /// The resource's own name.
    pub fn name(&self) -> &str {
        match self {
            Self::Listener(listener) => &listener.name,
            Self::RouteConfig(routes) => &routes.name,
            Self::Cluster(cluster) => cluster.name.as_str(),
            Self::Endpoints(endpoints) => &endpoints.name,
            Self::Other(other) => other.name(),
        }
    }
}
