//! CDS: clusters whose endpoints are looked up by DNS (A37, Envoy).
//!
//! gRPC looks at the name alone. How often it is looked up, and which families count, is as in Envoy where a field
//! says so.

use super::{
    basics::{duration, optional_duration, port},
    endpoints::named_endpoints,
    scope::Scope,
};
use crate::resource::{ClusterLoadAssignment, Discovery, DnsFamily, DnsName, DnsRefresh, Invalid};
use envoy_types::pb::envoy::config::{
    cluster::v3::{
        self as pb,
        cluster::{DnsLookupFamily, RefreshRate},
    },
    core::v3::{Address, address::Address as AddressKind},
    endpoint::v3::{self as endpoint_pb, lb_endpoint::HostIdentifier},
};
use std::{sync::Arc, time::Duration};

/// Of STRICT_DNS: "if this setting is not specified, the value defaults to 5000ms" (Envoy).
const STRICT_INTERVAL: Duration = Duration::from_secs(5);

/// Of LOGICAL_DNS: gRPC's backoff between lookups that fail, 1 s to 120 s.
const LOGICAL_FAILURE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// "The value configured must be at least 1ms" (Envoy).
const LEAST: Duration = Duration::from_millis(1);

// "LOGICAL_DNS without exactly 1 locality, exactly 1 endpoint, address with non-empty host and port set; resolver_name
// set" are refused (A37).
pub(super) fn logical_dns(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    let interval = report_and_interval(cluster, scope)?;
    // gRPC never looks again without a cause; with `dns_refresh_rate` we do, as Envoy does.
    let refresh = refresh(cluster, interval, LOGICAL_FAILURE, scope)?;
    // gRPC uses addresses of both families, and so do we where Envoy's AUTO would take IPv6 alone: Happy Eyeballs (A61)
    // finds out which one works.
    let family = match family(cluster, scope)? {
        DnsFamily::Auto => DnsFamily::All,
        family => family,
    };
    let Some(assignment) = &cluster.load_assignment else {
        return Err(scope.invalid_at("load_assignment", "must be set"));
    };
    let name = scope.within("load_assignment", |scope| only_name(assignment, refresh, scope))?;
    Ok(Discovery::LogicalDns { name, family })
}

/// Each name of the assignment is looked up.
pub(super) fn strict_dns(cluster: pb::Cluster, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    let interval = report_and_interval(&cluster, scope)?.unwrap_or(STRICT_INTERVAL);
    // "If this is not specified, the failure refresh rate defaults to the DNS refresh rate" (Envoy).
    let refresh = refresh(&cluster, Some(interval), (interval, interval), scope)?;
    let family = family(&cluster, scope)?;
    let mut assignment = match cluster.load_assignment {
        Some(assignment) => scope.within("load_assignment", |scope| named_endpoints(assignment, refresh, scope))?,
        None => ClusterLoadAssignment { name: String::new(), priorities: Vec::new(), drops: Vec::new() },
    };
    if assignment.name.is_empty() {
        assignment.name = cluster.name;
    }
    Ok(Discovery::StrictDns { assignment: Arc::new(assignment), family })
}

// === How often ===

