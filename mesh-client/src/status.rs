//! What was received and what is applied, for people and for tests.
//!
//! ACKed means validated and cached; applied means that calls see it. They are two facts, and both are here.

use crate::{
    apply::Table,
    breaker::InUse,
    channel::Inner,
    cluster::{Cluster, EndpointReport},
};
use mesh_xds::{Target, XdsClient, resource::Kind};
use std::sync::Arc;

/// What [`Mesh::status`](crate::Mesh::status) returns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MeshStatus {
    /// The xDS client: streams, and every resource with state, version, error and ignored fields.
    pub xds: mesh_xds::Status,
    /// Every live channel.
    pub channels: Vec<ChannelStatus>,
}

/// One channel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChannelStatus {
    /// The name in `xds:///name`.
    pub target: String,
    /// What calls see.
    pub state: ChannelState,
    /// Whether calls see everything that [`MeshStatus::xds`] shows of this target as ACKed.
    pub up_to_date: bool,
    /// Clusters of that snapshot.
    pub clusters: Vec<ClusterStatus>,
}

/// What the calls of a channel see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelState {
    /// They wait; says for what.
    Pending(Arc<str>),
    /// They fail; says why.
    Failed(Arc<str>),
    /// They are routed.
    Ready,
    /// The mesh was shut down.
    ShutDown,
}

/// One cluster of a channel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Why it cannot be used, if so.
    pub error: Option<Arc<str>>,
    /// Connections, open or being dialled, as its circuit breaker counts them: of the whole process, and of all leaves of
    /// an aggregate.
    pub connections: u32,
    /// Calls in flight, likewise.
    pub active_requests: u32,
    /// Calls that wait for a connection, likewise.
    pub pending_requests: u32,
    /// Retries in flight, likewise.
    pub active_retries: u32,
    /// Endpoints of its running parts; empty before the first call.
    pub endpoints: Vec<EndpointReport>,
}

impl MeshStatus {
    pub(crate) fn of(xds: &XdsClient, channels: &[Arc<Inner>]) -> Self {
        // Received first, applied second: what is up to date then has applied at least what was received.
        Self { xds: xds.status(), channels: channels.iter().map(|channel| ChannelStatus::of(channel)).collect() }
    }

    /// The version of a resource that every channel has applied; `None` while one of them lags behind, or if the
    /// resource has not arrived.
    pub fn applied_version(&self, kind: Kind, name: &str) -> Option<&str> {
        let all = self.channels.iter().all(|channel| channel.up_to_date);
        self.xds.resource(kind, name).filter(|_| all)?.version.as_deref()
    }
}

impl ChannelStatus {
    pub(crate) fn of(channel: &Inner) -> Self {
        let target = channel.target.to_string();
        // Before the newest is read: what is published meanwhile only makes it newer.
        let complete = !channel.newest.is_behind();
        let newest = channel.newest.current();
        let without = |state, up_to_date| Self { target: target.clone(), state, up_to_date, clusters: Vec::new() };
        match &**channel.shared.table() {
            Table::Pending(missing) => {
                let up_to_date = complete && matches!(newest, Target::Pending { .. });
                without(ChannelState::Pending(Arc::clone(missing)), up_to_date)
            }
            Table::Failed(reason) => {
                let up_to_date = complete && matches!(&newest, Target::Failed(newest) if newest == reason);
                without(ChannelState::Failed(Arc::clone(reason)), up_to_date)
            }
            Table::ShutDown => without(ChannelState::ShutDown, true),
            Table::Ready(table) => {
                let cluster = |cluster: &Arc<Cluster>| {
                    let InUse { connections, requests, pending, retries } = cluster.in_use();
                    ClusterStatus {
                        name: cluster.name().to_string(),
                        error: cluster.config().state.as_ref().err().map(|error| Arc::clone(&error.0)),
                        connections,
                        active_requests: requests,
                        pending_requests: pending,
                        active_retries: retries,
                        endpoints: cluster.running().flat_map(|backends| backends.report()).collect(),
                    }
                };
                let mut clusters: Vec<_> = table.clusters.values().map(cluster).collect();
                clusters.sort_by(|a, b| a.name.cmp(&b.name));
                let applied = matches!(&newest, Target::Ready(newest) if Arc::ptr_eq(newest, &table.snapshot));
                let up_to_date = complete && applied;
                Self { target, state: ChannelState::Ready, up_to_date, clusters }
            }
        }
    }
}
