//! Services that fail, under one layer: who is out, and for how long.

use super::{Outlier, OutlierLayer};
use crate::breaker::CircuitBreakerLayer;
use bytes::Bytes;
use futures_util::{FutureExt, future::poll_fn, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use mesh_xds::resource::{CircuitBreakers, Consecutive, LocalOrigin, OutlierDetection, SuccessRate};
use std::{convert::Infallible, time::Duration};
use tokio::time::Instant;
use tower::{Service, ServiceExt, layer::Layer, service_fn};

fn config(failures: u32) -> OutlierDetection {
    OutlierDetection {
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: 50,
        consecutive_5xx: Some(Consecutive { failures, enforcing: 100 }),
        ..OutlierDetection::default()
    }
}

type Call = Request<Empty<Bytes>>;
type Answer = BoxBody<Bytes, &'static str>;

/// A text that comes piece by piece, and breaks off if `breaks`.
fn text(breaks: bool) -> Answer {
    let rest = if breaks { Err("broken off") } else { Ok(Frame::data(Bytes::from_static(b"t"))) };
    StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from_static(b"tex"))), rest])).boxed()
}

/// A host that answers as the request's header `answer` says: a status, a gRPC status (`g14`), a gRPC call's plain status with
/// a text (`p503`), a status with a text that breaks off (`b200`), or an error (`e`).
fn host(
    layer: &OutlierLayer,
) -> Outlier<impl Service<Call, Response = Response<Answer>, Error = &'static str> + Clone> {
    layer.layer(service_fn(answer))
}

async fn answer(request: Call) -> Result<Response<Answer>, &'static str> {
    let answer = request.headers()["answer"].to_str().expect("text").to_owned();
    let (kind, number) = answer.split_at(answer.find(char::is_numeric).unwrap_or(answer.len()));
    let response = Response::builder();
    let empty = || Empty::new().map_err(|never: Infallible| match never {}).boxed();
    match kind {
        "e" => Err("broken"),
        "g" => Ok(response.header("grpc-status", number).body(empty()).expect("valid")),
        "p" | "b" => Ok(response.status(number).body(text(kind == "b")).expect("valid")),
        _ => Ok(response.status(number).body(empty()).expect("valid")),
    }
}

async fn call<S>(host: &mut Outlier<S>, answer: &str)
where
    S: Service<Call, Response = Response<Answer>, Error = &'static str>,
{
    let form = if answer.starts_with(['g', 'p']) { "application/grpc" } else { "text/plain" };
    let request = Request::builder().header("answer", answer).header("content-type", form);
    let answered = host.ready().await.expect("ready").call(request.body(Empty::new()).expect("valid")).await;
    if let Ok(response) = answered {
        let _ = response.into_body().collect().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_fails_in_a_row_is_not_ready_until_it_is_back() {
    for answer in ["503", "g14", "p503", "p200", "b200", "b503", "e"] {
        let layer = OutlierLayer::new(config(3));
        let (mut bad, mut good) = (host(&layer), host(&layer));
        for _ in 0..2 {
            call(&mut bad, answer).await;
        }
        call(&mut bad, "200").await;
        for _ in 0..3 {
            assert!(!bad.is_ejected(), "{answer}: a success in between starts the row afresh");
            call(&mut bad, answer).await;
        }
        assert!(bad.is_ejected() && bad.clone().is_ejected(), "{answer}");
        call(&mut good, "200").await;
        let begin = Instant::now();
        poll_fn(|cx| bad.poll_ready(cx)).await.expect("ready again");
        // At the first sweep that is more than 30 s later.
        assert_eq!(begin.elapsed().as_secs(), 40, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_count_by_themselves_where_that_is_asked_for() {
    let rate = SuccessRate { request_volume: 10, ..SuccessRate::default() };
    let layer = OutlierLayer::new(OutlierDetection {
        local_origin: Some(LocalOrigin {
            consecutive_failure: None,
            success_rate: Some(rate),
            failure_percentage: None,
        }),
        max_ejection_time_jitter: Duration::from_secs(1000),
        ..config(100)
    });
    let mut hosts = [host(&layer), host(&layer), host(&layer), host(&layer), host(&layer)];
    for (answer, out) in [("503", false), ("e", true)] {
        let (bad, good) = hosts.split_first_mut().expect("five");
        for _ in 0..10 {
            call(bad, answer).await;
            for host in &mut *good {
                call(host, "200").await;
            }
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        call(&mut good[0], "200").await;
        assert_eq!(hosts.each_ref().map(Outlier::is_ejected), [out, false, false, false, false], "{answer}");
    }
    let begin = Instant::now();
    poll_fn(|cx| hosts[0].poll_ready(cx)).await.expect("ready again");
    let out = begin.elapsed().as_secs();
    assert!((30..=1040).contains(&out), "{out} s: 30 s, as many as 1000 more, and what is left of an interval");
}

#[tokio::test(start_paused = true)]
async fn no_more_hosts_are_out_than_are_allowed() {
    let layer = OutlierLayer::new(config(1));
    let mut hosts = [host(&layer), host(&layer), host(&layer), host(&layer)];
    for host in &mut hosts {
        call(host, "500").await;
    }
    assert_eq!(hosts.iter().map(Outlier::is_ejected).collect::<Vec<_>>(), [true, true, false, false]);
    // Those that are gone are no hosts any more.
    let [_, _, mut third, fourth] = hosts;
    drop(fourth);
    call(&mut third, "500").await;
    assert!(!third.is_ejected(), "the only host that is left");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_an_ejected_host_holds_up_nobody() {
    let layer = OutlierLayer::new(config(1));
    let (mut bad, mut good) = (host(&layer), host(&layer));
    call(&mut bad, "500").await;
    assert!(poll_fn(|cx| bad.poll_ready(cx)).now_or_never().is_none());
    assert!(poll_fn(|cx| good.poll_ready(cx)).now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_a_breaker_refuses_is_not_held_against_the_host() {
    let breaker = CircuitBreakerLayer::new(CircuitBreakers { max_requests: Some(0), ..CircuitBreakers::default() });
    let layer = OutlierLayer::new(config(1));
    let (mut full, _other) = (layer.layer(breaker.layer(service_fn(answer))), host(&layer));
    for form in ["application/grpc", "text/plain"] {
        let request = Request::builder().header("answer", "200").header("content-type", form);
        let request = request.body(Empty::new()).expect("valid");
        let refused = full.ready().await.expect("ready").call(request).await.expect("an answer");
        assert!(refused.status() == 503 || refused.headers()["grpc-status"] == "14");
        assert!(!full.is_ejected(), "{form}");
    }
}
