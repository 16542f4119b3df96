//! CDS: clusters whose endpoints are looked up by DNS (A37, Envoy).
//!
//! LOGICAL_DNS, STRICT_DNS, and `DnsCluster`, which is either. gRPC looks at the name alone. How often it is looked up,
//! and which families count, is as in Envoy where a field says so. It does NOT know names that need no lookup:
//! `endpoints` has STATIC.

use super::{
    basics::{duration, optional_duration, port, unpack},
    endpoints::named_endpoints,
    scope::Scope,
};
use crate::resource::{ClusterLoadAssignment, Discovery, DnsFamily, DnsName, DnsRefresh, Invalid};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{self as pb, cluster::DnsLookupFamily},
            core::v3::{Address, address::Address as AddressKind},
            endpoint::v3::{self as endpoint_pb, lb_endpoint::HostIdentifier},
        },
        extensions::clusters::{common::dns::v3::DnsLookupFamily as ExtensionFamily, dns::v3::DnsCluster},
    },
    google::protobuf::{self, Any},
};
use std::{sync::Arc, time::Duration};

/// "If this setting is not specified, the value defaults to 5000ms" (Envoy).
const INTERVAL: Duration = Duration::from_secs(5);

/// Of LOGICAL_DNS: gRPC's backoff between lookups that fail, 1 s to 120 s.
const LOGICAL_FAILURE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// "The value configured must be at least 1ms" (Envoy).
const LEAST: Duration = Duration::from_millis(1);

/// `dns_min_refresh_rate`: "the value must be at least 1 second" (Envoy).
const LEAST_FLOOR: Duration = Duration::from_secs(1);

/// What a cluster asks of its lookups.
struct Lookups {
    refresh: DnsRefresh,
    family: DnsFamily,
}

pub(super) fn logical_dns(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    let (interval, failure) = rates_of_cluster(cluster, scope)?;
    // gRPC never looks again without a cause; with `dns_refresh_rate` we do, as Envoy does.
    let refresh = refresh(interval, failure.unwrap_or(LOGICAL_FAILURE), cluster.respect_dns_ttl);
    let lookups = Lookups { refresh, family: family_of_cluster(cluster, scope)? };
    one_endpoint(cluster, lookups, scope)
}

pub(super) fn strict_dns(cluster: pb::Cluster, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    let rates = rates_of_cluster(&cluster, scope)?;
    let lookups =
        Lookups { refresh: envoy_refresh(rates, cluster.respect_dns_ttl), family: family_of_cluster(&cluster, scope)? };
    endpoint_for_each_address(cluster, lookups, scope)
}

/// A `DnsCluster`, which Envoy has instead of both types and gRPC does not know: as Envoy has it.
pub(super) fn dns_cluster(cluster: pb::Cluster, config: &Any, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    for (is_set, field) in [
        (cluster.dns_refresh_rate.is_some(), "dns_refresh_rate"),
        (cluster.dns_failure_refresh_rate.is_some(), "dns_failure_refresh_rate"),
        (cluster.respect_dns_ttl, "respect_dns_ttl"),
        (cluster.dns_lookup_family != 0, "dns_lookup_family"),
        (cluster.dns_jitter.is_some(), "dns_jitter"),
        (cluster.typed_dns_resolver_config.is_some(), "typed_dns_resolver_config"),
    ] {
        if is_set {
            // "When cluster_type is configured with DnsCluster, this field will be ignored" (Envoy).
            scope.ignore(field, "the DnsCluster in cluster_type replaces it");
        }
    }
    let of_config = |scope: &mut Scope<'_>| {
        let config: DnsCluster = unpack(config, scope)?;
        let lookups = lookups_of_extension(&config, scope)?;
        Ok((lookups, config.all_addresses_in_single_endpoint))
    };
    let (lookups, single_endpoint) = scope.within("cluster_type", |scope| scope.within("typed_config", of_config))?;
    match single_endpoint {
        true => one_endpoint(&cluster, lookups, scope),
        false => endpoint_for_each_address(cluster, lookups, scope),
    }
}

// === Endpoints ===

// "LOGICAL_DNS without exactly 1 locality, exactly 1 endpoint, address with non-empty host and port set; resolver_name
// set" are refused (A37).
fn one_endpoint(cluster: &pb::Cluster, lookups: Lookups, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    // gRPC uses addresses of both families, and so do we where Envoy's AUTO would take IPv6 alone: Happy Eyeballs (A61)
    // finds out which one works.
    let family = match lookups.family {
        DnsFamily::Auto => DnsFamily::All,
        family => family,
    };
    let Some(assignment) = &cluster.load_assignment else {
        return Err(scope.invalid_at("load_assignment", "must be set"));
    };
    let name = scope.within("load_assignment", |scope| only_name(assignment, lookups.refresh, scope))?;
    Ok(Discovery::LogicalDns { name, family })
}

