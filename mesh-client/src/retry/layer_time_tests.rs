//! A service that takes its time, under the layer: what it is told of the call's, and what the caller gets when that is over.

use super::{ReplayBody, RetryLayer};
use crate::deadline::{TimeoutLayer, Timeouts};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use mesh_xds::resource::{RetryCondition, RetryPolicy};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt, layer::Layer, service_fn};

type Body = Full<Bytes>;

const S: fn(u64) -> Duration = Duration::from_secs;

/// How an attempt ends, some seconds after its begin.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// UNAVAILABLE; to be asked again after so many seconds.
    Again(u64, u64),
    Succeeds(u64),
    /// With an error, as tonic's channel ends an attempt whose `grpc-timeout` has passed.
    Breaks(u64),
}

/// A service that does these steps, and what it was told at each of them.
#[derive(Clone, Debug)]
struct Scripted {
    steps: Arc<Mutex<VecDeque<Step>>>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn new(steps: &[Step]) -> Self {
        Self { steps: Arc::new(Mutex::new(steps.iter().copied().collect())), told: Arc::default() }
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().expect("alive").clone()
    }

    fn service(
        &self,
    ) -> impl Service<Request<ReplayBody<Body>>, Response = Response<Body>, Error = &'static str, Future: Send> + Clone + use<>
    {
        let Self { steps, told } = self.clone();
        service_fn(move |request: Request<ReplayBody<Body>>| {
            let timeout = request.headers().get("grpc-timeout").map_or("-", |value| value.to_str().expect("text"));
            told.lock().expect("alive").push(timeout.to_owned());
            let step = steps.lock().expect("alive").pop_front().expect("no more attempts");
            async move {
                let response = Response::builder();
                let response = match step {
                    Step::Again(seconds, pause) => {
                        sleep(S(seconds)).await;
                        response.header("grpc-status", "14").header("grpc-retry-pushback-ms", pause * 1000)
                    }
                    Step::Succeeds(seconds) => {
                        sleep(S(seconds)).await;
                        response.header("grpc-status", "0")
                    }
                    Step::Breaks(seconds) => {
                        sleep(S(seconds)).await;
                        return Err("timeout expired");
                    }
                };
                Ok(response.body(Body::default()).expect("valid"))
            }
        })
    }
}

fn policy() -> RetryPolicy {
    RetryPolicy { num_retries: 3, ..RetryPolicy::on([RetryCondition::Unavailable]) }
}

/// Makes a call: the gRPC status or the error, and how many seconds it took.
async fn call<S, R>(service: S, content_type: &str, timeout: Option<&str>) -> (String, u64)
where
    S: Service<Request<Body>, Response = Response<R>, Error: ToString>,
{
    let mut request = Request::builder().header("content-type", content_type);
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let begin = Instant::now();
    let answer = service.oneshot(request.body(Body::default()).expect("valid")).await;
    let ending = match answer {
        Ok(response) => response.headers()["grpc-status"].to_str().expect("a code").to_owned(),
        Err(error) => error.to_string(),
    };
    (ending, begin.elapsed().as_secs())
}

/// A gRPC call through the layer alone: what the attempts were told, how the call ended, and after how many seconds.
async fn alone(policy: RetryPolicy, timeout: Option<&str>, steps: &[Step]) -> (Vec<String>, String, u64) {
    let script = Scripted::new(steps);
    let (ending, seconds) = call(RetryLayer::new(policy).layer(script.service()), "application/grpc", timeout).await;
    (script.told(), ending, seconds)
}

fn ending(told: &[&str], ending: &str, seconds: u64) -> (Vec<String>, String, u64) {
    (told.iter().map(|told| (*told).to_owned()).collect(), ending.to_owned(), seconds)
}

#[tokio::test(start_paused = true)]
async fn later_attempts_are_told_what_is_left() {
    let steps = [Step::Again(3, 1), Step::Again(2, 0), Step::Succeeds(1)];
    let told = ending(&["10S", "6000000u", "4000000u"], "0", 7);
    assert_eq!(alone(policy(), Some("10S"), &steps).await, told);
    assert_eq!(alone(policy(), None, &steps).await, ending(&["-", "-", "-"], "0", 7));
    assert_eq!(alone(policy(), Some("soon"), &steps).await, ending(&["soon", "soon", "soon"], "0", 7), "none of ours");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_told_its_own_limit_if_that_is_less() {
    let policy = RetryPolicy { per_try_timeout: Some(S(5)), ..policy() };
    let steps = [Step::Again(3, 1), Step::Again(2, 2), Step::Succeeds(1)];
    let told = ending(&["5000000u", "5000000u", "2000000u"], "0", 9);
    assert_eq!(alone(policy.clone(), Some("10S"), &steps).await, told);
    assert_eq!(alone(policy, None, &steps).await, ending(&["5000000u"; 3], "0", 9));
}

#[tokio::test(start_paused = true)]
async fn when_nothing_is_left_there_is_no_other_attempt() {
    for (what, steps, seconds) in [
        ("in a pause", [Step::Again(3, 60)], 10),
        ("at its end", [Step::Again(3, 7)], 10),
        ("in an attempt", [Step::Succeeds(60)], 10),
        ("in one that gives up by itself", [Step::Breaks(10)], 10),
    ] {
        assert_eq!(alone(policy(), Some("10S"), &steps).await, ending(&["10S"], "4", seconds), "{what}");
    }
    assert_eq!(alone(policy(), Some("0n"), &[]).await, ending(&[], "4", 0), "it was late from the start");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_gives_up_at_its_limit_was_too_slow() {
    let slow = RetryPolicy {
        per_try_timeout: Some(S(2)),
        base_interval: Duration::ZERO,
        ..RetryPolicy::on([RetryCondition::DeadlineExceeded])
    };
    let steps = [Step::Breaks(2), Step::Succeeds(0)];
    assert_eq!(alone(slow.clone(), None, &steps).await, ending(&["2000000u"; 2], "0", 2));
    // One that breaks before is no attempt that was too slow.
    assert_eq!(alone(slow, None, &[Step::Breaks(1)]).await, ending(&["2000000u"], "timeout expired", 1));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_layer_above_limits_the_call_and_one_below_each_attempt() {
    let timeouts = |seconds| Timeouts { max_stream_duration: Some(S(seconds)), ..Timeouts::default() };
    let steps = [Step::Again(3, 1), Step::Again(2, 0), Step::Succeeds(60)];
    let script = Scripted::new(&steps);
    let service = TimeoutLayer::new(timeouts(10)).layer(RetryLayer::new(policy()).layer(script.service()));
    assert_eq!(call(service, "application/grpc", None).await, ("4".to_owned(), 10));
    assert_eq!(script.told(), ["10000000u", "6000000u", "4000000u"]);

    let script = Scripted::new(&steps);
    let service = RetryLayer::new(policy()).layer(TimeoutLayer::new(timeouts(5)).layer(script.service()));
    assert_eq!(call(service, "application/grpc", Some("10S")).await, ("4".to_owned(), 10));
    assert_eq!(script.told(), ["5000000u", "5000000u", "4000000u"]);
}

#[tokio::test(start_paused = true)]
async fn the_header_is_nothing_to_a_call_that_is_not_grpc() {
    let script = Scripted::new(&[Step::Again(3, 1)]);
    let (ending, _) = call(RetryLayer::new(policy()).layer(script.service()), "text/plain", Some("1S")).await;
    assert_eq!((ending.as_str(), script.told()), ("14", vec!["1S".to_owned()]));
}
