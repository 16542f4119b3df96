//! Corners of HTTP/2 that every client meets one day: full connections, tiny windows, half-closed streams, callers that
//! give up, headers that are too large.
//!
//! It does NOT test what servers do wrong; `servers_without_manners` does.

use crate::{
    mesh::{mesh, ready, service, soak, unary},
    rig::{addresses, backends, free_port, within},
    servers_without_manners::{Call, alone, dialled, dialled_with},
};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use interop_tests::{
    backend::Backend,
    proto::testing::{
        EchoStatus, Payload, ResponseParameters, SimpleRequest, StreamingInputCallRequest, StreamingOutputCallRequest,
        test_service_client::TestServiceClient,
    },
    raw::{RawConnection, RawServer, Reason, Seen, Settings},
};
use mesh_client::{EndpointState, MeshChannel};
use mesh_xds::resource::Kind;
use std::{
    convert::Infallible,
    net::Ipv6Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, metadata::MetadataValue};
use tower_service::Service;

/// RST_STREAM's code for a call that was given up.
const CANCEL: u32 = Reason::Cancel as u32;

/// One stream at a time: a call gets through only if the one before has given its stream back.
const ONE_STREAM: Settings = Settings { max_concurrent_streams: Some(1), initial_window_size: None };

fn input(size: usize) -> StreamingInputCallRequest {
    StreamingInputCallRequest { payload: Some(Payload { r#type: 0, body: vec![0; size] }) }
}

fn output(messages: usize, size: i32) -> StreamingOutputCallRequest {
    let one = ResponseParameters { size, ..Default::default() };
    StreamingOutputCallRequest { response_parameters: vec![one; messages], ..Default::default() }
}

/// The state of the only endpoint of a channel.
fn state(channel: &MeshChannel) -> Option<EndpointState> {
    channel.status().clusters.iter().flat_map(|cluster| &cluster.endpoints).map(|endpoint| endpoint.state).next()
}

/// Waits for the client to give `stream` up.
async fn cancelled(connection: &mut RawConnection, stream: u32) {
    loop {
        match connection.next().await.expect("a frame") {
            Seen::Reset { stream: reset, code } => return assert_eq!((reset, code), (stream, CANCEL)),
            Seen::Data { end: false, .. } => {}
            other => panic!("{other:?} instead of a cancellation"),
        }
    }
}

/// One more call on a connection that is still good.
async fn goes_on(channel: &MeshChannel, connection: &mut RawConnection) {
    let call = Call::start(channel);
    let stream = connection.request().await.expect("a call");
    connection.respond(stream, "a").await.expect("open");
    call.end().await.expect("answered");
}

// === Connections ===

#[tokio::test]
async fn an_endpoint_is_ready_when_its_settings_have_arrived_and_not_before() {
    let (server, _mesh, channel) = alone().await;
    let call = Call::start(&channel);
    let mut connection = server.accept().await.expect("dialled");
    assert_eq!(state(&channel), Some(EndpointState::Connecting));
    connection.handshake(Settings::default()).await.expect("HTTP/2");
    let stream = connection.request().await.expect("a call");
    assert_eq!(state(&channel), Some(EndpointState::Ready));
    connection.respond(stream, "a").await.expect("open");
    call.end().await.expect("answered");
}

#[tokio::test]
async fn an_endpoint_that_refuses_gets_no_call() {
    let [a, b] = backends(["a", "b"]).await;
    let refused = (a.address().ip(), free_port()).into();
    let mesh = mesh(service("echo", &[a.address(), refused, b.address()]));
    let channel = ready(&mesh, "echo").await;
    for _ in 0..30 {
        unary(&channel).await.expect("answered");
    }
    let status = channel.status();
    let attempts = status.clusters[0].endpoints.iter().find(|endpoint| endpoint.address == refused);
    assert_eq!(attempts.map(|endpoint| endpoint.attempts), Some(0));
    assert_eq!(a.counters().calls + b.counters().calls, 30);
}

#[tokio::test]
async fn an_ipv6_endpoint_is_called_by_the_name_of_its_service() {
    let backend = Backend::builder("six").address((Ipv6Addr::LOCALHOST, 0).into()).start().await.expect("IPv6");
    let mesh = mesh(service("echo.prod:8080", &[backend.address()]));
    let channel = ready(&mesh, "echo.prod:8080").await;
    assert_eq!(unary(&channel).await.expect("answered"), "six");
    assert_eq!(backend.last_call().expect("seen").authority(), Some("echo.prod:8080"));
}

#[tokio::test]
async fn one_stream_at_a_time_serves_many_callers() {
    let backend = Backend::builder("a").max_concurrent_streams(1).start().await.expect("a free port");
    let mesh = mesh(service("echo", &[backend.address()]));
    let channel = ready(&mesh, "echo").await;
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let channel = channel.clone();
        callers.spawn(async move {
            for _ in 0..20 {
                assert_eq!(unary(&channel).await.expect("answered"), "a");
            }
        });
    }
    within("all answers", callers.join_all()).await;
    assert_eq!((backend.counters().calls, backend.counters().connections), (320, 1));
}

// === Flow control ===

#[tokio::test]
async fn a_server_with_tiny_windows_gets_all_of_an_upload() {
    // A connection's window cannot be announced smaller than this (RFC 9113, 6.9.2).
    let backend = Backend::builder("a").windows(64, 65_535).start().await.expect("a free port");
    let mesh = mesh(service("echo", &[backend.address()]));
    let mut client = TestServiceClient::new(ready(&mesh, "echo").await);
    let one = SimpleRequest { payload: input(30_000).payload, ..Default::default() };
    assert_eq!(client.unary_call(one).await.expect("answered").into_inner().hostname, "a");
    let many = stream::iter((0..30).map(|_| input(1_000)));
    let total = client.streaming_input_call(many).await.expect("answered").into_inner().aggregated_payload_size;
    assert_eq!(total, 30_000);
}

#[tokio::test]
async fn a_client_with_tiny_windows_gets_all_of_a_response() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let builder = mesh.mesh().channel_builder("xds:///echo").initial_stream_window_size(64);
    let channel = builder.initial_connection_window_size(65_535).build().expect("a valid target");
    let request = SimpleRequest { response_size: 30_000, ..Default::default() };
    let answer = TestServiceClient::new(channel).unary_call(request).await.expect("answered").into_inner();
    assert_eq!(answer.payload.expect("wanted").body.len(), 30_000);
}

#[tokio::test]
async fn callers_that_do_not_read_stall_nobody_else() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let channel = ready(&mesh, "echo").await;
    let mut client = TestServiceClient::new(channel.clone());
    let mut unread = Vec::new();
    for _ in 0..4 {
        // More than a stream's window.
        let mut answers = client.streaming_output_call(output(40, 100_000)).await.expect("answered").into_inner();
        answers.message().await.expect("no error").expect("the first of forty");
        unread.push(answers);
    }
    for _ in 0..100 {
        let request = SimpleRequest { response_size: 50_000, ..Default::default() };
        within("a call beside them", client.unary_call(request)).await.expect("answered");
    }
    for mut answers in unread {
        let mut messages = 1;
        while answers.message().await.expect("no error").is_some() {
            messages += 1;
        }
        assert_eq!(messages, 40);
    }
    assert_eq!(a.counters().connections, 1);
}

