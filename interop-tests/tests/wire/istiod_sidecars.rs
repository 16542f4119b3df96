//! What an istiod sends a sidecar (recordings 70 to 72), each resource watched by itself, in SotW and in delta.
//!
//! No target leads to most of these: listeners with sockets are no client's, so `istiod_scenarios` gets no further than
//! them. A program that watches single resources does. What each must be is read from the recorded protobufs by a few
//! lines here, not by the client's decoder. It does NOT make calls.

use crate::rig::{OurControlPlane, bootstrap, until};
use envoy_types::pb::{
    envoy::config::{
        cluster::v3::{
            Cluster as ClusterProto,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core::v3::{address::Address as AddressOf, socket_address::PortSpecifier},
        endpoint::v3::{ClusterLoadAssignment as EndpointsProto, lb_endpoint::HostIdentifier},
        listener::v3::Listener as ListenerProto,
        route::v3::{
            RouteConfiguration, route::Action, route_action::ClusterSpecifier as LeadsTo,
            weighted_cluster::ClusterWeight,
        },
    },
    google::protobuf::Any,
};
use interop_tests::recordings::{configurations, scenarios};
use mesh_xds::{
    Bootstrap, ResourceUpdate, XdsClient,
    control_plane::Resources,
    resource::{
        Cluster, ClusterLoadAssignment, ClusterSpecifier, Discovery, Kind, Listener, ListenerKind, RouteAction,
        RouteConfig, Watchable,
    },
};
use prost::{Message, Name};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

/// What a resource comes to, in words that both sides have.
type Words = BTreeSet<String>;

/// Clusters that go where the connection went before (`ORIGINAL_DST`), which gRPC refuses and no gRPC node is sent.
const REFUSED: &[&str] = &["InboundPassthroughClusterIpv4", "PassthroughCluster", "inbound|17070||", "inbound|18080||"];

// === As recorded ===

fn recorded(kind: Kind, any: &Any) -> Words {
    match kind {
        Kind::Listener => {
            let listener: ListenerProto = message(any);
            assert!(listener.api_listener.is_none() && listener.address.is_some(), "{}", listener.name);
            ["a socket".to_owned()].into()
        }
        Kind::RouteConfig => {
            let hosts = message::<RouteConfiguration>(any).virtual_hosts.into_iter();
            let routes = hosts.flat_map(|host| host.routes.into_iter().map(move |route| (host.name.clone(), route)));
            let words = routes.map(|(host, route)| match route.action {
                Some(Action::Route(action)) => match action.cluster_specifier {
                    Some(LeadsTo::Cluster(name)) => leads_to(&host, &route.name, &[(name, 1)]),
                    Some(LeadsTo::WeightedClusters(weighted)) => {
                        let clusters = weighted.clusters.into_iter();
                        let share = |cluster: ClusterWeight| (cluster.name, cluster.weight.map_or(0, |it| it.value));
                        let shares = clusters.map(share);
                        leads_to(&host, &route.name, &shares.collect::<Vec<_>>())
                    }
                    other => panic!("no such thing is recorded: {other:?}"),
                },
                other => panic!("no such thing is recorded: {other:?}"),
            });
            words.collect()
        }
        Kind::Cluster => {
            let cluster: ClusterProto = message(any);
            let discovery = match cluster.cluster_discovery_type {
                Some(ClusterDiscoveryType::Type(discovery)) => discovery,
                // STATIC is what nothing means.
                None => DiscoveryType::Static.into(),
                other => panic!("no such thing is recorded: {other:?}"),
            };
            match DiscoveryType::try_from(discovery) {
                Ok(DiscoveryType::Static) => {
                    let localities = cluster.load_assignment.unwrap_or_default().endpoints;
                    let count = localities.iter().map(|locality| locality.lb_endpoints.len()).sum::<usize>();
                    [format!("STATIC of {count}")].into()
                }
                Ok(DiscoveryType::Eds) => {
                    let named = cluster.eds_cluster_config.map(|config| config.service_name).unwrap_or_default();
                    [format!("EDS of {}", if named.is_empty() { cluster.name } else { named })].into()
                }
                Ok(DiscoveryType::OriginalDst) => ["refused".to_owned()].into(),
                other => panic!("no such thing is recorded: {other:?}"),
            }
        }
        _ => {
            let localities = message::<EndpointsProto>(any).endpoints.into_iter();
            let endpoints = localities.flat_map(|locality| {
                locality.lb_endpoints.into_iter().map(move |endpoint| (locality.priority as usize, endpoint))
            });
            let words = endpoints.map(|(priority, endpoint)| {
                let Some(HostIdentifier::Endpoint(host)) = endpoint.host_identifier else { panic!("no host") };
                let Some(AddressOf::SocketAddress(socket)) = host.address.and_then(|address| address.address) else {
                    panic!("no socket address")
                };
                let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("no port") };
                at(priority, format!("{}:{port}", socket.address))
            });
            words.collect()
        }
    }
}

