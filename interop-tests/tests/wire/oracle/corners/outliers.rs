//! Ejection after errors in a row.
//!
//! It does NOT hold A50's algorithms: their sweeps take longer than a test may, and they are `mesh-client`'s own tests.

use super::super::{
    case::{Call, Case, Compared, grpc, http},
    script::{Act, Answer, Grpc, Script},
};
use h2::Reason;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// So many calls, where endpoint 0 fails in this way.
fn calls(call: Call, act: Act, count: usize) -> Vec<Call> {
    let success = if call.grpc { Answer::grpc(Grpc::Trailers(0)) } else { Answer::status(200) };
    let script = Script::ByEndpoint(BTreeMap::from([(0, act)]), Box::new(success.after(0)));
    vec![Call { script, ..call }; count]
}

/// Calls in turn to three endpoints, one of which fails, and is out after a while.
pub(in crate::oracle) fn case(name: impl Into<String>, detection: Value, call: Call, act: Act) -> Case {
    // By default no more than a tenth may be out: of three endpoints none.
    let mut outliers = json!({
        "interval": "30s",
        "base_ejection_time": "30s",
        "enforcing_success_rate": 0,
        "max_ejection_percent": 50,
    });
    for (field, value) in detection.as_object().into_iter().flatten() {
        outliers[field] = value.clone();
    }
    // Ejection is the main thread's in Envoy: the next call may still come through.
    Case {
        cluster: json!({ "outlier_detection": outliers }),
        compared: Compared::Sums { slack: 1 },
        ..Case::new(name, calls(call, act, 36)).endpoints(3)
    }
}

pub(super) fn outliers() -> Vec<Case> {
    let status = |status: u16| Answer::status(status).after(0);
    let code = |code: u16| Answer::grpc(Grpc::TrailersOnly(code)).after(0);
    let five = json!({ "consecutive_5xx": 3 });
    let gateway = json!({ "consecutive_gateway_failure": 3, "enforcing_consecutive_gateway_failure": 100, "enforcing_consecutive_5xx": 0 });
    // Answers count by one number, and what is no answer by another; or all by one.
    let local = |count: u32, enforced: u32| {
        json!({
            "split_external_local_origin_errors": true,
            "consecutive_local_origin_failure": count,
            "enforcing_consecutive_local_origin_failure": enforced,
            "enforcing_local_origin_success_rate": 0,
            "consecutive_5xx": 100,
        })
    };
    let unsplit = json!({ "consecutive_local_origin_failure": 2, "consecutive_5xx": 100 });
    let late = |name: &str, detection: Value| {
        case(name, detection, http([]), Act::Silence).route(json!({ "timeout": "0.1s" }))
    };
    vec![
        case("outlier-local-reset", local(3, 100), http([]), Act::Reset(Reason::CANCEL)),
        late("outlier-local-late", local(3, 100)),
        case("outlier-local-answer", local(3, 100), http([]), status(503)),
        case("outlier-local-not-enforced", local(3, 0), http([]), Act::Reset(Reason::CANCEL)),
        case("outlier-local-unsplit", unsplit, http([]), Act::Reset(Reason::CANCEL)),
        late("outlier-late", five.clone()),
        case("outlier-5xx", five.clone(), http([]), status(500)),
        case("outlier-default", json!({}), http([]), status(500)),
        case("outlier-default-of-5xx", json!({ "max_ejection_percent": 100 }), http([]), status(500)),
        case("outlier-4xx", five.clone(), http([]), status(404)),
        case(
            "outlier-not-enforced",
            json!({ "consecutive_5xx": 3, "enforcing_consecutive_5xx": 0 }),
            http([]),
            status(500),
        ),
        case("outlier-none-at-all", json!({ "consecutive_5xx": 3, "max_ejection_percent": 0 }), http([]), status(500)),
        case("outlier-reset", five.clone(), http([]), Act::Reset(Reason::CANCEL)),
        case("outlier-unavailable", five.clone(), grpc([]), code(14)),
        case("outlier-internal", five.clone(), grpc([]), code(13)),
        case("outlier-not-found", five.clone(), grpc([]), code(5)),
        case("outlier-in-trailers", five.clone(), grpc([]), Answer::grpc(Grpc::Trailers(14)).after(0)),
        case("outlier-gateway", gateway.clone(), http([]), status(503)),
        case("outlier-gateway-500", gateway.clone(), http([]), status(500)),
        // Somebody on the way has answered.
        case("outlier-grpc-503", five.clone(), grpc([]), status(503)),
        case("outlier-grpc-404", five, grpc([]), status(404)),
        case("outlier-grpc-gateway", gateway.clone(), grpc([]), status(502)),
        case("outlier-grpc-gateway-500", gateway, grpc([]), status(500)),
        case("outlier-broken-once", json!({ "consecutive_5xx": 1 }), http([]), Act::Broken(Reason::CANCEL)),
        case("outlier-broken", json!({ "consecutive_5xx": 2 }), http([]), Act::Broken(Reason::CANCEL)),
        case("outlier-grpc-broken", json!({ "consecutive_5xx": 2 }), grpc([]), Act::Broken(Reason::INTERNAL_ERROR)),
    ]
}