/// Counts the bytes of a body that somebody still holds.
#[derive(Debug, Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

struct HeldBytes {
    bytes: Vec<u8>,
    held: Arc<Held>,
}

impl HeldBytes {
    fn make(bytes: Vec<u8>, held: &Arc<Held>) -> Bytes {
        let now = held.now.fetch_add(bytes.len(), Ordering::SeqCst) + bytes.len();
        held.most.fetch_max(now, Ordering::SeqCst);
        Bytes::from_owner(Self { bytes, held: Arc::clone(held) })
    }
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.held.now.fetch_sub(self.bytes.len(), Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_upload_of_256_mib_is_held_in_small_parts() {
    const MESSAGE: usize = 64 * 1024;
    let messages = usize::try_from(soak(256)).expect("few") * 16;
    let (server, _mesh, mut channel) = alone().await;
    let held = Arc::<Held>::default();
    let counted = Arc::clone(&held);
    let body = stream::iter((0..messages).map(move |_| {
        let mut message = vec![0; MESSAGE];
        // Not compressed, and its length.
        message[1..5].copy_from_slice(&(MESSAGE as u32 - 5).to_be_bytes());
        Ok::<_, Infallible>(Frame::data(HeldBytes::make(message, &counted)))
    }));
    let request = Request::post("/grpc.testing.TestService/StreamingInputCall")
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(StreamBody::new(body))
        .expect("valid");
    let call = tokio::spawn(async move { channel.call(request).await });

    // The server grants more than the upload: what bounds the client is its own reluctance.
    let settings = Settings { initial_window_size: Some(1 << 30), ..Settings::default() };
    let mut connection = dialled_with(&server, settings).await;
    let stream = connection.request().await.expect("a call");
    let mut left = messages * MESSAGE;
    while left > 0 {
        // In steps, of which each is more than a client may hold.
        connection.allow(stream, 8 << 20).await.expect("open");
        let mut step = (8 << 20).min(left);
        while step > 0 {
            let Seen::Data { bytes, .. } = connection.next().await.expect("a frame") else { panic!("not DATA") };
            (step, left) = (step.saturating_sub(bytes), left - bytes);
        }
    }
    connection.respond(stream, "a").await.expect("open");
    let response = within("the answer", call).await.expect("no panic").expect("a response");
    response.into_body().collect().await.expect("its end");
    let most = held.most.load(Ordering::SeqCst);
    assert!(most < 4 << 20, "{most} bytes were held at once");
    assert_eq!(held.now.load(Ordering::SeqCst), 0);
}

// === Half-closed ===

#[tokio::test]
async fn a_server_may_answer_long_after_the_upload_has_ended() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let mut client = TestServiceClient::new(ready(&mesh, "echo").await);
    let last_words = stream::iter([output(3, 10), output(2, 10)]);
    let mut answers = client.full_duplex_call(last_words).await.expect("answered").into_inner();
    let mut messages = 0;
    while answers.message().await.expect("no error").is_some() {
        messages += 1;
    }
    assert_eq!(messages, 5);
}

#[tokio::test]
async fn a_conversation_goes_on_after_the_first_answer() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let mut client = TestServiceClient::new(ready(&mesh, "echo").await);
    // One message at a time; closed by the test.
    let (says, words) = mpsc::channel(1);
    let mut answers = client.full_duplex_call(ReceiverStream::new(words)).await.expect("answered").into_inner();
    for _ in 0..20 {
        says.send(output(1, 10)).await.expect("open");
        within("an answer", answers.message()).await.expect("no error").expect("one for each");
    }
    drop(says);
    assert!(within("the end", answers.message()).await.expect("no error").is_none());
}

