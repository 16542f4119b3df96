//! Plain HTTP through the mesh: the pool of HTTP/1.1 connections, the forms of a body, and which version is spoken.
//!
//! It does NOT test routes.

use crate::{
    http1_server::{Http1Connection, Http1Server},
    mesh::{mesh, service},
    rig::{backends, within},
};
use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster,
        core::v3::{Http1ProtocolOptions, Http2ProtocolOptions},
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
        },
    },
};
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use interop_tests::backend::Backend;
use mesh_client::{Cause, HttpVersion, MeshChannel, MeshError, ResponseBody, testing::TestMesh};
use mesh_xds::control_plane::{
    Resources,
    resources::{cluster_eds, pack},
};
use prost::Name;
use std::{convert::Infallible, fmt};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tower_service::Service;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).body(Empty::new()).expect("valid")
}

/// A request on its way.
fn start<B>(channel: &MeshChannel, request: Request<B>) -> JoinHandle<Response<ResponseBody>>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: fmt::Display,
{
    let mut channel = channel.clone();
    tokio::spawn(async move { channel.call(request).await.expect("failures are responses") })
}

/// Its response.
async fn response(call: JoinHandle<Response<ResponseBody>>) -> Response<ResponseBody> {
    within("a response", call).await.expect("no panic")
}

/// The status of its response, and all of its body.
async fn end(call: JoinHandle<Response<ResponseBody>>) -> (u16, String) {
    let response = response(call).await;
    let status = response.status().as_u16();
    let body = within("the body", response.into_body().collect()).await.expect("no error").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn cause(response: &Response<ResponseBody>) -> &Cause {
    response.extensions().get::<MeshError>().expect("a failure of the mesh").cause()
}

/// A server that says what the test wrote, and a channel that leads to it alone.
async fn alone() -> (Http1Server, TestMesh, MeshChannel) {
    let server = Http1Server::start().await;
    let mesh = mesh(service("web", &[server.address()]));
    let channel = mesh.mesh().channel("xds:///web").expect("a valid target");
    (server, mesh, channel)
}

/// One more request that is answered, on a connection that is still good.
async fn goes_on(channel: &MeshChannel, connection: &mut Http1Connection) {
    let call = start(channel, get("/goes-on"));
    assert_eq!(connection.request().await[0], "get /goes-on http/1.1");
    connection.say(OK).await;
    assert_eq!(end(call).await, (200, "ok".to_owned()));
}

// === The pool ===

#[tokio::test]
async fn calls_in_turn_share_one_connection() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("web", &[a.address()]));
    let channel = mesh.mesh().channel("xds:///web").expect("a valid target");
    for size in [0, 1, 100_000, 10] {
        let request = Request::post("/echo").body(Full::new(Bytes::from(vec![b'x'; size]))).expect("valid");
        assert_eq!(end(start(&channel, request)).await.1.len(), size);
    }
    for _ in 0..10 {
        assert_eq!(end(start(&channel, get("/"))).await.0, 200);
    }
    assert_eq!(a.counters().connections, 1);
}

