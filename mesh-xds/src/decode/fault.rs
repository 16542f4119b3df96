//! `HTTPFault`: which faults are injected into which calls (A33, and Envoy for the fields that gRPC does not read).
//!
//! "NACK: nothing beyond decode errors" - A33. What can never be injected is reported instead. It does NOT throw dice.

use super::{
    basics::{denominator, duration},
    matcher::header,
    scope::Scope,
};
use crate::{
    name::canonical,
    resource::{AbortSource, ClusterName, DelaySource, FaultAbort, FaultDelay, FaultPercentage, HttpFault, Invalid},
};
use envoy_types::pb::envoy::{
    extensions::filters::{
        common::fault::v3::{self as common, fault_delay::FaultDelaySecifier},
        http::fault::v3::{self as pb, fault_abort::ErrorType},
    },
    r#type::v3::FractionalPercent,
};
use http::StatusCode;

/// A gRPC status code without a name of its own is this one.
const UNKNOWN: u8 = 2;

/// An `HTTPFault`, of a filter or of an override.
pub(super) fn http_fault(fault: pb::HttpFault, scope: &mut Scope<'_>) -> Result<HttpFault, Invalid> {
    report_unsupported(&fault, scope);
    let delay = match fault.delay {
        Some(delay) => scope.within("delay", |scope| self::delay(delay, scope))?,
        None => None,
    };
    let abort = match fault.abort {
        Some(abort) => scope.within("abort", |scope| self::abort(abort, scope))?,
        None => None,
    };
    let mut headers = Vec::with_capacity(fault.headers.len());
    for (index, matcher) in fault.headers.into_iter().enumerate() {
        headers.push(scope.at("headers", index, |scope| header(matcher, scope))?);
    }
    let upstream_cluster = Some(fault.upstream_cluster).filter(|name| !name.is_empty());
    Ok(HttpFault {
        delay,
        abort,
        max_active_faults: fault.max_active_faults.map(|max| max.value),
        upstream_cluster: upstream_cluster.map(|name| ClusterName::new(canonical(&name))),
        downstream_nodes: fault.downstream_nodes,
        headers,
    })
}

fn delay(delay: common::FaultDelay, scope: &mut Scope<'_>) -> Result<Option<FaultDelay>, Invalid> {
    let percentage = percentage(delay.percentage, scope)?;
    let source = match delay.fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(fixed)) => {
            DelaySource::Fixed(scope.within("fixed_delay", |scope| duration(fixed, scope))?)
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => DelaySource::Header,
        None => {
            scope.ignore_here("neither fixed_delay nor header_delay: has no effect");
            return Ok(None);
        }
    };
    Ok(Some(FaultDelay { source, percentage }))
}

fn abort(abort: pb::FaultAbort, scope: &mut Scope<'_>) -> Result<Option<FaultAbort>, Invalid> {
    let percentage = percentage(abort.percentage, scope)?;
    let source = match abort.error_type {
        Some(ErrorType::HttpStatus(status)) => match u16::try_from(status).map(StatusCode::from_u16) {
            Ok(Ok(status)) if (200..600).contains(&status.as_u16()) => AbortSource::Http(status),
            // "outside 200..599 ignored" - grpc-go
            _ => {
                scope.ignore("http_status", "outside 200 to 599: has no effect");
                return Ok(None);
            }
        },
        // "gRPC code > 16 -> UNKNOWN" - grpc-go
        Some(ErrorType::GrpcStatus(code)) => AbortSource::Grpc(u8::try_from(code).map_or(UNKNOWN, known_code)),
        Some(ErrorType::HeaderAbort(_)) => AbortSource::Header,
        None => {
            scope.ignore_here("neither http_status, grpc_status nor header_abort: has no effect");
            return Ok(None);
        }
    };
    Ok(Some(FaultAbort { source, percentage, text: Some(abort.response_body).filter(|text| !text.is_empty()) }))
}

fn known_code(code: u8) -> u8 {
    if code <= 16 { code } else { UNKNOWN }
}

/// "missing percentage = 0 %" - A33
fn percentage(percent: Option<FractionalPercent>, scope: &mut Scope<'_>) -> Result<FaultPercentage, Invalid> {
    let Some(percent) = percent else {
        scope.ignore("percentage", "not set, which is 0 %: has no effect");
        return Ok(FaultPercentage::NONE);
    };
    let denominator = scope.within("percentage", |scope| denominator(percent, scope))?;
    Ok(FaultPercentage { numerator: percent.numerator, denominator })
}

fn report_unsupported(fault: &pb::HttpFault, scope: &mut Scope<'_>) {
    scope.unsupported(&[
        (fault.response_rate_limit.is_some(), "response_rate_limit"),
        (!fault.delay_percent_runtime.is_empty(), "delay_percent_runtime"),
        (!fault.abort_percent_runtime.is_empty(), "abort_percent_runtime"),
        (!fault.delay_duration_runtime.is_empty(), "delay_duration_runtime"),
        (!fault.abort_http_status_runtime.is_empty(), "abort_http_status_runtime"),
        (!fault.max_active_faults_runtime.is_empty(), "max_active_faults_runtime"),
        (!fault.response_rate_limit_percent_runtime.is_empty(), "response_rate_limit_percent_runtime"),
        (!fault.abort_grpc_status_runtime.is_empty(), "abort_grpc_status_runtime"),
        (fault.disable_downstream_cluster_stats, "disable_downstream_cluster_stats"),
        (fault.filter_metadata.is_some(), "filter_metadata"),
    ]);
}
