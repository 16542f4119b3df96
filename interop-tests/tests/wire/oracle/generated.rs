//! Cases from dice: each has one feature for its subject.
//!
//! It does NOT aim at corners; `corners` does.

use super::{
    case::{Backoff, Call, Case, Upstream, grpc, http},
    corners::{outliers, priorities},
    script::{Act, Answer, Grpc},
};
use fastrand::Rng;
use h2::Reason;
use serde_json::{Value, json};

/// Makes a case of its feature; the name is the feature's, with a number.
type Make = fn(&mut Rng, String) -> Case;

/// What the cases are about, in turn.
const FEATURES: &[(&str, Make)] = &[
    ("retry-http", retry_http),
    ("retry-grpc", retry_grpc),
    ("retry-http", retry_http),
    ("timeout", timeout),
    ("retry-grpc", retry_grpc),
    ("plain", plain),
    ("try-timeout", try_timeout),
    ("back-off", back_off),
    ("fault", fault),
    ("retry-priority", retry_priority),
    ("breaker", breaker),
    ("outlier", outlier),
    ("connections", connections),
    ("local-origin", local_origin),
];

pub(super) fn cases(dice: &mut Rng, count: usize) -> Vec<Case> {
    let make = |number: usize| {
        let (feature, make) = FEATURES[number % FEATURES.len()];
        make(dice, format!("{feature}-{number}"))
    };
    (0..count).map(make).collect()
}

/// One of them.
fn any<T: Clone>(dice: &mut Rng, of: &[T]) -> T {
    of[dice.usize(..of.len())].clone()
}

/// Between one and `most` of them, in their order.
fn some<T: Clone>(dice: &mut Rng, of: &[T], most: usize) -> Vec<T> {
    let count = dice.usize(1..=most);
    let mut indices = dice.choose_multiple(0..of.len(), count);
    indices.sort_unstable();
    indices.into_iter().map(|index| of[index].clone()).collect()
}

fn success(grpc: bool) -> Answer {
    if grpc { Answer::grpc(Grpc::Trailers(0)) } else { Answer::status(200) }
}

fn call(grpc_call: bool, acts: Vec<Act>) -> Call {
    if grpc_call { grpc(acts) } else { http(acts) }
}

/// A route's limit, and a backend that is early, late or silent.
fn timeout(dice: &mut Rng, name: String) -> Case {
    let is_grpc = dice.bool();
    let limit = any(dice, &["0s", "0.4s", "0.8s", "30s"]);
    let route = match is_grpc {
        true => json!({ "timeout": "0s", "max_stream_duration": { "max_stream_duration": limit } }),
        false => json!({ "timeout": limit }),
    };
    let delay = any(dice, &[0, 10, 200, 600, 1200]);
    let act = success(is_grpc).after(delay);
    Case::new(name, [call(is_grpc, vec![act])]).route(route)
}

/// No policy, whatever a backend can answer, and where the next call goes.
fn plain(dice: &mut Rng, name: String) -> Case {
    let is_grpc = dice.bool();
    let calls = (0..dice.usize(1..5)).map(|_| {
        let code = dice.u16(0..17);
        let answer = match (is_grpc, dice.usize(..3)) {
            (true, 0) => Answer::grpc(Grpc::Trailers(code)),
            (true, 1) => Answer::grpc(Grpc::TrailersOnly(code)),
            _ => Answer::status(any(dice, &[200, 302, 400, 404, 409, 429, 500, 501, 502, 503, 504, 505])),
        };
        call(is_grpc, vec![answer.header("x-note", code).after(0)])
    });
    let case = Case::new(name, calls.collect::<Vec<_>>());
    let upstream = if is_grpc { Upstream::Http2 } else { any(dice, &[Upstream::Http1, Upstream::Http2]) };
    Case { upstream, ..case.endpoints(dice.usize(1..4)) }
}

// === Retries ===

/// `retry_back_off` that is over at once, so that a retry is one however it is jittered.
fn at_once() -> Value {
    json!({ "base_interval": "0.001s", "max_interval": "0.002s" })
}

