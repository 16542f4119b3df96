//! Cases from dice: each has one feature for its subject.
//!
//! It does NOT aim at corners; `corners` does.

use super::{
    case::{Call, Case, Upstream, grpc, http},
    script::{Act, Answer, Grpc},
};
use fastrand::Rng;
use serde_json::json;

/// Makes a case of its feature; the name is the feature's, with a number.
type Make = fn(&mut Rng, String) -> Case;

/// What is compared, and how often among ten cases.
const FEATURES: &[(&str, Make)] = &[("timeout", timeout), ("plain", plain)];

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
