//! Cases that are written by hand: what dice rarely hit, and one for each class of difference.
//!
//! A case's name says what it is about. It does NOT say what is expected: the sides are compared with each other.

mod breakers;
mod failures;
mod faults;
mod limits;
pub(super) mod outliers;
pub(super) mod priorities;
mod retries;

use super::{
    case::Case,
    script::{Act, Answer, Grpc},
};
use serde_json::{Value, json};

pub(super) fn cases() -> Vec<Case> {
    [
        limits::limits(),
        failures::failures(),
        failures::turns(),
        retries::retries(),
        priorities::priorities(),
        faults::faults(),
        breakers::breakers(),
        outliers::outliers(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn ok() -> Act {
    Answer::status(200).after(0)
}

fn grpc_ok() -> Act {
    Answer::grpc(Grpc::Trailers(0)).after(0)
}

/// A policy with these conditions and so many retries, at once.
fn policy(retry_on: &str, num_retries: u32) -> Value {
    let at_once = json!({ "base_interval": "0.001s", "max_interval": "0.002s" });
    json!({ "retry_on": retry_on, "num_retries": num_retries, "retry_back_off": at_once })
}

/// The same with more fields.
fn policy_with(retry_on: &str, num_retries: u32, more: Value) -> Value {
    let mut policy = policy(retry_on, num_retries);
    for (field, value) in more.as_object().into_iter().flatten() {
        policy[field] = value.clone();
    }
    json!({ "retry_policy": policy })
}
