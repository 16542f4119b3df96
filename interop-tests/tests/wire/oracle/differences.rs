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

/// The class of the one difference that no configuration of Envoy's can make up for: it is measured.
pub(super) const GRPC_BACK_OFF: &str = "grpc-back-off";

/// In the order in which they are applied.
pub(super) const CLASSES: &[Class] = &[
    Class { name: "grpc-deadline", rewrite: grpc_deadline },
    Class { name: "delay-in-deadline", rewrite: delay_in_deadline },
    Class { name: "grpc-other-timeouts", rewrite: grpc_other_timeouts },
    Class { name: "grpc-retries", rewrite: grpc_retries },
    Class { name: "transparent-retry", rewrite: transparent_retry },
    Class { name: "status-of-a-failure", rewrite: status_of_a_failure },
    Class { name: "no-host-left", rewrite: no_host_left },
    Class { name: "failures-in-a-row", rewrite: failures_in_a_row },
    Class { name: GRPC_BACK_OFF, rewrite: |_| {} },
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

/// The time of an injected delay is part of the call's, for HTTP as for gRPC: who is late before the delay is over is late.
fn delay_in_deadline(case: &mut Case) {
    let time = |value: &Value| value.as_str().and_then(millis).filter(|millis| *millis > 0);
    let (delay, limit) = (time(&case.fault["delay"]["fixed_delay"]), time(&case.route["timeout"]));
    if let (Some(delay), Some(limit), false) = (delay, limit, is_grpc(case))
        && delay > limit
    {
        case.fault["delay"]["fixed_delay"] = case.route["timeout"].clone();
        case.fault["abort"] = json!({ "http_status": 504, "percentage": { "numerator": 100 } });
    }
}

/// Each limit is a deadline: DEADLINE_EXCEEDED, to the caller and to the policy.
fn grpc_other_timeouts(case: &mut Case) {
    if !is_grpc(case) || case.calls.iter_mut().flat_map(acts).all(|act| *act != Act::Silence) {
        return;
    }
    let policy = &case.route["retry_policy"];
    let limits = [&policy["per_try_timeout"], &policy["per_try_idle_timeout"], &case.route["idle_timeout"]];
    let Some(limit) = limits.into_iter().filter_map(|limit| limit.as_str().and_then(millis)).min() else { return };
    if case.route["retry_policy"].is_object() {
        for field in ["per_try_timeout", "per_try_idle_timeout"] {
            case.route["retry_policy"][field] = Value::Null;
        }
    }
    case.route["idle_timeout"] = Value::Null;
    for act in case.calls.iter_mut().flat_map(acts).filter(|act| **act == Act::Silence) {
        *act = status(4).after(limit);
    }
}

/// "0.4s" is 400.
fn millis(duration: &str) -> Option<u64> {
    Some((duration.strip_suffix('s')?.parse::<f64>().ok()? * 1000.0) as u64)
}

/// gRPC's answers are repeated by their codes alone, unless the server wants no retry, and no call more than four times.
fn grpc_retries(case: &mut Case) {
    if is_grpc(case) && case.route["retry_policy"].is_object() {
        grpc_conditions(case);
        grpc_headers(case);
        let retries = &mut case.route["retry_policy"]["num_retries"];
        if retries.as_u64().is_some_and(|retries| retries > 4) {
            *retries = 4.into();
        }
    }
}

/// Answers that are not gRPC's are also repeated by the code that belongs to their HTTP status.
fn grpc_conditions(case: &mut Case) {
    let policy = case.route["retry_policy"].clone();
    let conditions: Vec<_> = policy["retry_on"].as_str().unwrap_or_default().split(',').map(str::to_owned).collect();
    let has = |condition: &str| conditions.iter().any(|has| has == condition);
    let listed: Vec<_> = policy["retriable_status_codes"].as_array().into_iter().flatten().cloned().collect();
    let mut codes: Vec<Value> = Vec::new();
    for act in case.calls.iter_mut().flat_map(acts) {
        let Act::Answer(Answer { status, grpc: None, .. }) = act else { continue };
        let named = match code_of(*status) {
            13 => "internal",
            14 => "unavailable",
            _ => "",
        };
        let by_status = has("5xx") && *status >= 500
            || has("gateway-error") && (502..=504).contains(status)
            || has("retriable-status-codes") && listed.contains(&(*status).into());
        let code = (*status).into();
        if (by_status || has(named)) && !codes.contains(&code) {
            codes.push(code);
        }
    }
    let not_ours = ["5xx", "gateway-error", "reset", "retriable-headers", "retriable-status-codes"];
    let mut kept: Vec<_> = conditions.iter().filter(|has| !not_ours.contains(&has.as_str())).cloned().collect();
    if !codes.is_empty() {
        kept.push("retriable-status-codes".to_owned());
    }
    if kept != conditions || !codes.is_empty() && codes != listed {
        case.route["retry_policy"]["retry_on"] = kept.join(",").into();
        case.route["retry_policy"]["retriable_status_codes"] = codes.into();
    }
}

/// Headers of requests do not decide. Beside a gRPC status `x-envoy-ratelimited` says nothing, and a pushback "no" what it
/// says to Envoy.
fn grpc_headers(case: &mut Case) {
    if let Some(policy) = case.route["retry_policy"].as_object_mut() {
        policy.remove("retriable_request_headers");
    }
    for act in case.calls.iter_mut().flat_map(acts) {
        let Act::Answer(Answer { grpc: Some(_), headers, .. }) = act else { continue };
        headers.retain(|(name, _)| name != "x-envoy-ratelimited");
        if headers.iter().any(|(name, value)| name == "grpc-retry-pushback-ms" && value == "-1") {
            headers.push(("x-envoy-ratelimited".to_owned(), "true".to_owned()));
        }
    }
}

/// "HTTP to gRPC Status Code Mapping" (gRPC).
fn code_of(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
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
        // Only the first: the others are what the policy says about them.
        let second = match (conditions.split(',').any(|condition| condition == "refused-stream"), is_grpc) {
            (true, _) => continue,
            (false, true) => status(14).after(0),
            (false, false) => Act::Reset(Reason::CANCEL),
        };
        acts[first + 1..].iter_mut().filter(|act| **act == refused).for_each(|act| *act = second.clone());
    }
}

