//! `:authority` by the endpoint's hostname (A81), and by the application's word for one call, over the wire.
//!
//! Only a server that the bootstrap trusts may ask for the former. It does NOT test TLS: there is none to backends yet.

use crate::{
    features::{Call, World, from, get, grpc},
    mesh::{Plane, all_are_ready, applied_by, ready_in, unary},
    rig::backends,
};
use http::Version;
use interop_tests::{backend::Backend, proto::testing::test_service_client::TestServiceClient};
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap,
    control_plane::{
        Resources,
        proto::{
            envoy::config::{
                endpoint::v3::{LbEndpoint, lb_endpoint::HostIdentifier},
                route::v3::{Route, route::Action, route_action::HostRewriteSpecifier},
            },
            google::protobuf::BoolValue,
        },
        resources::{
            RouteExt, cluster_dns, cluster_eds, endpoint, endpoints_in, listener, locality, route, route_config,
            to_cluster, virtual_host_with,
        },
    },
    resource::Kind,
};
use std::time::Duration;

/// A route that asks for the endpoint's hostname, and retries elsewhere.
fn rewriting() -> Route {
    let mut route = route("", to_cluster("c")).with_retries("unavailable", 1);
    if let Some(Action::Route(action)) = &mut route.action {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true }));
    }
    route
}

fn named(backend: &Backend, hostname: &str) -> LbEndpoint {
    let mut named = endpoint(backend.address());
    if let Some(HostIdentifier::Endpoint(endpoint)) = &mut named.host_identifier {
        hostname.clone_into(&mut endpoint.hostname);
    }
    named
}

fn eds(endpoints: Vec<LbEndpoint>) -> Resources {
    Resources::default()
        .with(listener("echo", "routes"))
        .with(route_config("routes", vec![virtual_host_with("*", vec![rewriting()])]))
        .with(cluster_eds("c"))
        .with(endpoints_in("c", vec![locality("r", "z", endpoints)]))
}

/// A channel whose control plane has these features.
async fn channel(resources: Resources, feature: &str) -> (Plane, Mesh, MeshChannel) {
    let plane = Plane::start(resources).await;
    let server = plane.server().feature(feature);
    let bootstrap = Bootstrap::builder().node_id("authorities").server(server).build().expect("a server");
    let mesh = Mesh::builder(bootstrap).build();
    let channel = ready_in(&mesh, "echo").await;
    (plane, mesh, channel)
}

fn seen(backend: &Backend) -> Option<String> {
    backend.last_call()?.authority().map(str::to_owned)
}

#[tokio::test]
async fn a_trusted_server_says_under_which_authority_an_endpoint_is_called() {
    let [a] = backends(["a"]).await;
    let (plane, mesh, channel) = channel(eds(vec![named(&a, "b1.example")]), "trusted_xds_server").await;
    unary(&channel).await.expect("answered");
    assert_eq!(seen(&a).as_deref(), Some("b1.example"));
    // A new name does not need a new connection; and without one it is the service's.
    for (hostname, authority) in [("b2.example:81", "b2.example:81"), ("", "echo")] {
        plane.control_plane().set_unchecked(eds(vec![named(&a, hostname)]));
        applied_by(&mesh, plane.control_plane(), Kind::Endpoints, "c").await;
        unary(&channel).await.expect("answered");
        assert_eq!(seen(&a).as_deref(), Some(authority));
    }
    assert_eq!(a.counters().connections, 1);
}

#[tokio::test]
async fn another_server_may_not() {
    let [a] = backends(["a"]).await;
    let (_plane, mesh, channel) = channel(eds(vec![named(&a, "b1.example")]), "xds_v3").await;
    unary(&channel).await.expect("answered");
    assert_eq!(seen(&a).as_deref(), Some("echo"));
    let status = mesh.status();
    let ignored = status.xds.resource(Kind::RouteConfig, "routes").map(|it| it.ignored.clone());
    assert!(ignored.is_some_and(|fields| fields.iter().any(|field| field.path.ends_with("auto_host_rewrite"))));
}

