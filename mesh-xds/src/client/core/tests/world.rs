//! What a control plane has, and what DNS has: a number per name, which decides the content.
//!
//! Odd numbers are resources that are refused, numbers from [`ERROR`] on are errors that the server reports. It does
//! NOT say what of it is told to whom.

use crate::resource::{
    Addresses, CircuitBreakers, Cluster, ClusterLoadAssignment, ClusterName, ClusterSpecifier, Discovery, DnsFamily,
    DnsName, DnsRefresh, Domain, Endpoint, FilterOverrides, Forward, Health, HttpConnectionManager, HttpProtocol,
    Invalid, Kind, LbPolicy, Listener, ListenerKind, Locality, PathMatch, Resource, Route, RouteAction, RouteConfig,
    RouteMatch, RouteSource, TransportSocket, VirtualHost,
};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

/// By kind and name.
pub(super) type World = BTreeMap<(Kind, &'static str), u32>;

/// What every control plane has, and DNS, when nothing is wrong.
#[derive(Clone, Debug)]
pub(super) struct Well {
    pub(super) worlds: [World; 3],
    pub(super) dns: BTreeMap<&'static str, u32>,
}

/// Few, so that they meet. The last one's authority is in no bootstrap.
pub(super) const NAMES: [&str; 8] = [
    "a",
    "b",
    "c",
    "xdstp://north/sim/a",
    "d",
    "xdstp://south/sim/a%2Fb?x=1&y=%20",
    "xdstp://north/sim/b?k=&l=2",
    "xdstp://nowhere/sim/a",
];

/// Those of [`NAMES`] that a bootstrap has.
pub(super) const AUTHORITIES: [&str; 2] = ["north", "south"];

/// Of DNS. Fewer still.
pub(super) const HOSTS: [&str; 3] = ["one", "two", "three"];

/// `ERROR + code` is an error with this code.
pub(super) const ERROR: u32 = 1000;

/// One of the ways in which a name can be written: `how` decides.
pub(super) fn spelled(name: &str, how: usize) -> String {
    match (name.split_once('?'), how % 4) {
        (Some((path, context)), 0) => {
            let backwards: Vec<_> = context.split('&').rev().collect();
            format!("{path}?{}", backwards.join("&"))
        }
        (Some((path, context)), 1) => format!("{}?{}#alt=a", path.replace("%2F", "%2f"), context.replace("%20", " ")),
        (None, 0) if name.starts_with("xdstp:") => name.replace("sim", "%73im"),
        _ => name.to_owned(),
    }
}

/// The resource that `number` stands for. A listener refers to its routes, or to others, routes to clusters by the bits
/// of the number, a cluster to its endpoints, to others, to clusters, or to DNS.
pub(super) fn resource(kind: Kind, name: &str, number: u32) -> Result<Resource, Invalid> {
    if number % 2 == 1 {
        return Err(Invalid::new("odd").within("number"));
    }
    let owned = || name.to_owned();
    let other = || NAMES[number as usize / 2 % NAMES.len()].to_owned();
    Ok(match kind {
        Kind::Listener => {
            let http = HttpConnectionManager {
                routes: RouteSource::Rds(if number % 32 < 24 { owned() } else { other() }),
                max_stream_duration: Some(Duration::from_secs(u64::from(number))),
                filters: Vec::new(),
            };
            Resource::Listener(Arc::new(Listener { name: owned(), kind: ListenerKind::Api(http) }))
        }
        Kind::RouteConfig => {
            // Four of all names, from one on that the higher bits tell.
            let some = NAMES.iter().cycle().skip(number as usize / 32 * 2).take(4);
            let clusters = some.enumerate().filter(|(bit, _)| number >> (bit + 1) & 1 == 1);
            let routes = clusters.map(|(_, cluster)| route((*cluster).into())).collect();
            let host = VirtualHost {
                name: owned(),
                domains: vec![Domain::Any],
                routes,
                overrides: FilterOverrides::default(),
            };
            Resource::RouteConfig(Arc::new(RouteConfig {
                name: owned(),
                virtual_hosts: vec![Arc::new(host)],
                overrides: FilterOverrides::default(),
            }))
        }
        Kind::Cluster => Resource::Cluster(Arc::new(Cluster {
            name: name.into(),
            discovery: match number % 64 {
                24..28 => Discovery::Eds { service_name: other() },
                // Of itself, too: cycles are cut.
                28..36 => Discovery::Aggregate([other().as_str().into(), name.into(), NAMES[0].into()].into()),
                36..44 => Discovery::LogicalDns { name: host(number / 2), family: DnsFamily::Auto },
                44..52 => Discovery::StrictDns { assignment: hosts(name, number / 2), family: DnsFamily::All },
                _ => Discovery::Eds { service_name: owned() },
            },
            lb_policy: LbPolicy::RoundRobin,
            transport_socket: TransportSocket::Plaintext,
            http_protocol: HttpProtocol::Unspecified,
            circuit_breakers: CircuitBreakers { max_requests: Some(number), ..CircuitBreakers::default() },
            outlier_detection: None,
            connect_timeout: None,
            load_reporting: None,
        })),
        _ => {
            let address = |port: u32| Addresses::one(([10, 0, 0, 1], port as u16).into());
            Resource::Endpoints(Arc::new(assignment(name, (0..number % 8).map(address))))
        }
    })
}

fn assignment<A>(name: &str, addresses: impl Iterator<Item = A>) -> ClusterLoadAssignment<A> {
    let endpoint = |addresses| Endpoint { addresses, health: Health::Healthy, weight: 1, hostname: None };
    let locality = Locality { id: Arc::default(), weight: 1, endpoints: addresses.map(endpoint).collect() };
    ClusterLoadAssignment { name: name.to_owned(), priorities: vec![vec![locality]], drops: Vec::new() }
}

// === DNS ===

fn host(number: u32) -> DnsName {
    let interval = [None, Some(5), Some(40)][number as usize % 5 % 3].map(Duration::from_secs);
    let refresh = DnsRefresh {
        interval,
        failure_base: Duration::from_secs(1),
        failure_max: Duration::from_secs(10),
        respect_ttl: false,
    };
    DnsName { host: HOSTS[number as usize % HOSTS.len()].into(), port: 80, refresh }
}

fn hosts(cluster: &str, number: u32) -> Arc<ClusterLoadAssignment<DnsName>> {
    Arc::new(assignment(cluster, [host(number), host(number + 1)].into_iter()))
}

/// What DNS says when it says `number`; no address is a failure.
pub(super) fn addresses(number: u32) -> Vec<SocketAddr> {
    let address = |last: u32| SocketAddr::from(([10, 1, number as u8, last as u8], 80));
    (0..number % 4).map(address).collect()
}

pub(super) fn route(cluster: ClusterName) -> Route {
    let path = PathMatch::Prefix { value: String::new(), ignore_case: false };
    let forward = Forward {
        cluster: ClusterSpecifier::Cluster(cluster),
        timeout: None,
        max_stream_duration: None,
        grpc_timeout_header_max: None,
        idle_timeout: None,
        retry_policy: None,
        auto_host_rewrite: false,
    };
    Route {
        name: String::new(),
        matches: RouteMatch { path, headers: Vec::new(), fraction: None },
        action: RouteAction::Forward(forward),
        overrides: FilterOverrides::default(),
    }
}
