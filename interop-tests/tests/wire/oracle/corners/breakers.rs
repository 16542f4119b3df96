//! Circuit breakers: how many calls are under way at once, and how many of them are retries.
//!
//! It does NOT hold ejection; `outliers` does.

use super::{
    super::{
        case::{Call, Case, Upstream, grpc, http},
        script::{Act, Answer, Grpc},
    },
    grpc_ok, ok, policy,
};
use serde_json::{Value, json};

/// A cluster with these thresholds.
fn thresholds(thresholds: Value) -> Value {
    json!({ "circuit_breakers": { "thresholds": [thresholds] } })
}

/// Calls that are held at the gate together, and one after them.
fn held(name: &str, limits: Value, count: usize, after: Call) -> Case {
    let held = Call { script: http([Act::Gate]).script, ..after.clone() };
    let calls = [vec![held; count], vec![after]].concat();
    Case { together: count, cluster: thresholds(limits), ..Case::new(name, calls) }
}

pub(super) fn breakers() -> Vec<Case> {
    let requests = |max: u32| json!({ "max_requests": max });
    // Their first attempts fail; the next ones are held, and with them the retries.
    let http_retries = || http([Answer::status(503).after(0), Act::Gate]);
    let grpc_retries = || grpc([Answer::grpc(Grpc::TrailersOnly(14)).after(0), Act::Gate]);
    let retried = |name: &str, limits: Value, calls: Vec<Call>| Case {
        together: calls.len(),
        cluster: thresholds(limits),
        ..Case::new(name, calls).route(json!({ "retry_policy": policy("5xx,unavailable", 2) }))
    };
    let budget = |percent: f64, least: u32| json!({ "retry_budget": { "budget_percent": { "value": percent }, "min_retry_concurrency": least } });
    let mixed = |gated: usize, retried: usize| [vec![http([Act::Gate]); gated], vec![http_retries(); retried]].concat();
    let connections = |max: u32, pending: u32| json!({ "max_connections": max, "max_pending_requests": pending });
    let http1 = |name: &str, limits: Value, count: usize| Case {
        upstream: Upstream::Http1,
        ..held(name, limits, count, http([ok()]))
    };
    vec![
        // At the limit calls wait for a connection, as many as may.
        http1("breaker-connections", json!({ "max_connections": 2 }), 4),
        http1("breaker-connections-one", json!({ "max_connections": 1 }), 3),
        http1("breaker-connections-zero", json!({ "max_connections": 0 }), 3),
        http1("breaker-connections-pending", connections(1, 1), 4),
        http1("breaker-connections-two-pending", connections(2, 2), 6),
        http1("breaker-connections-pending-none", connections(2, 1), 2),
        http1("breaker-pending-alone", json!({ "max_pending_requests": 1 }), 4),
        http1("breaker-connections-requests", json!({ "max_connections": 2, "max_requests": 1 }), 3),
        http1("breaker-connections-retried", connections(1, 1), 3).route(json!({ "retry_policy": policy("5xx", 3) })),
        http1("breaker-connections-late", json!({ "max_connections": 1 }), 2).route(json!({ "timeout": "0.7s" })),
        // Each endpoint may have one.
        http1("breaker-connections-each", json!({ "max_connections": 1 }), 2).endpoints(2),
        // HTTP/2 needs no second one.
        held("breaker-connections-http2", connections(1, 1), 4, http([ok()])),
        held("breaker-connections-grpc", connections(1, 1), 4, grpc([grpc_ok()])),
        held("breaker-http", requests(2), 4, http([ok()])),
        held("breaker-grpc", requests(2), 4, grpc([grpc_ok()])),
        held("breaker-one-http", requests(1), 3, http([ok()])),
        held("breaker-zero-http", requests(0), 2, http([ok()])),
        held("breaker-zero-grpc", requests(0), 2, grpc([grpc_ok()])),
        Case { upstream: Upstream::Http1, ..held("breaker-http1", requests(2), 4, http([ok()])) },
        held("breaker-hosts", requests(3), 5, http([ok()])).endpoints(3),
        held("breaker-retried", requests(2), 4, http([ok()])).route(json!({ "retry_policy": policy("5xx", 3) })),
        Case {
            cluster: json!({ "circuit_breakers": { "thresholds": [
                { "priority": "HIGH", "max_requests": 1 },
                { "max_requests": 2 },
                { "max_requests": 3 },
            ] } }),
            ..held("breaker-first-default", json!({}), 4, http([ok()]))
        },
        retried("breaker-retries-http", json!({ "max_retries": 1 }), vec![http_retries(); 3]),
        retried("breaker-retries-grpc", json!({ "max_retries": 1 }), vec![grpc_retries(); 3]),
        retried("breaker-retries-zero", json!({ "max_retries": 0 }), vec![http_retries(); 2]),
        retried("breaker-retries-unset", json!({}), vec![http_retries(); 5]),
        retried("breaker-budget-least", budget(20.0, 1), vec![http_retries(); 3]),
        retried("breaker-budget-share", budget(50.0, 1), mixed(3, 4)),
        retried("breaker-budget-unset", json!({ "retry_budget": {} }), vec![http_retries(); 5]),
        retried(
            "breaker-budget-and-retries",
            json!({ "max_retries": 1, "retry_budget": { "min_retry_concurrency": 2 } }),
            vec![http_retries(); 4],
        ),
    ]
}
