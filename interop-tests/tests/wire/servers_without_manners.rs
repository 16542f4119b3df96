//! Servers that refuse, leave, answer too early, fall silent or never speak: scripts on the level of frames.
//!
//! A call that a server did not look at must not fail, and an endpoint that does not answer must not be picked. It does
//! NOT test retry policies; there are none here.

use crate::{
    mesh::{mesh, ready, service, unary},
    rig::{backends, within},
};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use interop_tests::{
    proto::testing::{StreamingInputCallRequest, test_service_client::TestServiceClient},
    proxy::Proxy,
    raw::{RawConnection, RawServer, Reason, Settings},
};
use mesh_client::{EndpointState, MeshChannel, testing::TestMesh};
use std::time::Duration;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tower_service::Service;

/// A call on its way.
pub(crate) struct Call(JoinHandle<Result<String, Status>>);

impl Call {
    /// The caller gives it up.
    pub(crate) async fn cancel(self) {
        self.0.abort();
        within("the cancellation", self.0).await.expect_err("cancelled");
    }

    pub(crate) fn start(channel: &MeshChannel) -> Self {
        let channel = channel.clone();
        Self(tokio::spawn(async move { unary(&channel).await }))
    }

    pub(crate) async fn end(self) -> Result<String, Status> {
        within("the end of the call", self.0).await.expect("no panic")
    }
}

/// A raw server and a channel that leads to it alone.
pub(crate) async fn alone() -> (RawServer, TestMesh, MeshChannel) {
    let server = RawServer::start().await.expect("a free port");
    let mesh = mesh(service("echo", &[server.address()]));
    let channel = mesh.mesh().channel("xds:///echo").expect("a valid target");
    (server, mesh, channel)
}

/// The next connection of the client, with HTTP/2 spoken.
pub(crate) async fn dialled(server: &RawServer) -> RawConnection {
    dialled_with(server, Settings::default()).await
}

/// The same, with these settings.
pub(crate) async fn dialled_with(server: &RawServer, settings: Settings) -> RawConnection {
    let mut connection = server.accept().await.expect("dialled");
    connection.handshake(settings).await.expect("HTTP/2");
    connection
}

#[tokio::test]
async fn a_refused_stream_is_sent_once_more_even_after_its_body() {
    let (server, _mesh, channel) = alone().await;
    let call = Call::start(&channel);
    let mut connection = dialled(&server).await;
    let refused = connection.request().await.expect("a call");
    connection.end_of(refused).await.expect("its body");
    connection.reset(refused, Reason::RefusedStream).await.expect("open");
    let again = connection.request().await.expect("the same call");
    connection.respond(again, "a").await.expect("open");
    assert_eq!(call.end().await.expect("answered"), "");
}

#[tokio::test]
async fn up_to_64_kib_of_a_body_are_sent_once_more() {
    for (size, status) in [(64 * 1024, "0"), (64 * 1024 + 1, "14")] {
        let (server, _mesh, mut channel) = alone().await;
        let request = Request::post("/s/m").header("content-type", "application/grpc");
        let request = request.body(Full::new(Bytes::from(vec![0; size as usize]))).expect("valid");
        let call = tokio::spawn(async move { channel.call(request).await.expect("failures are responses") });
        let mut connection = dialled(&server).await;
        let refused = connection.request().await.expect("a call");
        connection.allow(refused, size).await.expect("open");
        connection.end_of(refused).await.expect("its body");
        connection.reset(refused, Reason::RefusedStream).await.expect("open");
        if status == "0" {
            let again = connection.request().await.expect("the same call");
            connection.allow(again, size).await.expect("open");
            connection.end_of(again).await.expect("its body, once more");
            let headers = [("content-type", "application/grpc"), ("grpc-status", "0")];
            connection.trailers_only(again, &headers).await.expect("open");
        }
        let response = within("the end of the call", call).await.expect("no panic");
        assert_eq!(response.headers()["grpc-status"], status, "{size} bytes");
    }
}

#[tokio::test]
async fn a_stream_that_is_refused_twice_is_unavailable() {
    let (server, _mesh, channel) = alone().await;
    let call = Call::start(&channel);
    let mut connection = dialled(&server).await;
    for _ in 0..2 {
        let refused = connection.request().await.expect("a call");
        connection.reset(refused, Reason::RefusedStream).await.expect("open");
    }
    assert_eq!(call.end().await.expect_err("refused").code(), Code::Unavailable);
}

