//! What a cluster asks of DNS: names, address families, and how often to look.
//!
//! It does NOT look anything up: `dns` does. What an answer means for a cluster's endpoints is here.

use super::{Addresses, ClusterLoadAssignment, Endpoint, Health, Locality};
use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc, time::Duration};

/// A name to be looked up. Clusters that ask for the same in the same way share its answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName {
    /// A DNS name, or an IP address, which needs no lookup.
    pub host: Arc<str>,
    /// Port of every address.
    pub port: u16,
    /// When it is looked up again.
    pub refresh: DnsRefresh,
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// When a name is looked up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsRefresh {
    /// `dns_refresh_rate`: so long after an answer. `None`: only when an endpoint behind the name fails, as gRPC does.
    pub interval: Option<Duration>,
    /// `dns_failure_refresh_rate.base_interval`: so long after the first failure in a row, and then ever longer ...
    pub failure_base: Duration,
    /// ... up to `dns_failure_refresh_rate.max_interval`.
    pub failure_max: Duration,
    /// `respect_dns_ttl`: after the answer's time to live, if the resolver tells it.
    pub respect_ttl: bool,
}

/// `Cluster.dns_lookup_family`: which of a name's addresses are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6; IPv4 if there is none.
    #[default]
    Auto,
    /// IPv4 alone.
    V4Only,
    /// IPv6 alone.
    V6Only,
    /// IPv4; IPv6 if there is none.
    V4Preferred,
    /// Both.
    All,
}

impl DnsFamily {
    /// The addresses that are used, in their order, each once.
    pub fn select(self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let of = |v6: bool| addresses.iter().any(|address| address.is_ipv6() == v6);
        let (v4, v6) = match self {
            Self::Auto => (!of(true), true),
            Self::V4Only => (true, false),
            Self::V6Only => (false, true),
            Self::V4Preferred => (true, !of(false)),
            Self::All => (true, true),
        };
        let mut seen = BTreeSet::new();
        let chosen = addresses.iter().copied().filter(|address| if address.is_ipv6() { v6 } else { v4 });
        chosen.filter(|address| seen.insert(*address)).collect()
    }
}

/// The endpoints of a LOGICAL_DNS cluster: "all resolved addresses form one endpoint in an empty locality with weight
/// 1 (A61), hostname attr = host:port" (A37). None without an address.
pub(crate) fn logical_endpoints(cluster: &str, name: &DnsName, addresses: Vec<SocketAddr>) -> ClusterLoadAssignment {
    let mut addresses = addresses.into_iter();
    let endpoint = addresses.next().map(|first| Endpoint {
        addresses: Addresses { first, additional: addresses.collect() },
        health: Health::Unknown,
        weight: 1,
        hostname: Some(name.to_string().into()),
    });
    let locality = endpoint.map(|endpoint| Locality { id: Arc::default(), weight: 1, endpoints: vec![endpoint] });
    let priorities = locality.into_iter().map(|locality| vec![locality]).collect();
    ClusterLoadAssignment { name: cluster.to_owned(), priorities, drops: Vec::new() }
}

/// The endpoints of a STRICT_DNS cluster: "each returned IP address in the DNS result will be considered an explicit
/// host" (Envoy), with the health and the weight of its name; of equal addresses the first counts.
pub(crate) fn strict_endpoints(
    assignment: &ClusterLoadAssignment<DnsName>,
    mut addresses: impl FnMut(&DnsName) -> Vec<SocketAddr>,
) -> ClusterLoadAssignment {
    let mut seen = BTreeSet::new();
    let mut resolved = |endpoint: &Endpoint<DnsName>| {
        let mut found = addresses(&endpoint.addresses);
        // Servers rotate their answers; the order of endpoints says nothing, and would be an update each time.
        found.sort_unstable();
        found.retain(|address| seen.insert(*address));
        let (health, weight, hostname) = (endpoint.health, endpoint.weight, endpoint.hostname.clone());
        let one =
            move |address| Endpoint { addresses: Addresses::one(address), health, weight, hostname: hostname.clone() };
        found.into_iter().map(one).collect::<Vec<_>>()
    };
    let mut locality = |locality: &Locality<DnsName>| Locality {
        id: Arc::clone(&locality.id),
        weight: locality.weight,
        endpoints: locality.endpoints.iter().flat_map(&mut resolved).collect(),
    };
    ClusterLoadAssignment {
        name: assignment.name.clone(),
        priorities: assignment.priorities.iter().map(|priority| priority.iter().map(&mut locality).collect()).collect(),
        drops: assignment.drops.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &str) -> Vec<SocketAddr> {
        list.split_whitespace().map(|address| address.parse().expect("an address")).collect()
    }

    #[test]
    fn families_are_chosen_as_the_field_says() {
        const BOTH: &str = "10.0.0.1:1 [::1]:1 10.0.0.2:1 [::1]:1 [::2]:1";
        for (family, from_both, from_v4, from_v6) in [
            (DnsFamily::Auto, "[::1]:1 [::2]:1", "10.0.0.1:1", "[::1]:1"),
            (DnsFamily::V4Only, "10.0.0.1:1 10.0.0.2:1", "10.0.0.1:1", ""),
            (DnsFamily::V6Only, "[::1]:1 [::2]:1", "", "[::1]:1"),
            (DnsFamily::V4Preferred, "10.0.0.1:1 10.0.0.2:1", "10.0.0.1:1", "[::1]:1"),
            (DnsFamily::All, "10.0.0.1:1 [::1]:1 10.0.0.2:1 [::2]:1", "10.0.0.1:1", "[::1]:1"),
        ] {
            for (given, wanted) in [(BOTH, from_both), ("10.0.0.1:1", from_v4), ("[::1]:1", from_v6), ("", "")] {
                assert_eq!(family.select(&addresses(given)), addresses(wanted), "{family:?} of {given}");
            }
        }
    }

    #[test]
    fn each_address_of_a_strict_name_is_an_endpoint_and_the_first_of_equal_ones_counts() {
        let refresh = DnsRefresh {
            interval: None,
            failure_base: Duration::from_secs(1),
            failure_max: Duration::from_secs(1),
            respect_ttl: false,
        };
        let endpoint = |host: &str, weight| Endpoint {
            addresses: DnsName { host: host.into(), port: 1, refresh },
            health: Health::Unknown,
            weight,
            hostname: None,
        };
        let locality = |weight, endpoints| Locality { id: Arc::default(), weight, endpoints };
        let assignment = ClusterLoadAssignment {
            name: "c".to_owned(),
            priorities: vec![
                vec![locality(7, vec![endpoint("two", 3), endpoint("none", 1)])],
                vec![locality(1, vec![endpoint("again", 5)])],
            ],
            drops: Vec::new(),
        };
        let resolved = strict_endpoints(&assignment, |name| {
            addresses(match &*name.host {
                "two" => "10.0.0.2:1 10.0.0.1:1",
                "again" => "10.0.0.3:1 10.0.0.1:1",
                _ => "",
            })
        });
        let found = |priority: usize| {
            let locality = &resolved.priorities[priority][0];
            let endpoints = locality.endpoints.iter().map(|it| (it.addresses.first.to_string(), it.weight));
            (locality.weight, endpoints.collect::<Vec<_>>())
        };
        assert_eq!(found(0), (7, vec![("10.0.0.1:1".to_owned(), 3), ("10.0.0.2:1".to_owned(), 3)]));
        assert_eq!(found(1), (1, vec![("10.0.0.3:1".to_owned(), 5)]));
    }
}
