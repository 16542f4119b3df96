//! `max_connections` over the wire: how many HTTP/1.1 connections a cluster may have, and who waits for one.
//!
//! Counted per {cluster, EDS service name} in the whole process, so each test has a cluster of its own. HTTP/2 has one
//! connection for each endpoint, whatever the limit. It does NOT test which connection a call gets.

use crate::{
    features::{Answer, World, check, fails, features, get},
    http1_server::{Http1Connection, Http1Server},
    mesh::{mesh, service},
    rig::{backends, until, within},
};
use bytes::Bytes;
use envoy_types::pb::google::protobuf::UInt32Value;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use interop_tests::backend::Backend;
use mesh_client::{ClusterStatus, MeshChannel, ResponseBody, testing::TestMesh};
use mesh_xds::control_plane::{
    Resources,
    proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster, circuit_breakers::Thresholds},
    resources::cluster_eds,
};
use std::{net::SocketAddr, time::Duration};
use tokio::task::JoinHandle;
use tower_service::Service;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Calls that are never answered, until they are given up.
fn hold(channel: &MeshChannel, count: usize) -> Vec<JoinHandle<Answer>> {
    let call = |_| {
        let channel = channel.clone();
        tokio::spawn(async move { get("/").header("rpc-behavior", "keep-open").on(&channel).await })
    };
    (0..count).map(call).collect()
}

/// The one cluster of a channel.
fn cluster(channel: &MeshChannel) -> ClusterStatus {
    channel.status().clusters.remove(0)
}

/// Calls at any of these backends.
fn calls(backends: &[&Backend]) -> u64 {
    backends.iter().map(|backend| backend.counters().calls).sum()
}

/// Waits until `at` calls are at backends, `pending` wait, and there are so many connections.
async fn stands(world: &World, at: u64, pending: u32, connections: u32) {
    let stands = || {
        let now = cluster(&world.channel);
        calls(&[&world.a, &world.b]) == at && (now.pending_requests, now.connections) == (pending, connections)
    };
    until("calls at backends, others waiting", stands).await;
}

/// One cluster that speaks HTTP/1.1 with these endpoints, under a service name of its own.
macro_rules! cluster {
    ($service:literal, $thresholds:literal, $endpoints:literal) => {
        concat!(
            "clusters: {a: {eds_cluster_config: {service_name: ",
            $service,
            "}, circuit_breakers: {thresholds: [",
            $thresholds,
            "]}, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': \
             type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
             {http_protocol_options: {}}}}}}\nendpoints: {",
            $service,
            ": {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [",
            $endpoints,
            "]}]}}\n"
        )
    };
}