#[tokio::test]
async fn a_failure_without_a_body_keeps_its_code_and_text() {
    let (server, _mesh, channel) = alone().await;
    let call = Call::start(&channel);
    let mut connection = dialled(&server).await;
    let stream = connection.request().await.expect("a call");
    let headers = [("content-type", "application/grpc"), ("grpc-status", "9"), ("grpc-message", "50%25"), ("why", "x")];
    connection.trailers_only(stream, &headers).await.expect("open");
    let status = call.end().await.expect_err("failed");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "50%"));
    assert_eq!(status.metadata().get("why").expect("sent"), "x");
    goes_on(&channel, &mut connection).await;
}

#[tokio::test]
async fn a_failure_with_trailers_keeps_its_code_and_text() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let mut client = TestServiceClient::new(ready(&mesh, "echo").await);
    let wanted = EchoStatus { code: Code::Aborted as i32, message: "enough".into() };
    let request = StreamingOutputCallRequest { response_status: Some(wanted), ..output(2, 10) };
    let mut answers = client.streaming_output_call(request).await.expect("answered").into_inner();
    for _ in 0..2 {
        answers.message().await.expect("no error").expect("wanted");
    }
    let status = answers.message().await.expect_err("wanted");
    assert_eq!((status.code(), status.message()), (Code::Aborted, "enough"));
}

// === Cancellation ===

#[tokio::test]
async fn a_call_given_up_before_the_configuration_leaves_nothing_behind() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    mesh.control_plane().hold(Kind::Listener.type_url());
    let channel = mesh.mesh().channel("xds:///echo").expect("a valid target");
    let (given_up, kept) = (Call::start(&channel), Call::start(&channel));
    tokio::task::yield_now().await;
    given_up.cancel().await;
    mesh.control_plane().release(Kind::Listener.type_url());
    assert_eq!(kept.end().await.expect("answered"), "a");
    assert_eq!(a.counters().calls, 1);
}

