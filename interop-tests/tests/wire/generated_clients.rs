//! Generated clients over a `MeshChannel`: what must compile, and works.
//!
//! Interceptors, tower layers, plain `tokio::spawn` and both kinds of runtime. What the calls do on the wire is NOT
//! tested here.

use crate::{
    mesh::{mesh, ready, service},
    rig::{backends, within},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use interop_tests::proto::testing::{
    Payload, SimpleRequest, StreamingInputCallRequest, test_service_client::TestServiceClient,
};
use mesh_client::{HttpClient, Mesh, MeshChannel, MeshError, ResponseBody, ResponseFuture};
use std::time::Duration;
use tonic::{Request, Status, service::Interceptor};
use tower::{Layer, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, timeout::TimeoutLayer};

/// Compiles, which is the test.
#[test]
fn handles_can_be_sent_shared_and_cloned() {
    fn handle<T: Clone + Send + Sync + Unpin + 'static>() {}
    fn value<T: Send + 'static>() {}
    handle::<Mesh>();
    handle::<MeshChannel>();
    handle::<HttpClient>();
    handle::<TestServiceClient<MeshChannel>>();
    handle::<MeshError>();
    value::<ResponseBody>();
    value::<ResponseFuture>();
}

/// What `tokio::spawn` asks of a future, without a runtime.
fn spawnable<T>(future: impl Future<Output = T> + Send + 'static) -> impl Future<Output = T> + Send + 'static {
    future
}

async fn hostname(client: &mut TestServiceClient<MeshChannel>) -> Result<String, Status> {
    Ok(client.unary_call(SimpleRequest::default()).await?.into_inner().hostname)
}

#[tokio::test]
async fn clients_work_in_spawned_tasks_of_a_current_thread_runtime() {
    every_kind_of_call_in_a_task().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_work_in_spawned_tasks_of_a_multi_thread_runtime() {
    every_kind_of_call_in_a_task().await;
}

async fn every_kind_of_call_in_a_task() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let client = TestServiceClient::new(ready(&mesh, "echo").await);
    let tasks = (0..4).map(|_| {
        let mut client = client.clone();
        tokio::spawn(spawnable(async move {
            assert_eq!(hostname(&mut client).await?, "a");
            let chunk =
                StreamingInputCallRequest { payload: Some(Payload { body: vec![0; 10], ..Default::default() }) };
            let sum = client.streaming_input_call(tokio_stream::iter(vec![chunk; 3])).await?;
            assert_eq!(sum.into_inner().aggregated_payload_size, 30);
            let mut replies = client.full_duplex_call(tokio_stream::empty()).await?.into_inner();
            assert_eq!(replies.message().await?, None);
            Ok::<_, Status>(())
        }))
    });
    for task in tasks.collect::<Vec<_>>() {
        within("four calls of each kind", task).await.expect("no panic").expect("replies");
    }
}

#[tokio::test]
async fn interceptors_compose() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let channel = ready(&mesh, "echo").await;

    let stamp = |mut request: Request<()>| {
        request.metadata_mut().insert("x-stamp", "closure".parse().expect("ASCII"));
        Ok(request)
    };
    let mut client = TestServiceClient::with_interceptor(channel.clone(), stamp);
    client.unary_call(SimpleRequest::default()).await.expect("a reply");
    assert_eq!(a.last_call().expect("one").headers["x-stamp"], "closure");

    #[derive(Clone)]
    struct Refuse;
    impl Interceptor for Refuse {
        fn call(&mut self, _: Request<()>) -> Result<Request<()>, Status> {
            Err(Status::permission_denied("not today"))
        }
    }
    let before = a.counters().calls;
    let mut client = TestServiceClient::with_interceptor(channel, Refuse);
    let call = tokio::spawn(spawnable(async move { client.unary_call(SimpleRequest::default()).await }));
    let status = within("the refusal", call).await.expect("no panic").expect_err("refused");
    assert_eq!((status.message(), a.counters().calls), ("not today", before));
}

#[tokio::test]
async fn tower_layers_compose_around_a_channel() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let layered = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(60)))
        .layer(ConcurrencyLimitLayer::new(1))
        .map_request(|mut request: http::Request<tonic::body::Body>| {
            request.headers_mut().insert("x-stamp", http::HeaderValue::from_static("layer"));
            request
        })
        .map_response(|response: http::Response<ResponseBody>| response)
        .service(ready(&mesh, "echo").await);
    let client = TestServiceClient::new(layered).max_decoding_message_size(1 << 20);
    let calls = (0..4).map(|_| {
        let mut client = client.clone();
        tokio::spawn(spawnable(async move { client.unary_call(SimpleRequest::default()).await }))
    });
    for call in calls.collect::<Vec<_>>() {
        let answer = within("the reply", call).await.expect("no panic").expect("a reply");
        assert_eq!(answer.into_inner().hostname, "a");
    }
    assert_eq!(a.last_call().expect("four").headers["x-stamp"], "layer");
}

#[tokio::test]
async fn a_layers_own_failure_reaches_the_caller() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let impatient = TimeoutLayer::new(Duration::from_millis(50)).layer(ready(&mesh, "echo").await);
    let mut request = Request::new(SimpleRequest::default());
    request.metadata_mut().insert("rpc-behavior", "keep-open".parse().expect("ASCII"));
    let call = within("the layer's timeout", TestServiceClient::new(impatient).unary_call(request)).await;
    let status = call.expect_err("never answered");
    assert!(status.message().contains("timed out"), "{status}");
    // The call that was given up is cancelled, too.
    a.wait_for(|counters| counters.cancelled == 1).await.expect("a reset stream");
}

#[tokio::test]
async fn boxed_services_and_tower_helpers_take_both_clients() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo:80", &[a.address()]));
    let request = |uri: &str| http::Request::get(uri).body(Full::<Bytes>::default()).expect("valid");

    let boxed = ready(&mesh, "echo:80").await.boxed_clone();
    let response = boxed.clone().oneshot(request("/one")).await.expect("a response");
    assert_eq!(response.status(), http::StatusCode::OK);
    assert_eq!(a.last_call().expect("one").authority(), Some("echo:80"));

    let limited = ServiceBuilder::new().concurrency_limit(2).service(mesh.mesh().http_client());
    let response = limited.oneshot(request("http://echo/two")).await.expect("a response");
    let body = tokio::spawn(spawnable(response.into_body().collect()));
    within("the body", body).await.expect("no panic").expect("complete");
    assert_eq!(a.last_call().expect("two").uri.path(), "/two");
}
