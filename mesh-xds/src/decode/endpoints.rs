//! EDS: localities, endpoints and drops (A27, A61, A86, A95).
//!
//! A list of ten thousand endpoints comes through here on every push, so the common endpoint costs one parse, one
//! hash and no allocation.

use super::{
    basics::{EndpointAddress, endpoint_address, fraction, type_name, unpack},
    dns::dns_name,
    scope::Scope,
};
use crate::{
    name::canonical_string,
    resource::{
        Addresses, ClusterLoadAssignment, DnsName, DnsRefresh, DropOverload, Endpoint, Health, Invalid, Locality,
        LocalityId, Millionths,
    },
};
use envoy_types::pb::envoy::config::{
    core::v3::{self as core_pb, Address, HealthStatus, Metadata, config_source::ConfigSourceSpecifier},
    endpoint::v3::{
        self as pb, cluster_load_assignment::Policy, lb_endpoint::HostIdentifier, locality_lb_endpoints::LbConfig,
    },
};
use prost::Name;
use rustc_hash::FxHashSet;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// Metadata key of A86's proxy.
const PROXY_ADDRESS: &str = "envoy.http11_proxy_transport_socket.proxy_address";

/// Where a `ClusterLoadAssignment` comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// EDS: A27's rules.
    Eds,
    /// A STATIC cluster, mostly written by hand: as in Envoy, neither locality nor weight need be set.
    Inline,
}

/// An EDS resource.
pub(super) fn endpoints(
    assignment: pb::ClusterLoadAssignment,
    scope: &mut Scope<'_>,
) -> Result<ClusterLoadAssignment, Invalid> {
    if assignment.cluster_name.is_empty() {
        return Err(scope.invalid_at("cluster_name", "must not be empty"));
    }
    socket_assignment(assignment, Origin::Eds, scope)
}

/// The `load_assignment` of a STATIC cluster.
pub(super) fn inline_endpoints(
    assignment: pb::ClusterLoadAssignment,
    scope: &mut Scope<'_>,
) -> Result<ClusterLoadAssignment, Invalid> {
    socket_assignment(assignment, Origin::Inline, scope)
}

/// The `load_assignment` of a STRICT_DNS cluster; `refresh` is when its names are looked up again.
pub(super) fn named_endpoints(
    assignment: pb::ClusterLoadAssignment,
    refresh: DnsRefresh,
    scope: &mut Scope<'_>,
) -> Result<ClusterLoadAssignment<DnsName>, Invalid> {
    let mut name = |host: &pb::Endpoint, scope: &mut Scope<'_>| {
        scope.unsupported(&[(!host.additional_addresses.is_empty(), "additional_addresses")]);
        scope.within("address", |scope| dns_name(host.address.as_ref(), refresh, scope))
    };
    load_assignment(assignment, Origin::Inline, &mut name, scope)
}

fn socket_assignment(
    assignment: pb::ClusterLoadAssignment,
    origin: Origin,
    scope: &mut Scope<'_>,
) -> Result<ClusterLoadAssignment, Invalid> {
    let expected = assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum();
    let mut seen = FxHashSet::with_capacity_and_hasher(expected, Default::default());
    load_assignment(assignment, origin, &mut |host, scope| addresses(host, &mut seen, scope), scope)
}