/// A reset is a gRPC status by its code, a lost connection is UNAVAILABLE; also for the policy.
fn status_of_a_failure(case: &mut Case) {
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
            Act::Close => 14,
            _ => continue,
        };
        *act = status(code).after(0);
    }
}

/// Where every host was tried, the first one in turn is: Envoy's, too, if its looks end where they began.
fn no_host_left(case: &mut Case) {
    let hosts = case.endpoints[0].len() as u64;
    let policy = &mut case.route["retry_policy"];
    let looks = policy["host_selection_retry_max_attempts"].as_u64();
    if let (Some(looks), true) = (looks, policy["retry_host_predicate"].is_array()) {
        policy["host_selection_retry_max_attempts"] = looks.next_multiple_of(hosts).into();
    }
}

/// A call counts once, by how it has ended, and failures in a row only where a number is given.
fn failures_in_a_row(case: &mut Case) {
    let Some(detection) = case.cluster.get_mut("outlier_detection") else { return };
    if detection.get("consecutive_5xx").is_none() {
        detection["enforcing_consecutive_5xx"] = 0.into();
    }
    for call in &mut case.calls {
        let Script::ByEndpoint(acts, _) = &mut call.script else { continue };
        for act in acts.values_mut() {
            match act {
                // A status in trailers is not seen by the detector.
                Act::Answer(Answer { grpc: Some(grpc), .. }) => {
                    let (Grpc::Trailers(code) | Grpc::TrailersOnly(code)) = *grpc;
                    *grpc = Grpc::TrailersOnly(code);
                }
                // Its head begins the row anew, so that one is the longest there is; two are as good, give or take a call.
                Act::Broken(_) if detection.get("consecutive_5xx") == Some(&2.into()) => {
                    detection["consecutive_5xx"] = 1.into();
                }
                // A request that is sent is a success of local origin, whatever comes of it.
                Act::Reset(_) | Act::Silence
                    if detection.get("split_external_local_origin_errors") == Some(&true.into()) =>
                {
                    detection["split_external_local_origin_errors"] = false.into();
                    detection["consecutive_5xx"] = detection["consecutive_local_origin_failure"].clone();
                    let enforcing = detection["enforcing_consecutive_local_origin_failure"].clone();
                    detection["enforcing_consecutive_5xx"] = enforcing;
                }
                _ => {}
            }
        }
    }
}

/// A status that is not a backend's.
fn status(code: u16) -> Answer {
    Answer { anonymous: true, ..Answer::grpc(Grpc::TrailersOnly(code)) }
}
