//! Dangling references of a snapshot: what its resources name and do not contain.
//!
//! A snapshot with holes is legal (resources may come from elsewhere, or later), but most often it is a typing mistake,
//! so that serving it takes a word more. What a resource names is found out once, when it is encoded. Whether resources
//! are valid is NOT looked at: the clients judge that.

use super::resources::Resources;
use crate::resource::Kind;
use bytes::Bytes;
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

/// What a resource names.
pub(super) type Reference = (Kind, String);

impl Resources {
    /// Looks for references that lead nowhere: routes of listeners, clusters of routes and of aggregate clusters,
    /// endpoints of EDS clusters.
    ///
    /// # Errors
    /// [`Inconsistent`] with everything that is missing.
    pub fn check(&self) -> Result<(), Inconsistent> {
        let mut holes = Holes::default();
        for (type_url, values) in Kind::ALL.iter().filter_map(|kind| self.of_type(kind.type_url())) {
            for (name, value) in values {
                let contains = |kind: &str, name: &str| self.contains(kind, name);
                holes.look(type_url, name, &references(type_url, value), contains);
            }
        }
        holes.found()
    }
}

/// References that lead nowhere.
#[derive(Debug, Default)]
pub(super) struct Holes {
    known: BTreeSet<Reference>,
    missing: Vec<Missing>,
}

impl Holes {
    /// Looks at what one resource names.
    pub(super) fn look(
        &mut self,
        type_url: &str,
        name: &str,
        references: &[Reference],
        contains: impl Fn(&str, &str) -> bool,
    ) {
        for (kind, named) in references {
            if !contains(kind.type_url(), named) && self.known.insert((*kind, named.clone())) {
                let by = Kind::from_type_url(type_url).map_or_else(|| type_url.to_owned(), |kind| kind.to_string());
                self.missing.push(Missing { kind: *kind, name: named.clone(), named_by: format!("{by} {name}") });
            }
        }
    }

    pub(super) fn found(self) -> Result<(), Inconsistent> {
        if self.missing.is_empty() { Ok(()) } else { Err(Inconsistent { missing: self.missing }) }
    }
}

/// What a resource names; nothing if it is no such message.
pub(super) fn references(type_url: &str, value: &Bytes) -> Vec<Reference> {
    match Kind::from_type_url(type_url) {
        Some(Kind::Listener) => decoded(value).map_or_else(Vec::new, |listener| of_listener(&listener)),
        Some(Kind::RouteConfig) => {
            decoded::<RouteConfiguration>(value).map_or_else(Vec::new, |routes| of_virtual_hosts(&routes.virtual_hosts))
        }
        Some(Kind::Cluster) => decoded(value).map_or_else(Vec::new, |cluster| of_cluster(&cluster)),
        Some(Kind::Endpoints | Kind::Other(_)) | None => vec![],
    }
}

fn of_listener(listener: &Listener) -> Vec<Reference> {
    let api = listener.api_listener.iter().filter_map(|api| api.api_listener.as_ref());
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let filters = chains.flat_map(|chain| &chain.filters).filter_map(|filter| match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => Some(config),
        _ => None,
    });
    let of_manager = |manager: HttpConnectionManager| match manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => vec![(Kind::RouteConfig, rds.route_config_name)],
        Some(RouteSpecifier::RouteConfig(routes)) => of_virtual_hosts(&routes.virtual_hosts),
        _ => vec![],
    };
    api.chain(filters).filter_map(unpack::<HttpConnectionManager>).flat_map(of_manager).collect()
}

fn of_virtual_hosts(virtual_hosts: &[VirtualHost]) -> Vec<Reference> {
    let mut found = vec![];
    for route in virtual_hosts.iter().flat_map(|host| &host.routes) {
        let Some(Action::Route(action)) = &route.action else { continue };
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => found.push((Kind::Cluster, name.clone())),
            Some(ClusterSpecifier::WeightedClusters(split)) => {
                let named = split.clusters.iter().filter(|cluster| !cluster.name.is_empty());
                found.extend(named.map(|cluster| (Kind::Cluster, cluster.name.clone())));
            }
            // Chosen per request.
            _ => {}
        }
    }
    found
}

fn of_cluster(cluster: &Cluster) -> Vec<Reference> {
    match &cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) if *kind == DiscoveryType::Eds as i32 => {
            let service = cluster.eds_cluster_config.as_ref().map_or("", |eds| &eds.service_name);
            vec![(Kind::Endpoints, if service.is_empty() { &cluster.name } else { service }.to_owned())]
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let aggregate = custom.typed_config.as_ref().and_then(unpack::<Aggregate>).unwrap_or_default();
            aggregate.clusters.into_iter().map(|name| (Kind::Cluster, name)).collect()
        }
        _ => vec![],
    }
}

fn decoded<M: Message + Default>(value: &Bytes) -> Option<M> {
    M::decode(value.clone()).ok()
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