/// `addressed` says how an endpoint is addressed, or `None` if it cannot be reached from here.
fn load_assignment<A>(
    assignment: pb::ClusterLoadAssignment,
    origin: Origin,
    addressed: &mut impl FnMut(&pb::Endpoint, &mut Scope<'_>) -> Result<Option<A>, Invalid>,
    scope: &mut Scope<'_>,
) -> Result<ClusterLoadAssignment<A>, Invalid> {
    let mut priorities = Priorities::default();
    for (index, locality) in assignment.endpoints.into_iter().enumerate() {
        scope.at("endpoints", index, |scope| {
            let priority = locality.priority;
            match self::locality(locality, origin, addressed, scope)? {
                Some(locality) => priorities.add(priority, locality, scope),
                None => Ok(()),
            }
        })?;
    }
    let drops = match assignment.policy {
        Some(policy) => scope.within("policy", |scope| drop_overloads(policy, scope))?,
        None => Vec::new(),
    };
    Ok(ClusterLoadAssignment {
        name: canonical_string(assignment.cluster_name),
        priorities: priorities.contiguous(scope)?,
        drops,
    })
}

// === Priorities ===

/// Localities by priority while they are collected. A priority may be any u32, so it must not be an index yet.
struct Priorities<A>(BTreeMap<u32, Priority<A>>);

struct Priority<A> {
    localities: Vec<Locality<A>>,
    weight: u64,
}

impl<A> Default for Priorities<A> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<A> Priorities<A> {
    fn add(&mut self, priority: u32, locality: Locality<A>, scope: &Scope<'_>) -> Result<(), Invalid> {
        let entry = self.0.entry(priority).or_insert_with(|| Priority { localities: Vec::new(), weight: 0 });
        if entry.localities.iter().any(|other| other.id == locality.id) {
            let reason = format!("{} is in priority {priority} twice", locality.id);
            return Err(scope.invalid_at("locality", reason));
        }
        entry.weight += u64::from(locality.weight);
        if entry.weight > u64::from(u32::MAX) {
            let reason = format!("the sum of the weights in priority {priority} is above 4294967295");
            return Err(scope.invalid_at("load_balancing_weight", reason));
        }
        entry.localities.push(locality);
        Ok(())
    }

    // "gap in priorities" is refused (A27).
    fn contiguous(self, scope: &Scope<'_>) -> Result<Vec<Vec<Locality<A>>>, Invalid> {
        let mut priorities = Vec::with_capacity(self.0.len());
        for (expected, (priority, entry)) in (0..).zip(self.0) {
            if priority != expected {
                return Err(scope.invalid_at("endpoints", format!("no locality has priority {expected}")));
            }
            priorities.push(entry.localities);
        }
        Ok(priorities)
    }
}

// === Locality ===

/// One locality; `None` for one of weight zero, which is dropped before the gap check and the rest of it unread.
fn locality<A>(
    locality: pb::LocalityLbEndpoints,
    origin: Origin,
    addressed: &mut impl FnMut(&pb::Endpoint, &mut Scope<'_>) -> Result<Option<A>, Invalid>,
    scope: &mut Scope<'_>,
) -> Result<Option<Locality<A>>, Invalid> {
    let id = match (locality.locality, origin) {
        (Some(id), _) => locality_id(id),
        (None, Origin::Inline) => LocalityId::default(),
        (None, Origin::Eds) => return Err(scope.invalid_at("locality", "must be set")),
    };
    let weight = match (locality.load_balancing_weight, origin) {
        (Some(weight), _) => weight.value,
        (None, Origin::Inline) => 1,
        (None, Origin::Eds) => 0,
    };
    if weight == 0 {
        return Ok(None);
    }
    proxy_address(locality.metadata.as_ref(), scope)?;
    let lb_endpoints = match locality.lb_config {
        None => locality.lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(list)) if locality.lb_endpoints.is_empty() => list.lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(_)) => locality.lb_endpoints,
        Some(LbConfig::LedsClusterLocalityConfig(leds)) => {
            // "With LEDS config present lb_endpoints is ignored" - A95
            scope.within("leds_cluster_locality_config", |scope| leds_config(&leds, scope))?;
            Vec::new()
        }
    };
    let (mut endpoints, mut sum) = (Vec::with_capacity(lb_endpoints.len()), 0u64);
    for (index, endpoint) in lb_endpoints.into_iter().enumerate() {
        let endpoint = scope.at("lb_endpoints", index, |scope| lb_endpoint(endpoint, addressed, scope))?;
        sum += endpoint.as_ref().map_or(0, |endpoint| u64::from(endpoint.weight));
        endpoints.extend(endpoint);
    }
    if sum > u64::from(u32::MAX) {
        return Err(scope.invalid_at("lb_endpoints", format!("the sum of the weights is {sum}, above 4294967295")));
    }
    Ok(Some(Locality { id: Arc::new(id), weight, endpoints }))
}