/// A policy with these conditions, and perhaps with another endpoint for each attempt.
fn policy(dice: &mut Rng, conditions: &[&str], retries: u32) -> Value {
    let mut policy = json!({
        "retry_on": conditions.join(","),
        "num_retries": retries,
        "retry_back_off": at_once(),
        "retriable_status_codes": some(dice, &[201, 404, 418, 500], 2),
        "retriable_headers": [{ "name": "x-again", "string_match": { "exact": "yes" } }],
    });
    if dice.bool() {
        let predicate = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
        policy["retry_host_predicate"] = json!([{ "name": "previous_hosts", "typed_config": { "@type": predicate } }]);
        policy["host_selection_retry_max_attempts"] = 5.into();
    }
    policy
}

/// Envoy's conditions, and failures that some of them are for.
fn retry_http(dice: &mut Rng, name: String) -> Case {
    const CONDITIONS: [&str; 11] = [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "refused-stream",
        "retriable-4xx",
        "retriable-status-codes",
        "retriable-headers",
        "envoy-ratelimited",
        "unavailable",
    ];
    let conditions = some(dice, &CONDITIONS, 3);
    let act = |dice: &mut Rng| match dice.usize(..10) {
        0 => Answer::status(200).header("x-again", any(dice, &["yes", "no"])).after(0),
        1 => Answer::status(503).header("x-envoy-ratelimited", "true").after(0),
        2 => Act::Reset(any(dice, &[Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::ENHANCE_YOUR_CALM])),
        3 => Act::Reset(Reason::REFUSED_STREAM),
        _ => Answer::status(any(dice, &[201, 404, 409, 418, 429, 500, 502, 503, 504, 505])).after(0),
    };
    let mut acts: Vec<_> = (0..dice.usize(1..8)).map(|_| act(dice)).collect();
    acts.push(success(false).after(0));
    let retries = dice.u32(1..8);
    let route = json!({ "retry_policy": policy(dice, &conditions, retries) });
    Case::new(name, [http(acts)]).route(route).endpoints(dice.usize(1..5))
}

/// gRPC's conditions with Envoy's among them, and failures of all kinds.
fn retry_grpc(dice: &mut Rng, name: String) -> Case {
    const CODES: [&str; 5] = ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"];
    const OTHERS: [&str; 7] = [
        "5xx",
        "reset",
        "refused-stream",
        "retriable-status-codes",
        "retriable-headers",
        "gateway-error",
        "envoy-ratelimited",
    ];
    let mut conditions = some(dice, &CODES, 4);
    if dice.u8(..3) == 0 {
        conditions.extend(some(dice, &OTHERS, 2));
    }
    let act = |dice: &mut Rng| match dice.usize(..13) {
        12 => Answer::status(503).header("x-envoy-ratelimited", "true").after(0),
        0 => Act::Reset(any(dice, &[Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::ENHANCE_YOUR_CALM])),
        1 => Act::Reset(Reason::REFUSED_STREAM),
        2 => Answer::status(any(dice, &[400, 404, 500, 502, 503])).after(0),
        3 => Answer::grpc(Grpc::Trailers(any(dice, &[8, 14]))).after(0),
        4 => Answer::grpc(Grpc::TrailersOnly(dice.u16(1..17))).after(0),
        _ => Answer::grpc(Grpc::TrailersOnly(any(dice, &[1, 4, 8, 13, 14, 14]))).after(0),
    };
    let mut acts: Vec<_> = (0..dice.usize(1..7)).map(|_| act(dice)).collect();
    acts.push(success(true).after(0));
    let retries = dice.u32(1..8);
    let route = json!({ "retry_policy": policy(dice, &conditions, retries) });
    Case::new(name, [grpc(acts)]).route(route).endpoints(dice.usize(1..5))
}

