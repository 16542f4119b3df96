//! Tables for what is repeated and when; the sentences are A6's, A44's and Envoy's.

use super::{Failure, Plan, Retries, RetryThrottling, Throttle, Verdict, backoff, is_unwanted};
use crate::{error::ReplyForm, route::RequestHead};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, response};
use mesh_xds::resource::{
    HeaderField, HeaderMatch, HeaderValueMatch, RateLimitedBackOff, ResetFormat, ResetHeader, RetryCondition,
    RetryPolicy, StringMatch,
};
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn policy(retry_on: &str, num_retries: u32) -> RetryPolicy {
    RetryPolicy {
        num_retries,
        base_interval: MS(100),
        max_interval: MS(1000),
        retriable_status_codes: vec![418],
        retriable_headers: vec![present("x-again")],
        ..RetryPolicy::on(retry_on.split(',').filter_map(RetryCondition::named))
    }
}

fn present(name: &'static str) -> HeaderMatch {
    let name = HeaderField::Header(HeaderName::from_static(name));
    HeaderMatch { name, value: HeaderValueMatch::Present(true), invert: false }
}

fn plan(policy: RetryPolicy) -> Plan {
    Plan::new(Arc::new(policy))
}

fn request(headers: &HeaderMap) -> RequestHead<'_> {
    RequestHead {
        method: &Method::POST,
        path: "/",
        query: None,
        scheme: "http",
        authority: "a",
        headers,
        is_grpc: false,
    }
}

