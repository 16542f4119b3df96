//! When an endpoint is taken out for how its calls end (A50, and Envoy's consecutive errors).
//!
//! Plain values with the defaults of both, made from a Cluster or by hand. Nothing is judged here.

use std::time::Duration;

/// `outlier_detection`. The default is what an empty message means: success rate alone (A50).
///
/// ```
/// use mesh_xds::resource::{Consecutive, OutlierDetection};
/// let detection = OutlierDetection { consecutive_5xx: Some(Consecutive::after(5)), ..OutlierDetection::default() };
/// # let _ = detection;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutlierDetection {
    /// Between two sweeps.
    pub interval: Duration,
    /// How long an endpoint is out, times how often it was ejected.
    pub base_ejection_time: Duration,
    /// At most; never less than `base_ejection_time`.
    pub max_ejection_time: Duration,
    /// Up to so much longer, by lot: those who went at one moment do not all come back at one.
    pub max_ejection_time_jitter: Duration,
    /// So many endpoints of the cluster may be out.
    pub max_ejection_percent: u32,
    /// One may be out whatever `max_ejection_percent` says: of ejections that are Envoy's alone, for consecutive errors and
    /// by `local_origin`. The other two let one go in any case, unless the share is 0 (A50).
    pub always_eject_one_host: bool,
    /// Ejects endpoints whose success rate is far below the others'.
    pub success_rate: Option<SuccessRate>,
    /// Ejects endpoints of whose calls too many fail.
    pub failure_percentage: Option<FailurePercentage>,
    /// Ejects after so many answers 5xx in a row; a gRPC status counts as the HTTP status that stands for it.
    pub consecutive_5xx: Option<Consecutive>,
    /// The same of 502, 503 and 504.
    pub consecutive_gateway_failure: Option<Consecutive>,
    /// Connections that break and answers that do not come count by themselves, and not as answers 503 and 504
    /// (`split_external_local_origin_errors`).
    pub local_origin: Option<LocalOrigin>,
}

/// What may eject for connections that break and answers that do not come, where they count by themselves. Any answer is a
/// success here. The default is Envoy's: failures in a row and success rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalOrigin {
    /// So many failures in a row (`consecutive_local_origin_failure`).
    pub consecutive_failure: Option<Consecutive>,
    /// A success rate far below the others' (`enforcing_local_origin_success_rate`).
    pub success_rate: Option<SuccessRate>,
    /// As many failures as the threshold, or more (`enforcing_failure_percentage_local_origin`).
    pub failure_percentage: Option<FailurePercentage>,
}

/// Success rates, compared with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SuccessRate {
    /// How many standard deviations below the mean is too far, in thousandths.
    pub stdev_factor: u32,
    /// So many endpoints must have been busy enough.
    pub minimum_hosts: u32,
    /// Calls in an interval that are enough.
    pub request_volume: u32,
    /// How often an ejection is really made, in percent.
    pub enforcing: u32,
}

/// Failures, compared with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FailurePercentage {
    /// More than so many are too many, in percent.
    pub threshold: u32,
    /// So many endpoints must have been busy enough.
    pub minimum_hosts: u32,
    /// Calls in an interval that are enough.
    pub request_volume: u32,
    /// How often an ejection is really made, in percent.
    pub enforcing: u32,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Consecutive {
    /// So many.
    pub failures: u32,
    /// How often an ejection is really made, in percent.
    pub enforcing: u32,
}

impl Consecutive {
    /// So many failures, always enforced.
    pub fn after(failures: u32) -> Self {
        Self { failures, enforcing: 100 }
    }
}

impl OutlierDetection {
    /// Whether anything of it can eject: nothing is counted if not.
    pub fn is_active(&self) -> bool {
        let by_rate = self.success_rate.is_some() || self.failure_percentage.is_some();
        let in_a_row = self.consecutive_5xx.is_some() || self.consecutive_gateway_failure.is_some();
        by_rate || in_a_row || self.local_origin.is_some_and(LocalOrigin::is_active)
    }
}

impl LocalOrigin {
    fn is_active(self) -> bool {
        self.consecutive_failure.is_some() || self.success_rate.is_some() || self.failure_percentage.is_some()
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one_host: false,
            success_rate: Some(SuccessRate::default()),
            failure_percentage: None,
            consecutive_5xx: None,
            consecutive_gateway_failure: None,
            local_origin: None,
        }
    }
}

impl Default for LocalOrigin {
    fn default() -> Self {
        Self {
            consecutive_failure: Some(Consecutive::after(5)),
            success_rate: Some(SuccessRate::default()),
            failure_percentage: None,
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { stdev_factor: 1900, minimum_hosts: 5, request_volume: 100, enforcing: 100 }
    }
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self { threshold: 85, minimum_hosts: 5, request_volume: 50, enforcing: 100 }
    }
}
