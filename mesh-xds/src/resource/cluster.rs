//! CDS: a service's clusters (A27, A29, A32, A37, A50, A52).

use super::{
    CircuitBreakers, ClusterLoadAssignment, DnsFamily, DnsName, LbPolicy, LoadReporting, OutlierDetection,
    TransportSocket,
};
use std::{fmt, sync::Arc, time::Duration};

/// Name of a Cluster resource. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// Wraps a name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, to be shared rather than copied.
    pub(crate) fn as_shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl From<&str> for ClusterName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl std::borrow::Borrow<str> for ClusterName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A validated `envoy.config.cluster.v3.Cluster`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Resource name.
    pub name: ClusterName,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How endpoints are picked.
    pub lb_policy: LbPolicy,
    /// TLS or plaintext.
    pub transport_socket: TransportSocket,
    /// From `typed_extension_protocol_options` (`HttpProtocolOptions`).
    pub http_protocol: HttpProtocol,
    /// The first of `circuit_breakers.thresholds` with priority DEFAULT.
    pub circuit_breakers: CircuitBreakers,
    /// Which endpoints get no calls for a while (A50); `None` where the cluster does not say.
    pub outlier_detection: Option<Arc<OutlierDetection>>,
    /// `lrs_server`, if load is reported.
    pub load_reporting: Option<LoadReporting>,
    /// `connect_timeout`, if set and positive; otherwise the channel's holds.
    pub connect_timeout: Option<Duration>,
}

/// How the endpoints of a cluster are found.
#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    /// EDS over ADS.
    Eds {
        /// `eds_cluster_config.service_name`, or the cluster's name.
        service_name: String,
    },
    /// `load_assignment` in the Cluster itself.
    Static(Arc<ClusterLoadAssignment>),
    /// LOGICAL_DNS (A37): one endpoint with all addresses of a name.
    LogicalDns {
        /// What to look up.
        name: DnsName,
        /// Which addresses to use.
        family: DnsFamily,
    },
    /// STRICT_DNS, as Envoy has it: each address of each name is an endpoint.
    StrictDns {
        /// `load_assignment`, with names for addresses.
        assignment: Arc<ClusterLoadAssignment<DnsName>>,
        /// Which addresses to use.
        family: DnsFamily,
    },
    /// Aggregate (A37): the clusters whose endpoints are used, in order of preference.
    Aggregate(Arc<[ClusterName]>),
}

/// Which HTTP version the endpoints speak, for requests that are not gRPC (those are always HTTP/2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpProtocol {
    /// No options: `ChannelBuilder::http_protocol` decides.
    #[default]
    Unspecified,
    /// `explicit_http_config.http_protocol_options`.
    Http1,
    /// `explicit_http_config.http2_protocol_options`.
    Http2,
    /// `use_downstream_protocol_config`: the request's version.
    Downstream,
    /// `auto_config`: ALPN under TLS, HTTP/1.1 in plaintext.
    Auto,
}