/// Several priorities whose endpoints all fail for a while.
fn retry_priority(dice: &mut Rng, name: String) -> Case {
    let is_grpc = dice.bool();
    let failure = if is_grpc { Answer::grpc(Grpc::TrailersOnly(14)) } else { Answer::status(503) };
    let mut acts = vec![failure.after(0); dice.usize(1..9)];
    acts.push(success(is_grpc).after(0));
    let (retries, every) = (dice.u32(1..9), dice.u32(1..4));
    let counts = any(dice, &[&[1, 1][..], &[2, 1], &[3, 1], &[1, 1, 1], &[2, 1, 1], &[1, 1, 1, 1]]);
    priorities::case(name, call(is_grpc, acts), retries, every, counts)
}

/// A limit for each attempt, with one for the call, and a backend that wakes up late or never.
fn try_timeout(dice: &mut Rng, name: String) -> Case {
    let is_grpc = dice.bool();
    let conditions = if is_grpc { ["deadline-exceeded", "unavailable"] } else { ["5xx", "reset"] };
    let conditions = some(dice, &conditions, 1);
    let retries = dice.u32(1..3);
    let mut policy = policy(dice, &conditions, retries);
    policy["per_try_timeout"] = "0.4s".into();
    let silent = dice.usize(0..4);
    let mut acts = vec![Act::Silence; silent];
    acts.push(success(is_grpc).after(any(dice, &[0, 150])));
    // Far from any sum of attempts.
    let limit = any(dice, &["0s", "0.2s", "0.6s", "1s"]);
    let route = match is_grpc {
        true => json!({ "max_stream_duration": { "max_stream_duration": limit }, "retry_policy": policy }),
        false => json!({ "timeout": limit, "retry_policy": policy }),
    };
    Case::new(name, [call(is_grpc, acts)]).route(route).endpoints(dice.usize(1..4))
}

/// Retries that are far apart.
fn back_off(dice: &mut Rng, name: String) -> Case {
    let is_grpc = dice.bool();
    let failure = if is_grpc { Answer::grpc(Grpc::TrailersOnly(14)) } else { Answer::status(503) };
    let mut acts = vec![failure.after(0); dice.usize(1..5)];
    acts.push(success(is_grpc).after(0));
    let backoff = any(dice, &[Backoff { base: 200, max: 400 }, Backoff { base: 300, max: 300 }]);
    let interval = |millis: u64| format!("0.{millis}s");
    let mut policy = policy(dice, &["5xx", "unavailable"], 3);
    policy["retry_back_off"] =
        json!({ "base_interval": interval(backoff.base), "max_interval": interval(backoff.max) });
    let case = Case::new(name, [call(is_grpc, acts)]).route(json!({ "retry_policy": policy }));
    Case { backoff: Some(backoff), ..case.endpoints(dice.usize(1..4)) }
}

// === Faults ===

/// A delay, an abort or both, for all calls or for none; by configuration or because the request asks for it.
fn fault(dice: &mut Rng, name: String) -> Case {
    let is_grpc = dice.bool();
    let percent = |dice: &mut Rng| json!({ "numerator": any(dice, &[0, 100, 100]) });
    let mut fault = json!({});
    let mut call = call(is_grpc, vec![success(is_grpc).after(0)]);
    match dice.usize(..4) {
        0 => fault["delay"] = json!({ "fixed_delay": "0.4s", "percentage": percent(dice) }),
        1 => {
            fault["delay"] = json!({ "header_delay": {}, "percentage": percent(dice) });
            call = call.header("x-envoy-fault-delay-request", any(dice, &["400", "0", "-1", "400.5"]));
            call = share(dice, call, "x-envoy-fault-delay-request-percentage");
        }
        _ => {}
    }
    let status = any(dice, &[400, 403, 404, 418, 429, 500, 502, 503, 504]);
    match dice.usize(..4) {
        0 => fault["abort"] = json!({ "http_status": status, "percentage": percent(dice) }),
        1 if is_grpc => fault["abort"] = json!({ "grpc_status": dice.u8(1..17), "percentage": percent(dice) }),
        2 => {
            fault["abort"] = json!({ "header_abort": {}, "percentage": percent(dice) });
            call = call.header("x-envoy-fault-abort-request", status);
            call = share(dice, call, "x-envoy-fault-abort-request-percentage");
        }
        _ => {}
    }
    Case { fault, ..Case::new(name, [call]) }
}

