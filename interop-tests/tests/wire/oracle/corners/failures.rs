//! Failures without a policy, and which endpoint has its turn.
//!
//! It does NOT repeat anything.

use super::{
    super::{
        case::{Call, Case, Compared, Place, grpc, http},
        script::{Act, Answer, Script},
    },
    grpc_ok, ok,
};
use h2::Reason;
use std::collections::BTreeMap;

/// Failures without a policy.
pub(super) fn failures() -> Vec<Case> {
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
pub(super) fn turns() -> Vec<Case> {
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
