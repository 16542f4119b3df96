//! What an assignment asks for: which addresses are endpoints, in which order, priority and locality.
//!
//! Here policies differ: for pick_first all addresses of a priority are one endpoint. This file does NOT know who is
//! connected.

use crate::endpoint::interleaved;
use mesh_xds::resource::{Addresses, Cluster, ClusterLoadAssignment, Endpoint, LbPolicy, Locality, TransportSocket};
use std::sync::Arc;

/// Why a cluster must not be connected to, if so.
pub(super) fn refusal(cluster: &Cluster) -> Option<Arc<str>> {
    match &cluster.transport_socket {
        TransportSocket::Plaintext => None,
        // "a TLS context that cannot be honoured is a connection failure, never plaintext"
        TransportSocket::Unsupported { field } => {
            Some(format!("{field} is not supported by this version: no connection is made").into())
        }
    }
}

/// An assignment as the policy sees it: address lists in order, and how they fall into priorities and localities.
pub(super) struct Wanted<'a> {
    pub(super) addresses: Vec<&'a Addresses>,
    /// Of each of them (A81); empty if none has one.
    pub(super) hostnames: Vec<Option<&'a str>>,
    /// Weight and number of endpoints of each locality of each priority.
    pub(super) priorities: Vec<Vec<(u32, usize)>>,
}

impl<'a> Wanted<'a> {
    /// No endpoint, in one priority: those behind it in an aggregate are for fail-over from it (A37).
    pub(super) fn nothing() -> Self {
        Self { addresses: Vec::new(), hostnames: Vec::new(), priorities: vec![Vec::new()] }
    }

    /// `joined` is what [`joined`] made of the same.
    pub(super) fn new(assignment: &'a ClusterLoadAssignment, joined: Option<&'a [Option<Addresses>]>) -> Self {
        let expected = assignment.endpoints().count();
        let mut wanted = Self {
            addresses: Vec::with_capacity(expected),
            hostnames: Vec::new(),
            priorities: Vec::with_capacity(assignment.priorities.len()),
        };
        for (index, localities) in assignment.priorities.iter().enumerate() {
            let mut extended_by = |addresses: &mut dyn Iterator<Item = &'a Addresses>| {
                let before = wanted.addresses.len();
                wanted.addresses.extend(addresses);
                wanted.addresses.len() - before
            };
            let groups = match joined {
                Some(joined) => vec![(1, extended_by(&mut joined[index].iter()))],
                None => localities
                    .iter()
                    .map(|locality| (locality.weight, extended_by(&mut usable(locality).map(|it| &it.addresses))))
                    .collect(),
            };
            wanted.priorities.push(groups);
        }
        if wanted.priorities.is_empty() {
            return Self::nothing();
        }
        if assignment.endpoints().any(|endpoint| endpoint.hostname.is_some()) {
            let localities = assignment.priorities.iter();
            wanted.hostnames = match joined {
                Some(joined) => {
                    localities.zip(joined).filter(|(_, it)| it.is_some()).map(|(it, _)| common(it)).collect()
                }
                None => localities.flatten().flat_map(usable).map(|endpoint| endpoint.hostname.as_deref()).collect(),
            };
        }
        wanted
    }
}

/// "Only HEALTHY and UNKNOWN endpoints get traffic" (A27).
fn usable(locality: &Locality) -> impl Iterator<Item = &Endpoint> {
    locality.endpoints.iter().filter(|endpoint| endpoint.health.is_usable())
}

/// The hostname of all usable endpoints of a priority, if they have one in common.
fn common(localities: &[Locality]) -> Option<&str> {
    let mut hostnames = localities.iter().flat_map(usable).map(|endpoint| endpoint.hostname.as_deref());
    let first = hostnames.next()?;
    first.filter(|_| hostnames.all(|hostname| hostname == first))
}

/// For pick_first, the one endpoint of each priority, with every address: Happy Eyeballs over all of them is pick_first
/// (A61, A62). `None` for other policies, which take endpoints as they are.
pub(super) fn joined(policy: &LbPolicy, assignment: &ClusterLoadAssignment) -> Option<Vec<Option<Addresses>>> {
    let LbPolicy::PickFirst { shuffle } = policy else { return None };
    let join = |localities: &Vec<Locality>| {
        let mut endpoints: Vec<_> = localities.iter().flat_map(usable).collect();
        if *shuffle {
            fastrand::shuffle(&mut endpoints);
        }
        let mut order = interleaved(endpoints.into_iter().flat_map(|endpoint| endpoint.addresses.iter())).into_iter();
        Some(Addresses { first: order.next()?, additional: order.collect() })
    };
    Some(assignment.priorities.iter().map(join).collect())
}

#[cfg(test)]
mod tests {
    use super::{Wanted, joined};
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

    type Groups = Vec<Vec<(u32, usize)>>;

    /// Address lists as text, and priorities.
    fn wanted(policy: &LbPolicy, priorities: Vec<Vec<Locality>>) -> (Vec<String>, Groups) {
        let assignment = ClusterLoadAssignment { name: "c".to_owned(), priorities, drops: Vec::new() };
        let joined = joined(policy, &assignment);
        let wanted = Wanted::new(&assignment, joined.as_deref());
        (wanted.addresses.into_iter().map(text).collect(), wanted.priorities)
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
        let (addresses, priorities) =
            wanted(&LbPolicy::RoundRobin, vec![vec![locality(3, &all)], vec![locality(5, &all[2..])]]);
        assert_eq!(addresses, ["10.0.0.1:1", "10.0.0.2:1"]);
        // A priority without a usable endpoint keeps its place: those behind it are for fail-over from it.
        assert_eq!(priorities, [[(3, 2)], [(5, 0)]]);
    }

    #[test]
    fn pick_first_joins_localities_without_repeats_and_takes_families_in_turn() {
        let near = locality(1, &[("10.0.0.1:1 [::1]:1", Health::Unknown), ("10.0.0.2:1", Health::Unknown)]);
        let far = locality(9, &[("10.0.0.1:1", Health::Unknown), ("[::2]:1 [::3]:1", Health::Unknown)]);
        let (addresses, priorities) = wanted(&LbPolicy::PickFirst { shuffle: false }, vec![vec![near, far]]);
        assert_eq!(addresses, ["10.0.0.1:1 [::1]:1 10.0.0.2:1 [::2]:1 [::3]:1"]);
        assert_eq!(priorities, [[(1, 1)]]);
    }

    #[test]
    fn shuffled_addresses_of_an_endpoint_stay_together() {
        let endpoints = [("10.0.0.1:1 10.0.0.2:1", Health::Unknown), ("10.0.0.3:1 10.0.0.4:1", Health::Unknown)];
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            seen.extend(wanted(&LbPolicy::PickFirst { shuffle: true }, vec![vec![locality(1, &endpoints)]]).0);
        }
        let both = ["10.0.0.1:1 10.0.0.2:1 10.0.0.3:1 10.0.0.4:1", "10.0.0.3:1 10.0.0.4:1 10.0.0.1:1 10.0.0.2:1"];
        assert!(seen.iter().eq(both), "{seen:?}");
    }
}