#[tokio::test]
async fn a_call_given_up_while_it_waits_for_a_connection_makes_room() {
    let server = RawServer::start().await.expect("a free port");
    let mesh = mesh(service("echo", &[server.address()]));
    let builder = mesh.mesh().channel_builder("xds:///echo").max_pending_requests(1);
    let channel = builder.build().expect("a valid target");
    let waiting = Call::start(&channel);
    // The dial shows that the call waits.
    let mut connection = server.accept().await.expect("dialled");
    let too_many = unary(&channel).await.expect_err("one may wait");
    assert_eq!(too_many.code(), Code::Unavailable, "{too_many}");
    assert!(too_many.message().contains("already wait"), "{too_many}");
    waiting.cancel().await;
    let next = Call::start(&channel);
    tokio::task::yield_now().await;
    connection.handshake(Settings::default()).await.expect("HTTP/2");
    let stream = connection.request().await.expect("the second call");
    connection.respond(stream, "a").await.expect("open");
    next.end().await.expect("answered");
    goes_on(&channel, &mut connection).await;
}

#[tokio::test]
async fn a_call_given_up_while_it_waits_for_a_stream_is_never_sent() {
    let (server, _mesh, channel) = alone().await;
    let first = Call::start(&channel);
    let mut connection = dialled_with(&server, ONE_STREAM).await;
    let stream = connection.request().await.expect("a call");
    let waiting = Call::start(&channel);
    tokio::task::yield_now().await;
    waiting.cancel().await;
    let last = Call::start(&channel);
    connection.respond(stream, "a").await.expect("open");
    first.end().await.expect("answered");
    let next = connection.request().await.expect("the last call");
    assert_eq!(next, stream + 2);
    connection.respond(next, "a").await.expect("open");
    last.end().await.expect("answered");
}

#[tokio::test]
async fn a_call_given_up_while_it_uploads_is_reset() {
    let (server, _mesh, channel) = alone().await;
    // One message at a time; closed with the call.
    let (upload, messages) = mpsc::channel(1);
    upload.send(input(10)).await.expect("open");
    let mut client = TestServiceClient::new(channel.clone());
    let call = tokio::spawn(async move { client.streaming_input_call(ReceiverStream::new(messages)).await });
    let mut connection = dialled_with(&server, ONE_STREAM).await;
    let stream = connection.request().await.expect("a call");
    assert!(matches!(connection.next().await.expect("its first message"), Seen::Data { end: false, .. }));
    call.abort();
    cancelled(&mut connection, stream).await;
    within("the end of the upload", upload.closed()).await;
    goes_on(&channel, &mut connection).await;
}

#[tokio::test]
async fn a_call_given_up_before_its_headers_is_reset() {
    let (server, _mesh, channel) = alone().await;
    let call = Call::start(&channel);
    let mut connection = dialled_with(&server, ONE_STREAM).await;
    let stream = connection.request().await.expect("a call");
    connection.end_of(stream).await.expect("its body");
    call.cancel().await;
    cancelled(&mut connection, stream).await;
    goes_on(&channel, &mut connection).await;
}

#[tokio::test]
async fn a_call_given_up_in_the_middle_of_its_response_is_reset() {
    let (server, _mesh, channel) = alone().await;
    let mut client = TestServiceClient::new(channel.clone());
    let call = tokio::spawn(async move { client.streaming_output_call(output(2, 10)).await });
    let mut connection = dialled_with(&server, ONE_STREAM).await;
    let stream = connection.request().await.expect("a call");
    connection.end_of(stream).await.expect("its body");
    connection.headers(stream, &[("content-type", "application/grpc")]).await.expect("open");
    connection.message(stream, 0).await.expect("open");
    let mut answers = within("headers", call).await.expect("no panic").expect("answered").into_inner();
    answers.message().await.expect("no error").expect("one");
    drop(answers);
    cancelled(&mut connection, stream).await;
    goes_on(&channel, &mut connection).await;
}

