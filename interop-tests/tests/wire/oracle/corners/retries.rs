//! What is repeated, how often, when and where.
//!
//! It does NOT hold retry budgets; `breakers` does.

use super::{
    super::{
        case::{Backoff, Call, Case, Place, Upstream, grpc, http},
        script::{Act, Answer, Grpc},
    },
    grpc_ok, ok, policy, policy_with,
};
use h2::Reason;
use serde_json::json;

/// What is repeated, how often, when and where.
pub(super) fn retries() -> Vec<Case> {
    let unavailable = || Answer::grpc(Grpc::TrailersOnly(14));
    let fails = |count: usize, last: Act| [vec![Answer::status(503).after(0); count], vec![last]].concat();
    let previous_hosts = json!({
        "retry_host_predicate": [{ "name": "previous_hosts", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        } }],
        "host_selection_retry_max_attempts": 10,
    });
    let retry_after = json!({ "rate_limited_retry_back_off": {
        "reset_headers": [{ "name": "retry-after", "format": "SECONDS" }],
    } });
    let safe_only = json!({ "retriable_request_headers": [{ "name": "x-safe", "string_match": { "exact": "yes" } }] });
    let limited = |answer: Answer| answer.header("x-envoy-ratelimited", true).after(0);
    let wants_none = |code| {
        let failure = Answer::grpc(Grpc::TrailersOnly(code)).header("grpc-retry-pushback-ms", -1);
        grpc([failure.after(0), grpc_ok()])
    };
    let two_tries = || json!({ "per_try_timeout": "0.3s" });
    vec![
        // gRPC's own.
        Case::new("retry-grpc-ten", [grpc(vec![unavailable().after(0)])])
            .route(json!({ "retry_policy": policy("unavailable", 10) })),
        Case::new("retry-grpc-default", [grpc(vec![unavailable().after(0)])])
            .route(json!({ "retry_policy": { "retry_on": "unavailable" } })),
        Case::new("retry-grpc-after-headers", [grpc([Answer::grpc(Grpc::Trailers(14)).after(0), grpc_ok()])])
            .route(json!({ "retry_policy": policy("unavailable", 3) })),
        Case::new("retry-grpc-of-5xx", [grpc([unavailable().after(0), grpc_ok()])])
            .route(json!({ "retry_policy": policy("5xx", 3) })),
        Case::new("retry-grpc-503", [grpc([Answer::status(503).after(0), grpc_ok()])])
            .route(json!({ "retry_policy": policy("unavailable", 3) })),
        Case::new("retry-grpc-reset-by-code", [grpc([Act::Reset(Reason::CANCEL), grpc_ok()])])
            .route(json!({ "retry_policy": policy("cancelled", 3) })),
        Case::new("retry-grpc-reset-by-reset", [grpc([Act::Reset(Reason::CANCEL), grpc_ok()])])
            .route(json!({ "retry_policy": policy("reset", 3) })),
        Case::new("retry-grpc-try-timeout", [grpc([Act::Silence, grpc_ok()])]).route(policy_with(
            "deadline-exceeded",
            2,
            two_tries(),
        )),
        Case::new("retry-grpc-try-timeouts", [grpc([Act::Silence])]).route(policy_with(
            "deadline-exceeded",
            2,
            two_tries(),
        )),
        Case::new(
            "retry-grpc-refused",
            [grpc([Act::Reset(Reason::REFUSED_STREAM), Act::Reset(Reason::REFUSED_STREAM)])],
        )
        .route(json!({ "retry_policy": policy("unavailable", 1) })),
        Case::new("retry-grpc-closed", [grpc([Act::Close, grpc_ok()])])
            .route(json!({ "retry_policy": policy("unavailable", 1) }))
            .endpoints(2),
        Case::new("retry-grpc-no-more", [wants_none(14), wants_none(13)])
            .route(json!({ "retry_policy": policy("unavailable", 3) })),
        Case::new("retry-grpc-any-request", [grpc([unavailable().after(0), grpc_ok()])]).route(policy_with(
            "unavailable",
            1,
            safe_only.clone(),
        )),
        Case::new("retry-grpc-rate-limited", [grpc([limited(Answer::status(503)), grpc_ok()])])
            .route(json!({ "retry_policy": policy("5xx,unavailable", 1) })),
        Case::new("retry-grpc-rate-limited-asked-for", [grpc([limited(Answer::status(503)), grpc_ok()])])
            .route(json!({ "retry_policy": policy("envoy-ratelimited", 1) })),
        Case::new("retry-grpc-status-rate-limited", [grpc([limited(unavailable()), grpc_ok()])])
            .route(json!({ "retry_policy": policy("unavailable", 1) })),
        // Answered before the request has ended.
        Case::new(
            "retry-http-upload",
            [http([Answer::status(503).after(0), Answer::status(200).after(0)]).upload(600)],
        )
        .route(json!({ "retry_policy": policy("5xx", 1) })),
        Case::new("retry-http-upload-spent", [http([Answer::status(503).after(0)]).upload(600)])
            .route(json!({ "retry_policy": policy("5xx", 1) })),
        Case::new("retry-http-upload-headers", [http([Answer::status(200).after(0)]).upload(600)])
            .route(json!({ "retry_policy": policy("5xx", 1) })),
        // Envoy's.
        Case::new("retry-http-none-left", [http(fails(9, ok()))]).route(json!({ "retry_policy": policy("5xx", 3) })),
        Case::new("retry-http-many", [http(fails(8, ok()))]).route(json!({ "retry_policy": policy("5xx", 8) })),
        Case::new("retry-http-default", [http(fails(9, ok()))]).route(json!({ "retry_policy": { "retry_on": "5xx" } })),
        Case::new("retry-http-broken", [http([Act::Broken(Reason::INTERNAL_ERROR), ok()])])
            .route(json!({ "retry_policy": policy("5xx,reset", 3) })),
        Case::new("retry-http-closed", [http([Act::Close, ok()])])
            .route(json!({ "retry_policy": policy("reset", 1) }))
            .endpoints(2),
        Case {
            upstream: Upstream::Http1,
            ..Case::new("retry-http1-closed", [http([Act::Close, ok()])])
                .route(json!({ "retry_policy": policy("reset", 1) }))
                .endpoints(2)
        },
        Case::new("retry-http-refused", [http([Act::Reset(Reason::REFUSED_STREAM), ok()])])
            .route(json!({ "retry_policy": policy("refused-stream", 1) })),
        Case::new("retry-http-before-request", [http([Act::Reset(Reason::CANCEL), ok()])])
            .route(json!({ "retry_policy": policy("reset-before-request,connect-failure", 1) })),
        Case {
            endpoints: vec![vec![Place::Closed]],
            ..Case::new("retry-http-unreachable", [http([ok()])])
                .route(json!({ "retry_policy": policy("connect-failure", 2) }))
        },
        Case::new("retry-http-try-timeout", [http([Act::Silence, ok()])]).route(policy_with("5xx", 2, two_tries())),
        Case::new("retry-http-try-timeouts", [http([Act::Silence])]).route(policy_with(
            "gateway-error",
            2,
            two_tries(),
        )),
        Case::new("retry-http-try-timeout-alone", [http([Act::Silence])]).route(policy_with(
            "retriable-4xx",
            2,
            two_tries(),
        )),
        Case::new("retry-http-previous-hosts", [http(fails(9, ok()))])
            .route(policy_with("5xx", 3, previous_hosts.clone()))
            .endpoints(4),
        Case::new("retry-http-more-than-hosts", [http(fails(3, ok()))])
            .route(policy_with("5xx", 3, previous_hosts))
            .endpoints(2),
        Case::new("retry-http-retry-after", [http([Answer::status(503).header("retry-after", 1).after(0), ok()])])
            .route(policy_with("5xx", 1, retry_after.clone())),
        Case::new("retry-http-retry-after-0", [http([Answer::status(503).header("retry-after", 0).after(0), ok()])])
            .route(policy_with("5xx", 1, retry_after.clone())),
        Case::new(
            "retry-http-retry-after-400",
            [http([Answer::status(503).header("retry-after", 400).after(0), ok()])],
        )
        .route(policy_with("5xx", 1, retry_after)),
        Case::new("retry-http-safe-only", [http(fails(1, ok())), http(fails(1, ok())).header("x-safe", "yes")])
            .route(policy_with("5xx", 1, safe_only)),
        Case::new("retry-http-early", [http([Answer::status(425).after(0), ok()])]).route(policy_with(
            "retriable-status-codes",
            1,
            json!({ "retriable_status_codes": [425] }),
        )),
        far_apart("retry-http-far-apart", http(fails(3, ok()))),
        far_apart("retry-grpc-far-apart", grpc(vec![unavailable().after(0)])),
        Case::new("retry-http-limit", [http(vec![Answer::status(503).after(250)])])
            .route(json!({ "timeout": "0.6s", "retry_policy": policy("5xx", 9) })),
    ]
}

/// Retries whose delays can be told from none.
fn far_apart(name: &str, call: Call) -> Case {
    let more = json!({ "retry_back_off": { "base_interval": "0.2s", "max_interval": "0.4s" } });
    let case = Case::new(name, [call]).route(policy_with("5xx,unavailable", 3, more));
    Case { backoff: Some(Backoff { base: 200, max: 400 }), ..case }
}
