//! What a backend says about its load in the trailers of a call (ORCA, A51), for load reports to add up.
//!
//! One trailer with one protobuf message. The message is derived here, not generated: it is one of a kind in a package
//! that `envoy-types` leaves out. Reports out of band do NOT come this way, and never reach the control plane (A64).

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName};
use prost::Message;
use std::collections::HashMap;

/// "parse the trailer once per RPC" - A51. Binary, and so base64 on the wire.
const TRAILER: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// "Implementations must accept padded and un-padded values" (gRPC over HTTP/2).
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The metrics of one call that can be part of a load report; values out of range are absent (A51).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BackendMetrics {
    /// At least 0; above 1 when the CPU is overcommitted.
    pub(crate) cpu_utilization: Option<f64>,
    /// From 0 to 1.
    pub(crate) mem_utilization: Option<f64>,
    /// At least 0.
    pub(crate) application_utilization: Option<f64>,
    /// "application specific opaque values with no validation" - A64. What is no number is left out all the same: it
    /// would spoil the sum for everybody.
    pub(crate) named_metrics: HashMap<String, f64>,
}

/// `xds.data.orca.v3.OrcaLoadReport`, as far as it goes into load reports.
#[derive(Clone, PartialEq, Message)]
struct OrcaLoadReport {
    #[prost(double, tag = "1")]
    cpu_utilization: f64,
    #[prost(double, tag = "2")]
    mem_utilization: f64,
    #[prost(map = "string, double", tag = "8")]
    named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    application_utilization: f64,
}

impl BackendMetrics {
    /// What the trailers of a call say; `None` when they say nothing, or nothing that can be read.
    pub(crate) fn from_trailers(trailers: &HeaderMap) -> Option<Self> {
        let mut values = trailers.get_all(TRAILER).iter();
        // "More than one report in the trailer: the client ignores it" - grpc-go.
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let report = OrcaLoadReport::decode(BASE64.decode(value.as_bytes()).ok()?.as_slice()).ok()?;
        let mut named_metrics = report.named_metrics;
        named_metrics.retain(|_, value| value.is_finite());
        let at_least_0 = |value: &f64| value.is_finite() && *value >= 0.0;
        Some(Self {
            // proto3 cannot tell 0 from unset: it counts as 0, as in C-core.
            cpu_utilization: Some(report.cpu_utilization).filter(at_least_0),
            mem_utilization: Some(report.mem_utilization).filter(|value| (0.0..=1.0).contains(value)),
            application_utilization: Some(report.application_utilization).filter(at_least_0),
            named_metrics,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{BASE64, BackendMetrics, OrcaLoadReport, TRAILER};
    use base64::Engine;
    use http::HeaderMap;
    use prost::Message;

    fn trailers(reports: &[OrcaLoadReport]) -> HeaderMap {
        let value = |report: &OrcaLoadReport| BASE64.encode(report.encode_to_vec()).parse().expect("base64");
        reports.iter().map(|report| (TRAILER, value(report))).collect()
    }

    #[test]
    fn values_out_of_range_are_ignored() {
        let metrics = |cpu_utilization, mem_utilization, application_utilization| {
            let named = [("good", -7.0), ("bad", f64::NAN), ("endless", f64::INFINITY)];
            let named_metrics = named.map(|(key, value)| (key.to_owned(), value)).into();
            let report = OrcaLoadReport { cpu_utilization, mem_utilization, application_utilization, named_metrics };
            BackendMetrics::from_trailers(&trailers(&[report])).expect("a report")
        };
        let named_metrics = [("good".to_owned(), -7.0)].into();
        let expected = BackendMetrics {
            cpu_utilization: Some(1.5),
            mem_utilization: Some(1.0),
            application_utilization: Some(0.0),
            named_metrics,
        };
        assert_eq!(metrics(1.5, 1.0, 0.0), expected);
        let nothing = BackendMetrics { named_metrics: expected.named_metrics, ..BackendMetrics::default() };
        for (cpu, mem, application) in [(-0.1, 1.1, -0.1), (f64::NAN, f64::NAN, f64::NAN), (f64::INFINITY, -1.0, -1.0)]
        {
            assert_eq!(metrics(cpu, mem, application), nothing);
        }
    }

    #[test]
    fn padding_may_be_there_or_not() {
        let named_metrics = [("a".to_owned(), 0.5)].into();
        let report = OrcaLoadReport { named_metrics, ..OrcaLoadReport::default() };
        let encoded = BASE64.encode(report.encode_to_vec());
        assert!(encoded.ends_with('='), "{encoded}");
        for value in [encoded.clone(), encoded.replace('=', "")] {
            let trailers = HeaderMap::from_iter([(TRAILER, value.parse().expect("base64"))]);
            let metrics = BackendMetrics::from_trailers(&trailers).expect("a report");
            assert_eq!(metrics.named_metrics["a"], 0.5);
        }
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let one = OrcaLoadReport { cpu_utilization: 0.5, ..OrcaLoadReport::default() };
        assert_eq!(BackendMetrics::from_trailers(&HeaderMap::new()), None);
        assert_eq!(BackendMetrics::from_trailers(&trailers(&[one.clone(), one])), None, "two reports");
        for value in ["%%%%", "CQAAAA", "AA=A", "b3JjYSE="] {
            let trailers = HeaderMap::from_iter([(TRAILER, value.parse().expect("a header value"))]);
            assert_eq!(BackendMetrics::from_trailers(&trailers), None, "{value}");
        }
    }
}
