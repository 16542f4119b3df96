//! Load reports of a cluster's leaves: which counters the calls of a picker bump.
//!
//! "Circuit breaker, drops, LRS and TLS settings come from the leaf" (A37). Where a leaf reports no load, a picker has no
//! counters. What calls do with those is NOT known here.

use super::roster::Place;
use crate::balance::ReadyPicker;
use mesh_xds::{
    ResolvedCluster,
    load::{ClusterLoad, DropLoad, LoadReports},
    resource::{LbPolicy, Locality},
};
use std::sync::Arc;

/// Of each leaf, while it is configured to report its load.
#[derive(Debug, Default)]
pub(super) struct Loads(Vec<Option<ClusterLoad>>);

impl Loads {
    pub(super) fn of(leaves: &[&Arc<ResolvedCluster>], reports: &LoadReports) -> Self {
        Self(leaves.iter().map(|leaf| reports.cluster(leaf)).collect())
    }

    /// Who counts the calls that a leaf's circuit breaker refuses.
    pub(super) fn refused(&self, leaf: usize) -> Option<DropLoad> {
        self.0.get(leaf)?.as_ref().map(ClusterLoad::uncategorized)
    }

    /// The picker of the priority at `place`, with its counters.
    pub(super) fn counting(&self, picker: ReadyPicker, place: Option<Place<'_>>) -> ReadyPicker {
        let Some(Place { leaf, source, priority }) = place else { return picker };
        let (Some(Some(load)), Some(localities)) = (self.0.get(leaf), source.endpoints.priorities.get(priority)) else {
            return picker;
        };
        picker.counting(
            |drop| load.category(&drop.category),
            |position, connection| {
                let locality = match source.cluster.lb_policy {
                    // One endpoint with the addresses of all localities: which of them won says where calls go.
                    LbPolicy::PickFirst { .. } => {
                        let has = |locality: &&Locality| {
                            let mut addresses =
                                locality.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter());
                            addresses.any(|address| address == connection.peer)
                        };
                        localities.iter().find(has)
                    }
                    _ => localities.get(position),
                };
                locality.map(|locality| load.locality(&locality.id))
            },
        )
    }
}
