//! What the mesh does to calls, as tower layers on services of a user's own, over real sockets.
//!
//! No control plane is involved, but for what is called through a layer and a channel. The rules themselves are tested with
//! the mesh.

use crate::{
    faults::FAULTS,
    features::{World, check, features},
    rig::backends,
};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use interop_tests::{
    backend::Backend,
    proto::testing::{SimpleRequest, test_service_client::TestServiceClient},
};
use mesh_client::{
    circuit_breaking::{CircuitBreakerLayer, CircuitBreakers},
    fault::{AbortSource, DelaySource, FaultAbort, FaultDelay, FaultLayer, FaultPercentage, HttpFault, active_faults},
    outlier_detection::{Consecutive, OutlierDetection, OutlierLayer},
    retry::{ReplayBody, RetryCondition, RetryLayer, RetryPolicy, RetryThrottling},
    timeout::{TimeoutLayer, Timeouts},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::{self, Instant};
use tonic::{Code, transport::Channel};
use tower::{Service, ServiceBuilder, ServiceExt};

features! {
    a_channel_below_a_retry_layer {
        row: "`RetryLayer` around a channel: what the mesh drops or refuses is not repeated",
        source: "A6, A32, `CircuitBreakers.thresholds[].max_requests`, `ClusterLoadAssignment.policy.drop_overloads`",
        config: "{clusters: {a: {eds_cluster_config: {service_name: own-full}, circuit_breakers: {thresholds: [{max_requests: 0}]}}},
                  endpoints: {own-full: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]},
                              b: {policy: {drop_overloads: [{category: all, drop_percentage: {numerator: 100}}]}}},
                  routes: [{match: {prefix: /full}, route: {cluster: a}}, {match: {prefix: /dropped}, route: {cluster: b}},
                           {match: {prefix: ''}, route: {cluster: c}}]}",
        strip: [("/clusters/a/circuit_breakers", ""), ("/endpoints/b/policy", "")],
        |world| {
            let policy = RetryPolicy { num_retries: 3, ..RetryPolicy::on([RetryCondition::ServerError]) };
            check(attempts(world, policy.clone(), "/full").await? == 1, "the breaker's refusal at once")?;
            check(attempts(world, policy.clone(), "/dropped").await? == 1, "the drop at once")?;
            check(attempts(world, policy, "/").await? == 4, "a backend's 503 after three retries")
        }
    }
}

/// How often a call is made of the channel until its 503 comes.
async fn attempts(world: &World, policy: RetryPolicy, path: &str) -> Result<u32, String> {
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .map_request(move |request: Request<ReplayBody<Empty<Bytes>>>| {
            seen.fetch_add(1, Ordering::Relaxed);
            request
        })
        .service(world.channel.clone());
    let request = Request::get(path).header("rpc-behavior", "error-code-503").body(Empty::new()).expect("valid");
    let response = service.oneshot(request).await.map_err(|error| error.to_string())?;
    check(response.status() == 503, "a 503")?;
    Ok(attempts.load(Ordering::Relaxed))
}

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
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
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
async fn retries_within_a_deadline_for_a_tonic_channel() {
    let [a] = backends(["a"]).await;
    let channel = Channel::from_shared(format!("http://{}", a.address())).expect("a URI").connect_lazy();
    let policy = RetryPolicy {
        base_interval: Duration::from_millis(50),
        ..RetryPolicy::on([RetryCondition::Unavailable, RetryCondition::Cancelled])
    };
    let channel = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .map_request(|request: Request<ReplayBody<tonic::body::Body>>| request.map(tonic::body::Body::new))
        .service(channel);
    let mut client = TestServiceClient::new(channel);
    let request = |behavior: &'static str, timeout| {
        let mut request = tonic::Request::new(SimpleRequest::default());
        request.metadata_mut().insert("rpc-behavior", behavior.parse().expect("text"));
        request.set_timeout(timeout);
        request
    };
    let minute = Duration::from_secs(60);
    client.unary_call(request("succeed-on-retry-attempt-1,error-code-14", minute)).await.expect("the retry");
    let told = a.last_call().expect("the retry").headers.remove("grpc-timeout").expect("it is told");
    let told: u64 = told.to_str().expect("text").trim_end_matches('u').parse().expect("a number");
    // Fewer than the pause before it has left.
    assert!(told <= 59_960_000, "{told} us of a minute");

    time::pause();
    let status = client.unary_call(request("sleep-60", Duration::from_secs(2))).await.expect_err("late");
    time::resume();
    // Its channel gives up at the same time, in words of its own.
    assert_eq!((status.code(), a.counters().calls), (Code::DeadlineExceeded, 3), "one attempt, and none after it");
}

#[tokio::test]
async fn retry_throttling_for_a_tonic_channel() {
    let [a] = backends(["a"]).await;
    let channel = Channel::from_shared(format!("http://{}", a.address())).expect("a URI").connect_lazy();
    // A failure takes one of four tokens, and with two or fewer left there is no retry. A success brings two back.
    let throttling = RetryThrottling::new(4.0, 2.0).expect("valid");
    let channel = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::on([RetryCondition::Unavailable])).throttling(throttling))
        .map_request(|request: Request<ReplayBody<tonic::body::Body>>| request.map(tonic::body::Body::new))
        .service(channel);
    let mut client = TestServiceClient::new(channel);
    let mut attempts = Vec::new();
    for behavior in ["error-code-14", "sleep-0", "error-code-14", "error-code-14"] {
        let before = a.counters().calls;
        let mut request = tonic::Request::new(SimpleRequest::default());
        request.metadata_mut().insert("rpc-behavior", behavior.parse().expect("text"));
        assert_eq!(client.unary_call(request).await.is_ok(), behavior == "sleep-0");
        attempts.push(a.counters().calls - before);
    }
    // 4 ─► 2 ─► 4 ─► 2 ─► 1
    assert_eq!(attempts, [2, 1, 2, 1]);
}

