//! Whatever a plain configuration says, no layer panics: its numbers are a program's, and some of what they meet is a server's.
//!
//! What a layer does with sensible numbers is NOT tested here.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use mesh_client::{
    circuit_breaking::{CircuitBreakerLayer, CircuitBreakers, RetryBudget},
    fault::{AbortSource, DelaySource, FaultAbort, FaultDelay, FaultLayer, FaultPercentage, HttpFault},
    outlier_detection::{Consecutive, FailurePercentage, LocalOrigin, OutlierDetection, OutlierLayer, SuccessRate},
    retry::{
        RateLimitedBackOff, ReplayBody, ResetFormat, ResetHeader, RetryCondition, RetryLayer, RetryPolicy,
        RetryThrottling,
    },
    timeout::{TimeoutLayer, Timeouts},
};
use proptest::{collection::vec, option, prelude::*};
use std::{
    convert::Infallible,
    fmt::Debug,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time;
use tower::{Service, ServiceExt, layer::Layer, service_fn};

/// How long a call is waited for: an ejected service may look every millisecond whether it is back.
const PATIENCE: Duration = Duration::from_secs(2);

// === What a configuration may say ===

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(100), Just(u32::MAX), any::<u32>()]
}

fn duration() -> impl Strategy<Value = Duration> {
    let any = any::<(u64, u32)>().prop_map(|(seconds, nanos)| Duration::new(seconds, nanos % 1_000_000_000));
    prop_oneof![Just(Duration::ZERO), Just(Duration::from_nanos(1)), Just(PATIENCE), Just(Duration::MAX), any]
}

fn percentage() -> impl Strategy<Value = FaultPercentage> {
    (number(), number()).prop_map(|(numerator, denominator)| FaultPercentage { numerator, denominator })
}

fn consecutive() -> impl Strategy<Value = Option<Consecutive>> {
    option::of((number(), number()).prop_map(|(failures, enforcing)| Consecutive { failures, enforcing }))
}

fn success_rate() -> impl Strategy<Value = Option<SuccessRate>> {
    option::of([number(), number(), number(), number()].prop_map(
        |[stdev_factor, minimum_hosts, request_volume, enforcing]| SuccessRate {
            stdev_factor,
            minimum_hosts,
            request_volume,
            enforcing,
        },
    ))
}

fn failure_percentage() -> impl Strategy<Value = Option<FailurePercentage>> {
    option::of([number(), number(), number(), number()].prop_map(
        |[threshold, minimum_hosts, request_volume, enforcing]| FailurePercentage {
            threshold,
            minimum_hosts,
            request_volume,
            enforcing,
        },
    ))
}

prop_compose! {
    fn outlier_detection()(
        [interval, base_ejection_time, max_ejection_time, max_ejection_time_jitter] in
            [duration(), duration(), duration(), duration()],
        (max_ejection_percent, always_eject_one_host) in (number(), any::<bool>()),
        rates in (success_rate(), failure_percentage()),
        in_a_row in (consecutive(), consecutive()),
        local_origin in option::of((consecutive(), success_rate(), failure_percentage())),
    ) -> OutlierDetection {
        OutlierDetection {
            interval,
            base_ejection_time,
            max_ejection_time,
            max_ejection_time_jitter,
            max_ejection_percent,
            always_eject_one_host,
            success_rate: rates.0,
            failure_percentage: rates.1,
            consecutive_5xx: in_a_row.0,
            consecutive_gateway_failure: in_a_row.1,
            local_origin: local_origin.map(|(consecutive_failure, success_rate, failure_percentage)| LocalOrigin {
                consecutive_failure,
                success_rate,
                failure_percentage,
            }),
        }
    }
}

prop_compose! {
    fn retry_policy()(
        num_retries in number(),
        intervals in (duration(), duration()),
        per_try in (option::of(duration()), option::of(duration())),
        rate_limited in option::of((duration(), any::<bool>())),
        (avoid_previous_hosts, host_selection_attempts) in (any::<bool>(), number()),
        previous_priorities in option::of(number()),
        retriable_status_codes in vec(any::<u16>(), 0..3),
    ) -> RetryPolicy {
        let name = http::header::RETRY_AFTER;
        RetryPolicy {
            num_retries,
            base_interval: intervals.0,
            max_interval: intervals.1,
            per_try_timeout: per_try.0,
            per_try_idle_timeout: per_try.1,
            rate_limited: rate_limited.map(|(max_interval, stamp)| RateLimitedBackOff {
                reset_headers: vec![ResetHeader {
                    name,
                    format: if stamp { ResetFormat::UnixTimestamp } else { ResetFormat::Seconds },
                }],
                max_interval,
            }),
            avoid_previous_hosts,
            host_selection_attempts,
            previous_priorities: previous_priorities.and_then(NonZeroU32::new),
            retriable_status_codes,
            ..RetryPolicy::on([RetryCondition::ServerError, RetryCondition::Unavailable, RetryCondition::Reset])
        }
    }
}

