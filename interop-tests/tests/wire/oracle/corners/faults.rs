//! Injected faults (A33): delays, aborts, and requests that ask for them.
//!
//! It does NOT hold shares: dice on two sides do not agree, so a fault comes to all calls or to none.

use super::{
    super::case::{Call, Case, grpc, http},
    grpc_ok, ok, policy,
};
use serde_json::{Value, json};

/// To all calls, or to none.
fn percent(numerator: u32) -> Value {
    json!({ "numerator": numerator })
}

fn abort(field: &str, value: Value) -> Value {
    json!({ "abort": { field: value, "percentage": percent(100) } })
}

fn delay(time: &str) -> Value {
    json!({ "delay": { "fixed_delay": time, "percentage": percent(100) } })
}

fn case(name: impl Into<String>, fault: Value, calls: impl Into<Vec<Call>>) -> Case {
    Case { fault, ..Case::new(name, calls) }
}

/// Calls that ask for an abort, for some share of themselves.
fn shares() -> Vec<Call> {
    let asks = |share: &str| {
        http([ok()]).header("x-envoy-fault-abort-request", 418).header("x-envoy-fault-abort-request-percentage", share)
    };
    let delays = |share: &str| {
        http([ok()]).header("x-envoy-fault-delay-request", 400).header("x-envoy-fault-delay-request-percentage", share)
    };
    vec![asks("100"), asks("0"), asks("200"), asks("all"), delays("100"), delays("0")]
}

pub(super) fn faults() -> Vec<Case> {
    let by_header = || json!({ "abort": { "header_abort": {}, "percentage": percent(100) } });
    let delay_by_header = || json!({ "delay": { "header_delay": {}, "percentage": percent(100) } });
    let all = |mut one: Value, other: Value| {
        for (field, value) in other.as_object().into_iter().flatten() {
            one[field] = value.clone();
        }
        one
    };
    let mut cases = vec![
        case("fault-delay-http", delay("0.4s"), [http([ok()])]),
        case("fault-delay-grpc", delay("0.4s"), [grpc([grpc_ok()])]),
        case("fault-delay-abort", all(delay("0.4s"), abort("http_status", 418.into())), [http([ok()])]),
        case("fault-delay-none", json!({ "delay": { "fixed_delay": "0.4s" } }), [http([ok()])]),
        case(
            "fault-delay-header",
            delay_by_header(),
            [
                http([ok()]),
                http([ok()]).header("x-envoy-fault-delay-request", 400),
                http([ok()]).header("x-envoy-fault-delay-request", "soon"),
                http([ok()])
                    .header("x-envoy-fault-delay-request", 400)
                    .header("x-envoy-fault-delay-request-percentage", 0),
                grpc([grpc_ok()]).header("x-envoy-fault-delay-request", 400),
            ],
        ),
        case(
            "fault-delay-header-not-asked",
            json!({ "delay": { "fixed_delay": "0.001s", "percentage": percent(100) } }),
            [http([ok()]).header("x-envoy-fault-delay-request", 400)],
        ),
        case("fault-abort-none", json!({ "abort": { "http_status": 503, "percentage": percent(0) } }), [http([ok()])]),
        case(
            "fault-abort-header",
            by_header(),
            [
                http([ok()]),
                http([ok()]).header("x-envoy-fault-abort-request", 418),
                http([ok()]).header("x-envoy-fault-abort-request", "teapot"),
                http([ok()])
                    .header("x-envoy-fault-abort-request", 418)
                    .header("x-envoy-fault-abort-request-percentage", 0),
                grpc([grpc_ok()]).header("x-envoy-fault-abort-request", 503),
                grpc([grpc_ok()]).header("x-envoy-fault-abort-grpc-request", 7),
                http([ok()]).header("x-envoy-fault-abort-grpc-request", 7),
            ],
        ),
        // A share that the request asks for, of the share that the configuration allows.
        case(
            "fault-header-shares",
            json!({
                "delay": { "header_delay": {}, "percentage": percent(100) },
                "abort": { "header_abort": {}, "percentage": percent(100) },
            }),
            shares(),
        ),
        case(
            "fault-header-shares-not-allowed",
            json!({
                "delay": { "header_delay": {}, "percentage": percent(0) },
                "abort": { "header_abort": {}, "percentage": percent(0) },
            }),
            shares(),
        ),
        case(
            "fault-share-of-ten-thousand",
            json!({ "abort": { "http_status": 418, "percentage": { "numerator": 10_000, "denominator": "TEN_THOUSAND" } } }),
            [http([ok()])],
        ),
        case(
            "fault-share-of-a-million",
            json!({ "abort": { "http_status": 418, "percentage": { "numerator": 1_000_000, "denominator": "MILLION" } } }),
            [http([ok()])],
        ),
        case(
            "fault-share-above-all",
            json!({ "abort": { "http_status": 418, "percentage": percent(200) } }),
            [http([ok()])],
        ),
        case(
            "fault-abort-both-headers",
            by_header(),
            [grpc([grpc_ok()])
                .header("x-envoy-fault-abort-request", 404)
                .header("x-envoy-fault-abort-grpc-request", 7)],
        ),
        case("fault-abort-retried", abort("http_status", 503.into()), [http([ok()])])
            .route(json!({ "retry_policy": policy("5xx", 3) })),
        case("fault-abort-retried-grpc", abort("grpc_status", 14.into()), [grpc([grpc_ok()])])
            .route(json!({ "retry_policy": policy("unavailable", 3) })),
        case("fault-late-http", delay("0.6s"), [http([ok()])]).route(json!({ "timeout": "0.3s" })),
        case("fault-late-grpc", delay("0.6s"), [grpc([grpc_ok()])])
            .route(json!({ "max_stream_duration": { "max_stream_duration": "0.3s" } })),
        Case {
            together: 2,
            ..case("fault-active", all(delay("0.8s"), json!({ "max_active_faults": 1 })), vec![http([ok()]); 2])
        },
        case(
            "fault-active-none",
            all(abort("http_status", 418.into()), json!({ "max_active_faults": 0 })),
            [http([ok()])],
        ),
    ];
    for status in [200, 400, 401, 403, 404, 418, 429, 500, 503, 504] {
        let calls = [http([ok()]), grpc([grpc_ok()])];
        cases.push(case(format!("fault-abort-{status}"), abort("http_status", status.into()), calls));
    }
    for code in [0, 1, 5, 14, 16] {
        cases.push(case(format!("fault-abort-code-{code}"), abort("grpc_status", code.into()), [grpc([grpc_ok()])]));
    }
    cases
}