#[tokio::test]
async fn a_retry_at_an_endpoint_without_a_hostname_has_the_services_name_again() {
    let [a, b] = backends(["a", "b"]).await;
    let endpoints = vec![named(&a, "b1.example"), named(&b, "")];
    let (_plane, mesh, channel) = channel(eds(endpoints), "trusted_xds_server").await;
    all_are_ready(&mesh).await;
    // Both take turns, so that one of two calls begins at a.
    for _ in 0..2 {
        let mut request = tonic::Request::new(Default::default());
        request.metadata_mut().insert("rpc-behavior", "hostname=a error-code-14".parse().expect("text"));
        TestServiceClient::new(channel.clone()).unary_call(request).await.expect("b answers");
    }
    assert_eq!(seen(&a).as_deref(), Some("b1.example"));
    assert_eq!(seen(&b).as_deref(), Some("echo"));
}

#[tokio::test]
async fn an_endpoint_of_logical_dns_is_called_by_the_name_that_was_looked_up() {
    let [a] = backends(["a"]).await;
    let resources = Resources::default()
        .with(listener("echo", "routes"))
        .with(route_config("routes", vec![virtual_host_with("*", vec![rewriting()])]))
        .with(cluster_dns("c", "localhost", a.address().port()));
    let (_plane, _mesh, channel) = channel(resources, "trusted_xds_server").await;
    unary(&channel).await.expect("answered");
    assert_eq!(seen(&a), Some(format!("localhost:{}", a.address().port())));
}

#[tokio::test]
async fn the_applications_authority_for_a_call_wins_over_the_endpoints_and_the_channels() {
    let [a, b] = backends(["a", "b"]).await;
    let endpoints = vec![named(&a, "b1.example"), named(&b, "")];
    let (_plane, mesh, channel) = channel(eds(endpoints), "trusted_xds_server").await;
    all_are_ready(&mesh).await;
    let builder = mesh.channel_builder("xds:///echo").authority("channel.example");
    let other = builder.build().expect("a valid target");
    other.ready(Duration::from_secs(30)).await.expect("configured and connected");
    let seen = || [seen(&a), seen(&b)].map(Option::unwrap_or_default);
    for channel in [&channel, &other] {
        // Both endpoints take turns, one that has a hostname and one that has none.
        let calls: [fn() -> Call; 2] = [grpc, || get("/").version(Version::HTTP_2)];
        for call in calls {
            for _ in 0..2 {
                call().authority("tenant.example:81").on(channel).await.expect("answered");
            }
            assert_eq!(seen(), ["tenant.example:81"; 2], "{:?}", call());
        }
        // It was for those calls alone.
        for _ in 0..2 {
            grpc().on(channel).await.expect("answered");
        }
        let of_channel = if std::ptr::eq(channel, &other) { "channel.example" } else { "echo" };
        assert_eq!(seen(), ["b1.example", of_channel]);
    }
    // A retry has it, too: of two calls one begins at a.
    for _ in 0..2 {
        let call = grpc().header("rpc-behavior", "hostname=a error-code-14").authority("tenant.example:82");
        from("b", call.on(&channel).await).expect("b answers");
    }
    assert_eq!(seen(), ["tenant.example:82"; 2]);
}

#[tokio::test]
async fn the_target_chooses_the_virtual_host_and_its_routes_see_the_calls_own_authority() {
    let hosts = "virtual_hosts:
    - {name: target, domains: ['svc:80'], routes: [
        {match: {prefix: '', headers: [{name: ':authority', string_match: {exact: tenant.example}}]}, route: {cluster: a}},
        {match: {prefix: ''}, route: {cluster: b}}]}
    - {name: tenant, domains: [tenant.example], routes: [{match: {prefix: ''}, route: {cluster: c}}]}";
    let world = World::start(hosts, &[]).await;
    let calls: [fn() -> Call; 2] = [grpc, || get("/")];
    for call in calls {
        from("a", world.call(call().authority("tenant.example")).await).expect("the first route");
        assert_eq!(seen(&world.a).as_deref(), Some("tenant.example"), "{:?}", call());
        from("b", world.call(call()).await).expect("the second route");
        from("b", world.call(call().authority("other.example")).await).expect("the second route");
        assert_eq!(seen(&world.b).as_deref(), Some("other.example"), "{:?}", call());
    }
}
