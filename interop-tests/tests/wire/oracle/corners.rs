//! Cases that are written by hand: what dice rarely hit, and one for each class of difference.
//!
//! A case's name says what it is about. It does NOT say what is expected: the sides are compared with each other.

use super::{
    case::{Call, Case, Compared, Place, grpc, http},
    script::{Act, Answer, Grpc, Script},
};
use h2::Reason;
use serde_json::json;
use std::collections::BTreeMap;

pub(super) fn cases() -> Vec<Case> {
    [limits(), failures(), turns()].into_iter().flatten().collect()
}

fn ok() -> Act {
    Answer::status(200).after(0)
}

fn grpc_ok() -> Act {
    Answer::grpc(Grpc::Trailers(0)).after(0)
}

/// How long a call may take.
fn limits() -> Vec<Case> {
    let max_stream = |limit: &str| json!({ "timeout": "0s", "max_stream_duration": { "max_stream_duration": limit } });
    let header_max =
        |limit: &str| json!({ "timeout": "0s", "max_stream_duration": { "grpc_timeout_header_max": limit } });
    vec![
        Case::new("limit-http", [http([Act::Silence])]).route(json!({ "timeout": "0.3s" })),
        Case::new("limit-http-none", [http([Answer::status(200).after(400)])]).route(json!({ "timeout": "0s" })),
        Case::new("limit-http-unset", [http([Answer::status(200).after(400)])]),
        Case::new("limit-http-of-grpc", [http([Answer::status(200).after(400)])]).route(max_stream("0s")),
        Case::new("limit-grpc", [grpc([Act::Silence])]).route(max_stream("0.3s")),
        Case::new("limit-grpc-none", [grpc([Answer::grpc(Grpc::Trailers(0)).after(400)])]).route(max_stream("0s")),
        Case::new("limit-grpc-by-timeout", [grpc([Answer::grpc(Grpc::Trailers(0)).after(600)])])
            .route(json!({ "timeout": "0.3s" })),
        Case::new("limit-grpc-header", [grpc([Act::Silence]).header("grpc-timeout", "300m")]).route(header_max("0s")),
        Case::new("limit-grpc-header-below", [grpc([Act::Silence]).header("grpc-timeout", "300m")])
            .route(header_max("5s")),
        Case::new("limit-grpc-header-above", [grpc([Act::Silence]).header("grpc-timeout", "5S")])
            .route(header_max("0.3s")),
        Case::new("limit-grpc-no-header", [grpc([Answer::grpc(Grpc::Trailers(0)).after(600)])])
            .route(header_max("0.3s")),
        Case::new(
            "limit-grpc-header-alone",
            [grpc([Answer::grpc(Grpc::Trailers(0)).after(600)]).header("grpc-timeout", "300m")],
        )
        .route(json!({ "timeout": "0s" })),
    ]
}

/// Failures without a policy.
fn failures() -> Vec<Case> {
    let closed = || vec![vec![Place::Closed]];
    let mut cases = vec![
        Case { endpoints: closed(), ..Case::new("closed-http", [http([ok()])]) },
        Case { endpoints: closed(), ..Case::new("closed-grpc", [grpc([grpc_ok()])]) },
        Case { endpoints: vec![vec![]], ..Case::new("empty-http", [http([ok()])]) },
        Case { endpoints: vec![vec![]], ..Case::new("empty-grpc", [grpc([grpc_ok()])]) },
        // The next call goes to the other one: a connection that was short is not dialled again at once.
        Case::new("close-http", [http([Act::Close]), http([ok()])]).endpoints(2),
        Case::new("close-grpc", [grpc([Act::Close]), grpc([grpc_ok()])]).endpoints(2),
    ];
    for (name, reason) in [
        ("internal", Reason::INTERNAL_ERROR),
        ("cancel", Reason::CANCEL),
        ("refused", Reason::REFUSED_STREAM),
        ("calm", Reason::ENHANCE_YOUR_CALM),
    ] {
        cases.push(Case::new(format!("reset-{name}-http"), [http([Act::Reset(reason), ok()])]));
        cases.push(Case::new(format!("reset-{name}-grpc"), [grpc([Act::Reset(reason), grpc_ok()])]));
        cases.push(Case::new(format!("broken-{name}-http"), [http([Act::Broken(reason), ok()])]));
        cases.push(Case::new(format!("broken-{name}-grpc"), [grpc([Act::Broken(reason), grpc_ok()])]));
    }
    cases
}

/// Which endpoint has its turn.
fn turns() -> Vec<Case> {
    let second_fails = |call: Call| {
        let bad = BTreeMap::from([(1, Answer::status(503).after(0))]);
        Call { script: Script::ByEndpoint(bad, Box::new(Answer::status(200).after(0))), ..call }
    };
    let sums = Compared::Sums { slack: 1 };
    vec![
        Case { compared: sums, ..Case::new("turns-one-fails", vec![second_fails(http([])); 20]).endpoints(3) },
        Case { compared: sums, ..Case::new("turns-second-priority", vec![http([ok()]); 6]).endpoints(2).priority([2]) },
    ]
}
