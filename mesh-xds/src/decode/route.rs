//! RDS: route configurations, virtual hosts and routes (A28, A31, A36, A63).
//!
//! What a route asks of a request is decided here for good; routes whose conditions nobody here can evaluate are
//! dropped and reported, as A28 wants it.

use super::{
    basics::{optional_duration, runtime_fraction},
    filter::overrides,
    matcher::{header, regex},
    retry::retry_policy,
    scope::Scope,
};
use crate::{
    name::{canonical, canonical_string},
    resource::{
        ClusterName, ClusterSpecifier, Domain, Forward, Invalid, PathMatch, RetryPolicy, Route, RouteAction,
        RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
    },
};
use envoy_types::pb::{
    envoy::config::{
        core::v3::RoutingPriority,
        route::v3::{
            self as pb, route,
            route_action::{self, HostRewriteSpecifier, hash_policy::PolicySpecifier},
            route_match, weighted_cluster,
        },
    },
    google::protobuf::BoolValue,
};
use std::{sync::Arc, time::Duration};

// === Route configuration ===

/// A `RouteConfiguration` that is a resource of its own.
pub(super) fn named_route_config(
    config: pb::RouteConfiguration,
    scope: &mut Scope<'_>,
) -> Result<RouteConfig, Invalid> {
    if config.name.is_empty() {
        return Err(scope.invalid_at("name", "must not be empty"));
    }
    route_config(config, scope)
}

/// A `RouteConfiguration`, perhaps inside a listener.
pub(super) fn route_config(config: pb::RouteConfiguration, scope: &mut Scope<'_>) -> Result<RouteConfig, Invalid> {
    scope.unsupported(&[
        (config.vhds.is_some(), "vhds"),
        (!config.request_headers_to_add.is_empty(), "request_headers_to_add"),
        (!config.request_headers_to_remove.is_empty(), "request_headers_to_remove"),
        (!config.response_headers_to_add.is_empty(), "response_headers_to_add"),
        (!config.response_headers_to_remove.is_empty(), "response_headers_to_remove"),
        (!config.request_mirror_policies.is_empty(), "request_mirror_policies"),
        (!config.cluster_specifier_plugins.is_empty(), "cluster_specifier_plugins"),
        (config.ignore_port_in_host_matching, "ignore_port_in_host_matching"),
        (!config.vhost_header.is_empty(), "vhost_header"),
        (config.validate_clusters.is_some(), "validate_clusters"),
        (!config.internal_only_headers.is_empty(), "internal_only_headers"),
        (config.most_specific_header_mutations_wins, "most_specific_header_mutations_wins"),
        (config.max_direct_response_body_size_bytes.is_some(), "max_direct_response_body_size_bytes"),
        (config.metadata.is_some(), "metadata"),
        (config.ignore_path_parameters_in_path_matching, "ignore_path_parameters_in_path_matching"),
        (!config.route_specifiers.is_empty(), "route_specifiers"),
    ]);
    let overrides = overrides(&config.typed_per_filter_config, scope)?;
    let mut virtual_hosts = Vec::with_capacity(config.virtual_hosts.len());
    for (index, host) in config.virtual_hosts.into_iter().enumerate() {
        virtual_hosts.push(Arc::new(scope.at("virtual_hosts", index, |scope| virtual_host(host, scope))?));
    }
    Ok(RouteConfig { name: canonical_string(config.name), virtual_hosts, overrides })
}

// === Virtual host ===

/// One entry of `virtual_hosts`.
pub(super) fn virtual_host(host: pb::VirtualHost, scope: &mut Scope<'_>) -> Result<VirtualHost, Invalid> {
    report_unsupported_of_host(&host, scope);
    if host.domains.is_empty() {
        return Err(scope.invalid_at("domains", "must not be empty"));
    }
    let mut domains = Vec::with_capacity(host.domains.len());
    for (index, pattern) in host.domains.iter().enumerate() {
        domains.push(scope.at("domains", index, |scope| domain(pattern, scope))?);
    }
    let overrides = overrides(&host.typed_per_filter_config, scope)?;
    let fallback = optional_retry_policy(host.retry_policy, scope)?;
    let mut routes = Vec::with_capacity(host.routes.len());
    for (index, route) in host.routes.into_iter().enumerate() {
        routes.extend(scope.at("routes", index, |scope| self::route(route, fallback.as_ref(), scope))?);
    }
    Ok(VirtualHost { name: host.name, domains, routes, overrides })
}

