//! Retries of attempts that ended without a response, by script on the level of frames (A6, A44; Envoy's `reset`).
//!
//! It does NOT test what a policy makes of a response; `retries.rs` does.

use crate::{
    mesh::mesh,
    rig::within,
    servers_without_manners::{Call, dialled},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use interop_tests::raw::{RawServer, Reason};
use mesh_client::{HttpVersion, MeshChannel, testing::TestMesh};
use mesh_xds::control_plane::{
    Resources,
    resources::{RouteExt, cluster_eds, endpoints, listener, route, route_config, to_cluster, virtual_host_with},
};
use std::net::SocketAddr;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::Code;
use tower_service::Service;

/// A raw server, and a channel that leads to it alone and repeats on `retry_on`.
async fn repeating(retry_on: &str, retries: u32) -> (RawServer, TestMesh, MeshChannel) {
    let server = RawServer::start().await.expect("a free port");
    let (mesh, channel) = to(server.address(), HttpVersion::Http2, retry_on, retries);
    (server, mesh, channel)
}

/// The same for another server.
pub(crate) fn to(address: SocketAddr, version: HttpVersion, retry_on: &str, retries: u32) -> (TestMesh, MeshChannel) {
    let routes = vec![route("", to_cluster("c")).with_retries(retry_on, retries)];
    let mesh = mesh(
        Resources::default()
            .with(listener("echo", "routes"))
            .with(route_config("routes", vec![virtual_host_with("*", routes)]))
            .with(cluster_eds("c"))
            .with(endpoints("c", &[address])),
    );
    let builder = mesh.mesh().channel_builder("xds:///echo").http_protocol(version);
    let channel = builder.build().expect("a valid target");
    (mesh, channel)
}

/// A GET on its way: the status that its caller gets.
fn get(mut channel: MeshChannel) -> JoinHandle<StatusCode> {
    let request = Request::get("/").body(Empty::<Bytes>::new()).expect("valid");
    tokio::spawn(async move { channel.call(request).await.expect("never fails").status() })
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
async fn a_stream_of_plain_http_that_is_refused_again_is_repeated_by_the_policy() {
    for (retry_on, status) in [("refused-stream", 200), ("connect-failure", 503)] {
        let (server, _mesh, channel) = repeating(retry_on, 1).await;
        let call = get(channel);
        let mut connection = dialled(&server).await;
        for _ in 0..2 {
            let refused = connection.request().await.expect("a call");
            connection.reset(refused, Reason::RefusedStream).await.expect("open");
        }
        if status == 200 {
            let again = connection.request().await.expect("the same call");
            connection.trailers_only(again, &[]).await.expect("open");
        }
        assert_eq!(within("the end of the call", call).await.expect("no panic"), status, "{retry_on}");
    }
}

#[tokio::test]
async fn an_http_status_is_a_condition_where_the_response_is_not_grpc() {
    let (text, limited) = (("content-type", "text/plain"), ("x-envoy-ratelimited", "true"));
    for (retry_on, headers, is_repeated) in [
        ("5xx", &[text][..], true),
        ("gateway-error", &[text], true),
        ("retriable-4xx", &[text], false),
        ("5xx,unavailable", &[text, limited], false),
        ("envoy-ratelimited", &[text, limited], true),
    ] {
        let (server, _mesh, channel) = repeating(retry_on, 1).await;
        let call = Call::start(&channel);
        let mut connection = dialled(&server).await;
        let first = connection.request().await.expect("a call");
        connection.plain(first, "503", headers).await.expect("open");
        if is_repeated {
            let again = connection.request().await.expect("the same call");
            connection.respond(again, "a").await.expect("open");
        }
        let code = call.end().await.map_err(|status| status.code());
        assert_eq!(code.err(), (!is_repeated).then_some(Code::Unavailable), "{retry_on} {headers:?}");
    }
}

#[tokio::test]
async fn servers_are_told_of_retries_by_the_policy_and_of_no_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (_mesh, channel) = to(listener.local_addr().expect("bound"), HttpVersion::Http2, "unavailable", 3);
    let call = Call::start(&channel);
    let (socket, _) = within("a connection", listener.accept()).await.expect("dialled");
    let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
    for (told, code) in
        [(None, None), (None, Some("14")), (Some("1"), Some("14")), (Some("2"), Some("14")), (Some("3"), Some("0"))]
    {
        let (request, mut respond) = within("a call", connection.accept()).await.expect("open").expect("a call");
        let attempts = request.headers().get("grpc-previous-rpc-attempts");
        assert_eq!(attempts.map(|attempts| attempts.to_str().expect("text")), told);
        match code {
            None => respond.send_reset(h2::Reason::REFUSED_STREAM),
            Some(code) => {
                let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", code);
                respond.send_response(head.body(()).expect("valid"), true).map(drop).expect("open");
            }
        }
    }
    let end = tokio::spawn(async move { connection.accept().await.is_none() });
    // Its script has no message.
    assert_eq!(call.end().await.expect_err("no message").message(), "Missing response message.");
    end.abort();
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
        let (server, _mesh, channel) = repeating(retry_on, 1).await;
        let call = get(channel);
        let mut connection = dialled(&server).await;
        for _ in 0..attempts {
            let stream = connection.request().await.expect("a call");
            connection.reset(stream, Reason::InternalError).await.expect("open");
        }
        assert_eq!(call.await.expect("no panic"), 503, "{retry_on}");
    }
}
