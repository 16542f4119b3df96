//! EDS: localities, endpoints and drops (A27, A61).

use super::Millionths;
use std::{fmt, net::SocketAddr, sync::Arc};

/// A validated `envoy.config.endpoint.v3.ClusterLoadAssignment`; `A` is how an endpoint is addressed, which is by a name
/// only within STRICT_DNS clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterLoadAssignment<A = Addresses> {
    /// `cluster_name`: the resource's name.
    pub name: String,
    /// By priority, highest first; no gaps (A27). Localities of weight 0 are not kept.
    pub priorities: Vec<Vec<Locality<A>>>,
    /// `policy.drop_overloads`, in order.
    pub drops: Vec<DropOverload>,
}

impl<A> ClusterLoadAssignment<A> {
    /// Every endpoint of every priority.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint<A>> {
        self.priorities.iter().flatten().flat_map(|locality| &locality.endpoints)
    }
}

/// `LocalityLbEndpoints`.
#[derive(Clone, Debug, PartialEq)]
pub struct Locality<A = Addresses> {
    /// Region, zone, sub-zone. Unique within a priority.
    pub id: Arc<LocalityId>,
    /// At least 1.
    pub weight: u32,
    /// May be empty: the locality is then unreachable.
    pub endpoints: Vec<Endpoint<A>>,
}

/// `envoy.config.core.v3.Locality`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalityId {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
}

impl fmt::Display for LocalityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.region, self.zone, self.sub_zone)
    }
}

/// `LbEndpoint`. Unusable addresses (pipes, internal listeners) are skipped and reported by decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint<A = Addresses> {
    /// First address, then `additional_addresses` (A61).
    pub addresses: A,
    /// `health_status`.
    pub health: Health,
    /// At least 1; unset is 1.
    pub weight: u32,
    /// `endpoint.hostname`, for A81; usually none.
    pub hostname: Option<Box<str>>,
}

/// One or more socket addresses. One is the rule, so it is stored in line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// The one that is tried first.
    pub first: SocketAddr,
    /// The others, in order.
    pub additional: Box<[SocketAddr]>,
}

impl Addresses {
    /// Just one address.
    pub fn one(first: SocketAddr) -> Self {
        Self { first, additional: Box::default() }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.first).chain(self.additional.iter().copied())
    }
}

/// `envoy.config.core.v3.HealthStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Gets traffic.
    Unknown,
    /// Gets traffic.
    Healthy,
    /// Gets none.
    Unhealthy,
    /// Gets none (A27; session affinity will look at it).
    Draining,
    /// Gets none.
    Timeout,
    /// Gets none: gRPC has no panic mode.
    Degraded,
}

impl Health {
    /// "Only HEALTHY and UNKNOWN endpoints get traffic" (A27).
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Unknown | Self::Healthy)
    }
}

/// One category of `drop_overloads`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropOverload {
    /// For reports and errors.
    pub category: Arc<str>,
    /// Share of the calls.
    pub rate: Millionths,
}