// === What is done with it ===

/// Runs on a clock that leaps over every wait.
fn run(work: impl Future) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(work);
}

/// Three failures, by a server that wants to be asked again in so many seconds, and then nothing but successes.
fn service<B>(
    again: u64,
) -> impl Service<Request<B>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Send> + Clone {
    let calls = Arc::new(AtomicU32::new(0));
    service_fn(move |request: Request<B>| {
        let fails = calls.fetch_add(1, Ordering::Relaxed) < 3;
        let is_grpc = request.headers()["content-type"] == "application/grpc";
        let response = Response::builder().header("retry-after", again);
        std::future::ready(Ok(match (fails, is_grpc) {
            (true, true) => response.header("grpc-status", "14"),
            (true, false) => response.status(503),
            (false, _) => response.header("grpc-status", "0"),
        }
        .body(Empty::new())
        .expect("valid")))
    })
}

/// Makes calls of both kinds, as long as somebody has patience.
async fn calls<S, R>(service: S)
where
    S: Service<Request<Empty<Bytes>>, Response = Response<R>, Error: Debug> + Clone,
    R: http_body::Body<Error: Debug>,
{
    for content_type in ["application/grpc", "text/plain"].repeat(4) {
        let request = Request::builder().header("content-type", content_type).header("grpc-timeout", "99999999H");
        let request = request.body(Empty::new()).expect("valid");
        let call = async { service.clone().oneshot(request).await.map(|response| response.into_body().collect()) };
        if let Ok(Ok(body)) = time::timeout(PATIENCE, call).await {
            let _ended = time::timeout(PATIENCE, body).await;
        }
        time::advance(Duration::from_secs(1)).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn of_timeouts(limits in [option::of(duration()), option::of(duration()), option::of(duration())]) {
        let [timeout, max_stream_duration, grpc_timeout_header_max] = limits;
        let timeouts = Timeouts { timeout, max_stream_duration, grpc_timeout_header_max };
        run(async { calls(TimeoutLayer::new(timeouts).layer(service(0))).await });
    }

    #[test]
    fn of_retries(
        policy in retry_policy(),
        again in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
        throttling in (any::<f64>(), any::<f64>()),
    ) {
        let mut layer = RetryLayer::new(policy);
        if let Some(throttling) = RetryThrottling::new(throttling.0, throttling.1) {
            layer = layer.throttling(throttling);
        }
        run(async { calls(layer.layer(service::<ReplayBody<Empty<Bytes>>>(again))).await });
    }

    #[test]
    fn of_circuit_breakers(
        limits in [option::of(number()), option::of(number()), option::of(number()), option::of(number())],
        budget in option::of((any::<f64>(), number())),
    ) {
        let [max_connections, max_requests, max_pending_requests, max_retries] = limits;
        let retry_budget = budget.map(|(percent, min_concurrency)| RetryBudget { percent, min_concurrency });
        let breakers = CircuitBreakers { max_connections, max_requests, max_pending_requests, max_retries, retry_budget };
        run(async { calls(CircuitBreakerLayer::new(breakers).layer(service(0))).await });
    }

    #[test]
    fn of_outlier_detection(config in outlier_detection()) {
        run(async {
            let layer = OutlierLayer::new(config);
            let _other = layer.layer(service::<Empty<Bytes>>(0));
            calls(layer.layer(service(0))).await;
        });
    }

    #[test]
    fn of_faults(
        delay in option::of((option::of(duration()), percentage())),
        abort in option::of((option::of(any::<u8>()), percentage(), option::of(any::<String>()))),
        max_active_faults in option::of(number()),
    ) {
        let fault = HttpFault {
            delay: delay.map(|(fixed, percentage)| FaultDelay {
                source: fixed.map_or(DelaySource::Header, DelaySource::Fixed),
                percentage,
            }),
            abort: abort.map(|(code, percentage, text)| FaultAbort {
                source: code.map_or(AbortSource::Header, AbortSource::Grpc),
                percentage,
                text,
            }),
            max_active_faults,
            ..HttpFault::default()
        };
        run(async { calls(FaultLayer::new(fault).layer(service(0))).await });
    }
}