fn locality_id(id: core_pb::Locality) -> LocalityId {
    LocalityId { region: id.region, zone: id.zone, sub_zone: id.sub_zone }
}

// "leds_config not self; collection name ending /*" are refused (A95).
fn leds_config(leds: &pb::LedsClusterLocalityConfig, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    let specifier = leds.leds_config.as_ref().and_then(|source| source.config_source_specifier.as_ref());
    if !matches!(specifier, Some(ConfigSourceSpecifier::Self_(_))) {
        return Err(scope.invalid_at("leds_config", "only self is supported"));
    }
    if leds.leds_collection_name.ends_with("/*") {
        return Err(scope.invalid_at("leds_collection_name", "glob collections are not supported"));
    }
    scope.ignore_here("LEDS is not supported: the locality has no endpoints");
    Ok(())
}

// === Endpoint ===

/// One endpoint; `None` for one that cannot be reached from here.
pub(super) fn endpoint(
    endpoint: pb::LbEndpoint,
    seen: &mut FxHashSet<SocketAddr>,
    scope: &mut Scope<'_>,
) -> Result<Option<Endpoint>, Invalid> {
    lb_endpoint(endpoint, &mut |host, scope| addresses(host, seen, scope), scope)
}

fn lb_endpoint<A>(
    endpoint: pb::LbEndpoint,
    addressed: &mut impl FnMut(&pb::Endpoint, &mut Scope<'_>) -> Result<Option<A>, Invalid>,
    scope: &mut Scope<'_>,
) -> Result<Option<Endpoint<A>>, Invalid> {
    let weight = match endpoint.load_balancing_weight {
        // "endpoint weight present and 0" is refused.
        Some(weight) if weight.value == 0 => return Err(scope.invalid_at("load_balancing_weight", "must not be 0")),
        Some(weight) => weight.value,
        None => 1,
    };
    if weight != 1 {
        // "Per-endpoint weight ignored by plain round robin" (A27), and no policy here looks at it yet.
        scope.ignore("load_balancing_weight", "endpoints of a locality have equal shares: has no effect");
    }
    proxy_address(endpoint.metadata.as_ref(), scope)?;
    if endpoint.metadata.as_ref().is_some_and(has_unread) {
        scope.ignore(METADATA, "nothing here reads it");
    }
    let health = health(endpoint.health_status, scope);
    let host = match endpoint.host_identifier {
        Some(HostIdentifier::Endpoint(host)) => host,
        Some(HostIdentifier::EndpointName(_)) => {
            scope.ignore("endpoint_name", "named endpoints are not supported: endpoint skipped");
            return Ok(None);
        }
        None => return Err(scope.invalid_at("endpoint", "must be set")),
    };
    let Some(addresses) = scope.within("endpoint", |scope| addressed(&host, scope))? else {
        return Ok(None);
    };
    let hostname = Some(host.hostname).filter(|name| !name.is_empty()).map(String::into_boxed_str);
    Ok(Some(Endpoint { addresses, health, weight, hostname }))
}

fn addresses(
    host: &pb::Endpoint,
    seen: &mut FxHashSet<SocketAddr>,
    scope: &mut Scope<'_>,
) -> Result<Option<Addresses>, Invalid> {
    let Some(first) = scope.within("address", |scope| usable(host.address.as_ref(), seen, scope))? else {
        return Ok(None);
    };
    let mut additional = Vec::with_capacity(host.additional_addresses.len());
    for (index, entry) in host.additional_addresses.iter().enumerate() {
        additional.extend(scope.at("additional_addresses", index, |scope| {
            scope.within("address", |scope| usable(entry.address.as_ref(), seen, scope))
        })?);
    }
    Ok(Some(Addresses { first, additional: additional.into_boxed_slice() }))
}

/// An address that can be dialled and was not seen before; `None` (and reported) for one that cannot be.
fn usable(
    address: Option<&Address>,
    seen: &mut FxHashSet<SocketAddr>,
    scope: &mut Scope<'_>,
) -> Result<Option<SocketAddr>, Invalid> {
    match endpoint_address(address, scope)? {
        EndpointAddress::Socket(address) if seen.insert(address) => Ok(Some(address)),
        // "endpoint address duplicated anywhere in the cluster" is refused (A27), additional ones included (A61).
        EndpointAddress::Socket(address) => Err(scope.invalid(format!("{address} is in this cluster twice"))),
        EndpointAddress::Unusable(reason) => {
            scope.ignore_here(reason);
            Ok(None)
        }
    }
}

fn health(status: i32, scope: &mut Scope<'_>) -> Health {
    match HealthStatus::try_from(status) {
        Ok(HealthStatus::Unknown) => Health::Unknown,
        Ok(HealthStatus::Healthy) => Health::Healthy,
        Ok(HealthStatus::Unhealthy) => Health::Unhealthy,
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Timeout) => Health::Timeout,
        Ok(HealthStatus::Degraded) => Health::Degraded,
        // "Only HEALTHY and UNKNOWN endpoints get traffic" (A27), and this is neither.
        Err(_) => {
            scope.ignore("health_status", "unknown value: the endpoint counts as unhealthy");
            Health::Unhealthy
        }
    }
}

