//! Our client, our control plane, real sockets: the main job.
//!
//! It does NOT test corners of protocols; other modules do.

use crate::{
    mesh::{applied, mesh, ready, service, unary},
    rig::{addresses, backends},
};
use mesh_xds::{control_plane::resources::endpoints, resource::Kind};
use std::collections::BTreeSet;

#[tokio::test]
async fn calls_reach_every_backend_in_turn() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let mesh = mesh(service("echo", &addresses([&a, &b, &c])));
    let channel = ready(&mesh, "echo").await;
    // READY may have meant the first of the three.
    while mesh.mesh().status().channels[0].clusters[0]
        .endpoints
        .iter()
        .any(|endpoint| endpoint.state != mesh_client::EndpointState::Ready)
    {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            seen.insert(unary(&channel).await.expect("a reply"));
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
}

#[tokio::test]
async fn a_removed_endpoint_gets_no_call_once_that_is_applied() {
    let [a, b] = backends(["a", "b"]).await;
    let mesh = mesh(service("echo", &addresses([&a, &b])));
    let channel = ready(&mesh, "echo").await;
    unary(&channel).await.expect("a reply");
    mesh.control_plane()
        .set_unchecked(service("echo", &addresses([&a, &b])).with(endpoints("echo-cluster", &addresses([&b]))));
    applied(&mesh, Kind::Endpoints, "echo-cluster").await;
    let before = a.counters().calls;
    for _ in 0..20 {
        assert_eq!(unary(&channel).await.expect("a reply"), "b");
    }
    assert_eq!(a.counters().calls, before);
}

#[tokio::test]
async fn a_listener_that_does_not_exist_is_unavailable() {
    let mesh = mesh(service("echo", &[]));
    let channel = mesh.mesh().channel("xds:///nobody").expect("a valid target");
    let status = unary(&channel).await.expect_err("no such listener");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    assert!(status.message().contains("nobody"), "{status}");
}

#[tokio::test]
async fn an_empty_cluster_is_unavailable() {
    let mesh = mesh(service("echo", &[]));
    let channel = mesh.mesh().channel("xds:///echo").expect("a valid target");
    let status = unary(&channel).await.expect_err("no endpoint");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    assert!(status.message().contains("echo-cluster") && status.message().contains("no endpoints"), "{status}");
}
