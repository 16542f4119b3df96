//! A service that fails, under the layer: what it sees of a call, and what the caller gets.

use super::{ReplayBody, RetryLayer, RetryThrottling, TryTimeoutElapsed};
use crate::{
    breaker::CircuitBreakerLayer,
    error::{Cause, MeshError, ReplyForm},
    reply::Reply,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use mesh_xds::resource::{CircuitBreakers, ClusterName, RetryCondition, RetryPolicy};
use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tower::{Service, ServiceExt, layer::Layer, service_fn};

type Body = Full<Bytes>;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What the service under the layer does with one attempt.
#[derive(Clone, Copy, Debug)]
enum Step {
    Status(u16),
    Grpc(&'static str),
    Fail,
    Silence,
}

/// Makes a call through a layer: what the bodies of the attempts were, and what the caller got.
async fn call(policy: RetryPolicy, content_type: &str, steps: &[Step]) -> (Vec<String>, Result<u16, String>) {
    let steps = Arc::new(Mutex::new(steps.iter().copied().collect::<VecDeque<_>>()));
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&bodies);
    let service = service_fn(move |request: Request<ReplayBody<Body>>| {
        let (steps, seen) = (Arc::clone(&steps), Arc::clone(&seen));
        async move {
            let attempts = request.headers().get("grpc-previous-rpc-attempts").cloned();
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let attempts = attempts.map_or(String::new(), |it| it.to_str().expect("text").to_owned());
            seen.lock().expect("alive").push(format!("{}{attempts}", String::from_utf8_lossy(&body)));
            let step = steps.lock().expect("alive").pop_front().expect("no more attempts");
            let response = Response::builder();
            match step {
                Step::Status(status) => Ok(response.status(status).body(Body::default()).expect("valid")),
                Step::Grpc(code) => Ok(response.header("grpc-status", code).body(Body::default()).expect("valid")),
                Step::Fail => Err("broken"),
                Step::Silence => std::future::pending().await,
            }
        }
    });
    let request = Request::builder().header("content-type", content_type).body(Body::from("body")).expect("valid");
    let answer = RetryLayer::new(policy).layer(service).oneshot(request).await;
    let answer = answer.map(|response| response.status().as_u16()).map_err(|error| error.to_string());
    let bodies = bodies.lock().expect("alive").clone();
    (bodies, answer)
}

fn policy(condition: RetryCondition, num_retries: u32) -> RetryPolicy {
    RetryPolicy { num_retries, ..RetryPolicy::on([condition]) }
}

#[tokio::test(start_paused = true)]
async fn a_call_is_sent_again_with_its_whole_body() {
    let steps = [Step::Status(503), Step::Fail, Step::Status(200)];
    let (bodies, answer) = call(policy(RetryCondition::ServerError, 3), "text/plain", &steps).await;
    assert_eq!((bodies, answer), (vec!["body".to_owned(); 3], Ok(200)));
}

#[tokio::test(start_paused = true)]
async fn the_last_failure_is_the_callers() {
    let (bodies, answer) = call(policy(RetryCondition::Reset, 1), "text/plain", &[Step::Fail, Step::Fail]).await;
    assert_eq!((bodies.len(), answer), (2, Err("broken".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn grpc_calls_say_how_often_they_were_sent() {
    let steps = [Step::Grpc("14"), Step::Fail, Step::Grpc("0")];
    let (bodies, answer) = call(policy(RetryCondition::Unavailable, 3), "application/grpc", &steps).await;
    assert_eq!((bodies, answer), (["body", "body1", "body2"].map(str::to_owned).to_vec(), Ok(200)));
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_may_be_repeated() {
    let frames = ["be", "gin"].map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))));
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let first = Arc::new(Mutex::new(None));
    let held = Arc::clone(&first);
    let service = service_fn(move |request: Request<ReplayBody<_>>| {
        let first = Arc::clone(&held);
        async move {
            let mut body = request.into_body();
            if first.lock().expect("alive").is_none() {
                let begin = body.frame().await.expect("open").expect("a frame").into_data().expect("data");
                // As a connection does, which goes on with the body while the response is read.
                *first.lock().expect("alive") = Some((begin, body));
                return Ok::<_, Infallible>(Response::builder().status(503).body(Body::default()).expect("valid"));
            }
            Ok(Response::new(Body::from(body.collect().await.expect("whole").to_bytes())))
        }
    });
    let layer = RetryLayer::new(policy(RetryCondition::ServerError, 1));
    let answer = layer.layer(service).oneshot(Request::new(body)).await.expect("answered");
    assert_eq!(answer.into_body().collect().await.expect("whole").to_bytes(), "begin");
    let (begin, mut rest) = first.lock().expect("alive").take().expect("tried");
    assert_eq!(begin, "be");
    assert_eq!(rest.frame().await.expect("cut").expect_err("not the whole").to_string(), "given up");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_followed_by_the_next() {
    let limit = Duration::from_secs(2);
    let policy = RetryPolicy { per_try_timeout: Some(limit), ..policy(RetryCondition::Reset, 1) };
    let begin = Instant::now();
    let (bodies, answer) = call(policy, "text/plain", &[Step::Silence, Step::Silence]).await;
    assert_eq!((bodies.len(), answer), (2, Err(TryTimeoutElapsed { after: limit }.to_string())));
    assert!(begin.elapsed() >= 2 * limit);
}

/// A call of each kind to a service that answers so: how many attempts there were, and how the calls ended.
async fn refused<S, R>(service: S) -> (u32, Vec<(u16, Option<Vec<u8>>)>)
where
    S: Service<Request<ReplayBody<Body>>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    R: http_body::Body + Send + 'static,
{
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    let service = service.map_request(move |request| {
        seen.fetch_add(1, Ordering::Relaxed);
        request
    });
    let policy =
        RetryPolicy { num_retries: 3, ..RetryPolicy::on([RetryCondition::Unavailable, RetryCondition::ServerError]) };
    let service = RetryLayer::new(policy).layer(service);
    let mut endings = Vec::new();
    for content_type in ["application/grpc", "text/plain"] {
        let request = Request::builder().header("content-type", content_type).body(Body::default()).expect("valid");
        let response = service.clone().oneshot(request).await.expect("an answer");
        let code = response.headers().get("grpc-status").map(|code| code.as_bytes().to_vec());
        endings.push((response.status().as_u16(), code));
    }
    (attempts.load(Ordering::Relaxed), endings)
}

#[tokio::test(start_paused = true)]
async fn what_a_breaker_refuses_or_a_channel_drops_is_not_repeated() {
    let as_refused = vec![(200, Some(b"14".to_vec())), (503, None)];
    let backend = service_fn(async |_: Request<ReplayBody<Body>>| Ok(Response::new(Body::default())));
    let breaker = CircuitBreakerLayer::new(CircuitBreakers { max_requests: Some(0), ..CircuitBreakers::default() });
    assert_eq!(refused(breaker.layer(backend)).await, (2, as_refused.clone()));

    let channel = |cause: Cause| {
        service_fn(move |request: Request<ReplayBody<Body>>| {
            let error = MeshError::new(cause.clone(), "node".into());
            std::future::ready(Ok(error.into_response(ReplyForm::of(request.headers()))))
        })
    };
    let cluster = ClusterName::from("c");
    for cause in [
        Cause::CircuitOpen { cluster: cluster.clone(), max: 1 },
        Cause::TooManyPending { cluster: cluster.clone(), max: 1 },
        Cause::Dropped { cluster: cluster.clone(), category: "lottery".into() },
    ] {
        assert_eq!(refused(channel(cause.clone())).await, (2, as_refused.clone()), "{cause}");
    }
    let unreachable = Cause::Cluster { cluster, reason: "no endpoint can be reached".into() };
    assert_eq!(refused(channel(unreachable)).await, (8, as_refused), "another time it may work");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_says_it_is_overloaded_is_asked_again() {
    let busy = service_fn(async |request: Request<ReplayBody<Body>>| {
        Ok(Reply::new(StatusCode::SERVICE_UNAVAILABLE, "busy")
            .overloaded()
            .into_response(ReplyForm::of(request.headers()))
            .map(Body::new))
    });
    assert_eq!(refused(busy).await, (8, vec![(200, Some(b"14".to_vec())), (503, None)]));
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// A response that goes on, with this code at its end, if any.
fn streamed(code: Option<&'static str>) -> Answer {
    let trailers = code.map(|code| HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(code))]));
    Response::new(Body::from("data").with_trailers(std::future::ready(trailers.map(Ok))).boxed())
}

/// A response that is nothing but its head.
fn whole(code: &'static str) -> Answer {
    Response::builder().header(GRPC_STATUS, code).body(Body::default().boxed()).expect("valid")
}

/// How many attempts a call through the layer makes. Its response is read, or not.
async fn attempts(layer: &RetryLayer, content_type: &str, answer: fn() -> Answer, read: bool) -> u32 {
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    let service = layer.layer(service_fn(move |_: Request<ReplayBody<Body>>| {
        seen.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<_, Infallible>(answer()))
    }));
    let request = Request::builder().header("content-type", content_type).body(Body::default()).expect("valid");
    let mut body = service.oneshot(request).await.expect("an answer").into_body();
    while read && body.frame().await.is_some() {}
    attempts.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn what_counts_as_a_success_for_throttling_is_known_at_its_end() {
    let table: [(_, _, fn() -> Answer, _, _); 6] = [
        ("a stream that ends well", "application/grpc", || streamed(Some("0")), true, true),
        ("one that fails", "application/grpc", || streamed(Some("14")), true, false),
        ("one without a status", "application/grpc", || streamed(None), true, false),
        ("one that is given up", "application/grpc", || streamed(Some("0")), false, false),
        ("a head that is all", "application/grpc", || whole("0"), true, true),
        ("what is not gRPC", "text/plain", || streamed(Some("0")), true, false),
    ];
    for (what, content_type, answer, read, counts) in table {
        // A failure takes one of four tokens, and with two or fewer left there is no retry. A success brings two back.
        let throttling = RetryThrottling::new(4.0, 2.0).expect("valid");
        let layer = RetryLayer::new(policy(RetryCondition::Unavailable, 1)).throttling(throttling);
        let fails = async || attempts(&layer, "application/grpc", || whole("14"), true).await;
        assert_eq!(fails().await, 2, "{what}: four tokens");
        assert_eq!(attempts(&layer, content_type, answer, read).await, 1, "{what}");
        assert_eq!(fails().await, if counts { 2 } else { 1 }, "{what}: two tokens, and what it brings");
    }
}