/// What is said of [`has_unread`] metadata, which every endpoint of an istiod has.
pub(super) const METADATA: &str = "metadata";

/// Whether there is metadata besides the proxy's address, which is judged on its own.
pub(super) fn has_unread(metadata: &Metadata) -> bool {
    let is_proxy = |key: &String| key == PROXY_ADDRESS;
    !metadata.filter_metadata.is_empty() || !metadata.typed_filter_metadata.keys().all(is_proxy)
}

// "metadata Address without socket_address, non-IP address, or no port" is refused; "wrong-typed metadata under the
// key: ignored" (A86).
fn proxy_address(metadata: Option<&Metadata>, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    let Some(any) = metadata.and_then(|metadata| metadata.typed_filter_metadata.get(PROXY_ADDRESS)) else {
        return Ok(());
    };
    scope.within("metadata", |scope| {
        scope.key("typed_filter_metadata", PROXY_ADDRESS, |scope| {
            if type_name(&any.type_url) != Address::full_name() {
                return Ok(());
            }
            // "known type that fails to parse -> NACK" - A83
            match endpoint_address(Some(&unpack(any, scope)?), scope)? {
                EndpointAddress::Socket(_) => {
                    scope.ignore_here("HTTP CONNECT proxies are not supported: has no effect")
                }
                EndpointAddress::Unusable(_) => return Err(scope.invalid("must be an IP address with a port")),
            }
            Ok(())
        })
    })
}

// === Drops ===

fn drop_overloads(policy: Policy, scope: &mut Scope<'_>) -> Result<Vec<DropOverload>, Invalid> {
    scope.unsupported(&[
        (policy.endpoint_stale_after.is_some(), "endpoint_stale_after"),
        (policy.weighted_priority_health, "weighted_priority_health"),
    ]);
    let mut drops = Vec::with_capacity(policy.drop_overloads.len());
    for (index, drop) in policy.drop_overloads.into_iter().enumerate() {
        drops.push(scope.at("drop_overloads", index, |scope| {
            if drop.category.is_empty() {
                return Err(scope.invalid_at("category", "must not be empty"));
            }
            let rate = match drop.drop_percentage {
                Some(percent) => scope.within("drop_percentage", |scope| fraction(percent, scope))?,
                None => Millionths::from_ratio(0, 1),
            };
            Ok(DropOverload { category: drop.category.into(), rate })
        })?);
    }
    Ok(drops)
}
