//! Keeping what did not change: an update takes over the `Arc`s of the value it replaces.
//!
//! istiod pushes everything when one endpoint changes. Whoever comes later compares by address and does no work for
//! what stayed. This is NOT a cache: the caller holds the previous value.

use crate::resource::{
    Cluster, Discovery, HttpConnectionManager, Listener, ListenerKind, Resource, RouteConfig, RouteSource, VirtualHost,
};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// `new`, with the parts of `previous` that are equal: the whole resource, or else its virtual hosts and inline
/// endpoints.
pub fn reuse(previous: &Resource, new: Resource) -> Resource {
    match (previous, new) {
        (Resource::Listener(previous), Resource::Listener(new)) => Resource::Listener(listener(previous, new)),
        (Resource::RouteConfig(previous), Resource::RouteConfig(new)) => {
            Resource::RouteConfig(route_config(previous, new))
        }
        (Resource::Cluster(previous), Resource::Cluster(new)) => Resource::Cluster(cluster(previous, new)),
        (Resource::Endpoints(previous), Resource::Endpoints(new)) if *previous == new => {
            Resource::Endpoints(previous.clone())
        }
        (Resource::Other(previous), Resource::Other(new)) if *previous == new => Resource::Other(previous.clone()),
        (_, new) => new,
    }
}

fn route_config(previous: &Arc<RouteConfig>, new: Arc<RouteConfig>) -> Arc<RouteConfig> {
    let virtual_hosts = virtual_hosts(&previous.virtual_hosts, &new.virtual_hosts);
    let same = |(old, new): (&Arc<VirtualHost>, &Arc<VirtualHost>)| Arc::ptr_eq(old, new);
    if (&previous.name, &previous.overrides) == (&new.name, &new.overrides)
        && previous.virtual_hosts.len() == virtual_hosts.len()
        && previous.virtual_hosts.iter().zip(&virtual_hosts).all(same)
    {
        return previous.clone();
    }
    Arc::new(RouteConfig { name: new.name.clone(), virtual_hosts, overrides: new.overrides.clone() })
}

/// Each host is compared once: with the one at its own place, or else with the one of its name.
fn virtual_hosts(previous: &[Arc<VirtualHost>], new: &[Arc<VirtualHost>]) -> Vec<Arc<VirtualHost>> {
    let mut by_name: Option<FxHashMap<&str, &Arc<VirtualHost>>> = None;
    new.iter()
        .enumerate()
        .map(|(index, host)| {
            let here = previous.get(index).filter(|old| old.name == host.name);
            // Built only when something moved.
            let old = here.or_else(|| {
                by_name
                    .get_or_insert_with(|| previous.iter().map(|old| (old.name.as_str(), old)).collect())
                    .get(host.name.as_str())
                    .copied()
            });
            old.filter(|old| Arc::ptr_eq(old, host) || *old == host).unwrap_or(host).clone()
        })
        .collect()
}

fn listener(previous: &Arc<Listener>, new: Arc<Listener>) -> Arc<Listener> {
    if *previous == new {
        return previous.clone();
    }
    match (&previous.kind, &new.kind) {
        (ListenerKind::Api(old), ListenerKind::Api(http)) => match (&old.routes, &http.routes) {
            (RouteSource::Inline(old), RouteSource::Inline(routes)) => {
                let routes = RouteSource::Inline(route_config(old, routes.clone()));
                let kind = ListenerKind::Api(HttpConnectionManager { routes, ..http.clone() });
                Arc::new(Listener { name: new.name.clone(), kind })
            }
            _ => new,
        },
        _ => new,
    }
}

