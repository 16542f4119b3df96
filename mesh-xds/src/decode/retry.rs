//! Retry policies of routes and virtual hosts, as A44 reads them.
//!
//! They are validated and carried along; no part of the client acts on them yet, which the caller reports.

use super::{basics::duration, scope::Scope};
use crate::resource::{Invalid, RetryPolicy};
use envoy_types::pb::{
    envoy::config::route::v3::{self as pb, retry_policy::RetryBackOff},
    google::protobuf,
};
use std::time::Duration;

/// "attempts cap 5" - A44, A6
const MAX_ATTEMPTS: u32 = 5;
/// "base default 25 ms" - A44
const DEFAULT_BASE: Duration = Duration::from_millis(25);
/// "values < 1 ms act as 1 ms" - A44
const FLOOR: Duration = Duration::from_millis(1);

/// A `retry_policy`. "Validated even when no condition is usable": a policy without one still hides the virtual
/// host's.
pub(super) fn retry_policy(policy: &pb::RetryPolicy, scope: &mut Scope<'_>) -> Result<RetryPolicy, Invalid> {
    let num_retries = match policy.num_retries {
        Some(protobuf::UInt32Value { value: 0 }) => return Err(scope.invalid_at("num_retries", "must be at least 1")),
        Some(protobuf::UInt32Value { value }) => value,
        None => 1,
    };
    let (base_interval, max_interval) = match policy.retry_back_off {
        Some(back_off) => scope.within("retry_back_off", |scope| intervals(&back_off, scope))?,
        None => (DEFAULT_BASE, DEFAULT_BASE * 10),
    };
    Ok(RetryPolicy {
        codes: policy.retry_on.split(',').filter_map(code).collect(),
        max_attempts: num_retries.saturating_add(1).min(MAX_ATTEMPTS),
        base_interval,
        max_interval,
    })
}

// "base <= 0 or missing when back_off set; max <= 0; max < base" are refused (A44).
fn intervals(back_off: &RetryBackOff, scope: &mut Scope<'_>) -> Result<(Duration, Duration), Invalid> {
    let Some(base) = back_off.base_interval else {
        return Err(scope.invalid_at("base_interval", "must be set"));
    };
    let base = scope.within("base_interval", |scope| positive(base, scope))?;
    let max = match back_off.max_interval {
        Some(max) => scope.within("max_interval", |scope| positive(max, scope))?,
        None => base.saturating_mul(10),
    };
    if max < base {
        return Err(scope.invalid_at("max_interval", "must not be less than base_interval"));
    }
    Ok((base.max(FLOOR), max.max(FLOOR)))
}

fn positive(value: protobuf::Duration, scope: &Scope<'_>) -> Result<Duration, Invalid> {
    match duration(value, scope)? {
        Duration::ZERO => Err(scope.invalid("must be greater than 0")),
        duration => Ok(duration),
    }
}

/// The gRPC status code behind a condition of `retry_on`; conditions about HTTP have none.
fn code(condition: &str) -> Option<u8> {
    match condition.trim().to_ascii_lowercase().as_str() {
        "cancelled" => Some(1),
        "deadline-exceeded" => Some(4),
        "resource-exhausted" => Some(8),
        "internal" => Some(13),
        "unavailable" => Some(14),
        _ => None,
    }
}