// "Pattern with * in the middle or empty: invalid" (A28). Case is folded here and at the lookup.
fn domain(pattern: &str, scope: &Scope<'_>) -> Result<Domain, Invalid> {
    let lower = pattern.to_ascii_lowercase();
    let kind = match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
        (Some(""), _) => Domain::Any,
        (Some(end), _) if !end.contains('*') => Domain::Suffix(end.to_owned()),
        (None, Some(start)) if !start.contains('*') => Domain::Prefix(start.to_owned()),
        (None, None) if !lower.is_empty() && !lower.contains('*') => Domain::Exact(lower),
        _ => return Err(scope.invalid(format!("{pattern:?} is not a domain pattern"))),
    };
    Ok(kind)
}

fn report_unsupported_of_host(host: &pb::VirtualHost, scope: &mut Scope<'_>) {
    scope.unsupported(&[
        (host.matcher.is_some(), "matcher"),
        (host.require_tls != 0, "require_tls"),
        (!host.rate_limits.is_empty(), "rate_limits"),
        (!host.request_headers_to_add.is_empty(), "request_headers_to_add"),
        (!host.request_headers_to_remove.is_empty(), "request_headers_to_remove"),
        (!host.response_headers_to_add.is_empty(), "response_headers_to_add"),
        (!host.response_headers_to_remove.is_empty(), "response_headers_to_remove"),
        (host.cors.is_some(), "cors"),
        (host.retry_policy_typed_config.is_some(), "retry_policy_typed_config"),
        (host.hedge_policy.is_some(), "hedge_policy"),
        (!host.request_mirror_policies.is_empty(), "request_mirror_policies"),
        (!host.route_specifiers.is_empty(), "route_specifiers"),
        (!host.virtual_clusters.is_empty(), "virtual_clusters"),
        (host.include_request_attempt_count, "include_request_attempt_count"),
        (host.include_attempt_count_in_response, "include_attempt_count_in_response"),
        (host.include_is_timeout_retry_header, "include_is_timeout_retry_header"),
        (host.per_request_buffer_limit_bytes.is_some(), "per_request_buffer_limit_bytes"),
        (host.metadata.is_some(), "metadata"),
    ]);
}

// === Route ===

/// One route; `None` for one that is dropped.
fn route(
    route: pb::Route,
    fallback: Option<&Arc<RetryPolicy>>,
    scope: &mut Scope<'_>,
) -> Result<Option<Route>, Invalid> {
    let Some(matches) = route.r#match else {
        return Err(scope.invalid_at("match", "must be set"));
    };
    if let Some(field) = unevaluable(&matches) {
        // "Not NACK, route silently dropped: any query_parameters" (A28); silence is not our way.
        scope.within("match", |scope| scope.ignore(field, "not supported: route skipped"));
        return Ok(None);
    }
    let matches = scope.within("match", |scope| route_match(matches, scope))?;
    scope.unsupported(&[
        (!route.request_headers_to_add.is_empty(), "request_headers_to_add"),
        (!route.request_headers_to_remove.is_empty(), "request_headers_to_remove"),
        (!route.response_headers_to_add.is_empty(), "response_headers_to_add"),
        (!route.response_headers_to_remove.is_empty(), "response_headers_to_remove"),
        (!route.route_specifiers.is_empty(), "route_specifiers"),
        (route.decorator.is_some(), "decorator"),
        (route.tracing.is_some(), "tracing"),
        (route.metadata.is_some(), "metadata"),
        (!route.stat_prefix.is_empty(), "stat_prefix"),
        (route.per_request_buffer_limit_bytes.is_some(), "per_request_buffer_limit_bytes"),
    ]);
    let overrides = overrides(&route.typed_per_filter_config, scope)?;
    let action = match route.action {
        Some(route::Action::Route(action)) => match scope.within("route", |scope| forward(action, fallback, scope))? {
            Some(forward) => RouteAction::Forward(forward),
            None => return Ok(None),
        },
        Some(route::Action::Redirect(_)) => unsupported_action("redirect", scope),
        Some(route::Action::DirectResponse(_)) => unsupported_action("direct_response", scope),
        Some(route::Action::FilterAction(_)) => unsupported_action("filter_action", scope),
        Some(route::Action::NonForwardingAction(_)) => unsupported_action("non_forwarding_action", scope),
        None => unsupported_action("action", scope),
    };
    Ok(Some(Route { name: route.name, matches, action, overrides }))
}