#[tokio::test]
async fn goaway_sends_the_streams_above_its_last_one_elsewhere() {
    let (server, _mesh, channel) = alone().await;
    let first = Call::start(&channel);
    let mut old = dialled(&server).await;
    let looked_at = old.request().await.expect("a call");
    let second = Call::start(&channel);
    let ignored = old.request().await.expect("another call");
    assert!(ignored > looked_at);
    old.go_away(looked_at, Reason::NoError).await.expect("open");

    let mut new = dialled(&server).await;
    let again = new.request().await.expect("the second call");
    new.respond(again, "a").await.expect("open");
    second.end().await.expect("answered by the new connection");
    old.respond(looked_at, "a").await.expect("still open: a stream is left");
    first.end().await.expect("answered by the old connection");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_is_an_answer() {
    let (server, _mesh, channel) = alone().await;
    // One message at a time; the upload never ends by itself.
    let (upload, messages) = mpsc::channel(1);
    upload.send(StreamingInputCallRequest::default()).await.expect("open");
    let mut client = TestServiceClient::new(channel);
    let call = tokio::spawn(async move { client.streaming_input_call(ReceiverStream::new(messages)).await });
    let mut connection = dialled(&server).await;
    let stream = connection.request().await.expect("a call");
    connection.respond(stream, "a").await.expect("open");
    // "A server MAY send a complete response before the client sent the entire request, and then reset the stream with
    // NO_ERROR. Clients MUST NOT discard responses as a result." - RFC 9113, 8.1
    connection.reset(stream, Reason::NoError).await.expect("open");
    let answer = within("the answer", call).await.expect("no panic").expect("answered");
    assert_eq!(answer.metadata().get("hostname").expect("sent"), "a");
    within("the end of the upload", upload.closed()).await;
}

#[tokio::test]
async fn an_endpoint_that_never_speaks_gets_no_call() {
    let silent = RawServer::start().await.expect("a free port");
    let [good] = backends(["good"]).await;
    let mesh = mesh(service("echo", &[silent.address(), good.address()]));
    let channel = ready(&mesh, "echo").await;
    let _mute = within("the dial", silent.accept()).await.expect("dialled");
    for _ in 0..20 {
        assert_eq!(unary(&channel).await.expect("answered"), "good");
    }
}

#[tokio::test]
async fn keepalive_sees_an_endpoint_that_fell_silent() {
    let [lost, good] = backends(["lost", "good"]).await;
    let proxy = Proxy::start(lost.address()).await.expect("a free port");
    let mesh = mesh(service("echo", &[proxy.address(), good.address()]));
    let second = Duration::from_secs(1);
    let builder = mesh.mesh().channel_builder("xds:///echo").http2_keep_alive_interval(second);
    let builder = builder.keep_alive_timeout(second).keep_alive_while_idle(true);
    let channel = builder.build().expect("a valid target");
    let is_ready = |wanted: bool| {
        let status = channel.status();
        let endpoints = status.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        let mut behind_proxy = endpoints.filter(|endpoint| endpoint.address == proxy.address());
        behind_proxy.any(|endpoint| (endpoint.state == EndpointState::Ready) == wanted)
    };
    within("calls through the proxy", async {
        while !is_ready(true) {
            unary(&channel).await.expect("answered");
        }
    })
    .await;
    proxy.silence();
    within("the silence is noticed", async {
        while !is_ready(false) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..20 {
        assert_eq!(unary(&channel).await.expect("answered"), "good");
    }
    proxy.resume();
    within("calls through the proxy again", async { while unary(&channel).await.expect("answered") != "lost" {} })
        .await;
}

#[tokio::test]
async fn a_response_that_is_cut_by_no_error_is_no_success() {
    let (server, _mesh, channel) = alone().await;
    let call = Call::start(&channel);
    let mut connection = dialled(&server).await;
    let stream = connection.request().await.expect("a call");
    connection.headers(stream, &[("content-type", "application/grpc")]).await.expect("open");
    connection.message(stream, 0).await.expect("open");
    connection.reset(stream, Reason::NoError).await.expect("open");
    // "NO_ERROR → INTERNAL: an explicit gRPC status of OK should have been sent" (gRPC over HTTP/2, "Errors").
    let status = call.end().await.expect_err("no status was sent");
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert!(status.message().contains("reset"), "{status}");
}