fn message<M: Message + Name + Default>(any: &Any) -> M {
    assert_eq!(any.type_url, M::type_url());
    M::decode(any.value.as_slice()).expect("recorded")
}

fn leads_to(host: &str, route: &str, clusters: &[(impl ToString, u32)]) -> String {
    let clusters: Vec<_> = clusters.iter().map(|(name, weight)| (name.to_string(), weight)).collect();
    format!("{host} {route}: {clusters:?}")
}

fn at(priority: usize, address: impl ToString) -> String {
    format!("{} at {priority}", address.to_string())
}

// === As watched ===

/// A watch, whatever its type: tells what the resource comes to now.
type Watched = Box<dyn Fn() -> Words>;

fn watched(client: &XdsClient, kind: Kind, name: &str) -> Watched {
    match kind {
        Kind::Listener => watch(client, name, |listener: &Listener| match listener.kind {
            ListenerKind::Socket => ["a socket".to_owned()].into(),
            ListenerKind::Api(_) => ["a client's".to_owned()].into(),
        }),
        Kind::RouteConfig => watch(client, name, |routes: &RouteConfig| {
            let routes =
                routes.virtual_hosts.iter().flat_map(|host| host.routes.iter().map(|route| (&host.name, route)));
            let words = routes.map(|(host, route)| match &route.action {
                RouteAction::Forward(forward) => match &forward.cluster {
                    ClusterSpecifier::Cluster(name) => leads_to(host, &route.name, &[(name, 1)]),
                    ClusterSpecifier::Weighted(clusters) => {
                        let shares = clusters.iter().map(|cluster| (&cluster.name, cluster.weight));
                        leads_to(host, &route.name, &shares.collect::<Vec<_>>())
                    }
                },
                RouteAction::Unsupported(field) => format!("{host} {}: unsupported {field}", route.name),
            });
            words.collect()
        }),
        Kind::Cluster => watch(client, name, |cluster: &Cluster| match &cluster.discovery {
            Discovery::Eds { service_name } => [format!("EDS of {service_name}")].into(),
            Discovery::Static(assignment) => [format!("STATIC of {}", assignment.endpoints().count())].into(),
            other => [format!("{other:?}")].into(),
        }),
        _ => watch(client, name, |assignment: &ClusterLoadAssignment| {
            let priorities = assignment.priorities.iter().enumerate();
            let endpoints = priorities.flat_map(|(priority, localities)| {
                localities.iter().flat_map(|locality| &locality.endpoints).map(move |endpoint| (priority, endpoint))
            });
            endpoints.map(|(priority, endpoint)| at(priority, endpoint.addresses.first)).collect()
        }),
    }
}

