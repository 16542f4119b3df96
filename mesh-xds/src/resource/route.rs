//! RDS: virtual hosts and routes (A28, A31, A44).
//!
//! Virtual hosts are behind `Arc`s and keep their identity across updates while their value is equal, so
//! that one changed virtual host of ten thousand costs one comparison each and one rebuild in all.

use super::{ClusterName, FilterOverrides, FullRegex, HeaderMatch, Millionths, RetryPolicy};
use std::{sync::Arc, time::Duration};

/// A validated `envoy.config.route.v3.RouteConfiguration`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// Resource name; empty for an unnamed inline one.
    pub name: String,
    /// In the order of the resource.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// `typed_per_filter_config`, for all virtual hosts (Envoy).
    pub overrides: FilterOverrides,
}

impl RouteConfig {
    /// The virtual host for `authority` (A28): exact, then suffix wildcard, then prefix wildcard, then `*`;
    /// within a class the longest pattern. ASCII case is folded.
    pub fn virtual_host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        let mut best: Option<((u8, usize), &Arc<VirtualHost>)> = None;
        for host in &self.virtual_hosts {
            for domain in &host.domains {
                if let Some(rank) = domain.rank(authority)
                    && best.is_none_or(|(so_far, _)| rank > so_far)
                {
                    best = Some((rank, host));
                }
            }
        }
        best.map(|(_, host)| host)
    }
}

/// One entry of `virtual_hosts`.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualHost {
    /// For people; may be empty (istiod's inbound one is).
    pub name: String,
    /// Which authorities it serves.
    pub domains: Vec<Domain>,
    /// First match wins.
    pub routes: Vec<Route>,
    /// `typed_per_filter_config`, for all routes.
    pub overrides: FilterOverrides,
}

/// A domain pattern, lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// The whole authority.
    Exact(String),
    /// `*.example.com`: what follows the star.
    Suffix(String),
    /// `example.*`: what precedes the star.
    Prefix(String),
    /// `*`.
    Any,
}

impl Domain {
    /// How well `authority` matches: a greater rank wins.
    fn rank(&self, authority: &str) -> Option<(u8, usize)> {
        let (authority, fold) = (authority.as_bytes(), <[u8]>::eq_ignore_ascii_case);
        match self {
            Self::Exact(domain) => fold(authority, domain.as_bytes()).then_some((3, domain.len())),
            // The star stands for at least one character (Envoy).
            Self::Suffix(end) if authority.len() > end.len() => {
                fold(&authority[authority.len() - end.len()..], end.as_bytes()).then_some((2, end.len()))
            }
            Self::Prefix(start) if authority.len() > start.len() => {
                fold(&authority[..start.len()], start.as_bytes()).then_some((1, start.len()))
            }
            Self::Suffix(_) | Self::Prefix(_) => None,
            Self::Any => Some((0, 0)),
        }
    }
}

/// One route that can be matched; unmatchable ones (query parameters, `cluster_header`) are not kept (A28).
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For people; may be empty.
    pub name: String,
    /// All of it must hold.
    pub matches: RouteMatch,
    /// What to do then.
    pub action: RouteAction,
    /// `typed_per_filter_config`, for all clusters.
    pub overrides: FilterOverrides,
}

/// `envoy.config.route.v3.RouteMatch`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteMatch {
    /// The path (without query).
    pub path: PathMatch,
    /// All must match.
    pub headers: Vec<HeaderMatch>,
    /// `runtime_fraction.default_value`.
    pub fraction: Option<Millionths>,
}

/// `RouteMatch.path_specifier`.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// `prefix`; may be empty, which matches everything.
    Prefix {
        /// Beginning of the path.
        value: String,
        /// `case_sensitive: false`.
        ignore_case: bool,
    },
    /// `path`.
    Exact {
        /// The whole path.
        value: String,
        /// `case_sensitive: false`.
        ignore_case: bool,
    },
    /// `safe_regex`: the whole path; `case_sensitive` has no effect on it.
    Regex(FullRegex),
}

/// `Route.action`.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteAction {
    /// `route`.
    Forward(Forward),
    /// Any other action (redirect, direct response, ...): calls that match fail UNAVAILABLE (A36). Holds the
    /// field's name.
    Unsupported(&'static str),
}

/// `envoy.config.route.v3.RouteAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// `timeout`: Envoy's, for requests that are not gRPC, from their end on. Unset = 15 s there, zero = none.
    pub timeout: Option<Duration>,
    /// `max_stream_duration.max_stream_duration`, for all calls; zero = none and overrides the HCM's (A31).
    pub max_stream_duration: Option<Duration>,
    /// `max_stream_duration.grpc_timeout_header_max`; zero = no limit from the route (A31).
    pub grpc_timeout_header_max: Option<Duration>,
    /// `idle_timeout`: how long a call may pause. Unset or zero = for ever.
    pub idle_timeout: Option<Duration>,
    /// The route's policy, or else its virtual host's (A44).
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// `auto_host_rewrite`, from a server that is trusted with it (A81): `:authority` is the endpoint's hostname.
    pub auto_host_rewrite: bool,
}

/// `RouteAction.cluster_specifier`.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterSpecifier {
    /// `cluster`.
    Cluster(ClusterName),
    /// `weighted_clusters`, without those of weight 0; the sum is in `1..=u32::MAX`.
    Weighted(Vec<WeightedCluster>),
}

impl ClusterSpecifier {
    /// Every cluster that a call may go to.
    pub fn names(&self) -> impl Iterator<Item = &ClusterName> {
        let (one, many) = match self {
            Self::Cluster(name) => (Some(name), &[][..]),
            Self::Weighted(clusters) => (None, clusters.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|cluster| &cluster.name))
    }
}

/// One share of a traffic split.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedCluster {
    /// Where to.
    pub name: ClusterName,
    /// At least 1.
    pub weight: u32,
    /// `typed_per_filter_config`: the most specific of all (A39).
    pub overrides: FilterOverrides,
}