features! {
    max_connections {
        row: "circuit breaking: no more HTTP/1.1 connections than `max_connections`; a call at the limit waits for one; a new limit counts those that are there",
        source: "Envoy, `CircuitBreakers.thresholds[].max_connections`",
        config: cluster!("cl-max", "{max_connections: 2}", "{$a}"),
        strip: [("/clusters/a/circuit_breakers/thresholds/0", "{}")],
        |world| {
            let held = hold(&world.channel, 6);
            stands(world, 2, 4, 2).await;
            check(world.a.counters().connections == 2, "two connections")?;
            world.update("/clusters/a/circuit_breakers/thresholds/0/max_connections", "3").await?;
            stands(world, 3, 3, 3).await;
            world.update("/clusters/a/circuit_breakers/thresholds/0/max_connections", "1").await?;
            check(world.a.counters().open_connections == 3, "none is closed")?;
            // The first two that end make no room yet; the third does.
            for left in [2, 1] {
                held[left].abort();
                stands(world, 3, 3, left as u32).await;
            }
            held[0].abort();
            stands(world, 4, 2, 1).await;
            Ok(())
        }
    }

    max_connections_of_each_endpoint {
        row: "circuit breaking: an endpoint without a connection may have one whatever `max_connections` says",
        source: "Envoy, `CircuitBreakers.thresholds[].max_connections`",
        config: cluster!("cl-each", "{max_connections: 1}", "{$a}, {$b}"),
        strip: [("/clusters/a/circuit_breakers", "")],
        |world| {
            world.ready("a", 2).await?;
            let _held = hold(&world.channel, 6);
            stands(world, 2, 4, 2).await;
            let connections = [&world.a, &world.b].map(|backend| backend.counters().connections);
            check(connections == [1, 1], format!("one connection for each endpoint, and not {connections:?}"))
        }
    }

    max_pending_requests {
        row: "circuit breaking: calls that wait because of `max_connections` count against `max_pending_requests`",
        source: "Envoy, `CircuitBreakers.thresholds[].max_connections`, `.max_pending_requests`",
        config: cluster!("cl-pending", "{max_connections: 1, max_pending_requests: 2}", "{$a}"),
        strip: [("/clusters/a/circuit_breakers/thresholds/0/max_connections", "")],
        |world| {
            let _first = hold(&world.channel, 1);
            stands(world, 1, 0, 1).await;
            let _others = hold(&world.channel, 2);
            stands(world, 1, 2, 1).await;
            fails("503", &["\"a\"", "2 calls already wait"], world.call(get("/")).await)
        }
    }

    deadline_at_the_limit {
        row: "deadline: a call that waits because of `max_connections` is late like any other",
        source: "Envoy, `RouteAction.timeout`, `CircuitBreakers.thresholds[].max_connections`",
        config: concat!(cluster!("cl-late", "{max_connections: 1}", "{$a}"),
            "routes: [{match: {prefix: /late}, route: {cluster: a, timeout: 5s}}, {match: {prefix: ''}, route: {cluster: a, timeout: 0s}}]"),
        strip: [("/clusters/a/circuit_breakers", "")],
        |world| {
            let _held = hold(&world.channel, 1);
            stands(world, 1, 0, 1).await;
            let (answer, after) = world.timed(get("/late")).await;
            fails("504", &["\"a\"", "no stream or connection is free"], answer)?;
            check(after.as_secs() == 5, format!("after 5 s, and not {after:?}"))?;
            check(cluster(&world.channel).pending_requests == 0, "nobody waits")
        }
    }
}

// === By hand ===

/// A service that may have `max` connections.
fn limited(name: &str, max: u32, address: SocketAddr) -> Resources {
    let thresholds = Thresholds { max_connections: Some(UInt32Value { value: max }), ..Default::default() };
    let limits = CircuitBreakers { thresholds: vec![thresholds], ..Default::default() };
    let cluster = Cluster { circuit_breakers: Some(limits), ..cluster_eds(&format!("{name}-cluster")) };
    service(name, &[address]).with(cluster)
}

/// A server that says what the test wrote, and a channel that may have `max` connections to it.
async fn alone(name: &str, max: u32) -> (Http1Server, TestMesh, MeshChannel) {
    let server = Http1Server::start().await;
    let mesh = mesh(limited(name, max, server.address()));
    let channel = mesh.mesh().channel(&format!("xds:///{name}")).expect("a valid target");
    (server, mesh, channel)
}

async fn respond(mut channel: MeshChannel, path: &str) -> Response<ResponseBody> {
    let request = Request::get(path).body(Empty::<Bytes>::new()).expect("valid");
    channel.call(request).await.expect("failures are responses")
}

/// A request on its way, until its response was read.
fn start(channel: &MeshChannel, path: &'static str) -> JoinHandle<StatusCode> {
    let response = respond(channel.clone(), path);
    tokio::spawn(async move {
        let (head, body) = response.await.into_parts();
        body.collect().await.expect("no error");
        head.status
    })
}

/// The status of its response.
async fn end(call: JoinHandle<StatusCode>) -> StatusCode {
    within("a response", call).await.expect("no panic")
}

/// `count` calls wait.
async fn wait(channel: &MeshChannel, count: u32) {
    until("they wait", || cluster(channel).pending_requests == count).await;
}

/// A request that has come.
async fn path(connection: &mut Http1Connection) -> String {
    let line = connection.request().await.remove(0);
    line.split(' ').nth(1).expect("a path").to_owned()
}

