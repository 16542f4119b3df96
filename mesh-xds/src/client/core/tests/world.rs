//! What a control plane has: a number per name, which decides the content.
//!
//! Odd numbers are resources that are refused, numbers from [`ERROR`] on are errors that the server reports. It does
//! NOT say what of it is told to whom.

use crate::resource::{
    Addresses, Cluster, ClusterLoadAssignment, ClusterName, ClusterSpecifier, Discovery, Domain, Endpoint, Forward,
    Health, HttpConnectionManager, HttpProtocol, Invalid, Kind, LbPolicy, Listener, ListenerKind, Locality, PathMatch,
    Resource, Route, RouteAction, RouteConfig, RouteMatch, RouteSource, TransportSocket, VirtualHost,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// By kind and name.
pub(super) type World = BTreeMap<(Kind, &'static str), u32>;

/// Few, so that they meet.
pub(super) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// `ERROR + code` is an error with this code.
pub(super) const ERROR: u32 = 100;

/// The resource that `number` stands for. A listener refers to its routes, or to others when the number is large,
/// routes to clusters by the bits of the number, a cluster to its endpoints, to others, or to clusters.
pub(super) fn resource(kind: Kind, name: &str, number: u32) -> Result<Resource, Invalid> {
    if number % 2 == 1 {
        return Err(Invalid::new("odd").within("number"));
    }
    let owned = || name.to_owned();
    let other = || NAMES[number as usize % NAMES.len()].to_owned();
    Ok(match kind {
        Kind::Listener => {
            let http = HttpConnectionManager {
                routes: RouteSource::Rds(if number < 24 { owned() } else { other() }),
                max_stream_duration: Some(Duration::from_secs(u64::from(number))),
                filters: Vec::new(),
            };
            Resource::Listener(Arc::new(Listener { name: owned(), kind: ListenerKind::Api(http) }))
        }
        Kind::RouteConfig => {
            let clusters = NAMES.iter().enumerate().filter(|(bit, _)| number >> (bit + 1) & 1 == 1);
            let routes = clusters.map(|(_, cluster)| route((*cluster).into())).collect();
            let host = VirtualHost { name: owned(), domains: vec![Domain::Any], routes };
            Resource::RouteConfig(Arc::new(RouteConfig { name: owned(), virtual_hosts: vec![Arc::new(host)] }))
        }
        Kind::Cluster => Resource::Cluster(Arc::new(Cluster {
            name: name.into(),
            discovery: match number {
                0..24 => Discovery::Eds { service_name: owned() },
                24..28 => Discovery::Eds { service_name: other() },
                // Of itself, too: cycles are cut.
                _ => Discovery::Aggregate([other().as_str().into(), name.into(), NAMES[0].into()].into()),
            },
            lb_policy: LbPolicy::RoundRobin,
            transport_socket: TransportSocket::Plaintext,
            http_protocol: HttpProtocol::Unspecified,
            max_requests: Some(number),
            connect_timeout: None,
            load_reporting: None,
        })),
        _ => {
            let endpoint = |port: u32| Endpoint {
                addresses: Addresses::one(([10, 0, 0, 1], port as u16).into()),
                health: Health::Healthy,
                weight: 1,
                hostname: None,
            };
            let endpoints = (0..number % 8).map(endpoint).collect();
            let locality = Locality { id: Arc::default(), weight: 1, endpoints };
            let priorities = vec![vec![locality]];
            Resource::Endpoints(Arc::new(ClusterLoadAssignment { name: owned(), priorities, drops: Vec::new() }))
        }
    })
}

fn route(cluster: ClusterName) -> Route {
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
    }
}