fn watch<T: Watchable + Debug>(client: &XdsClient, name: &str, words: fn(&T) -> Words) -> Watched {
    let watch = client.watch_resource::<T>(name);
    Box::new(move || match watch.current() {
        ResourceUpdate::Pending => ["pending".to_owned()].into(),
        ResourceUpdate::Ready { value, error: None } => words(&value),
        ResourceUpdate::Ready { error: Some(error), .. } => [format!("out of date: {error}")].into(),
        ResourceUpdate::Failed(why) if why.contains("lb_policy: unknown policy 6") => ["refused".to_owned()].into(),
        ResourceUpdate::Failed(why) => [format!("failed: {why}")].into(),
    })
}

// === The replay ===

async fn replay(scenario: &str, features: &[&str]) {
    let mut control_plane = OurControlPlane::start().await;
    control_plane.ads.like_istiod(true);
    let node = format!("sidecar~127.0.0.9~{scenario}-{}.demo~demo.svc.cluster.local", features.len());
    let mut json = bootstrap(&node, control_plane.address);
    json["xds_servers"][0]["server_features"] = json!(features);
    let files = json!({ "certificate_file": "c", "private_key_file": "k", "ca_certificate_file": "r" });
    json["certificate_providers"] = json!({ "default": { "plugin_name": "file_watcher", "config": files } });
    let bootstrap = Bootstrap::parse(&json.to_string()).expect("well-formed");
    let client = XdsClient::connect(bootstrap.with_resource_timeout(Duration::from_secs(3600)));
    let mut watches = BTreeMap::new();
    for configuration in configurations(scenario).expect("recorded") {
        let mut resources = Resources::default();
        for any in configuration.resources.values().flat_map(BTreeMap::values) {
            resources.insert_any(any.clone());
        }
        control_plane.ads.set_unchecked(resources);
        let all = configuration.resources.iter();
        for ((kind, name), any) in all.flat_map(|(kind, all)| all.iter().map(|(name, any)| ((*kind, name), any))) {
            let watch = watches.entry((kind, name.clone())).or_insert_with(|| watched(&client, kind, name));
            let expected = recorded(kind, any);
            until(&format!("{scenario} at {}: {kind} {name}: {expected:?}", configuration.version), || {
                let words = watch();
                assert!(!words.iter().any(|word| word.starts_with("failed")), "{kind} {name}: {words:?}");
                words == expected
            })
            .await;
            let refused = expected.contains("refused");
            assert_eq!(refused, kind == Kind::Cluster && REFUSED.contains(&name.as_str()), "{name}");
        }
    }
    for kind in Kind::ALL {
        assert!(watches.keys().any(|(watched, _)| *watched == kind), "{scenario}: no {kind}");
    }
    // One bad resource is one bad resource: what is NACKed is those clusters, by name.
    for nack in control_plane.nacks() {
        assert!(REFUSED.iter().any(|name| nack.contains(&format!("{name:?}: lb_policy: unknown policy 6"))), "{nack}");
    }
    assert_eq!(control_plane.ads.streams_opened(), 1);

    // The stream is lost: all stays as it was.
    let before: Vec<_> = watches.values().map(|watch| watch()).collect();
    control_plane.ads.cut_streams();
    until("the next stream", || control_plane.ads.streams_opened() == 2).await;
    control_plane.ads.wait_for_ack(Kind::Endpoints.type_url(), "outbound|7070||echo.demo.svc.cluster.local").await;
    assert_eq!(watches.values().map(|watch| watch()).collect::<Vec<_>>(), before);
}

async fn replay_all(features: &[&str]) {
    let mut scenarios = scenarios().expect("recorded");
    scenarios.retain(|scenario| scenario.starts_with('7'));
    assert_eq!(scenarios.len(), 3);
    for scenario in scenarios {
        replay(&scenario, features).await;
    }
}

#[tokio::test]
async fn every_resource_of_a_sidecar_is_watched_by_itself() {
    replay_all(&["xds_v3"]).await;
}

#[tokio::test]
async fn every_resource_of_a_sidecar_is_watched_by_itself_in_delta() {
    replay_all(&["xds_v3", "delta_ads"]).await;
}