/// Perhaps with the wish that a fault comes to all calls, or to none.
fn share(dice: &mut Rng, call: Call, header: &str) -> Call {
    match dice.usize(..3) {
        0 => call,
        which => call.header(header, [0, 100][which - 1]),
    }
}

// === Breakers ===

/// Calls that are under way at once, more of them than there may be, and some that are repeated.
fn breaker(dice: &mut Rng, name: String) -> Case {
    let is_grpc = dice.bool();
    let failure = if is_grpc { Answer::grpc(Grpc::TrailersOnly(14)) } else { Answer::status(503) };
    let call = |dice: &mut Rng| match dice.usize(..3) {
        0 => call(is_grpc, vec![failure.clone().after(0), Act::Gate]),
        _ => call(is_grpc, vec![Act::Gate]),
    };
    let calls: Vec<_> = (0..dice.usize(3..8)).map(|_| call(dice)).collect();
    let thresholds = json!({ "max_requests": dice.u32(1..7), "max_retries": dice.u32(0..4) });
    let policy = policy(dice, &["5xx", "unavailable"], 2);
    let case = Case::new(name, calls).route(json!({ "retry_policy": policy })).endpoints(dice.usize(1..4));
    let together = case.calls.len() - 1;
    Case { together, cluster: json!({ "circuit_breakers": { "thresholds": [thresholds] } }), ..case }
}

/// Calls that are under way at once, and fewer connections than that, with room for some that wait.
fn connections(dice: &mut Rng, name: String) -> Case {
    let upstream = any(dice, &[Upstream::Http1, Upstream::Http1, Upstream::Http2]);
    let calls = vec![http([Act::Gate]); dice.usize(3..8)];
    // With room for one at least: a connection is made before a call needs it here, and by the call that waits for it in
    // Envoy.
    let limits = json!({
        "max_connections": dice.u32(0..5),
        "max_pending_requests": dice.u32(1..5),
    });
    let together = calls.len() - 1;
    let cluster = json!({ "circuit_breakers": { "thresholds": [limits] } });
    Case { together, cluster, upstream, ..Case::new(name, calls) }
}

// === Outliers ===

/// An endpoint whose answers do not come, or are failures; each kind has a number of its own, or not.
fn local_origin(dice: &mut Rng, name: String) -> Case {
    let detection = json!({
        "split_external_local_origin_errors": any(dice, &[true, true, false]),
        "consecutive_local_origin_failure": dice.u32(1..6),
        "enforcing_consecutive_local_origin_failure": any(dice, &[0, 100, 100]),
        "enforcing_local_origin_success_rate": 0,
        "consecutive_5xx": dice.u32(1..6),
    });
    let failure = match dice.usize(..4) {
        0 => Answer::status(any(dice, &[500, 503])).after(0),
        _ => Act::Reset(any(dice, &[Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::ENHANCE_YOUR_CALM])),
    };
    outliers::case(name, detection, http([]), failure)
}

/// An endpoint that fails in one way, ejected after so many failures in a row, or not.
fn outlier(dice: &mut Rng, name: String) -> Case {
    let is_grpc = dice.bool();
    let enforced = |dice: &mut Rng| any(dice, &[0, 100, 100]);
    let detection = json!({
        "consecutive_5xx": dice.u32(1..6),
        "enforcing_consecutive_5xx": enforced(dice),
        "consecutive_gateway_failure": dice.u32(1..6),
        "enforcing_consecutive_gateway_failure": enforced(dice),
    });
    // One gRPC call in three is answered by somebody who does not speak gRPC.
    let failure = match is_grpc && dice.usize(..3) > 0 {
        true => Answer::grpc(Grpc::TrailersOnly(any(dice, &[1, 2, 4, 5, 7, 8, 13, 14]))),
        false => Answer::status(any(dice, &[404, 429, 500, 502, 503, 504])),
    };
    outliers::case(name, detection, call(is_grpc, Vec::new()), failure.after(0))
}