/// Each name of the assignment is looked up.
fn endpoint_for_each_address(
    cluster: pb::Cluster,
    Lookups { refresh, family }: Lookups,
    scope: &mut Scope<'_>,
) -> Result<Discovery, Invalid> {
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

/// The pause after an answer, and the shortest and longest after failures.
type Rates = (Option<Duration>, Option<(Duration, Duration)>);

fn rates_of_cluster(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<Rates, Invalid> {
    report_ttl(cluster.respect_dns_ttl, scope);
    scope.unsupported(&[
        (cluster.dns_jitter.is_some(), "dns_jitter"),
        (cluster.use_tcp_for_dns_lookups, "use_tcp_for_dns_lookups"),
        (!cluster.dns_resolvers.is_empty(), "dns_resolvers"),
        (cluster.dns_resolution_config.is_some(), "dns_resolution_config"),
        (cluster.typed_dns_resolver_config.is_some(), "typed_dns_resolver_config"),
    ]);
    let failure = cluster.dns_failure_refresh_rate.map(|rate| (rate.base_interval, rate.max_interval));
    rates(cluster.dns_refresh_rate, failure, scope)
}

fn lookups_of_extension(config: &DnsCluster, scope: &mut Scope<'_>) -> Result<Lookups, Invalid> {
    report_ttl(config.respect_dns_ttl, scope);
    scope.unsupported(&[
        (config.dns_jitter.is_some(), "dns_jitter"),
        (config.dns_min_refresh_rate.is_some(), "dns_min_refresh_rate"),
        (config.typed_dns_resolver_config.is_some(), "typed_dns_resolver_config"),
    ]);
    let failure = config.dns_failure_refresh_rate.map(|rate| (rate.base_interval, rate.max_interval));
    let refresh = envoy_refresh(rates(config.dns_refresh_rate, failure, scope)?, config.respect_dns_ttl);
    match optional_duration(config.dns_min_refresh_rate, "dns_min_refresh_rate", scope)? {
        Some(floor) if floor < LEAST_FLOOR => {
            return Err(scope.invalid_at("dns_min_refresh_rate", "must be at least 1 s"));
        }
        _ => {}
    }
    let family = match ExtensionFamily::try_from(config.dns_lookup_family) {
        Ok(ExtensionFamily::Unspecified | ExtensionFamily::Auto) => DnsFamily::Auto,
        Ok(ExtensionFamily::V4Only) => DnsFamily::V4Only,
        Ok(ExtensionFamily::V6Only) => DnsFamily::V6Only,
        Ok(ExtensionFamily::V4Preferred) => DnsFamily::V4Preferred,
        Ok(ExtensionFamily::All) => DnsFamily::All,
        Err(_) => return Err(unknown_family(config.dns_lookup_family, scope)),
    };
    Ok(Lookups { refresh, family })
}

fn report_ttl(respect_dns_ttl: bool, scope: &mut Scope<'_>) {
    if respect_dns_ttl {
        scope.ignore("respect_dns_ttl", "the system's resolver tells no TTL: has an effect only with another resolver");
    }
}

/// `dns_refresh_rate`, and the two intervals of `dns_failure_refresh_rate`.
fn rates(
    interval: Option<protobuf::Duration>,
    failure: Option<(Option<protobuf::Duration>, Option<protobuf::Duration>)>,
    scope: &mut Scope<'_>,
) -> Result<Rates, Invalid> {
    let interval = match optional_duration(interval, "dns_refresh_rate", scope)? {
        Some(interval) if interval < LEAST => {
            return Err(scope.invalid_at("dns_refresh_rate", "must be at least 1 ms"));
        }
        interval => interval,
    };
    let failure = match failure {
        Some((base, max)) => Some(scope.within("dns_failure_refresh_rate", |scope| failure_rate(base, max, scope))?),
        None => None,
    };
    Ok((interval, failure))
}

fn failure_rate(
    base: Option<protobuf::Duration>,
    max: Option<protobuf::Duration>,
    scope: &mut Scope<'_>,
) -> Result<(Duration, Duration), Invalid> {
    let at_least_a_millisecond = |value, field, scope: &mut Scope<'_>| {
        let interval = scope.within(field, |scope| duration(value, scope))?;
        if interval < LEAST { Err(scope.invalid_at(field, "must be at least 1 ms")) } else { Ok(interval) }
    };
    let Some(base) = base else {
        return Err(scope.invalid_at("base_interval", "must be set"));
    };
    let base = at_least_a_millisecond(base, "base_interval", scope)?;
    match max {
        // "The default is 10 times the base_interval" (Envoy).
        None => Ok((base, base.saturating_mul(10))),
        Some(max) => match at_least_a_millisecond(max, "max_interval", scope)? {
            max if max < base => Err(scope.invalid_at("max_interval", "must not be below base_interval")),
            max => Ok((base, max)),
        },
    }
}

fn envoy_refresh((interval, failure): Rates, respect_ttl: bool) -> DnsRefresh {
    let interval = interval.unwrap_or(INTERVAL);
    // "If this is not specified, the failure refresh rate defaults to the DNS refresh rate" (Envoy).
    refresh(Some(interval), failure.unwrap_or((interval, interval)), respect_ttl)
}

fn refresh(
    interval: Option<Duration>,
    (failure_base, failure_max): (Duration, Duration),
    respect_ttl: bool,
) -> DnsRefresh {
    DnsRefresh { interval, failure_base, failure_max, respect_ttl }
}

fn family_of_cluster(cluster: &pb::Cluster, scope: &Scope<'_>) -> Result<DnsFamily, Invalid> {
    match DnsLookupFamily::try_from(cluster.dns_lookup_family) {
        Ok(DnsLookupFamily::Auto) => Ok(DnsFamily::Auto),
        Ok(DnsLookupFamily::V4Only) => Ok(DnsFamily::V4Only),
        Ok(DnsLookupFamily::V6Only) => Ok(DnsFamily::V6Only),
        Ok(DnsLookupFamily::V4Preferred) => Ok(DnsFamily::V4Preferred),
        Ok(DnsLookupFamily::All) => Ok(DnsFamily::All),
        Err(_) => Err(unknown_family(cluster.dns_lookup_family, scope)),
    }
}

fn unknown_family(value: i32, scope: &Scope<'_>) -> Invalid {
    scope.invalid_at("dns_lookup_family", format!("unknown value {value}"))
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
