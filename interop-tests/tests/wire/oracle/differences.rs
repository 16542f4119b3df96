//! The classes of difference that have a reason, each with a way to prove it.
//!
//! A class rewrites a configuration, or what a backend does, into what Envoy needs to act as we do; a difference belongs
//! to the class if Envoy then does act as we do. The reasons are in `docs/differences-from-envoy.md`; a test holds the
//! two lists to each other. It does NOT play anything.

use super::{
    case::{Call, Case},
    script::{Act, Answer, Grpc, Script},
};
use h2::Reason;
use serde_json::{Value, json};

/// A way in which we differ from Envoy on purpose.
#[derive(Debug)]
pub(super) struct Class {
    /// As the list has it.
    pub(super) name: &'static str,
    /// Makes a case for Envoy from ours.
    rewrite: fn(&mut Case),
}

/// In the order in which they are applied.
pub(super) const CLASSES: &[Class] = &[
    Class { name: "grpc-deadline", rewrite: grpc_deadline },
    Class { name: "transparent-retry", rewrite: transparent_retry },
    Class { name: "status-of-a-reset", rewrite: status_of_a_reset },
];

/// What Envoy needs to act as we do in this case, and the names of the classes that say so.
pub(super) fn rewritten(case: &Case) -> (Case, Vec<&'static str>) {
    let (mut rewritten, mut names) = (case.clone(), Vec::new());
    for class in CLASSES {
        let before = rewritten.clone();
        (class.rewrite)(&mut rewritten);
        if rewritten != before {
            names.push(class.name);
        }
    }
    (rewritten, names)
}

fn is_grpc(case: &Case) -> bool {
    case.calls.iter().all(|call| call.grpc)
}

/// The acts of the calls whose attempts are told apart.
fn acts(call: &mut Call) -> &mut [Act] {
    match &mut call.script {
        Script::ByAttempt(acts) => acts,
        Script::ByEndpoint(..) => &mut [],
    }
}

/// A gRPC call's time is A31's: not `timeout`, and `grpc_timeout_header_max` and the application's own even alone.
fn grpc_deadline(case: &mut Case) {
    if !is_grpc(case) {
        return;
    }
    let limits = &case.route["max_stream_duration"];
    let header_max = limits["grpc_timeout_header_max"].clone();
    let app = case.calls.iter().flat_map(|call| &call.headers).find(|(name, _)| name == "grpc-timeout");
    match (header_max, app) {
        (Value::Null, Some(_)) => case.route["max_stream_duration"]["grpc_timeout_header_max"] = "0s".into(),
        (max @ Value::String(_), None) => case.route["max_stream_duration"] = json!({ "max_stream_duration": max }),
        _ => {}
    }
    if case.route["timeout"].is_string() {
        case.route["timeout"] = "0s".into();
    }
}

/// The first refused stream is sent again at once, whatever the policy, and is not counted.
fn transparent_retry(case: &mut Case) {
    let refused = Act::Reset(Reason::REFUSED_STREAM);
    let retries = case.route["retry_policy"]["num_retries"].as_u64().unwrap_or(0);
    let is_grpc = is_grpc(case);
    for acts in case.calls.iter_mut().map(acts) {
        let Some(first) = acts.iter().position(|act| *act == refused) else { continue };
        if first as u64 > retries {
            continue;
        }
        let policy = &mut case.route["retry_policy"];
        let conditions = policy["retry_on"].as_str().unwrap_or_default().to_owned();
        policy["num_retries"] = (retries + 1).into();
        policy["retry_on"] = format!("{conditions},refused-stream").into();
        // Only the first: others are what the policy says about a reset.
        if !conditions.contains("refused-stream") || is_grpc {
            acts[first + 1..]
                .iter_mut()
                .filter(|act| **act == refused)
                .for_each(|act| *act = Act::Reset(Reason::CANCEL));
        }
    }
}

/// A reset is a gRPC status by its code, also for the policy.
fn status_of_a_reset(case: &mut Case) {
    if !is_grpc(case) {
        return;
    }
    for act in case.calls.iter_mut().flat_map(acts) {
        let code = match act {
            // "HTTP2 Code → GRPC Code" (gRPC over HTTP/2, "Errors").
            Act::Reset(Reason::REFUSED_STREAM) => continue,
            Act::Reset(Reason::CANCEL) => 1,
            Act::Reset(Reason::ENHANCE_YOUR_CALM) => 8,
            Act::Reset(_) => 13,
            _ => continue,
        };
        *act = Act::Answer(Answer { anonymous: true, ..Answer::grpc(Grpc::TrailersOnly(code)) });
    }
}
