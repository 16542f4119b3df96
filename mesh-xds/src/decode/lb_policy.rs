//! Load-balancing policies of a cluster: `lb_policy` and `load_balancing_policy` (A27, A42, A48, A52, A58, A62, A68).
//!
//! Policies that xDS knows and this client does not have yet are validated by their own rules, run as round robin and
//! are reported, so that a control plane's mistake shows today and not on the day of the upgrade.

use super::{
    basics::{optional_duration, type_name, unpack},
    scope::Scope,
};
use crate::resource::{Invalid, LbPolicy};
use envoy_types::pb::{
    envoy::{
        config::cluster::v3::{
            self as pb,
            cluster::{self, LbConfig},
        },
        extensions::load_balancing_policies::{
            client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
            least_request::v3::LeastRequest,
            maglev::v3::Maglev,
            pick_first::v3::PickFirst,
            random::v3::Random,
            random_subsetting::v3::RandomSubsetting,
            ring_hash::v3::{RingHash, ring_hash::HashFunction},
            round_robin::v3::RoundRobin,
            wrr_locality::v3::WrrLocality,
        },
    },
    google::protobuf::{Any, UInt32Value, UInt64Value},
};
use prost::Name;

const AS_ROUND_ROBIN: &str = "not supported yet: runs as round robin";
/// "LB policy nesting depth 16" - A52
const MAX_DEPTH: usize = 16;
/// "NACK above 8 388 608" - A42
const MAX_RING_SIZE: u64 = 8_388_608;
const DEFAULT_MIN_RING_SIZE: u64 = 1024;
/// Envoy's limit for Maglev tables.
const MAX_TABLE_SIZE: u64 = 5_000_011;

