//! Envoy 1.40 follows our control plane and reports its load to it, in front of our backends.
//!
//! It is the strictest reader of xDS there is and subscribes as no gRPC client does: wildcards for listeners and
//! clusters. It does NOT use our client; a plain tonic channel calls through it.

use crate::rig::{OurControlPlane, addresses, backends, free_port, within};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster,
        core::v3::{
            Address, Http2ProtocolOptions, SocketAddress, address::Address as AddressOf, socket_address::PortSpecifier,
        },
        endpoint::v3::ClusterStats,
        listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
    },
    extensions::{
        filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
                http_filter::ConfigType as HttpFilterConfig,
            },
        },
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
};
use interop_tests::{
    peers::{Envoy, listening},
    proto::testing::{Empty, SimpleRequest, test_service_client::TestServiceClient},
};
use mesh_xds::control_plane::{
    Dialect, Event, ReportedClusters, Resources,
    resources::{
        ads, cluster_eds, endpoint, endpoints, endpoints_in, locality, pack, route, route_config, to_cluster,
        virtual_host, virtual_host_with,
    },
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tonic::{Code, Request, transport::Channel};

const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// A listener of a proxy: a socket, and routes that are asked for by name.
fn socket_listener(name: &str, address: SocketAddr, routes: &str) -> Listener {
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(HttpFilterConfig::TypedConfig(pack(Router::default()))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: routes.to_owned(),
        })),
        http_filters: vec![router],
        ..HttpConnectionManager::default()
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack(manager))),
    };
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Listener {
        name: name.to_owned(),
        address: Some(Address { address: Some(AddressOf::SocketAddress(socket)) }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    }
}

/// An EDS cluster that is spoken HTTP/2 to.
fn http2_cluster(name: &str) -> Cluster {
    let http2 = ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())),
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(http2)),
        ..HttpProtocolOptions::default()
    };
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    Cluster { typed_extension_protocol_options: [(key, pack(options))].into(), ..cluster_eds(name) }
}

fn resources(ingress: SocketAddr, cluster: &str, addresses: &[SocketAddr]) -> Resources {
    Resources::default()
        .with(socket_listener("ingress", ingress, "routes"))
        .with(route_config("routes", vec![virtual_host("*", cluster)]))
        .with(http2_cluster(cluster))
        .with(endpoints(cluster, addresses))
}

/// Who answers `calls` calls; a failed one fails the test.
async fn answers(client: &mut TestServiceClient<Channel>, calls: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..calls {
        let answer = client.unary_call(SimpleRequest::default()).await.expect("a failed call");
        *answers.entry(answer.into_inner().hostname).or_default() += 1;
    }
    answers
}

/// A run-through of all four types, in one dialect.
async fn follows_listeners_routes_clusters_and_endpoints(dialect: Dialect) {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let ingress = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut control_plane = OurControlPlane::start().await;
    let ads = control_plane.ads.clone();
    let mut events = ads.events();
    ads.set_unchecked(resources(ingress, "blue", &addresses([&a, &b])));
    let envoy = Envoy::start("envoy-1", dialect, control_plane.address).await.expect("set up");
    for (type_url, name) in [(CDS, "blue"), (EDS, "blue"), (LDS, "ingress"), (RDS, "routes")] {
        within(&format!("{name} is ACKed: {}", envoy.log()), ads.wait_for_ack(type_url, name)).await;
    }
    listening("Envoy", ingress).await.expect("it has its listener");

    let channel = Channel::from_shared(format!("http://{ingress}")).expect("a URI").connect_lazy();
    let mut client = TestServiceClient::new(channel);
    let half = answers(&mut client, 100).await;
    assert_eq!(half, BTreeMap::from([("a".to_owned(), 50), ("b".to_owned(), 50)]), "round robin");
    assert_eq!((a.counters().succeeded, b.counters().succeeded), (50, 50));

    ads.set_unchecked(resources(ingress, "blue", &addresses([&c])));
    within("the endpoints are ACKed", ads.wait_for_ack(EDS, "blue")).await;
    let moved = async { while answers(&mut client, 10).await.get("c") != Some(&10) {} };
    within("answers from c alone", moved).await;

    // Envoy answers 503 for a route to a cluster that it is still warming, so the cluster comes first.
    let mut both = resources(ingress, "blue", &addresses([&c]));
    both.extend(Resources::default().with(http2_cluster("green")).with(endpoints("green", &addresses([&a]))));
    ads.set_unchecked(both.clone());
    within("the new cluster's endpoints are ACKed", ads.wait_for_ack(EDS, "green")).await;
    ads.set_unchecked(both.with(route_config("routes", vec![virtual_host("*", "green")])));
    within("the routes are ACKed", ads.wait_for_ack(RDS, "routes")).await;
    let moved = async { while answers(&mut client, 10).await.get("a") != Some(&10) {} };
    within("answers from a alone", moved).await;

    // What nobody routes to any more can go: in delta by its name.
    ads.set(resources(ingress, "green", &addresses([&a]))).expect("complete");
    within("the old cluster's end is ACKed", ads.wait_for_ack(CDS, "blue")).await;
    within("its endpoints are let go", ads.wait_for_unsubscription(EDS, "blue")).await;

    // A lost stream costs no call, and Envoy says what it has when it comes back.
    ads.cut_streams();
    let came_back = |event: &Event| matches!(event, Event::StreamOpened { stream, .. } if *stream > 1);
    let opened = within("a new stream", events.wait_for(came_back)).await.expect("all events are read");
    assert!(matches!(opened, Event::StreamOpened { dialect: spoken, .. } if spoken == dialect));
    let asks = |event: &Event| matches!(event, Event::Request { type_url, .. } if type_url == CDS);
    let asked = within("clusters are asked for", events.wait_for(asks)).await.expect("all events are read");
    let Event::Request { held, .. } = asked else { panic!("as waited for") };
    match dialect {
        Dialect::Sotw => assert_eq!(held, []),
        Dialect::Delta => assert_eq!(held.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["green"]),
    }
    ads.set_unchecked(resources(ingress, "green", &addresses([&b])));
    within("new endpoints are ACKed on the new stream", ads.wait_for_ack(EDS, "green")).await;
    let moved = async { while answers(&mut client, 10).await.get("b") != Some(&10) {} };
    within("answers from b alone", moved).await;
    assert_eq!(control_plane.nacks(), Vec::<String>::new());
}

