//! What answers of DNS make of a cluster: its endpoints, and what is wrong with its names.
//!
//! It does NOT look up names and does NOT keep anything.

use crate::{
    dns::{Answer, Answers},
    resource::{Cluster, ClusterLoadAssignment, Discovery, DnsFamily, DnsName, logical_endpoints, strict_endpoints},
};
use std::collections::BTreeSet;

/// The names that a cluster has looked up.
pub(super) fn names(discovery: &Discovery) -> BTreeSet<DnsName> {
    match discovery {
        Discovery::LogicalDns { name, .. } => BTreeSet::from([name.clone()]),
        Discovery::StrictDns { assignment, .. } => {
            assignment.endpoints().map(|endpoint| endpoint.addresses.clone()).collect()
        }
        Discovery::Eds { .. } | Discovery::Static(_) | Discovery::Aggregate(_) => BTreeSet::new(),
    }
}

/// The endpoints behind a cluster's names, and a problem with one of them. `None` until each name has been looked up
/// once, with or without success: then a cluster is "warm" in Envoy.
///
/// "Child DNS errors with nothing cached = one empty priority" (A37), with the reason for whoever is left with it.
pub(super) fn endpoints(cluster: &Cluster, answers: &Answers) -> Option<(ClusterLoadAssignment, Option<String>)> {
    let names = names(&cluster.discovery);
    if names.iter().any(|name| answers.lookup(name) == Answer::Pending) {
        return None;
    }
    let known = |name: &DnsName, family: DnsFamily| match answers.lookup(name) {
        Answer::Known { addresses, .. } => family.select(addresses),
        Answer::Pending | Answer::Failed(_) => Vec::new(),
    };
    let endpoints = match &cluster.discovery {
        Discovery::LogicalDns { name, family } => logical_endpoints(cluster.name.as_str(), name, known(name, *family)),
        Discovery::StrictDns { assignment, family } => strict_endpoints(assignment, |name| known(name, *family)),
        Discovery::Eds { .. } | Discovery::Static(_) | Discovery::Aggregate(_) => return None,
    };
    let mut problems = names.iter().filter_map(|name| match answers.lookup(name) {
        Answer::Failed(error) | Answer::Known { error: Some(error), .. } => {
            Some(format!("DNS name \"{name}\" cannot be resolved: {error}"))
        }
        Answer::Pending | Answer::Known { error: None, .. } => None,
    });
    let problem = problems.next().or_else(|| {
        let of_another_family = "no address of its names is of the wanted dns_lookup_family";
        (endpoints.endpoints().next().is_none() && !names.is_empty()).then(|| of_another_family.to_owned())
    });
    Some((endpoints, problem))
}
