//! CDS: `circuit_breakers` (A32, A105).
//!
//! Only thresholds of priority DEFAULT count, since no call here has another. Limits are NOT enforced here.

use super::scope::Scope;
use crate::resource::{CircuitBreakers, Invalid, RetryBudget};
use envoy_types::pb::{
    envoy::config::{
        cluster::v3::{self as pb, circuit_breakers::Thresholds, circuit_breakers::thresholds},
        core::v3::RoutingPriority,
    },
    google::protobuf::UInt32Value,
};

/// "first thresholds[] with priority DEFAULT" - A32
pub(super) fn circuit_breakers(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<CircuitBreakers, Invalid> {
    let Some(breakers) = &cluster.circuit_breakers else { return Ok(CircuitBreakers::default()) };
    scope.within("circuit_breakers", |scope| {
        for (index, thresholds) in breakers.per_host_thresholds.iter().enumerate() {
            scope.at("per_host_thresholds", index, |scope| per_host(thresholds, scope))?;
        }
        let default = RoutingPriority::Default as i32;
        match breakers.thresholds.iter().position(|thresholds| thresholds.priority == default) {
            Some(first) => scope.at("thresholds", first, |scope| limits(&breakers.thresholds[first], scope)),
            None => Ok(CircuitBreakers::default()),
        }
    })
}

fn per_host(thresholds: &Thresholds, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    match thresholds.max_connections {
        // "max_connections = 0" is refused (A105).
        Some(UInt32Value { value: 0 }) => Err(scope.invalid_at("max_connections", "must be at least 1")),
        set => {
            scope.unsupported(&[(set.is_some(), "max_connections")]);
            Ok(())
        }
    }
}

fn limits(thresholds: &Thresholds, scope: &mut Scope<'_>) -> Result<CircuitBreakers, Invalid> {
    scope.unsupported(&[
        (thresholds.max_connection_pools.is_some(), "max_connection_pools"),
        (thresholds.track_remaining, "track_remaining"),
    ]);
    let retry_budget = match &thresholds.retry_budget {
        Some(budget) => Some(scope.within("retry_budget", |scope| retry_budget(budget, scope))?),
        None => None,
    };
    let value = |limit: Option<UInt32Value>| limit.map(|limit| limit.value);
    Ok(CircuitBreakers {
        max_connections: value(thresholds.max_connections),
        max_requests: value(thresholds.max_requests),
        max_pending_requests: value(thresholds.max_pending_requests),
        max_retries: value(thresholds.max_retries),
        retry_budget,
    })
}

fn retry_budget(budget: &thresholds::RetryBudget, scope: &Scope<'_>) -> Result<RetryBudget, Invalid> {
    let default = RetryBudget::default();
    let percent = budget.budget_percent.map_or(default.percent, |percent| percent.value);
    // "Percent: [0, 100]" (Envoy).
    if !(0.0..=100.0).contains(&percent) {
        return Err(scope.invalid_at("budget_percent", format!("must be from 0 to 100, is {percent}")));
    }
    let min_concurrency = budget.min_retry_concurrency.map_or(default.min_concurrency, |count| count.value);
    Ok(RetryBudget { percent, min_concurrency })
}
