//! What the mesh does to calls, as tower layers on services of a user's own, over real sockets.
//!
//! No control plane is involved. The rules themselves are tested with the mesh.

use crate::{faults::FAULTS, rig::backends};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use interop_tests::proto::testing::{SimpleRequest, test_service_client::TestServiceClient};
use mesh_client::fault::{
    AbortSource, DelaySource, FaultAbort, FaultDelay, FaultLayer, FaultPercentage, HttpFault, active_faults,
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