// "Route whose action is not `route`: kept, RPCs hitting it fail UNAVAILABLE" - A36
fn unsupported_action(field: &'static str, scope: &mut Scope<'_>) -> RouteAction {
    scope.ignore(field, "not supported: calls that match this route fail UNAVAILABLE");
    RouteAction::Unsupported(field)
}

/// The first condition that nobody here can evaluate: without it the route would match too much.
fn unevaluable(matches: &pb::RouteMatch) -> Option<&'static str> {
    [
        (!matches.query_parameters.is_empty(), "query_parameters"),
        (!matches.cookies.is_empty(), "cookies"),
        (!matches.dynamic_metadata.is_empty(), "dynamic_metadata"),
        (!matches.filter_state.is_empty(), "filter_state"),
    ]
    .into_iter()
    .find_map(|(set, field)| set.then_some(field))
}

fn route_match(matches: pb::RouteMatch, scope: &mut Scope<'_>) -> Result<RouteMatch, Invalid> {
    use route_match::PathSpecifier;
    // "Ignored sub-matchers: grpc, tls_context" - A28
    scope.unsupported(&[(matches.grpc.is_some(), "grpc"), (matches.tls_context.is_some(), "tls_context")]);
    let ignore_case = matches.case_sensitive.is_some_and(|sensitive| !sensitive.value);
    let path = match matches.path_specifier {
        Some(PathSpecifier::Prefix(value)) => PathMatch::Prefix { value, ignore_case },
        Some(PathSpecifier::Path(value)) => PathMatch::Exact { value, ignore_case },
        Some(PathSpecifier::SafeRegex(matcher)) => {
            PathMatch::Regex(scope.within("safe_regex", |scope| regex(&matcher, scope))?)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => return Err(unsupported_path("connect_matcher", scope)),
        Some(PathSpecifier::PathSeparatedPrefix(_)) => return Err(unsupported_path("path_separated_prefix", scope)),
        Some(PathSpecifier::PathMatchPolicy(_)) => return Err(unsupported_path("path_match_policy", scope)),
        None => return Err(scope.invalid("no path specifier")),
    };
    let mut headers = Vec::with_capacity(matches.headers.len());
    for (index, matcher) in matches.headers.into_iter().enumerate() {
        headers.push(scope.at("headers", index, |scope| header(matcher, scope))?);
    }
    let fraction = match matches.runtime_fraction {
        Some(percent) => Some(scope.within("runtime_fraction", |scope| runtime_fraction(&percent, scope))?),
        None => None,
    };
    Ok(RouteMatch { path, headers, fraction })
}

fn unsupported_path(field: &str, scope: &Scope<'_>) -> Invalid {
    scope.invalid_at(field, "this path specifier is not supported")
}

// === Route action ===

/// `RouteAction`; `None` when its cluster specifier is one that gRPC drops the route for.
fn forward(
    action: pb::RouteAction,
    fallback: Option<&Arc<RetryPolicy>>,
    scope: &mut Scope<'_>,
) -> Result<Option<Forward>, Invalid> {
    report_unsupported_of_action(&action, scope);
    hash_policies(&action.hash_policy, scope)?;
    let auto_host_rewrite = auto_host_rewrite(&action, scope);
    let retry_policy = optional_retry_policy(action.retry_policy, scope)?.or_else(|| fallback.cloned());
    let idle_timeout = optional_duration(action.idle_timeout, "idle_timeout", scope)?;
    let timeout = optional_duration(action.timeout, "timeout", scope)?;
    let (max_stream_duration, grpc_timeout_header_max) = match action.max_stream_duration {
        Some(limits) => scope.within("max_stream_duration", |scope| {
            scope.unsupported(&[(limits.grpc_timeout_header_offset.is_some(), "grpc_timeout_header_offset")]);
            let max = optional_duration(limits.max_stream_duration, "max_stream_duration", scope)?;
            let header_max = optional_duration(limits.grpc_timeout_header_max, "grpc_timeout_header_max", scope)?;
            Ok((max, header_max))
        })?,
        None => (None, None),
    };
    // istiod puts the same limit in both fields, and then nothing is lost.
    if timeout.is_some_and(|timeout| timeout > Duration::ZERO && max_stream_duration != Some(timeout)) {
        scope.ignore("timeout", "has no effect on gRPC calls, only on other HTTP (A31)");
    }
    let Some(cluster) = cluster_specifier(action.cluster_specifier, scope)? else {
        return Ok(None);
    };
    Ok(Some(Forward {
        cluster,
        timeout,
        max_stream_duration,
        grpc_timeout_header_max,
        idle_timeout,
        retry_policy,
        auto_host_rewrite,
    }))
}

// "only if the CP has server feature `trusted_xds_server`" - A81
fn auto_host_rewrite(action: &pb::RouteAction, scope: &mut Scope<'_>) -> bool {
    let Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true })) = action.host_rewrite_specifier else {
        return false;
    };
    if !scope.context.trusted {
        scope.ignore("auto_host_rewrite", "the server is not a trusted_xds_server: has no effect");
    }
    scope.context.trusted
}

