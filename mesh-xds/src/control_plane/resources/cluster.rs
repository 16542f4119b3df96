//! Makers of clusters: where endpoints come from, limits, TLS.

use super::{ads, endpoints, pack};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster,
                circuit_breakers::Thresholds,
                cluster::{ClusterDiscoveryType, CustomClusterType, DiscoveryType, EdsClusterConfig, LbPolicy},
            },
            core::v3::{
                Address, SocketAddress, TransportSocket, address::Address as AddressOf, socket_address::PortSpecifier,
                transport_socket::ConfigType,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        extensions::{
            clusters::aggregate::v3::ClusterConfig,
            transport_sockets::tls::v3::{
                CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
                common_tls_context::ValidationContextType,
            },
        },
    },
    google::protobuf,
};
use std::{net::SocketAddr, time::Duration};

/// A round-robin cluster whose endpoints come from EDS under the cluster's own name.
pub fn cluster_eds(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), ..Default::default() }),
        ..Default::default()
    }
}

/// A round-robin cluster that carries its endpoints inside.
pub fn cluster_static(name: &str, addresses: &[SocketAddr]) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(endpoints(name, addresses)),
        ..Default::default()
    }
}

/// A cluster whose endpoints are what a host name resolves to, as one endpoint (`LOGICAL_DNS`).
pub fn cluster_dns(name: &str, host: &str, port: u16) -> Cluster {
    of_host(name, DiscoveryType::LogicalDns, host, port)
}

/// A cluster with an endpoint for each address that a host name resolves to (`STRICT_DNS`).
pub fn cluster_strict_dns(name: &str, host: &str, port: u16) -> Cluster {
    of_host(name, DiscoveryType::StrictDns, host, port)
}

/// The first of these clusters that has endpoints to offer (A37).
pub fn cluster_aggregate(name: &str, clusters: &[&str]) -> Cluster {
    let config = ClusterConfig { clusters: clusters.iter().map(|name| (*name).to_owned()).collect() };
    let custom = CustomClusterType { name: "envoy.clusters.aggregate".to_owned(), typed_config: Some(pack(config)) };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(custom)),
        lb_policy: LbPolicy::ClusterProvided.into(),
        ..Default::default()
    }
}

fn of_host(name: &str, discovery: DiscoveryType, host: &str, port: u16) -> Cluster {
    let socket = SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    let endpoint =
        Endpoint { address: Some(Address { address: Some(AddressOf::SocketAddress(socket)) }), ..Default::default() };
    let endpoint = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..Default::default() };
    let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![locality],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What most clusters say.
pub trait ClusterExt: Sized {
    /// How long a connection may take to be there.
    #[must_use]
    fn with_connect_timeout(self, timeout: Duration) -> Self;

    /// How many requests may be under way at the same time (A32).
    #[must_use]
    fn with_max_requests(self, requests: u32) -> Self;

    /// Speaks TLS with the certificates and roots of a certificate provider of the client's bootstrap (A29), as
    /// `server_name`.
    #[must_use]
    fn with_tls(self, provider_instance: &str, server_name: &str) -> Self;
}

impl ClusterExt for Cluster {
    fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = duration(timeout);
        self
    }

    fn with_max_requests(mut self, requests: u32) -> Self {
        let thresholds = Thresholds { max_requests: number(requests), ..Default::default() };
        self.circuit_breakers = Some(CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
        self
    }

    fn with_tls(mut self, provider_instance: &str, server_name: &str) -> Self {
        let instance =
            CertificateProviderPluginInstance { instance_name: provider_instance.to_owned(), ..Default::default() };
        let validation = CertificateValidationContext {
            ca_certificate_provider_instance: Some(instance.clone()),
            ..Default::default()
        };
        let context = UpstreamTlsContext {
            common_tls_context: Some(CommonTlsContext {
                tls_certificate_provider_instance: Some(instance),
                validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
                ..Default::default()
            }),
            sni: server_name.to_owned(),
            ..Default::default()
        };
        self.transport_socket = Some(TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(ConfigType::TypedConfig(pack(context))),
        });
        self
    }
}

pub(super) fn number(value: u32) -> Option<protobuf::UInt32Value> {
    Some(protobuf::UInt32Value { value })
}

/// What is longer than protobuf has words for is cut to `i64::MAX` seconds.
pub(super) fn duration(duration: Duration) -> Option<protobuf::Duration> {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Some(protobuf::Duration { seconds, nanos: duration.subsec_nanos().cast_signed() })
}