#[tokio::test]
async fn envoy_follows_listeners_routes_clusters_and_endpoints() {
    follows_listeners_routes_clusters_and_endpoints(Dialect::Sotw).await;
}

#[tokio::test]
async fn envoy_follows_listeners_routes_clusters_and_endpoints_in_delta() {
    follows_listeners_routes_clusters_and_endpoints(Dialect::Delta).await;
}

/// By zone: issued, successful and failed.
fn counts(stats: &[ClusterStats]) -> BTreeMap<String, (u64, u64, u64)> {
    let localities = stats.iter().flat_map(|cluster| &cluster.upstream_locality_stats);
    let of_zone = localities.map(|it| {
        let zone = it.locality.clone().unwrap_or_default().zone;
        (zone, (it.total_issued_requests, it.total_successful_requests, it.total_error_requests))
    });
    of_zone.collect()
}

/// Envoy reports all of its clusters, whether or not they have an `lrs_server`.
#[tokio::test]
async fn envoy_reports_its_load() {
    let [near, far, other] = backends(["near", "far", "other"]).await;
    let ingress = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut control_plane = OurControlPlane::start().await;
    let ads = control_plane.ads.clone();
    ads.request_load(Duration::from_secs(1), ReportedClusters::All);
    let in_zone = |zone: &str, address| locality("r", zone, vec![endpoint(address)]);
    let empty_calls = route("/grpc.testing.TestService/EmptyCall", to_cluster("green"));
    let routes = virtual_host_with("*", vec![empty_calls, route("/", to_cluster("blue"))]);
    let resources = Resources::default()
        .with(socket_listener("ingress", ingress, "routes"))
        .with(route_config("routes", vec![routes]))
        .with(http2_cluster("blue"))
        .with(endpoints_in("blue", vec![in_zone("near", near.address()), in_zone("far", far.address())]))
        .with(http2_cluster("green"))
        .with(endpoints_in("green", vec![in_zone("near", other.address())]));
    ads.set(resources).expect("complete");
    let envoy = Envoy::start("envoy-lrs", Dialect::Sotw, control_plane.address).await.expect("set up");
    within(&format!("routes are ACKed: {}", envoy.log()), ads.wait_for_ack(RDS, "routes")).await;
    listening("Envoy", ingress).await.expect("it has its listener");
    // Envoy forgets what a cluster did before the first interval that began when the cluster was there. Whatever is in
    // a report, if only by its name, has had one.
    for cluster in ["blue", "green"] {
        let is_known = |stats: &[ClusterStats]| !stats.is_empty();
        within(&format!("{cluster}: {}", envoy.log()), ads.wait_for_load("envoy-lrs", cluster, is_known)).await;
    }

    let channel = Channel::from_shared(format!("http://{ingress}")).expect("a URI").connect_lazy();
    let mut client = TestServiceClient::new(channel);
    answers(&mut client, 20).await;
    for _ in 0..4 {
        let mut request = Request::new(SimpleRequest::default());
        request.metadata_mut().insert("rpc-behavior", "error-code-14".parse().expect("a header value"));
        let status = client.unary_call(request).await.expect_err("as asked");
        assert_eq!(status.code(), Code::Unavailable);
    }
    for _ in 0..5 {
        client.empty_call(Empty::default()).await.expect("a failed call");
    }
    let expected = [
        ("blue", BTreeMap::from([("near".to_owned(), (12, 10, 2)), ("far".to_owned(), (12, 10, 2))])),
        ("green", BTreeMap::from([("near".to_owned(), (5, 5, 0))])),
    ];
    for (cluster, expected) in expected {
        let all = |stats: &[ClusterStats]| counts(stats) == expected;
        let event = format!("{expected:?} calls of {cluster} in reports: {}", envoy.log());
        within(&event, ads.wait_for_load("envoy-lrs", cluster, all)).await;
    }
    assert_eq!(ads.load_streams_opened(), 1);
    assert_eq!(control_plane.nacks(), Vec::<String>::new());
}