#[tokio::test]
async fn answers_to_a_thousand_cancelled_calls_do_not_hurt_the_next() {
    let (server, _mesh, channel) = alone().await;
    let kept = Call::start(&channel);
    let mut connection = dialled(&server).await;
    let kept_stream = connection.request().await.expect("a call");
    connection.end_of(kept_stream).await.expect("its body");
    let mut given_up = Vec::new();
    for _ in 0..1_100 {
        let call = Call::start(&channel);
        let stream = connection.request().await.expect("a call");
        connection.end_of(stream).await.expect("its body");
        call.cancel().await;
        cancelled(&mut connection, stream).await;
        given_up.push(stream);
    }
    for stream in given_up {
        connection.respond(stream, "late").await.expect("open");
    }
    connection.respond(kept_stream, "a").await.expect("open");
    kept.end().await.expect("answered");
}

#[tokio::test]
async fn a_deadline_ends_a_response_that_is_read_too_slowly() {
    let (server, _mesh, channel) = alone().await;
    let limit = Duration::from_secs(3);
    let mut request = tonic::Request::new(output(3, 10));
    request.set_timeout(limit);
    let mut client = TestServiceClient::new(channel);
    let call = tokio::spawn(async move { client.streaming_output_call(request).await });
    let mut connection = dialled(&server).await;
    let stream = connection.request().await.expect("a call");
    connection.end_of(stream).await.expect("its body");
    connection.headers(stream, &[("content-type", "application/grpc")]).await.expect("open");
    let mut answers = within("headers", call).await.expect("no panic").expect("answered").into_inner();
    for _ in 0..3 {
        connection.message(stream, 10).await.expect("open");
    }
    // The reader is busy with something else for as long as the call may take.
    tokio::time::pause();
    tokio::time::advance(limit).await;
    tokio::time::resume();
    let status = answers.message().await.expect_err("too late");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    cancelled(&mut connection, stream).await;
}

// === Headers ===

#[tokio::test]
async fn response_headers_above_the_limit_fail_their_call_alone() {
    let server = RawServer::start().await.expect("a free port");
    let mesh = mesh(service("echo", &[server.address()]));
    let builder = mesh.mesh().channel_builder("xds:///echo").http2_max_header_list_size(4096);
    let channel = builder.build().expect("a valid target");
    let value = "x".repeat(100);
    let large = [("grpc-status", "0"), ("x", &*value)].repeat(40);

    let call = Call::start(&channel);
    let mut connection = dialled_with(&server, ONE_STREAM).await;
    let stream = connection.request().await.expect("a call");
    connection.end_of(stream).await.expect("its body");
    connection.headers(stream, &large).await.expect("open");
    let status = call.end().await.expect_err("too large");
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert!(status.message().contains("headers above http2_max_header_list_size"), "{status}");
    // Refused by the client; and the request, which the server has done, is not sent again.
    assert!(matches!(connection.next().await.expect("a frame"), Seen::Reset { .. }));

    let call = Call::start(&channel);
    let stream = connection.request().await.expect("a call");
    connection.end_of(stream).await.expect("its body");
    connection.headers(stream, &[("content-type", "application/grpc")]).await.expect("open");
    connection.trailers(stream, &large).await.expect("open");
    let status = call.end().await.expect_err("too large");
    assert_eq!(status.code(), Code::Internal, "{status}");
    goes_on(&channel, &mut connection).await;
}

#[tokio::test]
async fn request_headers_above_the_servers_limit_fail_their_call_alone() {
    let backend = Backend::builder("a").max_header_list_size(4096).start().await.expect("a free port");
    let mesh = mesh(service("echo", &[backend.address()]));
    let channel = ready(&mesh, "echo").await;
    let mut request = tonic::Request::new(SimpleRequest::default());
    request.metadata_mut().insert("x", MetadataValue::try_from("x".repeat(10_000)).expect("ASCII"));
    let status = TestServiceClient::new(channel.clone()).unary_call(request).await.expect_err("too large");
    assert!(status.message().contains("431"), "{status}");
    assert_eq!(unary(&channel).await.expect("answered"), "a");
    assert_eq!(backend.counters().connections, 1);
}

#[tokio::test]
async fn a_request_that_http2_forbids_fails_alone() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &addresses([&a])));
    let mut channel = ready(&mesh, "echo").await;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/x")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("valid");
    let response = channel.call(request).await.expect("a response");
    assert_eq!(response.headers().get("grpc-status").expect("failed"), "13");
    assert_eq!(unary(&channel).await.expect("answered"), "a");
    assert_eq!((a.counters().calls, a.counters().connections), (1, 1));
}