#[tokio::test]
async fn calls_at_once_have_a_connection_each_and_leave_them_to_the_next() {
    let (server, _mesh, channel) = alone().await;
    let calls = [start(&channel, get("/x")), start(&channel, get("/x"))];
    let mut connections = [server.accept().await, server.accept().await];
    for connection in &mut connections {
        connection.request().await;
    }
    for connection in &mut connections {
        connection.say(OK).await;
    }
    for call in calls {
        assert_eq!(end(call).await.0, 200);
    }
    let calls = [start(&channel, get("/y")), start(&channel, get("/y"))];
    for connection in &mut connections {
        assert_eq!(connection.request().await[0], "get /y http/1.1");
        connection.say(OK).await;
    }
    for call in calls {
        assert_eq!(end(call).await.0, 200);
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closes_between_calls_is_replaced() {
    let (server, _mesh, channel) = alone().await;
    let mut connection = first(&server, &channel).await;
    for _ in 0..3 {
        drop(connection);
        // Dialled before a call needs it, so that no call meets the one that is gone.
        connection = server.accept().await;
        goes_on(&channel, &mut connection).await;
    }
}

/// The connection that the first call dials; that call is answered.
async fn first(server: &Http1Server, channel: &MeshChannel) -> Http1Connection {
    let call = start(channel, get("/first"));
    let mut connection = server.accept().await;
    connection.request().await;
    connection.say(OK).await;
    assert_eq!(end(call).await.0, 200);
    connection
}

#[tokio::test]
async fn a_request_that_may_have_been_read_is_not_sent_again() {
    let (server, _mesh, channel) = alone().await;
    let mut connection = first(&server, &channel).await;
    let call = start(&channel, get("/read"));
    assert_eq!(connection.request().await[0], "get /read http/1.1");
    drop(connection);
    let response = response(call).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(matches!(cause(&response), Cause::Connection { .. }), "{:?}", cause(&response));
    goes_on(&channel, &mut server.accept().await).await;
}

#[tokio::test]
async fn connection_close_is_obeyed() {
    let (server, _mesh, channel) = alone().await;
    for _ in 0..3 {
        let call = start(&channel, get("/x"));
        let mut connection = server.accept().await;
        connection.request().await;
        connection.say("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(end(call).await, (200, "ok".to_owned()));
        connection.closed().await;
    }
}

#[tokio::test]
async fn a_response_that_is_not_read_takes_its_connection_along() {
    let (server, _mesh, channel) = alone().await;
    let call = start(&channel, get("/x"));
    let mut connection = server.accept().await;
    connection.request().await;
    connection.say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    drop(response(call).await);
    connection.closed().await;
    goes_on(&channel, &mut server.accept().await).await;
}

#[tokio::test]
async fn a_call_that_is_given_up_takes_its_connection_along() {
    let (server, _mesh, channel) = alone().await;
    let call = start(&channel, get("/x"));
    let mut connection = server.accept().await;
    connection.request().await;
    call.abort();
    connection.closed().await;
    goes_on(&channel, &mut server.accept().await).await;
}

// === Requests ===

#[tokio::test]
async fn a_body_of_known_length_says_so() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("web.prod:80", &[a.address()]));
    let channel = mesh.mesh().channel("xds:///web.prod:80").expect("a valid target");
    let request = Request::put("/echo?q=1").body(Full::new(Bytes::from_static(b"hello"))).expect("valid");
    assert_eq!(end(start(&channel, request)).await, (200, "hello".to_owned()));
    let seen = a.last_call().expect("seen");
    assert_eq!((seen.method.as_str(), seen.uri.to_string().as_str()), ("PUT", "/echo?q=1"));
    assert_eq!(seen.headers[header::CONTENT_LENGTH], "5");
    assert_eq!(seen.authority(), Some("web.prod:80"));
}

#[tokio::test]
async fn a_body_of_unknown_length_is_chunked() {
    let (server, _mesh, channel) = alone().await;
    let chunks = ["one", "two"].map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))));
    let call = start(&channel, Request::post("/x").body(StreamBody::new(stream::iter(chunks))).expect("valid"));
    let mut connection = server.accept().await;
    assert!(connection.request().await.contains(&"transfer-encoding: chunked".to_owned()));
    let body = "3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n";
    assert_eq!(connection.body(body.len()).await, body);
    connection.say(OK).await;
    assert_eq!(end(call).await.0, 200);
    goes_on(&channel, &mut connection).await;
}

#[tokio::test]
async fn a_body_that_fails_cuts_the_request_off() {
    let (server, _mesh, channel) = alone().await;
    // One piece at a time; the second is a failure.
    let (pieces, body) = mpsc::channel::<Result<Bytes, &str>>(1);
    let body = StreamBody::new(ReceiverStream::new(body).map(|piece| piece.map(Frame::data)));
    let call = start(&channel, Request::post("/x").body(body).expect("valid"));
    pieces.send(Ok(Bytes::from_static(b"one"))).await.expect("open");
    let mut connection = server.accept().await;
    connection.request().await;
    assert_eq!(connection.body(8).await, "3\r\none\r\n");
    pieces.send(Err("out of paper")).await.expect("open");
    let response = response(call).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(cause(&response), &Cause::RequestBody("out of paper".to_owned()));
    // Not with the last chunk, which would say that the body is complete.
    connection.closed().await;
}