#[tokio::test]
async fn six_calls_share_two_connections() {
    let (server, _mesh, channel) = alone("cl-share", 2).await;
    let calls = ["/0", "/1", "/2", "/3", "/4", "/5"].map(|path| start(&channel, path));
    let mut connections = [server.accept().await, server.accept().await];
    let mut paths = Vec::new();
    for _ in 0..3 {
        for connection in &mut connections {
            paths.push(path(connection).await);
            connection.say(OK).await;
        }
    }
    paths.sort();
    assert_eq!(paths, ["/0", "/1", "/2", "/3", "/4", "/5"]);
    for call in calls {
        assert_eq!(end(call).await, 200);
    }
}

#[tokio::test]
async fn who_waited_longest_has_the_connection_next_and_who_gives_up_takes_nothing_along() {
    let (server, _mesh, channel) = alone("cl-turns", 1).await;
    let first = start(&channel, "/first");
    let mut connection = server.accept().await;
    assert_eq!(path(&mut connection).await, "/first");
    let mut waiting = Vec::new();
    for (number, path) in (1..).zip(["/a", "/b", "/c", "/d"]) {
        waiting.push(start(&channel, path));
        wait(&channel, number).await;
    }
    let given_up = waiting.remove(1);
    given_up.abort();
    wait(&channel, 3).await;
    connection.say(OK).await;
    assert_eq!(end(first).await, 200);
    for (call, expected) in waiting.into_iter().zip(["/a", "/c", "/d"]) {
        assert_eq!(path(&mut connection).await, expected);
        connection.say(OK).await;
        assert_eq!(end(call).await, 200);
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_as_it_is_woken_wakes_the_next() {
    let (server, _mesh, channel) = alone("cl-woken", 1).await;
    let first = tokio::spawn(respond(channel.clone(), "/first"));
    let mut connection = server.accept().await;
    connection.request().await;
    let woken = start(&channel, "/woken");
    wait(&channel, 1).await;
    let next = start(&channel, "/next");
    wait(&channel, 2).await;
    connection.say(OK).await;
    // On one thread: the connection has gone back, and nobody has run since.
    let mut body = within("a response", first).await.expect("no panic").into_body();
    while within("the body", body.frame()).await.is_some() {}
    drop(body);
    woken.abort();
    assert_eq!(path(&mut connection).await, "/next");
    connection.say(OK).await;
    assert_eq!(end(next).await, 200);
}

#[tokio::test]
async fn a_connection_that_closes_makes_room_for_another() {
    let (server, _mesh, channel) = alone("cl-closed", 1).await;
    let calls = [start(&channel, "/x"), start(&channel, "/x"), start(&channel, "/x")];
    for _ in &calls {
        let mut connection = server.accept().await;
        connection.request().await;
        connection.say("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        connection.closed().await;
    }
    for call in calls {
        assert_eq!(end(call).await, 200);
    }
}

#[tokio::test]
async fn calls_that_wait_for_an_endpoint_that_dies_fail_with_it() {
    let (server, _mesh, channel) = alone("cl-dies", 1).await;
    let first = start(&channel, "/first");
    let mut connection = server.accept().await;
    connection.request().await;
    let waiting = [start(&channel, "/x"), start(&channel, "/x")];
    wait(&channel, 2).await;
    drop((server, connection));
    assert_eq!(end(first).await, 503);
    for call in waiting {
        assert_eq!(end(call).await, 503);
    }
}

#[tokio::test]
async fn channels_count_their_connections_together_and_give_them_back() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(limited("cl-shared", 3, a.address()));
    // With settings of its own, each has connections of its own.
    let channel = |seconds| {
        let builder = mesh.mesh().channel_builder("xds:///cl-shared").connect_timeout(Duration::from_secs(seconds));
        builder.build().expect("a valid target")
    };
    let (first, second, idle) = (channel(7), channel(8), channel(9));
    let held = hold(&first, 2);
    until("two at the backend", || a.counters().calls == 2).await;
    let others = hold(&second, 2);
    until("one more", || a.counters().calls == 3).await;
    wait(&second, 1).await;
    assert_eq!((a.counters().connections, cluster(&idle).connections), (3, 3));
    held.iter().chain(&others).for_each(JoinHandle::abort);
    drop((first, second));
    until("every gauge at zero", || {
        let cluster = cluster(&idle);
        (cluster.connections, cluster.active_requests, cluster.pending_requests) == (0, 0, 0)
    })
    .await;
}
