//! Makers of routes: virtual hosts, matches, clusters, timeouts, retries.

use super::cluster::{duration, number};
use envoy_types::pb::envoy::{
    config::route::v3::{
        HeaderMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
        header_matcher::HeaderMatchSpecifier, route::Action, route_action::ClusterSpecifier,
        route_action::MaxStreamDuration, route_match::PathSpecifier, weighted_cluster::ClusterWeight,
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};
use std::time::Duration;

/// A route configuration of these virtual hosts.
pub fn route_config(name: &str, virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration { name: name.to_owned(), virtual_hosts, ..Default::default() }
}

/// A virtual host for one domain (`*` for all) that sends everything to one cluster.
pub fn virtual_host(domain: &str, cluster: &str) -> VirtualHost {
    virtual_host_with(domain, vec![route("", to_cluster(cluster))])
}

/// A virtual host for one domain that splits everything between clusters by weight.
pub fn virtual_host_weighted(domain: &str, clusters: &[(&str, u32)]) -> VirtualHost {
    virtual_host_with(domain, vec![route("", to_weighted(clusters))])
}

/// A virtual host for one domain with these routes.
pub fn virtual_host_with(domain: &str, routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name: domain.to_owned(), domains: vec![domain.to_owned()], routes, ..Default::default() }
}

/// A route for a path prefix.
pub fn route(prefix: &str, to: ClusterSpecifier) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction { cluster_specifier: Some(to), ..Default::default() })),
        ..Default::default()
    }
}

/// Everything to one cluster.
pub fn to_cluster(cluster: &str) -> ClusterSpecifier {
    ClusterSpecifier::Cluster(cluster.to_owned())
}

/// A split between clusters by weight.
pub fn to_weighted(clusters: &[(&str, u32)]) -> ClusterSpecifier {
    let clusters = clusters.iter().map(|(name, weight)| ClusterWeight {
        name: (*name).to_owned(),
        weight: number(*weight),
        ..Default::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect(), ..Default::default() })
}

/// What most routes say.
pub trait RouteExt: Sized {
    /// Matches this path alone, instead of a prefix.
    #[must_use]
    fn with_path(self, path: &str) -> Self;

    /// Asks for a header of this value, too.
    #[must_use]
    fn with_header(self, name: &str, value: &str) -> Self;

    /// How long a call may take, for proxies (`timeout`) and for proxyless clients (`max_stream_duration`). Has no effect
    /// on a route that forwards nothing.
    #[must_use]
    fn with_timeout(self, timeout: Duration) -> Self;

    /// Which failures are retried (Envoy's `retry_on`, as `unavailable,cancelled`) and how often. Has no effect on a route
    /// that forwards nothing.
    #[must_use]
    fn with_retries(self, retry_on: &str, retries: u32) -> Self;
}

impl RouteExt for Route {
    fn with_path(mut self, path: &str) -> Self {
        self.r#match.get_or_insert_default().path_specifier = Some(PathSpecifier::Path(path.to_owned()));
        self
    }

    fn with_header(mut self, name: &str, value: &str) -> Self {
        let exact = StringMatcher { match_pattern: Some(MatchPattern::Exact(value.to_owned())), ..Default::default() };
        self.r#match.get_or_insert_default().headers.push(HeaderMatcher {
            name: name.to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact)),
            ..Default::default()
        });
        self
    }

    fn with_timeout(self, timeout: Duration) -> Self {
        forwarding(self, |action| {
            action.timeout = duration(timeout);
            action.max_stream_duration =
                Some(MaxStreamDuration { max_stream_duration: duration(timeout), ..Default::default() });
        })
    }

    fn with_retries(self, retry_on: &str, retries: u32) -> Self {
        forwarding(self, |action| {
            action.retry_policy =
                Some(RetryPolicy { retry_on: retry_on.to_owned(), num_retries: number(retries), ..Default::default() });
        })
    }
}

fn forwarding(mut route: Route, change: impl FnOnce(&mut RouteAction)) -> Route {
    if let Some(Action::Route(action)) = &mut route.action {
        change(action);
    }
    route
}
