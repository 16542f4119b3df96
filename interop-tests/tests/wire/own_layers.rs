//! What the mesh does to calls, as tower layers on services of a user's own, over real sockets.
//!
//! No control plane is involved. The rules themselves are tested with the mesh.

use crate::{faults::FAULTS, rig::backends};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use interop_tests::proto::testing::{SimpleRequest, test_service_client::TestServiceClient};
use mesh_client::{
    fault::{AbortSource, DelaySource, FaultAbort, FaultDelay, FaultLayer, FaultPercentage, HttpFault, active_faults},
    retry::{ReplayBody, RetryCondition, RetryLayer, RetryPolicy},
    timeout::{TimeoutLayer, Timeouts},
};
use std::time::Duration;
use tokio::time::{self, Instant};
use tonic::{Code, transport::Channel};
use tower::{ServiceBuilder, ServiceExt};

const ALL: FaultPercentage = FaultPercentage { numerator: 100, denominator: 100 };

fn abort(source: AbortSource) -> HttpFault {
    HttpFault { abort: Some(FaultAbort { source, percentage: ALL, text: None }), ..HttpFault::default() }
}

#[tokio::test]
async fn faults_for_a_tonic_channel() {
    let _turn = FAULTS.read().await;
    let [a] = backends(["a"]).await;
    let channel = Channel::from_shared(format!("http://{}", a.address())).expect("a URI").connect_lazy();
    let with =
        |fault| TestServiceClient::new(ServiceBuilder::new().layer(FaultLayer::new(fault)).service(channel.clone()));
    let status = with(abort(AbortSource::Grpc(7))).unary_call(SimpleRequest::default()).await.expect_err("aborted");
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "fault filter abort"));
    assert_eq!(a.counters().calls, 0);
    let answer = with(HttpFault::default()).unary_call(SimpleRequest::default()).await.expect("no fault");
    assert_eq!(answer.into_inner().hostname, "a");
}

#[tokio::test]
async fn faults_for_a_hyper_client() {
    let _alone = FAULTS.write().await;
    let [a] = backends(["a"]).await;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let request = || Request::get(format!("http://{}/", a.address())).body(Empty::new()).expect("valid");
    let with = |fault| ServiceBuilder::new().layer(FaultLayer::new(fault)).service(client.clone());

    let response = with(abort(AbortSource::Http(StatusCode::NOT_FOUND))).oneshot(request()).await.expect("an answer");
    assert_eq!(response.status(), 404);
    assert_eq!(response.into_body().collect().await.expect("text").to_bytes(), "fault filter abort");
    assert_eq!(a.counters().calls, 0);

    let minute = Duration::from_secs(60);
    let delay = Some(FaultDelay { source: DelaySource::Fixed(minute), percentage: ALL });
    let slow = with(HttpFault { delay, max_active_faults: Some(1), ..HttpFault::default() });
    time::pause();
    let begin = Instant::now();
    let response = slow.clone().oneshot(request()).await.expect("an answer");
    assert!(response.status() == 200 && begin.elapsed() >= minute);
    time::resume();
    // One is delayed, so that the other is not; and it ends with its caller.
    let mut delayed = Box::pin(slow.clone().oneshot(request()));
    assert!(futures_util::poll!(&mut delayed).is_pending());
    assert_eq!(active_faults(), 1);
    assert_eq!(slow.oneshot(request()).await.expect("an answer").status(), 200);
    drop(delayed);
    assert_eq!(active_faults(), 0);
}

#[tokio::test]
async fn retries_for_a_tonic_channel() {
    let [a] = backends(["a"]).await;
    let channel = Channel::from_shared(format!("http://{}", a.address())).expect("a URI").connect_lazy();
    let policy = RetryPolicy { num_retries: 3, ..RetryPolicy::on([RetryCondition::Unavailable]) };
    // tonic's channel wants tonic's body, and its own way to a body error.
    let channel = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .map_request(|request: Request<ReplayBody<tonic::body::Body>>| request.map(tonic::body::Body::new))
        .service(channel);
    let call = async |behavior: &'static str| {
        let mut request = tonic::Request::new(SimpleRequest::default());
        request.metadata_mut().insert("rpc-behavior", behavior.parse().expect("text"));
        TestServiceClient::new(channel.clone()).unary_call(request).await
    };
    let answer = call("succeed-on-retry-attempt-3,error-code-14").await.expect("the third retry");
    assert_eq!((answer.into_inner().hostname.as_str(), a.counters().calls), ("a", 4));
    assert_eq!(call("error-code-13").await.expect_err("told to fail").code(), Code::Internal);
    assert_eq!(a.counters().calls, 5);
}

#[tokio::test]
async fn timeouts_and_retries_for_a_hyper_client() {
    let [a] = backends(["a"]).await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let policy = RetryPolicy {
        num_retries: 9,
        per_try_timeout: Some(Duration::from_secs(2)),
        ..RetryPolicy::on([RetryCondition::GatewayError])
    };
    let timeouts = Timeouts { timeout: Some(Duration::from_secs(5)), ..Timeouts::default() };
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(timeouts)).layer(RetryLayer::new(policy)).service(client);
    let request = |behavior| {
        let request = Request::get(format!("http://{}/", a.address())).header("rpc-behavior", behavior);
        request.body(Empty::<bytes::Bytes>::new()).expect("valid")
    };
    time::pause();
    let begin = Instant::now();
    let response = service.clone().oneshot(request("sleep-60")).await.expect("an answer");
    assert_eq!((response.status().as_u16(), begin.elapsed().as_secs()), (504, 5));
    time::resume();
    // Two attempts took 2 s each, and the third was cut off.
    a.wait_for(|counters| counters.cancelled == 3).await.expect("three attempts");
    assert_eq!(service.oneshot(request("error-code-404")).await.expect("an answer").status(), 404);
}
