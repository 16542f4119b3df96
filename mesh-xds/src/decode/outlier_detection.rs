//! CDS: `outlier_detection` (A50, and Envoy's consecutive errors).
//!
//! Unset and 0 are two things: an empty message means success rate, `enforcing_success_rate: 0` means none. Nothing is
//! ejected here.

use super::{basics::optional_duration, scope::Scope};
use crate::resource::{Consecutive, FailurePercentage, Invalid, LocalOrigin, OutlierDetection, SuccessRate};
use envoy_types::pb::{envoy::config::cluster::v3 as pb, google::protobuf::UInt32Value};
use std::sync::Arc;

/// `None` where the cluster says nothing.
pub(super) fn outlier_detection(
    cluster: &pb::Cluster,
    scope: &mut Scope<'_>,
) -> Result<Option<Arc<OutlierDetection>>, Invalid> {
    let Some(detection) = &cluster.outlier_detection else { return Ok(None) };
    scope.within("outlier_detection", |scope| rules(detection, scope)).map(|rules| Some(Arc::new(rules)))
}

// "durations invalid or negative; max_ejection_percent, enforcing_*, failure_percentage_threshold > 100" are refused
// (A50).
fn rules(detection: &pb::OutlierDetection, scope: &mut Scope<'_>) -> Result<OutlierDetection, Invalid> {
    let default = OutlierDetection::default();
    let interval = optional_duration(detection.interval, "interval", scope)?;
    let base_ejection_time = optional_duration(detection.base_ejection_time, "base_ejection_time", scope)?;
    let max_ejection_time = optional_duration(detection.max_ejection_time, "max_ejection_time", scope)?;
    let jitter = optional_duration(detection.max_ejection_time_jitter, "max_ejection_time_jitter", scope)?;
    for (value, field) in [
        (detection.max_ejection_percent, "max_ejection_percent"),
        (detection.enforcing_success_rate, "enforcing_success_rate"),
        (detection.failure_percentage_threshold, "failure_percentage_threshold"),
        (detection.enforcing_failure_percentage, "enforcing_failure_percentage"),
        (detection.enforcing_consecutive_5xx, "enforcing_consecutive_5xx"),
        (detection.enforcing_consecutive_gateway_failure, "enforcing_consecutive_gateway_failure"),
        (detection.enforcing_consecutive_local_origin_failure, "enforcing_consecutive_local_origin_failure"),
        (detection.enforcing_local_origin_success_rate, "enforcing_local_origin_success_rate"),
        (detection.enforcing_failure_percentage_local_origin, "enforcing_failure_percentage_local_origin"),
    ] {
        if let Some(UInt32Value { value: value @ 101.. }) = value {
            return Err(scope.invalid_at(field, format!("must be at most 100, is {value}")));
        }
    }
    scope.unsupported(&[
        (!detection.monitors.is_empty(), "monitors"),
        (detection.detect_degraded_hosts.is_some(), "detect_degraded_hosts"),
    ]);
    Ok(OutlierDetection {
        interval: interval.unwrap_or(default.interval),
        base_ejection_time: base_ejection_time.unwrap_or(default.base_ejection_time),
        max_ejection_time: max_ejection_time.unwrap_or(default.max_ejection_time),
        max_ejection_time_jitter: jitter.unwrap_or(default.max_ejection_time_jitter),
        max_ejection_percent: or(detection.max_ejection_percent, default.max_ejection_percent),
        always_eject_one_host: detection.always_eject_one_host.is_some_and(|always| always.value),
        success_rate: success_rate(detection, detection.enforcing_success_rate),
        failure_percentage: failure_percentage(detection, detection.enforcing_failure_percentage),
        consecutive_5xx: consecutive(detection.consecutive_5xx, detection.enforcing_consecutive_5xx, 100),
        consecutive_gateway_failure: consecutive(
            detection.consecutive_gateway_failure,
            detection.enforcing_consecutive_gateway_failure,
            0,
        ),
        local_origin: local_origin(detection, scope),
    })
}

// "takes effect only when split_external_local_origin_errors is set to true" (Envoy)
fn local_origin(detection: &pb::OutlierDetection, scope: &mut Scope<'_>) -> Option<LocalOrigin> {
    let (failures, enforcing) =
        (detection.consecutive_local_origin_failure, detection.enforcing_consecutive_local_origin_failure);
    let (rate, percentage) =
        (detection.enforcing_local_origin_success_rate, detection.enforcing_failure_percentage_local_origin);
    if detection.split_external_local_origin_errors {
        return Some(LocalOrigin {
            consecutive_failure: in_a_row(failures, enforcing, 100),
            success_rate: success_rate(detection, rate),
            failure_percentage: failure_percentage(detection, percentage),
        });
    }
    for (value, field) in [
        (failures, "consecutive_local_origin_failure"),
        (enforcing, "enforcing_consecutive_local_origin_failure"),
        (rate, "enforcing_local_origin_success_rate"),
        (percentage, "enforcing_failure_percentage_local_origin"),
    ] {
        if value.is_some() {
            scope.ignore(field, "has no effect without split_external_local_origin_errors");
        }
    }
    None
}

/// Envoy's default for all three.
const CONSECUTIVE: u32 = 5;

fn or(value: Option<UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

// "enforcing unset = 100; 0 → off" - A50
fn success_rate(detection: &pb::OutlierDetection, enforcing: Option<UInt32Value>) -> Option<SuccessRate> {
    let default = SuccessRate::default();
    let rate = SuccessRate {
        stdev_factor: or(detection.success_rate_stdev_factor, default.stdev_factor),
        minimum_hosts: or(detection.success_rate_minimum_hosts, default.minimum_hosts),
        request_volume: or(detection.success_rate_request_volume, default.request_volume),
        enforcing: or(enforcing, default.enforcing),
    };
    (rate.enforcing > 0).then_some(rate)
}

// "enforcing unset or 0 → off" - A50
fn failure_percentage(detection: &pb::OutlierDetection, enforcing: Option<UInt32Value>) -> Option<FailurePercentage> {
    let default = FailurePercentage::default();
    let percentage = FailurePercentage {
        threshold: or(detection.failure_percentage_threshold, default.threshold),
        minimum_hosts: or(detection.failure_percentage_minimum_hosts, default.minimum_hosts),
        request_volume: or(detection.failure_percentage_request_volume, default.request_volume),
        enforcing: or(enforcing, 0),
    };
    (percentage.enforcing > 0).then_some(percentage)
}

// On where a field of it is set: gRPC clients without those fields eject by A50 alone ("will not support").
fn consecutive(
    failures: Option<UInt32Value>,
    enforcing: Option<UInt32Value>,
    default_enforcing: u32,
) -> Option<Consecutive> {
    failures.or(enforcing)?;
    in_a_row(failures, enforcing, default_enforcing)
}

fn in_a_row(
    failures: Option<UInt32Value>,
    enforcing: Option<UInt32Value>,
    default_enforcing: u32,
) -> Option<Consecutive> {
    let rule = Consecutive { failures: or(failures, CONSECUTIVE), enforcing: or(enforcing, default_enforcing) };
    (rule.enforcing > 0 && rule.failures > 0).then_some(rule)
}
