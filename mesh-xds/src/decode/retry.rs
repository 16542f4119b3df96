//! Retry policies of routes and virtual hosts: A44's rules, and the rest of Envoy's message.
//!
//! "Validated even when no condition is usable" (A44): a policy without one still hides the virtual host's.

use super::{
    basics::{duration, type_name, unpack},
    matcher::header,
    scope::Scope,
};
use crate::resource::{
    HeaderMatch, Invalid, RateLimitedBackOff, ResetFormat, ResetHeader, RetryCondition, RetryOn, RetryPolicy,
};
use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            self as pb,
            retry_policy::{
                RateLimitedRetryBackOff, ResetHeaderFormat, RetryBackOff, RetryHostPredicate, RetryPriority,
                retry_host_predicate, retry_priority,
            },
        },
        extensions::retry::{
            host::previous_hosts::v3::PreviousHostsPredicate,
            priority::previous_priorities::v3::PreviousPrioritiesConfig,
        },
    },
    google::protobuf,
};
use http::HeaderName;
use prost::Name;
use std::{num::NonZeroU32, time::Duration};

/// "base default 25 ms" - A44
const DEFAULT_BASE: Duration = Duration::from_millis(25);
/// "values < 1 ms act as 1 ms" - A44
const FLOOR: Duration = Duration::from_millis(1);
/// "The default is 300 seconds" (Envoy, `RateLimitedRetryBackOff.max_interval`).
const DEFAULT_RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

/// A `retry_policy`.
pub(super) fn retry_policy(policy: pb::RetryPolicy, scope: &mut Scope<'_>) -> Result<RetryPolicy, Invalid> {
    let num_retries = match policy.num_retries {
        Some(protobuf::UInt32Value { value: 0 }) => return Err(scope.invalid_at("num_retries", "must be at least 1")),
        Some(protobuf::UInt32Value { value }) => value,
        None => 1,
    };
    let (base_interval, max_interval) = match policy.retry_back_off {
        Some(back_off) => scope.within("retry_back_off", |scope| intervals(&back_off, scope))?,
        None => (DEFAULT_BASE, DEFAULT_BASE * 10),
    };
    scope.unsupported(&[
        (!policy.retry_options_predicates.is_empty(), "retry_options_predicates"),
        (policy.refresh_cluster_on_retry, "refresh_cluster_on_retry"),
    ]);
    Ok(RetryPolicy {
        retry_on: retry_on(&policy.retry_on, scope),
        num_retries,
        base_interval,
        max_interval,
        per_try_timeout: limit(policy.per_try_timeout, "per_try_timeout", scope)?,
        per_try_idle_timeout: limit(policy.per_try_idle_timeout, "per_try_idle_timeout", scope)?,
        // A status code that no response can have is never met.
        retriable_status_codes: policy.retriable_status_codes.into_iter().filter_map(|it| it.try_into().ok()).collect(),
        retriable_headers: headers(policy.retriable_headers, "retriable_headers", scope)?,
        retriable_request_headers: headers(policy.retriable_request_headers, "retriable_request_headers", scope)?,
        rate_limited: match policy.rate_limited_retry_back_off {
            Some(back_off) => Some(scope.within("rate_limited_retry_back_off", |scope| rate_limited(back_off, scope))?),
            None => None,
        },
        avoid_previous_hosts: previous_hosts(&policy.retry_host_predicate, scope)?,
        host_selection_attempts: match policy.host_selection_retry_max_attempts {
            // "If not set or set to 0, [...] defaults to 1" (Envoy).
            0 => 1,
            attempts => attempts.clamp(1, i64::from(u32::MAX)).try_into().unwrap_or(u32::MAX),
        },
        previous_priorities: match policy.retry_priority {
            Some(priority) => scope.within("retry_priority", |scope| previous_priorities(&priority, scope))?,
            None => None,
        },
    })
}

/// "split by `,`, trim, case-fold" (A44). What nobody here knows is reported, and has no effect.
fn retry_on(conditions: &str, scope: &mut Scope<'_>) -> RetryOn {
    let names = conditions.split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut unknown = false;
    let known = names.filter_map(|name| {
        let condition = RetryCondition::named(name);
        unknown |= condition.is_none();
        condition
    });
    let known = known.collect();
    if unknown {
        scope.ignore("retry_on", "one of its conditions is not known: has no effect");
    }
    known
}

