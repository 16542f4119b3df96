//! Dangling references of a snapshot: what its resources name and do not contain.
//!
//! A snapshot with holes is legal (resources may come from elsewhere, or later), so that serving it is NOT refused;
//! most often it is a typing mistake.

use super::resources::Resources;
use crate::resource::Kind;
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            listener::v3::{Listener, filter::ConfigType},
            route::v3::{RouteConfiguration, VirtualHost, route::Action, route_action::ClusterSpecifier},
        },
        extensions::{
            clusters::aggregate::v3::ClusterConfig as Aggregate,
            filters::network::http_connection_manager::v3::{
                HttpConnectionManager, http_connection_manager::RouteSpecifier,
            },
        },
    },
    google::protobuf::Any,
};
use prost::{Message, Name};
use std::{collections::BTreeSet, fmt};

/// Resources refer to others that are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inconsistent {
    /// Every missing resource, once, with one that refers to it.
    pub missing: Vec<Missing>,
}

/// A reference that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// What kind of resource is missing.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// A resource that names it, as `Kind name`.
    pub named_by: String,
}

impl Resources {
    /// Looks for references that lead nowhere: routes of listeners, clusters of routes and of aggregate clusters,
    /// endpoints of EDS clusters.
    ///
    /// # Errors
    /// [`Inconsistent`] with everything that is missing.
    pub fn check(&self) -> Result<(), Inconsistent> {
        let mut references = References { resources: self, found: BTreeSet::new(), missing: vec![] };
        self.messages::<Listener>().for_each(|listener| references.of_listener(&listener));
        self.messages::<RouteConfiguration>().for_each(|routes| {
            references.of_virtual_hosts(&routes.virtual_hosts, &format!("{} {}", Kind::RouteConfig, routes.name));
        });
        self.messages::<Cluster>().for_each(|cluster| references.of_cluster(&cluster));
        match references.missing {
            missing if missing.is_empty() => Ok(()),
            missing => Err(Inconsistent { missing }),
        }
    }
}

struct References<'a> {
    resources: &'a Resources,
    found: BTreeSet<(Kind, String)>,
    missing: Vec<Missing>,
}

impl References<'_> {
    fn add(&mut self, kind: Kind, name: &str, named_by: &str) {
        if !self.resources.contains(kind.type_url(), name) && self.found.insert((kind, name.to_owned())) {
            self.missing.push(Missing { kind, name: name.to_owned(), named_by: named_by.to_owned() });
        }
    }

    fn of_listener(&mut self, listener: &Listener) {
        let named_by = format!("{} {}", Kind::Listener, listener.name);
        let api = listener.api_listener.iter().filter_map(|api| api.api_listener.as_ref());
        let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
        let filters = chains.flat_map(|chain| &chain.filters).filter_map(|filter| match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) => Some(config),
            _ => None,
        });
        for manager in api.chain(filters).filter_map(unpack::<HttpConnectionManager>) {
            match manager.route_specifier {
                Some(RouteSpecifier::Rds(rds)) => self.add(Kind::RouteConfig, &rds.route_config_name, &named_by),
                Some(RouteSpecifier::RouteConfig(routes)) => self.of_virtual_hosts(&routes.virtual_hosts, &named_by),
                _ => {}
            }
        }
    }

    fn of_virtual_hosts(&mut self, virtual_hosts: &[VirtualHost], named_by: &str) {
        for route in virtual_hosts.iter().flat_map(|host| &host.routes) {
            let Some(Action::Route(action)) = &route.action else { continue };
            match &action.cluster_specifier {
                Some(ClusterSpecifier::Cluster(name)) => self.add(Kind::Cluster, name, named_by),
                Some(ClusterSpecifier::WeightedClusters(split)) => {
                    let named = split.clusters.iter().filter(|cluster| !cluster.name.is_empty());
                    named.for_each(|cluster| self.add(Kind::Cluster, &cluster.name, named_by));
                }
                // Chosen per request.
                _ => {}
            }
        }
    }

    fn of_cluster(&mut self, cluster: &Cluster) {
        let named_by = format!("{} {}", Kind::Cluster, cluster.name);
        match &cluster.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(kind)) if *kind == DiscoveryType::Eds as i32 => {
                let service = cluster.eds_cluster_config.as_ref().map_or("", |eds| &eds.service_name);
                self.add(Kind::Endpoints, if service.is_empty() { &cluster.name } else { service }, &named_by);
            }
            Some(ClusterDiscoveryType::ClusterType(custom)) => {
                let aggregate = custom.typed_config.as_ref().and_then(unpack::<Aggregate>).unwrap_or_default();
                aggregate.clusters.iter().for_each(|name| self.add(Kind::Cluster, name, &named_by));
            }
            _ => {}
        }
    }
}

fn unpack<M: Message + Name + Default>(any: &Any) -> Option<M> {
    if any.type_url == M::type_url() { M::decode(any.value.as_slice()).ok() } else { None }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (named by {})", self.kind, self.name, self.named_by)
    }
}

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("missing: ")?;
        self.missing.iter().enumerate().try_for_each(|(index, missing)| {
            f.write_str(if index == 0 { "" } else { ", " })?;
            missing.fmt(f)
        })
    }
}

impl std::error::Error for Inconsistent {}

#[cfg(test)]
mod tests {
    use super::super::resources;
    use super::*;

    #[test]
    fn every_missing_resource_is_named_once() {
        let resources = Resources::default()
            .with(resources::listener("l1", "r"))
            .with(resources::listener("l2", "r"))
            .with(resources::route_config("other", vec![resources::virtual_host_weighted("*", &[("a", 1), ("b", 1)])]))
            .with(resources::cluster_eds("a"));
        let missing = resources.check().expect_err("holes").missing;
        let names: Vec<_> = missing.iter().map(|missing| (missing.kind, missing.name.as_str())).collect();
        assert_eq!(names, [(Kind::RouteConfig, "r"), (Kind::Cluster, "b"), (Kind::Endpoints, "a")]);
    }

    #[test]
    fn a_complete_snapshot_is_consistent() {
        let resources = Resources::default()
            .with(resources::listener_inline(
                "l",
                resources::route_config("r", vec![resources::virtual_host("*", "a")]),
            ))
            .with(resources::cluster_eds("a"))
            .with(resources::endpoints("a", &[]));
        assert_eq!(resources.check(), Ok(()));
    }
}
