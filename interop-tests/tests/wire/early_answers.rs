//! Answers that come before the end of the request: repeated if a policy says so, or else the rest of the request goes on.
//!
//! By script, on the level of frames and lines. It does NOT test what else a policy makes of an answer; `retries.rs` does.

use crate::{broken_attempts::to, rig::within, servers_without_manners::dialled};
use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;
use interop_tests::{
    proto::testing::{StreamingInputCallRequest, StreamingInputCallResponse, test_service_client::TestServiceClient},
    raw::{RawConnection, RawServer, Seen},
};
use mesh_client::{HttpVersion, MeshChannel};
use std::convert::Infallible;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Response, Status};
use tower_service::Service;

const UNAVAILABLE: [(&str, &str); 2] = [("content-type", "application/grpc"), ("grpc-status", "14")];

/// A call that streams its request, and where the messages come from.
fn streaming(
    channel: MeshChannel,
) -> (mpsc::Sender<StreamingInputCallRequest>, JoinHandle<Result<Response<StreamingInputCallResponse>, Status>>) {
    let (upload, messages) = mpsc::channel(1);
    let mut client = TestServiceClient::new(channel);
    (upload, tokio::spawn(async move { client.streaming_input_call(ReceiverStream::new(messages)).await }))
}

/// A message of a call that streams its request, of so many bytes on the wire.
fn message() -> (StreamingInputCallRequest, usize) {
    (StreamingInputCallRequest::default(), 5)
}

/// Waits until so many bytes of a request have come.
async fn bytes_of(connection: &mut RawConnection, stream: u32, wanted: usize) {
    let mut have = 0;
    while have < wanted {
        if let Seen::Data { stream: of, bytes, .. } = connection.next().await.expect("open")
            && of == stream
        {
            have += bytes;
        }
    }
    assert_eq!(have, wanted);
}

#[tokio::test]
async fn a_stream_that_is_refused_while_its_request_goes_on_is_repeated_with_what_was_sent() {
    let server = RawServer::start().await.expect("a free port");
    let (_mesh, channel) = to(server.address(), HttpVersion::Http2, "unavailable", 2);
    let (upload, call) = streaming(channel);
    let mut connection = dialled(&server).await;
    let ((first, size), (second, _)) = (message(), message());

    upload.send(first).await.expect("wanted");
    for _ in 0..2 {
        let refused = connection.request().await.expect("a call");
        bytes_of(&mut connection, refused, size).await;
        connection.trailers_only(refused, &UNAVAILABLE).await.expect("open");
    }
    let taken = connection.request().await.expect("the same call");
    bytes_of(&mut connection, taken, size).await;
    // Its headers are the caller's, and what is left of the request goes on.
    connection.headers(taken, &[("content-type", "application/grpc"), ("hostname", "a")]).await.expect("open");
    upload.send(second).await.expect("wanted");
    bytes_of(&mut connection, taken, size).await;
    drop(upload);
    connection.end_of(taken).await.expect("the end of the request");
    connection.message(taken, 0).await.expect("open");
    connection.trailers(taken, &[("grpc-status", "0")]).await.expect("open");
    let answer = within("the answer", call).await.expect("no panic").expect("answered");
    assert_eq!(answer.metadata().get("hostname").expect("sent"), "a");
}

#[tokio::test]
async fn a_stream_that_is_refused_too_often_is_refused() {
    let server = RawServer::start().await.expect("a free port");
    let (_mesh, channel) = to(server.address(), HttpVersion::Http2, "unavailable", 1);
    let (upload, call) = streaming(channel);
    let mut connection = dialled(&server).await;
    for _ in 0..2 {
        let refused = connection.request().await.expect("a call");
        connection.trailers_only(refused, &UNAVAILABLE).await.expect("open");
    }
    let code = within("the answer", call).await.expect("no panic").map(drop).map_err(|status| status.code());
    assert_eq!(code, Err(tonic::Code::Unavailable));
    within("the end of the upload", upload.closed()).await;
}

/// A request over HTTP/1.1 that has come as far as its first piece, "be".
async fn begun(listener: &TcpListener) -> BufReader<TcpStream> {
    let (socket, _) = within("a connection", listener.accept()).await.expect("dialled");
    let mut socket = BufReader::new(socket);
    let mut line = String::new();
    while line.trim_end() != "be" {
        line.clear();
        assert_ne!(within("the request", socket.read_line(&mut line)).await.expect("open"), 0, "cut");
    }
    socket
}

#[tokio::test]
async fn an_upload_over_http1_that_is_refused_on_its_way_is_repeated_with_what_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (_mesh, mut channel) = to(listener.local_addr().expect("bound"), HttpVersion::Http1, "5xx", 1);
    let (upload, pieces) = mpsc::channel(1);
    let body = StreamBody::new(ReceiverStream::new(pieces).map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
    let request = Request::post("/").body(body).expect("valid");
    let call = tokio::spawn(async move { channel.call(request).await.expect("never fails") });

    upload.send(Bytes::from_static(b"be")).await.expect("wanted");
    let mut refused = begun(&listener).await;
    refused.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await.expect("open");
    let mut taken = begun(&listener).await;
    let mut rest = Vec::new();
    within("the end of the first attempt", refused.read_to_end(&mut rest)).await.expect("closed in order");
    assert!(rest.is_empty(), "what is left of the request goes elsewhere");
    upload.send(Bytes::from_static(b"gin")).await.expect("wanted");
    drop(upload);
    let mut chunks = String::new();
    while !chunks.ends_with("0\r\n\r\n") {
        within("the rest", taken.read_line(&mut chunks)).await.expect("open");
    }
    assert_eq!(chunks, "3\r\ngin\r\n0\r\n\r\n");
    taken.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("open");
    assert_eq!(within("the answer", call).await.expect("no panic").status(), 200);
}