fn head(status: u16, headers: &[(&'static str, &'static str)]) -> response::Parts {
    let mut response = Response::new(());
    *response.status_mut() = status.try_into().expect("a status");
    for (name, value) in headers {
        response.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response.into_parts().0
}

/// What follows from a response, with the middle of every jitter.
fn answered(plan: &Plan, retries: &mut Retries, form: ReplyForm, head: &response::Parts, is_whole: bool) -> Verdict {
    let none = HeaderMap::new();
    retries.answered(plan, form, (head, is_whole), || request(&none), || 0.5, || 1_000)
}

fn trailers_only(code: &'static str) -> response::Parts {
    head(200, &[("content-type", "application/grpc"), ("grpc-status", code)])
}

#[test]
fn a_grpc_call_is_repeated_for_the_codes_of_its_policy_and_trailers_only() {
    let all = "cancelled,deadline-exceeded,resource-exhausted,internal,unavailable";
    for (retry_on, code, is_whole, repeated) in [
        ("unavailable", "14", true, true),
        ("unavailable", "13", true, false),
        ("unavailable", "0", true, false),
        (all, "1", true, true),
        (all, "4", true, true),
        (all, "8", true, true),
        (all, "13", true, true),
        (all, "2", true, false),
        // "any response headers commit the RPC"
        ("unavailable", "14", false, false),
        // Envoy's conditions say nothing about a gRPC status.
        ("5xx,gateway-error,reset,retriable-4xx", "14", true, false),
    ] {
        let verdict = answered(
            &plan(policy(retry_on, 1)),
            &mut Retries::default(),
            ReplyForm::Grpc,
            &trailers_only(code),
            is_whole,
        );
        assert_eq!(matches!(verdict, Verdict::Retry(_)), repeated, "{retry_on} {code} {is_whole}: {verdict:?}");
    }
}

#[test]
fn what_is_not_grpcs_answer_to_a_grpc_call_is_repeated_by_its_status() {
    const LIMITED: &[(&str, &str)] = &[("content-type", "text/plain"), ("x-envoy-ratelimited", "true")];
    for (retry_on, status, headers, repeated) in [
        ("5xx", 503, &[("content-type", "text/plain")][..], true),
        ("gateway-error", 503, &[], true),
        ("gateway-error", 500, &[], false),
        ("retriable-4xx", 409, &[], true),
        ("retriable-status-codes", 418, &[], true),
        ("unavailable", 503, &[], true),
        ("unavailable", 500, &[], false),
        ("internal", 400, &[], true),
        ("reset,connect-failure", 503, &[], false),
        ("5xx,unavailable", 503, LIMITED, false),
        ("unavailable", 429, LIMITED, false),
        ("envoy-ratelimited", 429, LIMITED, true),
        ("envoy-ratelimited", 429, &[], false),
    ] {
        let head = head(status, headers);
        let verdict = answered(&plan(policy(retry_on, 1)), &mut Retries::default(), ReplyForm::Grpc, &head, false);
        assert_eq!(matches!(verdict, Verdict::Retry(_)), repeated, "{retry_on} {status} {headers:?}: {verdict:?}");
    }
}

#[test]
fn other_requests_are_repeated_as_in_envoy() {
    for (retry_on, status, headers, repeated) in [
        ("5xx", 500, &[][..], true),
        ("5xx", 599, &[], true),
        ("5xx", 404, &[], false),
        ("gateway-error", 502, &[], true),
        ("gateway-error", 504, &[], true),
        ("gateway-error", 500, &[], false),
        ("retriable-4xx", 409, &[], true),
        ("retriable-4xx", 404, &[], false),
        ("retriable-status-codes", 418, &[], true),
        ("retriable-status-codes", 500, &[], false),
        ("retriable-headers", 200, &[("x-again", "1")], true),
        ("retriable-headers", 200, &[], false),
        ("5xx", 503, &[("x-envoy-ratelimited", "true")], false),
        ("envoy-ratelimited", 503, &[("x-envoy-ratelimited", "true")], true),
        ("unavailable", 503, &[], false),
    ] {
        let verdict = answered(
            &plan(policy(retry_on, 1)),
            &mut Retries::default(),
            ReplyForm::Http,
            &head(status, headers),
            false,
        );
        assert_eq!(matches!(verdict, Verdict::Retry(_)), repeated, "{retry_on} {status} {headers:?}: {verdict:?}");
    }
}

#[test]
fn attempts_without_a_response_are_repeated_by_their_conditions() {
    use Failure::{Lost, Refused, Reset, TryTimeout, Unreachable};
    for (retry_on, failure, grpc, http) in [
        ("unavailable", Lost, true, false),
        ("unavailable", Unreachable, true, false),
        ("unavailable", Refused, true, false),
        ("unavailable", Reset(14), true, false),
        ("unavailable", Reset(13), false, false),
        ("internal", Reset(13), true, false),
        ("cancelled", Reset(1), true, false),
        ("unavailable", TryTimeout, false, false),
        ("deadline-exceeded", TryTimeout, true, false),
        ("connect-failure", Unreachable, true, true),
        ("connect-failure", Lost, false, false),
        ("refused-stream", Refused, true, true),
        ("reset-before-request", Unreachable, true, true),
        ("reset-before-request", Lost, false, false),
        ("reset", Lost, false, true),
        ("reset", Reset(13), false, true),
        ("reset", TryTimeout, false, true),
        ("reset", Unreachable, false, true),
        ("5xx", Lost, false, true),
        ("gateway-error", TryTimeout, false, true),
        ("retriable-4xx", Lost, false, false),
    ] {
        for (form, repeated) in [(ReplyForm::Grpc, grpc), (ReplyForm::Http, http)] {
            // A refusal is free once.
            let mut retries = Retries { refused: true, ..Retries::default() };
            let plan = plan(policy(retry_on, 1));
            let none = HeaderMap::new();
            let verdict = retries.failed(Some(&plan), form, failure, || request(&none), || 0.5);
            assert_eq!(matches!(verdict, Verdict::Retry(_)), repeated, "{retry_on} {failure:?} {form:?}: {verdict:?}");
        }
    }
}

#[test]
fn without_a_policy_only_what_the_server_has_not_seen_is_repeated() {
    let mut retries = Retries::default();
    let headers = HeaderMap::new();
    let mut failed = |failure| retries.failed(None, ReplyForm::Grpc, failure, || request(&headers), || 0.5);
    assert_eq!(failed(Failure::Unsent), Verdict::Transparent);
    assert_eq!(failed(Failure::Unsent), Verdict::Transparent);
    assert_eq!(failed(Failure::Refused), Verdict::Transparent);
    assert_eq!(failed(Failure::Refused), Verdict::Final);
    assert_eq!(failed(Failure::Lost), Verdict::Final);
}

#[test]
fn a_grpc_call_makes_five_attempts_at_most_and_others_as_many_as_they_are_given() {
    for (form, retries_made) in [(ReplyForm::Grpc, 4), (ReplyForm::Http, 10)] {
        let (plan, mut retries) = (plan(policy("unavailable,5xx", 10)), Retries::default());
        let failed = head(503, &[]);
        while let Verdict::Retry(_) = answered(&plan, &mut retries, form, &failed, false) {}
        assert_eq!(retries.made(), retries_made, "{form:?}");
        assert_eq!(answered(&plan, &mut retries, form, &failed, false), Verdict::Spent, "{form:?}");
    }
}

#[test]
fn pushback_says_when_and_restarts_the_exponent() {
    let (plan, mut retries) = (plan(policy("unavailable", 4)), Retries::default());
    let mut backoff = |pushback: &[&'static str]| {
        let mut head = trailers_only("14");
        for value in pushback {
            head.headers.append("grpc-retry-pushback-ms", HeaderValue::from_static(value));
        }
        answered(&plan, &mut retries, ReplyForm::Grpc, &head, true)
    };
    assert_eq!(backoff(&[]), Verdict::Retry(MS(100)));
    assert_eq!(backoff(&[]), Verdict::Retry(MS(200)));
    assert_eq!(backoff(&["7"]), Verdict::Retry(MS(7)));
    assert_eq!(backoff(&[]), Verdict::Retry(MS(100)));
    for no in NO {
        assert_eq!(backoff(no), Verdict::Spent, "{no:?}");
    }
}

/// "negative/unparsable/duplicated".
const NO: [&[&str]; 3] = [&["-1"], &["soon"], &["1", "1"]];

/// "The only RPCs that are counted as failures [...] fail with a status code that qualifies as a retryable [...], or [...]
/// receive a pushback response indicating not to retry" (A6).
#[test]
fn a_server_that_wants_no_retry_is_counted_whatever_its_status() {
    let plan = plan(policy("unavailable", 4));
    for (code, is_whole, pushback, counted) in [
        ("13", true, NO[0], true),
        ("13", true, NO[1], true),
        ("13", true, NO[2], true),
        ("14", true, NO[0], true),
        // It may be repeated, for all that the server knows: the policy says otherwise.
        ("13", true, &["7"], false),
        ("13", true, &[], false),
        ("0", true, NO[0], false),
        // Committed: nobody asks about retries.
        ("13", false, NO[0], false),
    ] {
        let mut head = trailers_only(code);
        for value in pushback {
            head.headers.append("grpc-retry-pushback-ms", HeaderValue::from_static(value));
        }
        let verdict = answered(&plan, &mut Retries::default(), ReplyForm::Grpc, &head, is_whole);
        let expected = if counted { Verdict::Spent } else { Verdict::Final };
        assert_eq!(verdict, expected, "{code} {is_whole} {pushback:?}");
        if is_whole {
            assert_eq!(is_unwanted(&head.headers), counted, "{code} {pushback:?}");
        }
    }
}

#[test]
fn a_server_that_says_when_is_believed_up_to_a_limit() {
    let header = |name, format| ResetHeader { name: HeaderName::from_static(name), format };
    let back_off = RateLimitedBackOff {
        reset_headers: vec![header("retry-after", ResetFormat::Seconds), header("x-reset", ResetFormat::UnixTimestamp)],
        max_interval: Duration::from_secs(60),
    };
    for (headers, expected) in [
        (&[("retry-after", "4")][..], Some(MS(5_000))),
        (&[("x-reset", "1008")], Some(MS(10_000))),
        // Too long: the next header.
        (&[("retry-after", "61"), ("x-reset", "1002")], Some(MS(2_500))),
        (&[("retry-after", "tomorrow")], None),
        (&[("x-reset", "999")], None),
        (&[("retry-after", "0")], None),
        (&[], None),
    ] {
        let plan = plan(RetryPolicy { rate_limited: Some(back_off.clone()), ..policy("5xx", 1) });
        let verdict = answered(&plan, &mut Retries::default(), ReplyForm::Http, &head(503, headers), false);
        assert_eq!(verdict, Verdict::Retry(expected.unwrap_or_else(|| MS(50))), "{headers:?}");
    }
}

#[test]
fn only_requests_with_a_retriable_header_are_repeated_where_that_is_asked_and_grpc_calls() {
    let safe = HeaderMatch {
        value: HeaderValueMatch::String(StringMatch::Exact { value: "yes".to_owned(), ignore_case: false }),
        ..present("x-safe")
    };
    let plan = plan(RetryPolicy { retriable_request_headers: vec![safe], ..policy("5xx", 1) });
    for (value, repeated) in [(Some("yes"), true), (Some("no"), false), (None, false)] {
        let headers = value.map(|value| (HeaderName::from_static("x-safe"), HeaderValue::from_static(value)));
        let headers: HeaderMap = headers.into_iter().collect();
        // "Everything else ignored (per_try_timeout, headers, budgets)" (A44).
        for (form, repeated) in [(ReplyForm::Http, repeated), (ReplyForm::Grpc, true)] {
            let failed = (&head(503, &[]), false);
            let verdict = Retries::default().answered(&plan, form, failed, || request(&headers), || 0.5, || 0);
            assert_eq!(matches!(verdict, Verdict::Retry(_)), repeated, "{form:?} {value:?}");
        }
    }
}

#[test]
fn throttling_stops_retries_at_half_its_tokens() {
    let throttle = Throttle::new(RetryThrottling::new(10.0, 0.1).expect("valid"));
    let allowed: Vec<_> = (0..6).map(|_| throttle.failed()).collect();
    // "retries suppressed while tokens <= max/2"
    assert_eq!(allowed, [true, true, true, true, false, false]);
    for _ in 0..30 {
        throttle.succeeded();
    }
    // 4 + 3 - 1 = 6, which is above 5.
    assert!(throttle.failed());
}

#[test]
fn throttling_is_valid_within_a6s_limits() {
    for (tokens, ratio, valid) in [
        (10.0, 0.1, true),
        (1000.0, 0.001, true),
        (1000.5, 0.1, false),
        (0.0, 0.1, false),
        (-1.0, 0.1, false),
        (10.0, 0.0, false),
        (f64::NAN, 0.1, false),
        (10.0, f64::INFINITY, false),
    ] {
        assert_eq!(RetryThrottling::new(tokens, ratio).is_some(), valid, "{tokens} {ratio}");
    }
}

proptest! {
    #[test]
    fn backoffs_stay_within_their_curves(earlier in 0..100_u32, draw in 0.0..1.0_f64, base in 1..10_000_u64, times in 1..50_u64) {
        let policy = RetryPolicy { base_interval: MS(base), max_interval: MS(base * times), ..policy("", 1) };
        let curve = (base as f64 * 2_f64.powi(earlier as i32)).min((base * times) as f64) / 1000.0;
        let (grpc, envoy) = (backoff::grpc(&policy, earlier, draw), backoff::envoy(&policy, earlier, draw));
        prop_assert!(grpc.as_secs_f64() >= curve * 0.8 - 1e-6 && grpc.as_secs_f64() <= curve * 1.2 + 1e-6);
        prop_assert!(envoy.as_secs_f64() <= curve + 1e-6);
    }
}
