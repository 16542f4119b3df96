//! Our client between implementations that are not ours: go-control-plane above it, C-core servers below.
//!
//! What our control plane and our backends may forgive, these do not. It does NOT test balancing in depth.

use crate::rig::{OurControlPlane, addresses, backends, bootstrap, json_resources, until, within};
use interop_tests::{
    peers::{CoreBackend, GoControlPlane},
    proto::testing::{
        Payload, ResponseParameters, SimpleRequest, StreamingInputCallRequest, StreamingOutputCallRequest,
        test_service_client::TestServiceClient,
    },
    proxy::Proxy,
};
use mesh_client::{Bootstrap, Mesh, MeshChannel};
use mesh_xds::{
    control_plane::{
        Resources,
        resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
    },
    resource::Kind,
};
use serde_json::json;
use std::collections::BTreeMap;
use tokio_stream::StreamExt;

fn mesh(node: &str, control_plane: impl ToString) -> Mesh {
    mesh_with(node, control_plane, &[])
}

fn mesh_with(node: &str, control_plane: impl ToString, features: &[&str]) -> Mesh {
    let mut bootstrap = bootstrap(node, control_plane);
    bootstrap["xds_servers"][0]["server_features"] = json!(features);
    Mesh::builder(Bootstrap::parse(&bootstrap.to_string()).expect("well-formed")).build()
}

/// Who answers `calls` calls, one after the other; a failed one fails the test.
async fn answers(client: &mut TestServiceClient<MeshChannel>, calls: usize) -> BTreeMap<String, u64> {
    let mut answers = BTreeMap::new();
    for _ in 0..calls {
        let answer = client.unary_call(SimpleRequest::default()).await.expect("a failed call");
        *answers.entry(answer.into_inner().hostname).or_default() += 1;
    }
    answers
}

#[tokio::test]
async fn go_control_plane_leads_our_client() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let mut control_plane = GoControlPlane::start().await.expect("set up");
    control_plane.serve("1", &json_resources("greeter", &addresses([&a, &b]))).await.expect("consistent");
    let mesh = mesh("ours-1", control_plane.address());
    let mut client = TestServiceClient::new(mesh.channel("xds:///greeter").expect("a target"));

    let told = answers(&mut client, 100).await;
    let seen = [("a", a.counters().succeeded), ("b", b.counters().succeeded)];
    assert_eq!(told, BTreeMap::from(seen.map(|(hostname, count)| (hostname.to_owned(), count))));

    control_plane.serve("2", &json_resources("greeter", &addresses([&b, &c]))).await.expect("consistent");
    for kind in Kind::ALL {
        control_plane.verdict(kind.type_url(), "2").await.expect("judged").expect("accepted");
    }
    let moved = async { while !answers(&mut client, 10).await.keys().eq(["b", "c"]) {} };
    within("answers from b and c", moved).await;

    // A control plane that is gone takes nothing away.
    drop(control_plane);
    assert_eq!(answers(&mut client, 20).await.values().sum::<u64>(), 20);
}

#[tokio::test]
async fn go_control_plane_leads_our_client_in_delta() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let mut control_plane = GoControlPlane::start().await.expect("set up");
    control_plane.serve("1", &json_resources("greeter", &addresses([&a, &b]))).await.expect("consistent");
    let mesh = mesh_with("ours-3", control_plane.address(), &["xds_v3", "delta_ads"]);
    let mut client = TestServiceClient::new(mesh.channel("xds:///greeter").expect("a target"));

    assert_eq!(answers(&mut client, 100).await.values().sum::<u64>(), 100);
    for kind in Kind::ALL {
        control_plane.verdict(kind.type_url(), "1").await.expect("judged").expect("accepted");
    }

    // Only what changed is sent, and so judged.
    control_plane.serve("2", &json_resources("greeter", &addresses([&b, &c]))).await.expect("consistent");
    control_plane.verdict(Kind::Endpoints.type_url(), "2").await.expect("judged").expect("accepted");
    let moved = async { while !answers(&mut client, 10).await.keys().eq(["b", "c"]) {} };
    within("answers from b and c", moved).await;

    // The service is gone, which costs no call (A88), and comes back.
    control_plane.serve("3", &json_resources("other", &addresses([&a]))).await.expect("consistent");
    control_plane.removal(Kind::Listener.type_url(), "greeter").await.expect("told");
    control_plane.verdict(Kind::Listener.type_url(), "3").await.expect("judged").expect("accepted");
    assert_eq!(answers(&mut client, 20).await.values().sum::<u64>(), 20);
    control_plane.serve("4", &json_resources("greeter", &addresses([&a]))).await.expect("consistent");
    let moved = async { while !answers(&mut client, 10).await.keys().eq(["a"]) {} };
    within("answers from a", moved).await;
}