fn cluster_specifier(
    specifier: Option<route_action::ClusterSpecifier>,
    scope: &mut Scope<'_>,
) -> Result<Option<ClusterSpecifier>, Invalid> {
    use route_action::ClusterSpecifier as Pb;
    // "Not NACK, route silently dropped: cluster specifier unset/unknown/cluster_header" - A28
    let skipped = match specifier {
        Some(Pb::Cluster(name)) if name.is_empty() => return Err(scope.invalid_at("cluster", "must not be empty")),
        Some(Pb::Cluster(name)) => return Ok(Some(ClusterSpecifier::Cluster(ClusterName::new(canonical(&name))))),
        Some(Pb::WeightedClusters(clusters)) => {
            return scope.within("weighted_clusters", |scope| weighted_clusters(clusters, scope));
        }
        Some(Pb::ClusterHeader(_)) => "cluster_header",
        Some(Pb::ClusterSpecifierPlugin(_)) => "cluster_specifier_plugin",
        Some(Pb::InlineClusterSpecifierPlugin(_)) => "inline_cluster_specifier_plugin",
        None => "cluster_specifier",
    };
    scope.ignore(skipped, "not supported: route skipped");
    Ok(None)
}

// "weighted clusters sum = 0 or > u32::MAX" are refused; "weight-0 clusters removed from the split";
// `total_weight` is ignored, as upstream has deprecated it (A28).
fn weighted_clusters(
    weighted: pb::WeightedCluster,
    scope: &mut Scope<'_>,
) -> Result<Option<ClusterSpecifier>, Invalid> {
    scope.unsupported(&[(weighted.random_value_specifier.is_some(), "random_value_specifier")]);
    let (mut clusters, mut sum) = (Vec::with_capacity(weighted.clusters.len()), 0u64);
    for (index, share) in weighted.clusters.into_iter().enumerate() {
        let overrides = scope.at("clusters", index, |scope| {
            if share.name.is_empty() && !share.cluster_header.is_empty() {
                scope.ignore("cluster_header", "not supported: route skipped");
                return Ok(None);
            }
            if share.name.is_empty() {
                return Err(scope.invalid_at("name", "must not be empty"));
            }
            report_unsupported_of_share(&share, scope);
            overrides(&share.typed_per_filter_config, scope).map(Some)
        })?;
        let Some(overrides) = overrides else {
            return Ok(None);
        };
        let weight = share.weight.map_or(0, |weight| weight.value);
        sum += u64::from(weight);
        if weight > 0 {
            clusters.push(WeightedCluster { name: ClusterName::new(canonical(&share.name)), weight, overrides });
        }
    }
    match sum {
        0 => Err(scope.invalid_at("clusters", "the sum of the weights is 0")),
        1..=0xffff_ffff => Ok(Some(ClusterSpecifier::Weighted(clusters))),
        _ => Err(scope.invalid_at("clusters", format!("the sum of the weights is {sum}, above 4294967295"))),
    }
}