#[tokio::test]
async fn an_upload_ends_with_its_response() {
    let (server, _mesh, channel) = alone().await;
    // One piece at a time; never closed by the caller.
    let (pieces, body) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let body = StreamBody::new(ReceiverStream::new(body).map(|piece| piece.map(Frame::data)));
    let call = start(&channel, Request::post("/x").body(body).expect("valid"));
    let mut connection = server.accept().await;
    connection.request().await;
    connection.say("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await;
    assert_eq!(end(call).await, (413, "no".to_owned()));
    within("the end of the upload", pieces.closed()).await;
    connection.closed().await;
    goes_on(&channel, &mut server.accept().await).await;
}

#[tokio::test]
async fn a_wish_to_upgrade_does_not_leave_the_client() {
    let (server, _mesh, channel) = alone().await;
    let request = Request::get("/x").header(header::UPGRADE, "websocket").header(header::CONNECTION, "upgrade");
    let call = start(&channel, request.body(Empty::<Bytes>::new()).expect("valid"));
    let mut connection = server.accept().await;
    let head = connection.request().await;
    assert!(!head.iter().any(|line| line.starts_with("upgrade") || line.starts_with("connection")), "{head:?}");
    // And a server that does it unasked is cut off.
    connection.say("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n").await;
    let response = response(call).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(matches!(cause(&response), Cause::Unacceptable { .. }), "{:?}", cause(&response));
    connection.closed().await;
}

#[tokio::test]
async fn a_tunnel_is_refused() {
    let (_server, _mesh, channel) = alone().await;
    let request = Request::builder().method(Method::CONNECT).uri("web:80").body(Empty::<Bytes>::new());
    let response = response(start(&channel, request.expect("valid"))).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(matches!(cause(&response), Cause::InvalidRequest(_)), "{:?}", cause(&response));
}

// === Responses ===

#[tokio::test]
async fn responses_without_a_body_leave_the_connection_usable() {
    let (server, _mesh, channel) = alone().await;
    let mut connection = first(&server, &channel).await;
    for (method, head) in [
        (Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        (Method::HEAD, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        (Method::GET, "HTTP/1.1 204 No Content\r\n\r\n"),
        (Method::GET, "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
    ] {
        let request = Request::builder().method(method).uri("/x").body(Empty::<Bytes>::new()).expect("valid");
        let call = start(&channel, request);
        connection.request().await;
        connection.say(head).await;
        assert_eq!(end(call).await.1, "");
        goes_on(&channel, &mut connection).await;
    }
}

#[tokio::test]
async fn interim_responses_are_not_the_response() {
    let (server, _mesh, channel) = alone().await;
    let request = Request::post("/x").header(header::EXPECT, "100-continue");
    let call = start(&channel, request.body(Full::new(Bytes::from_static(b"body"))).expect("valid"));
    let mut connection = server.accept().await;
    assert!(connection.request().await.contains(&"expect: 100-continue".to_owned()));
    connection.say("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(connection.body(4).await, "body");
    connection.say("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
    connection.say(OK).await;
    assert_eq!(end(call).await, (200, "ok".to_owned()));
    goes_on(&channel, &mut connection).await;
}

#[tokio::test]
async fn a_response_that_ends_early_is_an_error_of_its_body() {
    let (server, _mesh, channel) = alone().await;
    for start_of_response in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n",
    ] {
        let call = start(&channel, get("/x"));
        let mut connection = server.accept().await;
        connection.request().await;
        connection.say(start_of_response).await;
        let mut body = response(call).await.into_body();
        let half = within("the first half", body.frame()).await.expect("a frame").expect("no error");
        assert_eq!(half.into_data().expect("data"), "half");
        drop(connection);
        let error = within("the error", body.frame()).await.expect("not the end").expect_err("not complete");
        assert!(matches!(error.cause(), Cause::Connection { .. }), "{error}");
        assert!(within("the end", body.frame()).await.is_none());
    }
}

#[tokio::test]
async fn a_response_that_cannot_be_read_is_a_bad_gateway() {
    let (server, _mesh, channel) = alone().await;
    let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    for words in [&*large, "SSH-2.0-OpenSSH_9.6\r\n", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"] {
        let call = start(&channel, get("/x"));
        let mut connection = server.accept().await;
        connection.request().await;
        connection.say(words).await;
        let response = response(call).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{words:.20}");
        assert!(matches!(cause(&response), Cause::Unacceptable { .. }), "{:?}", cause(&response));
    }
}

// === Versions ===

fn speaks_http2(backend: &Backend) -> bool {
    // Only HTTP/2 says the scheme.
    backend.last_call().expect("seen").uri.scheme().is_some()
}

/// A service whose cluster says which version of HTTP it speaks.
fn versioned(backend: &Backend, options: UpstreamProtocolOptions) -> Resources {
    let options = HttpProtocolOptions { upstream_protocol_options: Some(options), ..Default::default() };
    let cluster = Cluster {
        typed_extension_protocol_options: [(HttpProtocolOptions::full_name(), pack(options))].into(),
        ..cluster_eds("web-cluster")
    };
    service("web", &[backend.address()]).with(cluster)
}

#[tokio::test]
async fn a_cluster_says_which_version_it_speaks() {
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let downstream = UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig::default());
    for (options, version, http2) in [
        (explicit(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())), Version::HTTP_11, true),
        (explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())), Version::HTTP_2, false),
        (downstream.clone(), Version::HTTP_2, true),
        (downstream, Version::HTTP_11, false),
    ] {
        let [a] = backends(["a"]).await;
        let mesh = mesh(versioned(&a, options.clone()));
        let channel = mesh.mesh().channel("xds:///web").expect("a valid target");
        let mut request = get("/");
        *request.version_mut() = version;
        assert_eq!(end(start(&channel, request)).await.0, 200);
        assert_eq!(speaks_http2(&a), http2, "{options:?} {version:?}");
    }
}

#[tokio::test]
async fn a_channel_says_which_version_a_silent_cluster_speaks() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("web", &[a.address()]));
    for (version, http2) in [(HttpVersion::Http1, false), (HttpVersion::Http2, true)] {
        let channel = mesh.mesh().channel_builder("xds:///web").http_protocol(version).build().expect("a valid target");
        let request = Request::post("/echo").body(Full::new(Bytes::from_static(b"hello"))).expect("valid");
        assert_eq!(end(start(&channel, request)).await, (200, "hello".to_owned()));
        assert_eq!(speaks_http2(&a), http2);
    }
}

#[tokio::test]
async fn one_client_calls_many_hosts() {
    let [a] = backends(["a"]).await;
    let hosts = (0..20).map(|host| format!("host{host}.prod:80"));
    let mut resources = Resources::default();
    for host in hosts.clone() {
        resources.extend(service(&host, &[a.address()]));
    }
    let mesh = mesh(resources);
    let client = mesh.mesh().http_client();
    for _ in 0..2 {
        for host in hosts.clone() {
            let response = client.request(get(&format!("http://{host}/items"))).await.expect("a valid request");
            assert_eq!(response.status(), StatusCode::OK);
            response.into_body().collect().await.expect("no error");
            assert_eq!(a.last_call().expect("seen").authority(), Some(&*host));
        }
    }
    assert_eq!(a.counters().connections, 20, "one for each cluster");
}

#[tokio::test]
async fn a_host_that_the_mesh_does_not_know_is_unavailable() {
    let mesh = mesh(Resources::default());
    let client = mesh.mesh().http_client();
    let response = client.request(get("http://unknown.prod/")).await.expect("a valid request");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(matches!(cause(&response), Cause::NoConfig(_)), "{:?}", cause(&response));
    client.request(get("/no-host")).await.expect_err("no host");
}