// === Times ===

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

/// Zero is no limit, as unset is.
fn limit(
    value: Option<protobuf::Duration>,
    field: &'static str,
    scope: &mut Scope<'_>,
) -> Result<Option<Duration>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    let limit = scope.within(field, |scope| duration(value, scope))?;
    Ok(Some(limit).filter(|limit| !limit.is_zero()))
}

fn rate_limited(back_off: RateLimitedRetryBackOff, scope: &mut Scope<'_>) -> Result<RateLimitedBackOff, Invalid> {
    // "min_items: 1" (Envoy).
    if back_off.reset_headers.is_empty() {
        return Err(scope.invalid_at("reset_headers", "must not be empty"));
    }
    let mut reset_headers = Vec::with_capacity(back_off.reset_headers.len());
    for (index, header) in back_off.reset_headers.into_iter().enumerate() {
        reset_headers.push(scope.at("reset_headers", index, |scope| {
            let name = HeaderName::try_from(header.name.as_str());
            Ok(ResetHeader {
                name: name
                    .map_err(|_| scope.invalid_at("name", format!("{:?} is not a header's name", header.name)))?,
                format: match ResetHeaderFormat::try_from(header.format) {
                    Ok(ResetHeaderFormat::Seconds) => ResetFormat::Seconds,
                    Ok(ResetHeaderFormat::UnixTimestamp) => ResetFormat::UnixTimestamp,
                    Err(_) => return Err(scope.invalid_at("format", format!("{} is not a format", header.format))),
                },
            })
        })?);
    }
    let max_interval = match back_off.max_interval {
        Some(max) => scope.within("max_interval", |scope| positive(max, scope))?,
        None => DEFAULT_RATE_LIMITED_MAX,
    };
    Ok(RateLimitedBackOff { reset_headers, max_interval })
}

// === Headers, hosts and priorities ===

fn headers(
    matchers: Vec<pb::HeaderMatcher>,
    field: &'static str,
    scope: &mut Scope<'_>,
) -> Result<Vec<HeaderMatch>, Invalid> {
    let matchers = matchers.into_iter().enumerate();
    matchers.map(|(index, matcher)| scope.at(field, index, |scope| header(matcher, scope))).collect()
}

/// Whether previous_hosts is among the predicates; others are reported.
fn previous_hosts(predicates: &[RetryHostPredicate], scope: &mut Scope<'_>) -> Result<bool, Invalid> {
    let mut found = false;
    for (index, predicate) in predicates.iter().enumerate() {
        scope.at("retry_host_predicate", index, |scope| {
            // Envoy knows an extension by its type, or else by its name.
            let known = match &predicate.config_type {
                Some(retry_host_predicate::ConfigType::TypedConfig(any)) => {
                    type_name(&any.type_url) == PreviousHostsPredicate::full_name()
                }
                None => predicate.name == "envoy.retry_host_predicates.previous_hosts",
            };
            match known {
                true => found = true,
                false => scope.ignore_here("not a predicate that is supported: has no effect"),
            }
        });
    }
    Ok(found)
}

/// The `update_frequency` of previous_priorities; another kind of retry priority is reported.
fn previous_priorities(priority: &RetryPriority, scope: &mut Scope<'_>) -> Result<Option<NonZeroU32>, Invalid> {
    let config: PreviousPrioritiesConfig = match &priority.config_type {
        Some(retry_priority::ConfigType::TypedConfig(any))
            if type_name(&any.type_url) == PreviousPrioritiesConfig::full_name() =>
        {
            scope.within("typed_config", |scope| unpack(any, scope))?
        }
        // Envoy knows an extension by its type, or else by its name.
        None if priority.name == "envoy.retry_priorities.previous_priorities" => PreviousPrioritiesConfig::default(),
        _ => {
            scope.ignore_here("not a retry priority that is supported: has no effect");
            return Ok(None);
        }
    };
    // "update_frequency [...] gt: 0" (Envoy).
    match u32::try_from(config.update_frequency).ok().and_then(NonZeroU32::new) {
        Some(frequency) => Ok(Some(frequency)),
        None => {
            scope.within("typed_config", |scope| Err(scope.invalid_at("update_frequency", "must be greater than 0")))
        }
    }
}