fn optional_retry_policy(
    policy: Option<pb::RetryPolicy>,
    scope: &mut Scope<'_>,
) -> Result<Option<Arc<RetryPolicy>>, Invalid> {
    let Some(policy) = policy else {
        return Ok(None);
    };
    scope.within("retry_policy", |scope| retry_policy(policy, scope)).map(|policy| Some(Arc::new(policy)))
}

// "hash-policy regex invalid" is refused; "unsupported hash policy kinds are no-ops, not NACK" (A42).
fn hash_policies(policies: &[route_action::HashPolicy], scope: &mut Scope<'_>) -> Result<(), Invalid> {
    for (index, policy) in policies.iter().enumerate() {
        scope.at("hash_policy", index, |scope| {
            scope.ignore_here("hash policies are not supported yet: has no effect");
            let Some(PolicySpecifier::Header(header)) = &policy.policy_specifier else {
                return Ok(());
            };
            let Some(pattern) = header.regex_rewrite.as_ref().and_then(|rewrite| rewrite.pattern.as_ref()) else {
                return Ok(());
            };
            scope.within("header", |scope| {
                scope.within("regex_rewrite", |scope| scope.within("pattern", |scope| regex(pattern, scope)))
            })?;
            Ok(())
        })?;
    }
    Ok(())
}

fn report_unsupported_of_share(share: &weighted_cluster::ClusterWeight, scope: &mut Scope<'_>) {
    scope.unsupported(&[
        (share.metadata_match.is_some(), "metadata_match"),
        (!share.request_headers_to_add.is_empty(), "request_headers_to_add"),
        (!share.request_headers_to_remove.is_empty(), "request_headers_to_remove"),
        (!share.response_headers_to_add.is_empty(), "response_headers_to_add"),
        (!share.response_headers_to_remove.is_empty(), "response_headers_to_remove"),
        (share.host_rewrite_specifier.is_some(), "host_rewrite_literal"),
    ]);
}

fn report_unsupported_of_action(action: &pb::RouteAction, scope: &mut Scope<'_>) {
    let host_rewrite = action.host_rewrite_specifier.as_ref().map(|specifier| match specifier {
        HostRewriteSpecifier::HostRewriteLiteral(_) => (true, "host_rewrite_literal"),
        HostRewriteSpecifier::AutoHostRewrite(_) => (false, "auto_host_rewrite"),
        HostRewriteSpecifier::HostRewriteHeader(_) => (true, "host_rewrite_header"),
        HostRewriteSpecifier::HostRewritePathRegex(_) => (true, "host_rewrite_path_regex"),
        HostRewriteSpecifier::HostRewrite(_) => (true, "host_rewrite"),
    });
    scope.unsupported(&[
        host_rewrite.unwrap_or((false, "")),
        (action.metadata_match.is_some(), "metadata_match"),
        (!action.prefix_rewrite.is_empty(), "prefix_rewrite"),
        (action.regex_rewrite.is_some(), "regex_rewrite"),
        (action.path_rewrite_policy.is_some(), "path_rewrite_policy"),
        (!action.path_rewrite.is_empty(), "path_rewrite"),
        (action.append_x_forwarded_host, "append_x_forwarded_host"),
        (action.retry_policy_typed_config.is_some(), "retry_policy_typed_config"),
        (!action.request_mirror_policies.is_empty(), "request_mirror_policies"),
        (action.priority == RoutingPriority::High as i32, "priority"),
        (!action.rate_limits.is_empty(), "rate_limits"),
        (action.cors.is_some(), "cors"),
        (action.max_grpc_timeout.is_some(), "max_grpc_timeout"),
        (action.grpc_timeout_offset.is_some(), "grpc_timeout_offset"),
        (!action.upgrade_configs.is_empty(), "upgrade_configs"),
        (action.internal_redirect_policy.is_some(), "internal_redirect_policy"),
        (action.hedge_policy.is_some(), "hedge_policy"),
    ]);
}
