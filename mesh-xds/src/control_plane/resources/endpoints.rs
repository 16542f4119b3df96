//! Makers of endpoints: localities, priorities, weights, health.

use super::cluster::number;
use envoy_types::pb::envoy::config::{
    core::v3::{
        Address, HealthStatus, Locality, SocketAddress, address::Address as AddressOf, socket_address::PortSpecifier,
    },
    endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
};
use std::net::SocketAddr;

/// The endpoints of a cluster: one locality of priority 0 and weight 1; no locality at all when there is no address.
pub fn endpoints(cluster: &str, addresses: &[SocketAddr]) -> ClusterLoadAssignment {
    let locality = locality("", "", addresses.iter().map(|address| endpoint(*address)).collect());
    endpoints_in(cluster, if addresses.is_empty() { vec![] } else { vec![locality] })
}

/// The endpoints of a cluster, by locality.
pub fn endpoints_in(cluster: &str, localities: Vec<LocalityLbEndpoints>) -> ClusterLoadAssignment {
    ClusterLoadAssignment { cluster_name: cluster.to_owned(), endpoints: localities, ..Default::default() }
}

/// A locality of priority 0 and weight 1.
pub fn locality(region: &str, zone: &str, endpoints: Vec<LbEndpoint>) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: Some(Locality { region: region.to_owned(), zone: zone.to_owned(), ..Default::default() }),
        load_balancing_weight: number(1),
        lb_endpoints: endpoints,
        ..Default::default()
    }
}

/// One healthy endpoint of default weight.
pub fn endpoint(address: SocketAddr) -> LbEndpoint {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..Default::default()
    };
    let endpoint =
        Endpoint { address: Some(Address { address: Some(AddressOf::SocketAddress(socket)) }), ..Default::default() };
    LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..Default::default() }
}

/// What most localities say.
pub trait LocalityExt: Sized {
    /// Its share of the calls among localities of one priority.
    #[must_use]
    fn with_weight(self, weight: u32) -> Self;

    /// When it gets calls: 0 is first, higher ones serve when those before them fail. Priorities have no gaps.
    #[must_use]
    fn with_priority(self, priority: u32) -> Self;
}

impl LocalityExt for LocalityLbEndpoints {
    fn with_weight(mut self, weight: u32) -> Self {
        self.load_balancing_weight = number(weight);
        self
    }

    fn with_priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }
}

/// What most endpoints say.
pub trait EndpointExt: Sized {
    /// Its share of the calls among endpoints of one locality.
    #[must_use]
    fn with_weight(self, weight: u32) -> Self;

    /// Whether it gets calls: only UNKNOWN, HEALTHY and (where they belong to a session) DRAINING ones do.
    #[must_use]
    fn with_health(self, health: HealthStatus) -> Self;
}

impl EndpointExt for LbEndpoint {
    fn with_weight(mut self, weight: u32) -> Self {
        self.load_balancing_weight = number(weight);
        self
    }

    fn with_health(mut self, health: HealthStatus) -> Self {
        self.health_status = health.into();
        self
    }
}
