//! What a cluster tells the control plane about its load: `lrs_server` and `lrs_report_endpoint_metrics` (A27, A64, A85).
//!
//! It does NOT count anything; `load/` does.

use std::{collections::BTreeSet, sync::Arc};

/// The cluster has an `lrs_server`, and it is `self`: load is reported to the server that the Cluster came from.
///
/// "If `lrs_report_endpoint_metrics` is unset, nothing will be propagated from ORCA to LRS" - A85, which is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadReporting {
    /// `cpu_utilization` of backends is part of the reports.
    pub cpu_utilization: bool,
    /// `mem_utilization` is.
    pub mem_utilization: bool,
    /// `application_utilization` is.
    pub application_utilization: bool,
    /// These of the backends' own metrics are.
    pub named_metrics: NamedMetrics,
}

/// Which entries of a backend's `named_metrics` are reported.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamedMetrics {
    /// `named_metrics.<key>`, for each key.
    Keys(BTreeSet<Arc<str>>),
    /// `named_metrics.*`.
    All,
}

impl Default for NamedMetrics {
    fn default() -> Self {
        Self::Keys(BTreeSet::new())
    }
}

impl LoadReporting {
    /// Whether anything that backends say is reported, beside what is counted here.
    pub fn wants_metrics(&self) -> bool {
        *self != Self::default()
    }
}
