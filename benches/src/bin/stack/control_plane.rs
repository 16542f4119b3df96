//! The smallest control plane that can configure the stacks: fixed resources, state of the world, one version.
//!
//! For each number of backends there is one listener, `echo-1` and `echo-3`, with a route to the cluster of the same
//! name. It does NOT watch ACKs and never changes a resource; mesh-xds has the control plane that does.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Address, AggregatedConfigSource, ConfigSource, SocketAddress, address, config_source, socket_address,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{ApiListener, Listener},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
            },
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
            },
        },
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
        },
    },
    google::protobuf::{Any, UInt32Value},
};
use futures_util::{Stream, StreamExt};
use prost::{Message, Name};
use std::{collections::HashMap, net::SocketAddr, pin::Pin, sync::Arc};
use tonic::{Request, Response, Status, Streaming};

/// The resources, by type URL and name.
pub(crate) struct ControlPlane {
    resources: Arc<HashMap<(String, String), Any>>,
}

impl ControlPlane {
    /// Resources for `echo-1` (the first backend) and `echo-3` (all of them).
    pub(crate) fn new(backends: &[SocketAddr]) -> Self {
        let mut resources = HashMap::new();
        for (name, backends) in [("echo-1", &backends[..1]), ("echo-3", backends)] {
            for resource in [any(&listener(name)), any(&cluster(name)), any(&endpoints(name, backends))] {
                resources.insert((resource.type_url.clone(), name.to_owned()), resource);
            }
        }
        Self { resources: Arc::new(resources) }
    }

    pub(crate) fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
    }
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for ControlPlane {
    type StreamAggregatedResourcesStream = ResponseStream<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = ResponseStream<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let resources = self.resources.clone();
        let responses = request.into_inner().filter_map(move |request| {
            let response = request.map(|request| answer(&resources, request)).transpose();
            std::future::ready(response)
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

/// The nonce spells the names that were answered, so that an ACK is told from a change of the subscription.
fn answer(resources: &HashMap<(String, String), Any>, request: DiscoveryRequest) -> Option<DiscoveryResponse> {
    let nonce = format!("for {}", request.resource_names.join(","));
    if request.response_nonce == nonce || request.resource_names.is_empty() {
        return None;
    }
    let found = request.resource_names.into_iter();
    let found = found.filter_map(|name| resources.get(&(request.type_url.clone(), name)).cloned()).collect();
    Some(DiscoveryResponse {
        version_info: "1".to_owned(),
        resources: found,
        type_url: request.type_url,
        nonce,
        ..Default::default()
    })
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

fn listener(name: &str) -> Listener {
    let action = route::Action::Route(RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(name.to_owned())),
        ..Default::default()
    });
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix(String::new())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    };
    let routes = RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        route_specifier: Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)),
        http_filters: vec![HttpFilter {
            name: "router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
            ..Default::default()
        }],
        ..Default::default()
    };
    Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(any(&manager)) }),
        ..Default::default()
    }
}

fn cluster(name: &str) -> Cluster {
    let ads = config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource::default());
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource { config_source_specifier: Some(ads), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn endpoints(name: &str, backends: &[SocketAddr]) -> ClusterLoadAssignment {
    let endpoint = |backend: &SocketAddr| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(Address {
                address: Some(address::Address::SocketAddress(SocketAddress {
                    address: backend.ip().to_string(),
                    port_specifier: Some(socket_address::PortSpecifier::PortValue(backend.port().into())),
                    ..Default::default()
                })),
            }),
            ..Default::default()
        })),
        ..Default::default()
    };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: backends.iter().map(endpoint).collect(),
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            ..Default::default()
        }],
        ..Default::default()
    }
}