fn cluster(previous: &Arc<Cluster>, new: Arc<Cluster>) -> Arc<Cluster> {
    if *previous == new {
        return previous.clone();
    }
    match (&previous.discovery, &new.discovery) {
        (Discovery::Static(old), Discovery::Static(endpoints)) if old == endpoints => {
            Arc::new(Cluster { discovery: Discovery::Static(old.clone()), ..Cluster::clone(&new) })
        }
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{CircuitBreakers, Domain, FilterOverrides, HttpProtocol, LbPolicy, TransportSocket};

    fn host(name: &str, domain: &str) -> Arc<VirtualHost> {
        let domains = vec![Domain::Exact(domain.to_owned())];
        Arc::new(VirtualHost {
            name: name.to_owned(),
            domains,
            routes: Vec::new(),
            overrides: FilterOverrides::default(),
        })
    }

    fn routes(hosts: &[(&str, &str)]) -> Arc<RouteConfig> {
        let virtual_hosts = hosts.iter().map(|(name, domain)| host(name, domain)).collect();
        Arc::new(RouteConfig { name: "r".to_owned(), virtual_hosts, overrides: FilterOverrides::default() })
    }

    fn reused(previous: &Arc<RouteConfig>, new: Arc<RouteConfig>) -> Arc<RouteConfig> {
        match reuse(&Resource::RouteConfig(previous.clone()), Resource::RouteConfig(new)) {
            Resource::RouteConfig(routes) => routes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_equal_resource_is_the_old_one() {
        let old = routes(&[("a", "a.com"), ("b", "b.com")]);
        assert!(Arc::ptr_eq(&old, &reused(&old, routes(&[("a", "a.com"), ("b", "b.com")]))));
    }

    #[test]
    fn a_changed_virtual_host_leaves_the_others_alone() {
        let old = routes(&[("a", "a.com"), ("b", "b.com"), ("c", "c.com")]);
        let new = reused(&old, routes(&[("a", "a.com"), ("b", "other.com"), ("c", "c.com")]));
        let kept: Vec<_> =
            old.virtual_hosts.iter().zip(&new.virtual_hosts).map(|(old, new)| Arc::ptr_eq(old, new)).collect();
        assert_eq!(kept, [true, false, true]);
        assert_eq!(new.virtual_hosts[1].domains, [Domain::Exact("other.com".to_owned())]);
    }

    #[test]
    fn a_virtual_host_that_moved_keeps_its_identity() {
        let old = routes(&[("a", "a.com"), ("b", "b.com")]);
        let new = reused(&old, routes(&[("new", "new.com"), ("a", "a.com"), ("b", "b.com")]));
        assert!(Arc::ptr_eq(&old.virtual_hosts[0], &new.virtual_hosts[1]));
        assert!(Arc::ptr_eq(&old.virtual_hosts[1], &new.virtual_hosts[2]));
        let shorter = reused(&old, routes(&[("b", "b.com")]));
        assert_eq!(shorter.virtual_hosts.len(), 1);
        assert!(Arc::ptr_eq(&old.virtual_hosts[1], &shorter.virtual_hosts[0]));
    }

    #[test]
    fn inline_routes_and_inline_endpoints_are_looked_into() {
        let listener = |max: Option<u64>| {
            let routes = RouteSource::Inline(routes(&[("a", "a.com")]));
            let max_stream_duration = max.map(std::time::Duration::from_secs);
            let kind = ListenerKind::Api(HttpConnectionManager { routes, max_stream_duration, filters: Vec::new() });
            Arc::new(Listener { name: "l".to_owned(), kind })
        };
        let inline = |listener: &Listener| match &listener.kind {
            ListenerKind::Api(HttpConnectionManager { routes: RouteSource::Inline(routes), .. }) => routes.clone(),
            other => panic!("{other:?}"),
        };
        let old = listener(None);
        let Resource::Listener(new) = reuse(&Resource::Listener(old.clone()), Resource::Listener(listener(Some(1))))
        else {
            panic!("another kind")
        };
        assert_ne!(old, new);
        assert!(Arc::ptr_eq(&inline(&old), &inline(&new)));

        let cluster = |max_requests| {
            let empty = crate::resource::ClusterLoadAssignment {
                name: "c".to_owned(),
                priorities: Vec::new(),
                drops: Vec::new(),
            };
            Arc::new(Cluster {
                name: "c".into(),
                discovery: Discovery::Static(Arc::new(empty)),
                lb_policy: LbPolicy::RoundRobin,
                transport_socket: TransportSocket::Plaintext,
                http_protocol: HttpProtocol::Unspecified,
                circuit_breakers: CircuitBreakers { max_requests, ..CircuitBreakers::default() },
                outlier_detection: None,
                load_reporting: None,
                connect_timeout: None,
            })
        };
        let old = cluster(None);
        let Resource::Cluster(new) = reuse(&Resource::Cluster(old.clone()), Resource::Cluster(cluster(Some(1)))) else {
            panic!("another kind")
        };
        let (Discovery::Static(before), Discovery::Static(after)) = (&old.discovery, &new.discovery) else {
            panic!("not static")
        };
        assert!(new.circuit_breakers.max_requests == Some(1) && Arc::ptr_eq(before, after));
    }
}
