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