#[tokio::test]
async fn timeouts_for_a_tonic_channel() {
    let [a] = backends(["a"]).await;
    let channel = Channel::from_shared(format!("http://{}", a.address())).expect("a URI").connect_lazy();
    let limit = Duration::from_secs(2);
    let timeouts = Timeouts { max_stream_duration: Some(limit), ..Timeouts::default() };
    let channel = ServiceBuilder::new().layer(TimeoutLayer::new(timeouts)).service(channel);
    let mut client = TestServiceClient::new(channel);
    assert_eq!(client.unary_call(SimpleRequest::default()).await.expect("in time").into_inner().hostname, "a");
    let told = a.last_call().expect("a call").headers.remove("grpc-timeout").expect("the server is told");
    assert_eq!(told, "2000000u");
    let mut request = tonic::Request::new(SimpleRequest::default());
    request.metadata_mut().insert("rpc-behavior", "sleep-60".parse().expect("text"));
    time::pause();
    let begin = Instant::now();
    let status = client.unary_call(request).await.expect_err("late");
    assert_eq!((status.code(), begin.elapsed().as_secs()), (Code::DeadlineExceeded, limit.as_secs()));
    time::resume();
    a.wait_for(|counters| counters.cancelled == 1).await.expect("its call is over");
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
        request.body(Empty::<Bytes>::new()).expect("valid")
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

#[tokio::test]
async fn outlier_ejection_and_a_circuit_breaker_for_hyper_clients() {
    let [a, b] = backends(["a", "b"]).await;
    let outliers = OutlierLayer::new(OutlierDetection {
        consecutive_5xx: Some(Consecutive { failures: 3, enforcing: 100 }),
        max_ejection_percent: 50,
        ..OutlierDetection::default()
    });
    let breaker = CircuitBreakerLayer::new(CircuitBreakers { max_requests: Some(1), ..CircuitBreakers::default() });
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let host = || ServiceBuilder::new().layer(outliers.clone()).layer(breaker.clone()).service(client.clone());
    let (mut at_a, at_b) = (host(), host());
    let request = |backend: &Backend, behavior: &'static str| {
        let request = Request::get(format!("http://{}/", backend.address())).header("rpc-behavior", behavior);
        request.body(Empty::new()).expect("valid")
    };
    for _ in 0..3 {
        let response = at_a.ready().await.expect("ready").call(request(&a, "error-code-503")).await.expect("an answer");
        assert_eq!(response.status(), 503);
        response.into_body().collect().await.expect("an end");
    }
    assert!(at_a.is_ejected() && !at_b.is_ejected());
    let held = at_b.clone().oneshot(request(&b, "error-code-200")).await.expect("an answer");
    let refused = at_b.clone().oneshot(request(&b, "error-code-200")).await.expect("an answer");
    assert_eq!((held.status().as_u16(), refused.headers()["x-envoy-overloaded"].as_bytes()), (200, &b"true"[..]));
    drop(held);
    // It is back some time after 30 s, at a sweep.
    time::pause();
    let begin = Instant::now();
    at_a.ready().await.expect("ready again");
    assert!(begin.elapsed() > Duration::from_secs(29));
    time::resume();
    assert_eq!(at_a.oneshot(request(&a, "error-code-404")).await.expect("an answer").status(), 404);
}

#[tokio::test]
async fn what_a_breaker_layer_refuses_is_not_repeated() {
    let [a] = backends(["a"]).await;
    let breaker = CircuitBreakerLayer::new(CircuitBreakers { max_requests: Some(1), ..CircuitBreakers::default() });
    let policy = RetryPolicy { num_retries: 3, ..RetryPolicy::on([RetryCondition::GatewayError]) };
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .map_request(move |request| {
            seen.fetch_add(1, Ordering::Relaxed);
            request
        })
        .layer(breaker.clone())
        .service(Client::builder(TokioExecutor::new()).build_http());
    let request = |behavior| {
        let request = Request::get(format!("http://{}/", a.address())).header("rpc-behavior", behavior);
        request.body(Empty::<Bytes>::new()).expect("valid")
    };
    let held = service.clone().oneshot(request("error-code-200")).await.expect("an answer");
    let refused = service.clone().oneshot(request("error-code-200")).await.expect("an answer");
    assert_eq!((held.status().as_u16(), refused.status().as_u16()), (200, 503));
    assert_eq!((attempts.load(Ordering::Relaxed), a.counters().calls), (2, 1), "one attempt for each call");
    drop(held);
    // The backend's own 503 is repeated, each time with room for it: an attempt that is given up counts no more.
    assert_eq!(service.oneshot(request("error-code-503")).await.expect("an answer").status(), 503);
    assert_eq!((attempts.load(Ordering::Relaxed), a.counters().calls), (6, 5));
}
