//! CDS: `lrs_server` and `lrs_report_endpoint_metrics` (A27, A64, A85).

use super::scope::Scope;
use crate::resource::{Invalid, LoadReporting, NamedMetrics};
use envoy_types::pb::envoy::config::{cluster::v3 as pb, core::v3::config_source::ConfigSourceSpecifier};

/// Where the cluster reports its load, and which metrics of its backends are part of that.
// "lrs_server set but not self" is refused (A27).
pub(super) fn load_reporting(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<Option<LoadReporting>, Invalid> {
    match cluster.lrs_server.as_ref().map(|source| &source.config_source_specifier) {
        Some(Some(ConfigSourceSpecifier::Self_(_))) => Ok(Some(metrics(&cluster.lrs_report_endpoint_metrics, scope))),
        Some(_) => Err(scope.invalid_at("lrs_server", "only self is supported")),
        None => {
            if !cluster.lrs_report_endpoint_metrics.is_empty() {
                scope.ignore("lrs_report_endpoint_metrics", "lrs_server is not set: has no effect");
            }
            Ok(None)
        }
    }
}

fn metrics(names: &[String], scope: &mut Scope<'_>) -> LoadReporting {
    let mut wanted = LoadReporting::default();
    for (index, name) in names.iter().enumerate() {
        match (name.as_str(), name.strip_prefix("named_metrics.")) {
            ("cpu_utilization", _) => wanted.cpu_utilization = true,
            ("mem_utilization", _) => wanted.mem_utilization = true,
            ("application_utilization", _) => wanted.application_utilization = true,
            // "The special map key * means to report all entries in the map" (Envoy).
            (_, Some("*")) => wanted.named_metrics = NamedMetrics::All,
            (_, Some(key)) => {
                if let NamedMetrics::Keys(keys) = &mut wanted.named_metrics {
                    keys.insert(key.into());
                }
            }
            // "implementations should ignore any strings that do not match a currently supported ORCA field" - A85
            _ => scope.at("lrs_report_endpoint_metrics", index, |scope| {
                scope.ignore_here("no metric that is reported: has no effect");
            }),
        }
    }
    wanted
}
