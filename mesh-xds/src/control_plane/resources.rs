//! A set of resources to serve, and makers of the common ones with good defaults.
//!
//! [`Resources`] holds encoded protobuf: whatever has a type URL and a name can be served, also types and bytes that
//! nothing here understands. It does NOT validate; [`Resources::check`] looks for dangling references on request.

use super::names::canonical;
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress,
                address::Address as AddressOf, config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{ApiListener, Listener},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route::Action,
                route_action::ClusterSpecifier, route_match::PathSpecifier, weighted_cluster::ClusterWeight,
            },
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
                http_filter::ConfigType,
            },
        },
    },
    google::protobuf::{Any, UInt32Value},
};
use prost::{Message, Name};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// The resources of one snapshot, by type URL and name.
///
/// ```
/// use mesh_xds::control_plane::resources::{self, Resources};
/// let resources = Resources::default()
///     .with(resources::listener("greeter:80", "greeter-routes"))
///     .with(resources::route_config("greeter-routes", vec![resources::virtual_host("*", "greeter")]))
///     .with(resources::cluster_eds("greeter"))
///     .with(resources::endpoints("greeter", &["127.0.0.1:5000".parse().unwrap()]));
/// assert_eq!(resources.len(), 4);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    types: BTreeMap<String, BTreeMap<Arc<str>, Bytes>>,
}

/// The one field that every xDS resource type has in common: its name is field 1.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl Resources {
    /// Adds a resource, or replaces the one of the same type and name.
    #[must_use]
    pub fn with<M: Message + Name>(mut self, resource: M) -> Self {
        self.insert(resource);
        self
    }

    /// Adds a resource, or replaces the one of the same type and name.
    pub fn insert<M: Message + Name>(&mut self, resource: M) {
        self.insert_any(envoy_types::util::pack_any(resource));
    }

    /// Adds an encoded resource; its name is field 1 of the message, as in every xDS resource type.
    pub fn insert_any(&mut self, resource: Any) {
        self.insert_raw(&Self::name_of(&resource), resource);
    }

    /// Adds bytes under a name, without looking at them: also what is not a valid resource.
    pub fn insert_raw(&mut self, name: &str, resource: Any) {
        self.types.entry(resource.type_url).or_default().insert((&*canonical(name)).into(), resource.value.into());
    }

    /// Removes a resource; tells whether it was there.
    pub fn remove(&mut self, type_url: &str, name: &str) -> bool {
        self.types.get_mut(type_url).is_some_and(|of_type| of_type.remove(&*canonical(name)).is_some())
    }

    /// Adds everything from `other`, which wins where both have a name.
    pub fn extend(&mut self, other: Self) {
        for (type_url, values) in other.types {
            self.types.entry(type_url).or_default().extend(values);
        }
    }

    /// The resource of this type and name, decoded; `None` when it is absent or no such message.
    pub fn message<M: Message + Name + Default>(&self, name: &str) -> Option<M> {
        M::decode(self.types.get(&M::type_url())?.get(&*canonical(name))?.clone()).ok()
    }

    /// Whether a resource of this type and name is here.
    pub fn contains(&self, type_url: &str, name: &str) -> bool {
        self.types.get(type_url).is_some_and(|of_type| of_type.contains_key(&*canonical(name)))
    }

    /// The names of one type, sorted.
    pub fn names(&self, type_url: &str) -> impl Iterator<Item = &str> {
        self.types.get(type_url).into_iter().flat_map(|of_type| of_type.keys().map(|name| &**name))
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.types.values().map(BTreeMap::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that are no message have no name; whoever wants to serve such bytes names them with `insert_raw`.
    pub(super) fn name_of(resource: &Any) -> String {
        Named::decode(resource.value.as_slice()).unwrap_or_default().name
    }

    pub(super) fn by_type(&self) -> impl Iterator<Item = (&str, &BTreeMap<Arc<str>, Bytes>)> {
        self.types.iter().map(|(url, values)| (url.as_str(), values))
    }

    pub(super) fn of_type(&self, type_url: &str) -> Option<(&str, &BTreeMap<Arc<str>, Bytes>)> {
        self.types.get_key_value(type_url).map(|(url, values)| (url.as_str(), values))
    }
}

// === Makers of common resources ===

/// "Fetch it over the stream you have": the config source that gRPC accepts everywhere.
pub fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}

/// A client listener: an `ApiListener` whose routes come from the RouteConfiguration `route_name`.
pub fn listener(name: &str, route_name: &str) -> Listener {
    let rds = Rds { config_source: Some(ads()), route_config_name: route_name.to_owned() };
    api_listener(name, RouteSpecifier::Rds(rds))
}

/// A client listener that carries its routes inside.
pub fn listener_inline(name: &str, routes: RouteConfiguration) -> Listener {
    api_listener(name, RouteSpecifier::RouteConfig(routes))
}

fn api_listener(name: &str, routes: RouteSpecifier) -> Listener {
    let manager = HttpConnectionManager {
        route_specifier: Some(routes),
        http_filters: vec![HttpFilter {
            name: "router".to_owned(),
            config_type: Some(ConfigType::TypedConfig(pack(Router::default()))),
            ..Default::default()
        }],
        ..Default::default()
    };
    Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(pack(manager)) }),
        ..Default::default()
    }
}

/// A route configuration of these virtual hosts.
pub fn route_config(name: &str, virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration { name: name.to_owned(), virtual_hosts, ..Default::default() }
}

/// A virtual host for one domain (`*` for all) that sends everything to one cluster.
pub fn virtual_host(domain: &str, cluster: &str) -> VirtualHost {
    virtual_host_with(domain, vec![route("", ClusterSpecifier::Cluster(cluster.to_owned()))])
}

/// A virtual host for one domain that splits everything between clusters by weight.
pub fn virtual_host_weighted(domain: &str, clusters: &[(&str, u32)]) -> VirtualHost {
    virtual_host_with(domain, vec![route("", weighted(clusters))])
}

/// A virtual host for one domain with these routes.
pub fn virtual_host_with(domain: &str, routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name: domain.to_owned(), domains: vec![domain.to_owned()], routes, ..Default::default() }
}

/// A route for a path prefix.
pub fn route(prefix: &str, to: ClusterSpecifier) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction { cluster_specifier: Some(to), ..Default::default() })),
        ..Default::default()
    }
}

/// A split between clusters by weight.
pub fn weighted(clusters: &[(&str, u32)]) -> ClusterSpecifier {
    let clusters = clusters.iter().map(|(name, weight)| ClusterWeight {
        name: (*name).to_owned(),
        weight: Some(UInt32Value { value: *weight }),
        ..Default::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect(), ..Default::default() })
}

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

/// The endpoints of a cluster: one locality of priority 0 and weight 1; no locality at all when there is no address.
pub fn endpoints(cluster: &str, addresses: &[SocketAddr]) -> ClusterLoadAssignment {
    let locality = LocalityLbEndpoints {
        locality: Some(Default::default()),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        lb_endpoints: addresses.iter().map(|address| endpoint(*address)).collect(),
        ..Default::default()
    };
    let endpoints = if addresses.is_empty() { vec![] } else { vec![locality] };
    ClusterLoadAssignment { cluster_name: cluster.to_owned(), endpoints, ..Default::default() }
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

/// A message as a protobuf `Any`.
pub fn pack<M: Message + Name>(message: M) -> Any {
    envoy_types::util::pack_any(message)
}