/// A cluster's policy: `load_balancing_policy` "overrides lb_policy/lb_config whenever present" (A52).
pub(super) fn lb_policy(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<LbPolicy, Invalid> {
    match &cluster.load_balancing_policy {
        Some(list) => scope.within("load_balancing_policy", |scope| first_supported(list, 1, scope)),
        None => legacy(cluster, scope),
    }
}

// === lb_policy ===

fn legacy(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<LbPolicy, Invalid> {
    let config = cluster.lb_config.as_ref();
    match cluster::LbPolicy::try_from(cluster.lb_policy) {
        Ok(cluster::LbPolicy::RoundRobin) => {
            if let Some(LbConfig::RoundRobinLbConfig(config)) = config {
                scope.within("round_robin_lb_config", |scope| {
                    scope.unsupported(&[(config.slow_start_config.is_some(), "slow_start_config")]);
                });
            }
            return Ok(LbPolicy::RoundRobin);
        }
        Ok(cluster::LbPolicy::Random) => return Ok(LbPolicy::Random),
        Ok(cluster::LbPolicy::LeastRequest) => {
            if let Some(LbConfig::LeastRequestLbConfig(config)) = config {
                scope.within("least_request_lb_config", |scope| choice_count(config.choice_count, scope))?;
            }
        }
        Ok(cluster::LbPolicy::RingHash) => {
            if let Some(LbConfig::RingHashLbConfig(config)) = config {
                scope.within("ring_hash_lb_config", |scope| {
                    if config.hash_function != cluster::ring_hash_lb_config::HashFunction::XxHash as i32 {
                        return Err(scope.invalid_at("hash_function", "must be XX_HASH"));
                    }
                    ring_size(config.minimum_ring_size, config.maximum_ring_size, scope)
                })?;
            }
        }
        Ok(cluster::LbPolicy::Maglev) => {
            if let Some(LbConfig::MaglevLbConfig(config)) = config {
                scope.within("maglev_lb_config", |scope| table_size(config.table_size, scope))?;
            }
        }
        Ok(cluster::LbPolicy::LoadBalancingPolicyConfig) => {
            return Err(scope.invalid_at("load_balancing_policy", "must be set"));
        }
        Ok(cluster::LbPolicy::ClusterProvided) | Err(_) => {
            return Err(scope.invalid_at("lb_policy", format!("unknown policy {}", cluster.lb_policy)));
        }
    }
    scope.ignore("lb_policy", AS_ROUND_ROBIN);
    Ok(LbPolicy::RoundRobin)
}

// === load_balancing_policy ===

// "Walk list, first supported type is converted; a supported-but-invalid config stops with error (no fall-through);
// unsupported types skipped" - A52
fn first_supported(list: &pb::LoadBalancingPolicy, depth: usize, scope: &mut Scope<'_>) -> Result<LbPolicy, Invalid> {
    if depth > MAX_DEPTH {
        return Err(scope.invalid(format!("policies are nested more than {MAX_DEPTH} deep")));
    }
    for (index, policy) in list.policies.iter().enumerate() {
        let any = policy.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref());
        let found = scope.at("policies", index, |scope| {
            scope.within("typed_extension_config", |scope| {
                scope.within("typed_config", |scope| match any {
                    Some(any) => typed(any, depth, scope),
                    None => Ok(None),
                })
            })
        })?;
        if let Some(policy) = found {
            return Ok(policy);
        }
    }
    Err(scope.invalid_at("policies", "no policy of the list is supported"))
}

/// One typed policy; `None` for an unknown type.
fn typed(any: &Any, depth: usize, scope: &mut Scope<'_>) -> Result<Option<LbPolicy>, Invalid> {
    let name = type_name(&any.type_url);
    if name == RoundRobin::full_name() {
        let config: RoundRobin = unpack(any, scope)?;
        scope.unsupported(&[(config.slow_start_config.is_some(), "slow_start_config")]);
        return Ok(Some(LbPolicy::RoundRobin));
    }
    if name == Random::full_name() {
        unpack::<Random>(any, scope)?;
        return Ok(Some(LbPolicy::Random));
    }
    if name == PickFirst::full_name() {
        let config: PickFirst = unpack(any, scope)?;
        return Ok(Some(LbPolicy::PickFirst { shuffle: config.shuffle_address_list }));
    }
    if name == WrrLocality::full_name() {
        return wrr_locality(&unpack(any, scope)?, depth, scope).map(Some);
    }
    if name == RandomSubsetting::full_name() {
        return random_subsetting(&unpack(any, scope)?, depth, scope).map(Some);
    }
    if name == LeastRequest::full_name() {
        choice_count(unpack::<LeastRequest>(any, scope)?.choice_count, scope)?;
    } else if name == RingHash::full_name() {
        let config: RingHash = unpack(any, scope)?;
        // DEFAULT_HASH is XX_HASH.
        if !matches!(HashFunction::try_from(config.hash_function), Ok(HashFunction::DefaultHash | HashFunction::XxHash))
        {
            return Err(scope.invalid_at("hash_function", "must be XX_HASH"));
        }
        ring_size(config.minimum_ring_size, config.maximum_ring_size, scope)?;
    } else if name == Maglev::full_name() {
        table_size(unpack::<Maglev>(any, scope)?.table_size, scope)?;
    } else if name == ClientSideWeightedRoundRobin::full_name() {
        weighted_round_robin(&unpack(any, scope)?, scope)?;
    } else {
        return Ok(None);
    }
    scope.ignore_here(AS_ROUND_ROBIN);
    Ok(Some(LbPolicy::RoundRobin))
}

/// Localities are always picked by weight here, so the policy for their endpoints is all that is left.
fn wrr_locality(config: &WrrLocality, depth: usize, scope: &mut Scope<'_>) -> Result<LbPolicy, Invalid> {
    let Some(list) = &config.endpoint_picking_policy else {
        return Err(scope.invalid_at("endpoint_picking_policy", "must be set"));
    };
    scope.within("endpoint_picking_policy", |scope| match first_supported(list, depth + 1, scope)? {
        LbPolicy::PickFirst { .. } => {
            scope.ignore_here("pick_first under wrr_locality is not supported yet: runs as round robin");
            Ok(LbPolicy::RoundRobin)
        }
        policy => Ok(policy),
    })
}

// "subset_size > 0 (wrapper in the proto), child_policy required" - A68
fn random_subsetting(config: &RandomSubsetting, depth: usize, scope: &mut Scope<'_>) -> Result<LbPolicy, Invalid> {
    if config.subset_size.is_none_or(|size| size.value == 0) {
        return Err(scope.invalid_at("subset_size", "must be greater than 0"));
    }
    let Some(child) = &config.child_policy else {
        return Err(scope.invalid_at("child_policy", "must be set"));
    };
    scope.ignore("subset_size", "subsetting is not supported yet: all endpoints are used");
    scope.within("child_policy", |scope| first_supported(child, depth + 1, scope))
}

// === Settings of policies ===

// "choice_count < 2" is refused (A48).
fn choice_count(count: Option<UInt32Value>, scope: &Scope<'_>) -> Result<(), Invalid> {
    match count {
        Some(UInt32Value { value: value @ ..2 }) => {
            Err(scope.invalid_at("choice_count", format!("must be at least 2, is {value}")))
        }
        _ => Ok(()),
    }
}

// "either size > 8 388 608; min > max" are refused (A42).
fn ring_size(min: Option<UInt64Value>, max: Option<UInt64Value>, scope: &Scope<'_>) -> Result<(), Invalid> {
    let min = min.map_or(DEFAULT_MIN_RING_SIZE, |size| size.value);
    let max = max.map_or(MAX_RING_SIZE, |size| size.value);
    for (field, size) in [("minimum_ring_size", min), ("maximum_ring_size", max)] {
        if size > MAX_RING_SIZE {
            return Err(scope.invalid_at(field, format!("must be at most {MAX_RING_SIZE}, is {size}")));
        }
    }
    if min > max {
        return Err(scope.invalid_at("minimum_ring_size", format!("{min} is above maximum_ring_size {max}")));
    }
    Ok(())
}

// "The table size must be a prime number", at most 5 000 011 (Envoy).
fn table_size(size: Option<UInt64Value>, scope: &Scope<'_>) -> Result<(), Invalid> {
    match size {
        None => Ok(()),
        Some(size) if size.value > MAX_TABLE_SIZE => {
            Err(scope.invalid_at("table_size", format!("must be at most {MAX_TABLE_SIZE}, is {}", size.value)))
        }
        Some(size) if !is_prime(size.value) => {
            Err(scope.invalid_at("table_size", format!("must be a prime number, is {}", size.value)))
        }
        Some(_) => Ok(()),
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

// "penalty < 0" is refused (A58).
fn weighted_round_robin(config: &ClientSideWeightedRoundRobin, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    optional_duration(config.oob_reporting_period, "oob_reporting_period", scope)?;
    optional_duration(config.blackout_period, "blackout_period", scope)?;
    optional_duration(config.weight_expiration_period, "weight_expiration_period", scope)?;
    optional_duration(config.weight_update_period, "weight_update_period", scope)?;
    // Not a number is not a penalty either.
    if config.error_utilization_penalty.is_some_and(|penalty| penalty.value.is_nan() || penalty.value < 0.0) {
        return Err(scope.invalid_at("error_utilization_penalty", "must not be negative"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_prime;

    #[test]
    fn primes_are_told_from_other_numbers() {
        let primes: Vec<u64> = (0..30).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && is_prime(5_000_011) && !is_prime(65_536));
    }
}
