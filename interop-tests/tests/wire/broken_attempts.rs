//! Retries of attempts that ended without a response, by script on the level of frames (A6, A44; Envoy's `reset`).
//!
//! It does NOT test what a policy makes of a response; `retries.rs` does.

use crate::{
    mesh::mesh,
    servers_without_manners::{Call, dialled},
};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use interop_tests::raw::{RawServer, Reason};
use mesh_client::{HttpVersion, MeshChannel, testing::TestMesh};
use mesh_xds::control_plane::{
    Resources,
    resources::{RouteExt, cluster_eds, endpoints, listener, route, route_config, to_cluster, virtual_host_with},
};
use tonic::Code;
use tower_service::Service;

/// A raw server, and a channel that leads to it alone and repeats on `retry_on`.
async fn repeating(retry_on: &str, retries: u32) -> (RawServer, TestMesh, MeshChannel) {
    let server = RawServer::start().await.expect("a free port");
    let routes = vec![route("", to_cluster("c")).with_retries(retry_on, retries)];
    let mesh = mesh(
        Resources::default()
            .with(listener("echo", "routes"))
            .with(route_config("routes", vec![virtual_host_with("*", routes)]))
            .with(cluster_eds("c"))
            .with(endpoints("c", &[server.address()])),
    );
    let builder = mesh.mesh().channel_builder("xds:///echo").http_protocol(HttpVersion::Http2);
    let channel = builder.build().expect("a valid target");
    (server, mesh, channel)
}

#[tokio::test]
async fn a_stream_that_is_refused_again_is_repeated_by_the_policy() {
    let (server, _mesh, channel) = repeating("refused-stream", 1).await;
    let call = Call::start(&channel);
    let mut connection = dialled(&server).await;
    // Once for nothing, once by the policy.
    for _ in 0..2 {
        let refused = connection.request().await.expect("a call");
        connection.reset(refused, Reason::RefusedStream).await.expect("open");
    }
    let again = connection.request().await.expect("the same call");
    connection.respond(again, "a").await.expect("open");
    call.end().await.expect("answered");
}

#[tokio::test]
async fn a_reset_is_the_status_that_stands_for_it() {
    let (server, _mesh, channel) = repeating("internal", 1).await;
    let call = Call::start(&channel);
    let mut connection = dialled(&server).await;
    let broken = connection.request().await.expect("a call");
    connection.reset(broken, Reason::InternalError).await.expect("open");
    let again = connection.request().await.expect("the same call");
    // CANCELLED is not among the policy's codes.
    connection.reset(again, Reason::Cancel).await.expect("open");
    assert_eq!(call.end().await.expect_err("reset").code(), Code::Cancelled);
}

#[tokio::test]
async fn a_connection_that_breaks_is_unavailable() {
    let (server, _mesh, channel) = repeating("unavailable", 3).await;
    let call = Call::start(&channel);
    let mut connection = dialled(&server).await;
    connection.request().await.expect("a call");
    drop(connection);
    let mut connection = dialled(&server).await;
    let again = connection.request().await.expect("the same call");
    connection.respond(again, "a").await.expect("open");
    call.end().await.expect("answered");
}

#[tokio::test]
async fn response_headers_commit_a_grpc_call() {
    let (server, _mesh, channel) = repeating("unavailable", 3).await;
    let call = Call::start(&channel);
    let mut connection = dialled(&server).await;
    let first = connection.request().await.expect("a call");
    connection.headers(first, &[("content-type", "application/grpc")]).await.expect("open");
    connection.trailers(first, &[("grpc-status", "14")]).await.expect("open");
    assert_eq!(call.end().await.expect_err("told so").code(), Code::Unavailable);
    // The next stream is the next call's.
    let call = Call::start(&channel);
    assert_eq!(connection.request().await.expect("a call"), first + 2);
    connection.respond(first + 2, "a").await.expect("open");
    call.end().await.expect("answered");
}

#[tokio::test]
async fn other_requests_are_repeated_after_a_reset() {
    for (retry_on, attempts) in
        [("reset", 2), ("5xx", 2), ("gateway-error", 2), ("retriable-4xx,reset-before-request", 1)]
    {
        let (server, _mesh, mut channel) = repeating(retry_on, 1).await;
        let request = Request::get("/").body(Empty::<Bytes>::new()).expect("valid");
        let call = tokio::spawn(async move { channel.call(request).await.expect("never fails").status() });
        let mut connection = dialled(&server).await;
        for _ in 0..attempts {
            let stream = connection.request().await.expect("a call");
            connection.reset(stream, Reason::InternalError).await.expect("open");
        }
        assert_eq!(call.await.expect("no panic"), 503, "{retry_on}");
    }
}
