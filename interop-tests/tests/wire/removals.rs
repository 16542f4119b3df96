//! What left the configuration gets no call, and what stayed in it is not touched.
//!
//! Endpoints leave clusters, clusters leave the routes and return with others, one endpoint of a thousand changes. It
//! does NOT test how long that takes; benches do.

use crate::{
    load::Load,
    mesh::{SocketMesh, all_are_ready, applied, mesh, ready, service, soak, unary},
    rig::{addresses, backends, until, within},
};
use interop_tests::{
    backend::Backend,
    proto::testing::{ResponseParameters, StreamingOutputCallRequest, test_service_client::TestServiceClient},
};
use mesh_client::testing::TestMesh;
use mesh_xds::{
    control_plane::{
        Dialect, Resources,
        resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
    },
    resource::Kind,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{collections::BTreeSet, net::SocketAddr};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test]
async fn once_status_shows_that_an_endpoint_is_gone_an_idle_client_does_not_call_it() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let mesh = mesh(service("echo", &addresses([&a, &b, &c])));
    let channel = ready(&mesh, "echo").await;
    unary(&channel).await.expect("a reply");
    all_are_ready(mesh.mesh()).await;
    mesh.control_plane().set_unchecked(service("echo", &addresses([&b, &c])));
    // The client is idle: nothing but the update itself makes it look.
    until("the removal", || !shown(&mesh).contains(&a.address())).await;
    let before = a.counters().calls;
    for _ in 0..30 {
        assert_ne!(unary(&channel).await.expect("a reply"), "a");
    }
    assert_eq!(a.counters().calls, before);
    a.wait_for(|now| now.open_connections == 0).await.expect("its connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_status_shows_that_an_endpoint_is_gone_a_busy_client_does_not_call_it() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let mesh = mesh(service("echo", &addresses([&a, &b, &c])));
    let load = Load::start(ready(&mesh, "echo").await, 500);
    for _ in 0..soak(5) {
        mesh.control_plane().set_unchecked(service("echo", &addresses([&b, &c])));
        until("the removal", || !shown(&mesh).contains(&a.address())).await;
        load.old_calls_end().await;
        let before = a.counters();
        load.goes_on(50).await;
        assert_eq!(a.counters().calls, before.calls);
        mesh.control_plane().set_unchecked(service("echo", &addresses([&a, &b, &c])));
        a.wait_for(|now| now.calls > before.calls).await.expect("it is called again");
    }
    load.stop().await.were_all_answered_by(&[&a, &b, &c]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_leaves_the_routes_and_returns_is_called_at_its_new_endpoints_only() {
    a_cluster_leaves_the_routes_and_returns(Dialect::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_leaves_the_routes_and_returns_is_called_at_its_new_endpoints_only_in_delta() {
    a_cluster_leaves_the_routes_and_returns(Dialect::Delta).await;
}

async fn a_cluster_leaves_the_routes_and_returns(dialect: Dialect) {
    let [a, b, other] = backends(["a", "b", "other"]).await;
    let mesh = SocketMesh::start_in(dialect, routed_to("comes-and-goes", a.address())).await;
    let load = Load::start(mesh.ready("echo").await, 500);
    for round in 0..soak(10) {
        let (now, before) = if round % 2 == 0 { (&b, &a) } else { (&a, &b) };
        mesh.set(routed_to("other", other.address()));
        // Every other time it is back before anybody can have noticed that it was away.
        if round % 4 < 2 {
            mesh.applied(Kind::RouteConfig, "routes").await;
        }
        mesh.set(routed_to("comes-and-goes", now.address()));
        mesh.applied(Kind::Endpoints, "comes-and-goes").await;
        mesh.applied(Kind::RouteConfig, "routes").await;
        load.old_calls_end().await;
        let (old, new) = (before.counters().calls, now.counters().calls);
        load.goes_on(20).await;
        assert_eq!(before.counters().calls, old, "the endpoint of before is called");
        assert!(now.counters().calls > new, "the new endpoint is not called");
    }
    load.stop().await.were_all_answered_by(&[&a, &b, &other]);
}

#[tokio::test]
async fn a_stream_goes_on_when_its_cluster_leaves_the_routes() {
    let [a, other] = backends(["a", "other"]).await;
    let mesh = mesh(routed_to("old", a.address()));
    let channel = ready(&mesh, "echo").await;
    // One message at a time; the stream ends with the test.
    let (messages, upload) = mpsc::channel(1);
    let echo = || StreamingOutputCallRequest {
        response_parameters: vec![ResponseParameters { size: 1, ..Default::default() }],
        ..Default::default()
    };
    messages.send(echo()).await.expect("open");
    let call = TestServiceClient::new(channel.clone()).full_duplex_call(ReceiverStream::new(upload)).await;
    let mut stream = call.expect("opened").into_inner();
    stream.message().await.expect("open").expect("an echo");

    mesh.control_plane().set_unchecked(routed_to("other", other.address()));
    within("the end of CDS", mesh.control_plane().wait_for_unsubscription(Kind::Cluster.type_url(), "old")).await;
    applied(&mesh, Kind::RouteConfig, "routes").await;
    assert_eq!(unary(&channel).await.expect("a reply"), "other");
    messages.send(echo()).await.expect("still open");
    stream.message().await.expect("still open").expect("an echo");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_endpoint_of_a_thousand_touches_no_other_connection() {
    room_for_descriptors(4_000);
    let backend = Backend::builder("all").address(([0, 0, 0, 0], 0).into()).start().await.expect("a free port");
    let port = backend.address().port();
    // All of 127.0.0.0/8 is here, so one backend is a thousand endpoints.
    let mut fleet: Vec<SocketAddr> =
        (0..1_000u16).map(|number| ([127, 1, (number / 250) as u8, (number % 250) as u8 + 1], port).into()).collect();
    let mesh = mesh(service("echo", &fleet));
    let channel = ready(&mesh, "echo").await;
    all_are_ready(mesh.mesh()).await;
    assert_eq!(backend.counters().connections, 1_000);
    for round in 0..10u8 {
        fleet[usize::from(round) * 97] = ([127, 2, 0, round + 1], port).into();
        mesh.control_plane().set_unchecked(service("echo", &fleet));
        applied(&mesh, Kind::Endpoints, "echo-cluster").await;
        all_are_ready(mesh.mesh()).await;
        backend.wait_for(|now| now.open_connections == 1_000).await.expect("one came and one went");
    }
    for _ in 0..2_000 {
        unary(&channel).await.expect("a reply");
    }
    assert_eq!(backend.counters().connections, 1_010, "one new connection for each new endpoint");
    let least = mesh.mesh().status().channels[0].clusters[0].endpoints.iter().map(|endpoint| endpoint.attempts).min();
    assert!(least >= Some(1), "each endpoint has its turns: {least:?}");
}

fn routed_to(cluster: &str, address: SocketAddr) -> Resources {
    Resources::default()
        .with(listener("echo", "routes"))
        .with(route_config("routes", vec![virtual_host("*", cluster)]))
        .with(cluster_eds(cluster))
        .with(endpoints(cluster, &[address]))
}

/// The endpoints that `status()` shows.
fn shown(mesh: &TestMesh) -> BTreeSet<SocketAddr> {
    let clusters = mesh.mesh().status().channels.remove(0).clusters;
    clusters.iter().flat_map(|cluster| &cluster.endpoints).map(|endpoint| endpoint.address).collect()
}

/// Many systems allow a process 1,024 descriptors unless it asks.
fn room_for_descriptors(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
            .expect("room for sockets");
    }
}