fn report_and_interval(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<Option<Duration>, Invalid> {
    if cluster.respect_dns_ttl {
        scope.ignore("respect_dns_ttl", "the system's resolver tells no TTL: has an effect only with another resolver");
    }
    scope.unsupported(&[
        (cluster.dns_jitter.is_some(), "dns_jitter"),
        (cluster.use_tcp_for_dns_lookups, "use_tcp_for_dns_lookups"),
        (!cluster.dns_resolvers.is_empty(), "dns_resolvers"),
        (cluster.dns_resolution_config.is_some(), "dns_resolution_config"),
        (cluster.typed_dns_resolver_config.is_some(), "typed_dns_resolver_config"),
    ]);
    let interval = optional_duration(cluster.dns_refresh_rate, "dns_refresh_rate", scope)?;
    match interval {
        Some(interval) if interval < LEAST => Err(scope.invalid_at("dns_refresh_rate", "must be at least 1 ms")),
        interval => Ok(interval),
    }
}

fn refresh(
    cluster: &pb::Cluster,
    interval: Option<Duration>,
    usual: (Duration, Duration),
    scope: &mut Scope<'_>,
) -> Result<DnsRefresh, Invalid> {
    let (failure_base, failure_max) = match &cluster.dns_failure_refresh_rate {
        Some(rate) => scope.within("dns_failure_refresh_rate", |scope| failure_rate(rate, scope))?,
        None => usual,
    };
    Ok(DnsRefresh { interval, failure_base, failure_max, respect_ttl: cluster.respect_dns_ttl })
}

fn failure_rate(rate: &RefreshRate, scope: &mut Scope<'_>) -> Result<(Duration, Duration), Invalid> {
    let at_least_a_millisecond = |value, field, scope: &mut Scope<'_>| {
        let interval = scope.within(field, |scope| duration(value, scope))?;
        if interval < LEAST { Err(scope.invalid_at(field, "must be at least 1 ms")) } else { Ok(interval) }
    };
    let Some(base) = rate.base_interval else {
        return Err(scope.invalid_at("base_interval", "must be set"));
    };
    let base = at_least_a_millisecond(base, "base_interval", scope)?;
    match rate.max_interval {
        // "The default is 10 times the base_interval" (Envoy).
        None => Ok((base, base.saturating_mul(10))),
        Some(max) => match at_least_a_millisecond(max, "max_interval", scope)? {
            max if max < base => Err(scope.invalid_at("max_interval", "must not be below base_interval")),
            max => Ok((base, max)),
        },
    }
}

fn family(cluster: &pb::Cluster, scope: &Scope<'_>) -> Result<DnsFamily, Invalid> {
    match DnsLookupFamily::try_from(cluster.dns_lookup_family) {
        Ok(DnsLookupFamily::Auto) => Ok(DnsFamily::Auto),
        Ok(DnsLookupFamily::V4Only) => Ok(DnsFamily::V4Only),
        Ok(DnsLookupFamily::V6Only) => Ok(DnsFamily::V6Only),
        Ok(DnsLookupFamily::V4Preferred) => Ok(DnsFamily::V4Preferred),
        Ok(DnsLookupFamily::All) => Ok(DnsFamily::All),
        Err(_) => Err(scope.invalid_at("dns_lookup_family", format!("unknown value {}", cluster.dns_lookup_family))),
    }
}

// === Names ===

fn only_name(
    assignment: &endpoint_pb::ClusterLoadAssignment,
    refresh: DnsRefresh,
    scope: &mut Scope<'_>,
) -> Result<DnsName, Invalid> {
    let [locality] = assignment.endpoints.as_slice() else {
        return Err(scope.invalid_at("endpoints", "must hold exactly one locality"));
    };
    scope.at("endpoints", 0, |scope| {
        let [endpoint] = locality.lb_endpoints.as_slice() else {
            return Err(scope.invalid_at("lb_endpoints", "must hold exactly one endpoint"));
        };
        scope.at("lb_endpoints", 0, |scope| {
            let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
                return Err(scope.invalid_at("endpoint", "must be set"));
            };
            scope.within("endpoint", |scope| {
                scope.within("address", |scope| {
                    let name = dns_name(endpoint.address.as_ref(), refresh, scope)?;
                    name.ok_or_else(|| scope.invalid_at("socket_address", "must be set"))
                })
            })
        })
    })
}

/// The name in an address; `None`, and reported, for an address that can have none.
pub(super) fn dns_name(
    address: Option<&Address>,
    refresh: DnsRefresh,
    scope: &mut Scope<'_>,
) -> Result<Option<DnsName>, Invalid> {
    let socket = match address.and_then(|address| address.address.as_ref()) {
        None => return Err(scope.invalid("must be set")),
        Some(AddressKind::SocketAddress(socket)) => socket,
        Some(AddressKind::Pipe(_) | AddressKind::EnvoyInternalAddress(_)) => {
            scope.ignore_here("only socket addresses have names: endpoint skipped");
            return Ok(None);
        }
    };
    scope.within("socket_address", |scope| {
        if !socket.resolver_name.is_empty() {
            return Err(scope.invalid_at("resolver_name", "must be empty"));
        }
        if socket.address.is_empty() {
            return Err(scope.invalid_at("address", "must not be empty"));
        }
        let port = port(socket.port_specifier.as_ref(), scope)?;
        Ok(Some(DnsName { host: socket.address.as_str().into(), port, refresh }))
    })
}