/// A cluster that our client refuses costs no call, and what comes after it counts again.
async fn a_refused_cluster_of_go_control_plane(node: &str, features: &[&str]) {
    let [a, b] = backends(["a", "b"]).await;
    let mut control_plane = GoControlPlane::start().await.expect("set up");
    let good = |backend| json_resources("greeter", &addresses([backend]));
    control_plane.serve("1", &good(&a)).await.expect("consistent");
    let mesh = mesh_with(node, control_plane.address(), features);
    let mut client = TestServiceClient::new(mesh.channel("xds:///greeter").expect("a target"));
    assert!(answers(&mut client, 1).await.keys().eq(["a"]));
    let mut bad = good(&a);
    bad[2]["lb_policy"] = json!(77);
    control_plane.serve("2", &bad).await.expect("consistent");
    let refused = control_plane.verdict(Kind::Cluster.type_url(), "2").await.expect("judged").expect_err("refused");
    assert!(refused.contains("greeter") && refused.contains("lb_policy"), "{refused}");
    assert_eq!(answers(&mut client, 20).await, BTreeMap::from([("a".to_owned(), 20)]));
    control_plane.serve("3", &good(&b)).await.expect("consistent");
    let moved = async { while !answers(&mut client, 10).await.keys().eq(["b"]) {} };
    within("answers from b", moved).await;
    let failure = || mesh.status().xds.resource(Kind::Cluster, "greeter").expect("subscribed").failure.clone();
    until("the good cluster", || failure().is_none()).await;
}

#[tokio::test]
async fn go_control_plane_is_told_of_a_bad_cluster() {
    a_refused_cluster_of_go_control_plane("ours-4", &[]).await;
}

#[tokio::test]
async fn go_control_plane_is_told_of_a_bad_cluster_in_delta() {
    a_refused_cluster_of_go_control_plane("ours-5", &["delta_ads"]).await;
}

#[tokio::test]
async fn go_control_plane_sends_nothing_again_after_a_cut() {
    let [a, b] = backends(["a", "b"]).await;
    let mut control_plane = GoControlPlane::start().await.expect("set up");
    let proxy = Proxy::start(control_plane.address().parse().expect("an address")).await.expect("a free port");
    control_plane.serve("1", &json_resources("greeter", &addresses([&a]))).await.expect("consistent");
    let mesh = mesh_with("ours-6", proxy.address(), &["delta_ads"]);
    let mut client = TestServiceClient::new(mesh.channel("xds:///greeter").expect("a target"));
    assert!(answers(&mut client, 1).await.keys().eq(["a"]));
    for kind in Kind::ALL {
        control_plane.verdict(kind.type_url(), "1").await.expect("judged").expect("accepted");
    }
    let before = control_plane.deltas().len();
    assert_eq!(before, 4, "{:?}", control_plane.deltas());
    proxy.cut();
    until("a new connection", || proxy.connections() == 2).await;
    control_plane.serve("2", &json_resources("greeter", &addresses([&b]))).await.expect("consistent");
    let moved = async { while !answers(&mut client, 10).await.keys().eq(["b"]) {} };
    within("answers from b", moved).await;
    control_plane.verdict(Kind::Endpoints.type_url(), "2").await.expect("judged").expect("accepted");
    // What was told as held (`initial_resource_versions`) is not news.
    assert_eq!(control_plane.deltas()[before..], [(Kind::Endpoints.type_url().to_owned(), 1)]);
}

#[tokio::test]
async fn our_client_calls_c_core_servers_in_every_way() {
    let mut a = CoreBackend::start("a").await.expect("set up");
    let mut b = CoreBackend::start("b").await.expect("set up");
    let control_plane = OurControlPlane::start().await;
    let service = Resources::default()
        .with(listener("greeter", "routes"))
        .with(route_config("routes", vec![virtual_host("*", "core")]))
        .with(cluster_eds("core"));
    control_plane.ads.set_unchecked(service.clone().with(endpoints("core", &[a.address(), b.address()])));
    let mesh = mesh("ours-2", control_plane.address);
    let mut client = TestServiceClient::new(mesh.channel("xds:///greeter").expect("a target"));

    let told = answers(&mut client, 100).await;
    let seen = [("a", a.answered().await.expect("it runs")), ("b", b.answered().await.expect("it runs"))];
    assert_eq!(told, BTreeMap::from(seen.map(|(hostname, count)| (hostname.to_owned(), count))));

    let large = SimpleRequest { response_size: 3 << 20, ..SimpleRequest::default() };
    let answer = client.unary_call(large).await.expect("answered").into_inner();
    assert_eq!(answer.payload.map(|payload| payload.body.len()), Some(3 << 20));

    let chunk =
        |size| StreamingInputCallRequest { payload: Some(Payload { body: vec![0; size], ..Payload::default() }) };
    let upload = tokio_stream::iter(vec![chunk(100_000); 50]);
    let answer = client.streaming_input_call(upload).await.expect("answered").into_inner();
    assert_eq!(answer.aggregated_payload_size, 5_000_000);

    let echo = |size| StreamingOutputCallRequest {
        response_parameters: vec![ResponseParameters { size, interval_us: 0 }; 2],
        ..StreamingOutputCallRequest::default()
    };
    let talk = client.full_duplex_call(tokio_stream::iter([echo(10), echo(20)])).await.expect("answered");
    let sizes =
        talk.into_inner().map(|answer| answer.expect("a message").payload.map_or(0, |payload| payload.body.len()));
    assert_eq!(sizes.collect::<Vec<_>>().await, [10, 10, 20, 20]);

    // C-core's own graceful stop costs no later call. (One that is on its way at that moment, it answers CANCELLED.)
    a.drain().await.expect("it drains");
    assert_eq!(answers(&mut client, 50).await, BTreeMap::from([("b".to_owned(), 50)]));
    control_plane.ads.set_unchecked(service.with(endpoints("core", &[b.address()])));
    assert_eq!(answers(&mut client, 20).await.values().sum::<u64>(), 20);
}
