//! What `XdsClient::status` shows: streams and resources, as values for people and tests.
//!
//! A picture of one moment. ACKed means validated and cached; whether a channel has APPLIED it is the channel's to
//! say, not ours.

#![expect(clippy::disallowed_types, reason = "people read wall-clock time; nothing here is timed by it")]

use crate::{
    bootstrap::Node,
    resource::{IgnoredField, Kind},
};
use bytes::Bytes;
use std::{sync::Arc, time::SystemTime};
use tokio::time::Instant;

/// The client's view of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The node id of the bootstrap.
    pub node_id: String,
    /// The node as the control plane is told of it.
    pub node: NodeStatus,
    /// Each ADS stream.
    pub servers: Vec<ServerStatus>,
    /// Every subscribed resource, by kind and name.
    pub resources: Vec<ResourceStatus>,
}

impl Status {
    /// One resource.
    pub fn resource(&self, kind: Kind, name: &str) -> Option<&ResourceStatus> {
        self.resources.iter().find(|resource| resource.kind == kind && resource.name == name)
    }
}

/// Who the client says it is, in the first request of each stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// `id`.
    pub id: String,
    /// `cluster`, the service that this process belongs to.
    pub cluster: String,
    /// `locality`: region, zone and sub-zone.
    pub locality: [String; 3],
    /// `metadata`, as JSON.
    pub metadata: String,
    /// `user_agent_name` and `user_agent_version`.
    pub user_agent: (&'static str, &'static str),
    /// `client_features`.
    pub client_features: &'static [&'static str],
}

impl NodeStatus {
    pub(crate) fn of(node: &Node) -> Self {
        Self {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            locality: [&node.region, &node.zone, &node.sub_zone].map(Clone::clone),
            metadata: serde_json::Value::Object(node.metadata.clone()).to_string(),
            user_agent: Node::USER_AGENT,
            client_features: Node::CLIENT_FEATURES,
        }
    }
}

/// One ADS stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStatus {
    /// The server, as the bootstrap names it.
    pub server: String,
    /// How it is.
    pub state: StreamState,
}

/// State of an ADS stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamState {
    /// Nothing is subscribed, so nothing is dialled.
    #[default]
    Idle,
    /// Being dialled for the first time, or again after a good stream.
    Connecting,
    /// Up.
    Connected,
    /// Down; dialled again after a delay.
    Unreachable {
        /// Why.
        cause: String,
    },
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResourceStatus {
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The server it is from, as the bootstrap names it.
    pub server: Arc<str>,
    /// The targets that use it (`xds:///name`), in what they serve or will serve, also once the server that has it is back
    /// (A71); empty for what is watched by itself.
    pub targets: Vec<Arc<str>>,
    /// What the last news about it was.
    pub state: ResourceState,
    /// `version_info` of the response that brought the value in use, if there is one.
    pub version: Option<String>,
    /// The value in use as it came, byte by byte, without a wrapper: a protobuf of the kind's type.
    pub resource: Option<Bytes>,
    /// When the value in use was last accepted, also if it came again without a change.
    pub last_updated: Option<SystemTime>,
    /// The last update, if that went wrong; the next good one clears it. An older value may still be in use (A88's
    /// ambient errors).
    pub failure: Option<ResourceFailure>,
    /// Fields of the value in use that have no effect.
    pub ignored: Vec<IgnoredField>,
}

/// The last update of a resource, when that failed (Envoy's `UpdateFailureState`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResourceFailure {
    /// What is wrong: names resource, field and node.
    pub details: String,
    /// `version_info` of the response that failed it; a timer has none.
    pub version: Option<String>,
    /// What was refused, as it came; nothing came when the control plane deleted it or reported an error.
    pub resource: Option<Bytes>,
    /// When.
    pub at: SystemTime,
}

/// State of a resource (A40, A88).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResourceState {
    /// Asked for, no answer yet.
    Requested,
    /// Validated and cached.
    Acked,
    /// The newest version is invalid.
    Nacked {
        /// Names resource and field.
        error: String,
    },
    /// The control plane does not have it, or deleted it.
    DoesNotExist,
    /// No answer in time, which the server's features call transient.
    Timeout,
    /// The control plane reported an error for it.
    ReceivedError,
}

/// What the wall clock says of moments that machines know only as [`Instant`]s.
///
/// Taken anew for each status, so that a wall clock that was set meanwhile is believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Instant,
    pub(crate) wall: SystemTime,
}

impl Clock {
    pub(crate) fn now() -> Self {
        Self { now: Instant::now(), wall: SystemTime::now() }
    }

    pub(crate) fn wall(&self, at: Instant) -> SystemTime {
        // Before the epoch only where the wall clock was never set.
        self.wall.checked_sub(self.now.saturating_duration_since(at)).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}
