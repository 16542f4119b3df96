//! What an assignment asks for: which addresses are endpoints, in which order, priority and locality.
//!
//! Here policies differ: for pick_first all addresses of a priority are one endpoint. This file does NOT know who is
//! connected.

use mesh_xds::resource::{Addresses, ClusterLoadAssignment, LbPolicy};
use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
};

/// An assignment as the policy sees it: address lists in order, and how they fall into priorities and localities.
pub(super) struct Wanted {
    pub(super) addresses: Vec<Addresses>,
    /// Weight and number of endpoints of each locality of each priority.
    pub(super) priorities: Vec<Vec<(u32, usize)>>,
}

impl Wanted {
    pub(super) fn new(policy: &LbPolicy, assignment: &ClusterLoadAssignment) -> Self {
        let mut wanted = Self { addresses: Vec::new(), priorities: Vec::with_capacity(assignment.priorities.len()) };
        for localities in &assignment.priorities {
            let before = wanted.addresses.len();
            // "Only HEALTHY and UNKNOWN endpoints get traffic" (A27).
            let usable = localities.iter().map(|locality| {
                let endpoints = locality.endpoints.iter().filter(|endpoint| endpoint.health.is_usable());
                (locality.weight, endpoints)
            });
            let groups = match policy {
                // One endpoint with every address: Happy Eyeballs over all of them is pick_first (A61, A62).
                LbPolicy::PickFirst { shuffle } => {
                    let mut endpoints: Vec<_> = usable.flat_map(|(_, endpoints)| endpoints).collect();
                    if *shuffle {
                        fastrand::shuffle(&mut endpoints);
                    }
                    let all = endpoints.into_iter().flat_map(|endpoint| endpoint.addresses.iter());
                    wanted.addresses.extend(interleaved(all.collect()));
                    vec![(1, wanted.addresses.len() - before)]
                }
                _ => usable
                    .map(|(weight, endpoints)| {
                        let before = wanted.addresses.len();
                        wanted.addresses.extend(endpoints.map(|endpoint| endpoint.addresses.clone()));
                        (weight, wanted.addresses.len() - before)
                    })
                    .collect(),
            };
            wanted.priorities.push(groups);
        }
        wanted
    }
}

/// Deduplicated, families in turn, starting with the first one's (A61).
fn interleaved(addresses: Vec<SocketAddr>) -> Option<Addresses> {
    let first_is_v6 = addresses.first()?.is_ipv6();
    let mut seen = BTreeSet::new();
    let unique: Vec<_> = addresses.into_iter().filter(|address| seen.insert(*address)).collect();
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        unique.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut order = Vec::with_capacity(first.len() + second.len());
    while let Some(address) = first.pop_front() {
        order.push(address);
        order.extend(second.pop_front());
    }
    order.extend(second);
    let mut order = order.into_iter();
    Some(Addresses { first: order.next()?, additional: order.collect() })
}

#[cfg(test)]
mod tests {
    use super::Wanted;
    use mesh_xds::resource::{Addresses, ClusterLoadAssignment, Endpoint, Health, LbPolicy, Locality};
    use std::{net::SocketAddr, sync::Arc};

    fn locality(weight: u32, endpoints: &[(&str, Health)]) -> Locality {
        let endpoint = |&(addresses, health): &(&str, Health)| {
            let mut addresses = addresses.split(' ').map(|address| address.parse().expect("an address"));
            let first: SocketAddr = addresses.next().expect("at least one");
            Endpoint {
                addresses: Addresses { first, additional: addresses.collect() },
                health,
                weight: 1,
                hostname: None,
            }
        };
        Locality { id: Arc::default(), weight, endpoints: endpoints.iter().map(endpoint).collect() }
    }

    fn wanted(policy: &LbPolicy, priorities: Vec<Vec<Locality>>) -> Wanted {
        Wanted::new(policy, &ClusterLoadAssignment { name: "c".to_owned(), priorities, drops: Vec::new() })
    }

    fn text(addresses: &Addresses) -> String {
        addresses.iter().map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_healthy_and_unknown_endpoints_are_wanted() {
        let all = [
            ("10.0.0.1:1", Health::Unknown),
            ("10.0.0.2:1", Health::Healthy),
            ("10.0.0.3:1", Health::Unhealthy),
            ("10.0.0.4:1", Health::Draining),
            ("10.0.0.5:1", Health::Timeout),
            ("10.0.0.6:1", Health::Degraded),
        ];
        let wanted = wanted(&LbPolicy::RoundRobin, vec![vec![locality(3, &all)], vec![locality(5, &all[2..])]]);
        assert_eq!(wanted.addresses.iter().map(text).collect::<Vec<_>>(), ["10.0.0.1:1", "10.0.0.2:1"]);
        // A priority without a usable endpoint keeps its place: those behind it are for fail-over from it.
        assert_eq!(wanted.priorities, [[(3, 2)], [(5, 0)]]);
    }

    #[test]
    fn pick_first_joins_localities_without_repeats_and_takes_families_in_turn() {
        let near = locality(1, &[("10.0.0.1:1 [::1]:1", Health::Unknown), ("10.0.0.2:1", Health::Unknown)]);
        let far = locality(9, &[("10.0.0.1:1", Health::Unknown), ("[::2]:1 [::3]:1", Health::Unknown)]);
        let wanted = wanted(&LbPolicy::PickFirst { shuffle: false }, vec![vec![near, far]]);
        let addresses: Vec<_> = wanted.addresses.iter().map(text).collect();
        assert_eq!(addresses, ["10.0.0.1:1 [::1]:1 10.0.0.2:1 [::2]:1 [::3]:1"]);
        assert_eq!(wanted.priorities, [[(1, 1)]]);
    }

    #[test]
    fn shuffled_addresses_of_an_endpoint_stay_together() {
        let endpoints = [("10.0.0.1:1 10.0.0.2:1", Health::Unknown), ("10.0.0.3:1 10.0.0.4:1", Health::Unknown)];
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let wanted = wanted(&LbPolicy::PickFirst { shuffle: true }, vec![vec![locality(1, &endpoints)]]);
            seen.extend(wanted.addresses.iter().map(text));
        }
        let both = ["10.0.0.1:1 10.0.0.2:1 10.0.0.3:1 10.0.0.4:1", "10.0.0.3:1 10.0.0.4:1 10.0.0.1:1 10.0.0.2:1"];
        assert!(seen.iter().eq(both), "{seen:?}");
    }
}
