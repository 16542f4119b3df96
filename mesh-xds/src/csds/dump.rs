//! `Status` as the messages of CSDS (A40 A71 A88).
//!
//! The messages are written down here, and not taken from Envoy's generated ones, for two reasons: (1) resources go from
//! the cache to the socket as the refcounted bytes they are, so that a dump of 10,000 resources does not double them;
//! (2) what Envoy's messages have no place for gets fields of its own. Tags and types are Envoy's. It does NOT judge:
//! each value is what `status()` shows.

use super::Scopes;
use crate::{
    XdsClient,
    ads::node_message,
    resource::Kind,
    status::{ResourceFailure, ResourceState, ResourceStatus},
};
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{admin::v3::ClientResourceStatus, config::core::v3::Node},
    google::protobuf::Timestamp,
};
use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ClientStatusResponse {
    #[prost(message, repeated, tag = "1")]
    config: Vec<ClientConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ClientConfig {
    #[prost(message, optional, tag = "1")]
    node: Option<Node>,
    #[prost(message, repeated, tag = "3")]
    generic_xds_configs: Vec<GenericXdsConfig>,
    #[prost(string, tag = "4")]
    client_scope: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GenericXdsConfig {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version_info: String,
    #[prost(message, optional, tag = "4")]
    xds_config: Option<Any>,
    #[prost(message, optional, tag = "5")]
    last_updated: Option<Timestamp>,
    #[prost(enumeration = "ClientResourceStatus", tag = "7")]
    client_status: i32,
    #[prost(message, optional, tag = "8")]
    error_state: Option<UpdateFailureState>,
    /// Ours.
    #[prost(message, repeated, tag = "50001")]
    ignored_fields: Vec<IgnoredField>,
    /// Ours.
    #[prost(string, tag = "50002")]
    server: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UpdateFailureState {
    #[prost(message, optional, tag = "1")]
    failed_configuration: Option<Any>,
    #[prost(message, optional, tag = "2")]
    last_update_attempt: Option<Timestamp>,
    #[prost(string, tag = "3")]
    details: String,
    #[prost(string, tag = "4")]
    version_info: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct IgnoredField {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(string, tag = "2")]
    reason: String,
}

/// All clients, each with what it has; `bare` leaves the resources' bytes out.
pub(super) fn response(clients: &[XdsClient], scopes: Scopes, bare: bool) -> ClientStatusResponse {
    ClientStatusResponse { config: clients.iter().flat_map(|client| configs(client, scopes, bare)).collect() }
}

/// One for each target: "gRPC indicates the data plane target" (A71), as if each had a client of its own. What no target
/// uses has no scope.
fn configs(client: &XdsClient, by: Scopes, bare: bool) -> Vec<ClientConfig> {
    let node = node_message(client.node());
    let resources = client.status().resources;
    let mut scopes: BTreeMap<&str, Vec<GenericXdsConfig>> = BTreeMap::new();
    for resource in &resources {
        let targets = match by {
            Scopes::ByTarget => &resource.targets[..],
            Scopes::Together => &[],
        };
        let unscoped = targets.is_empty().then_some("");
        for scope in targets.iter().map(|target| &**target).chain(unscoped) {
            scopes.entry(scope).or_default().push(generic(resource, bare));
        }
    }
    if scopes.is_empty() {
        scopes.insert("", Vec::new());
    }
    let config = |(scope, generic_xds_configs): (&str, Vec<GenericXdsConfig>)| ClientConfig {
        node: Some(node.clone()),
        generic_xds_configs,
        client_scope: scope.to_owned(),
    };
    scopes.into_iter().map(config).collect()
}

fn generic(resource: &ResourceStatus, bare: bool) -> GenericXdsConfig {
    let kind = resource.kind;
    let contents = |bytes: &Option<Bytes>| bytes.clone().filter(|_| !bare).map(|value| any(kind, value));
    let client_status = match &resource.state {
        ResourceState::Requested => ClientResourceStatus::Requested,
        ResourceState::Acked => ClientResourceStatus::Acked,
        ResourceState::Nacked { .. } => ClientResourceStatus::Nacked,
        ResourceState::DoesNotExist => ClientResourceStatus::DoesNotExist,
        ResourceState::Timeout => ClientResourceStatus::Timeout,
        ResourceState::ReceivedError => ClientResourceStatus::ReceivedError,
    };
    let since_epoch = resource.last_updated.map(|at| at.duration_since(UNIX_EPOCH));
    GenericXdsConfig {
        type_url: kind.type_url().to_owned(),
        name: resource.name.clone(),
        version_info: resource.version.clone().unwrap_or_default(),
        xds_config: contents(&resource.resource),
        last_updated: since_epoch.map(|since| timestamp(since.unwrap_or_default())),
        client_status: client_status.into(),
        error_state: resource.failure.as_ref().map(|failed| failure(failed, contents)),
        ignored_fields: resource.ignored.iter().map(IgnoredField::of).collect(),
        server: resource.server.to_string(),
    }
}

fn failure(failed: &ResourceFailure, contents: impl Fn(&Option<Bytes>) -> Option<Any>) -> UpdateFailureState {
    UpdateFailureState {
        failed_configuration: contents(&failed.resource),
        last_update_attempt: Some(timestamp(failed.at.duration_since(UNIX_EPOCH).unwrap_or_default())),
        details: failed.details.clone(),
        version_info: failed.version.clone().unwrap_or_default(),
    }
}

impl IgnoredField {
    fn of(field: &crate::resource::IgnoredField) -> Self {
        Self { path: field.path.clone(), reason: field.reason.to_owned() }
    }
}

fn any(kind: Kind, value: Bytes) -> Any {
    Any { type_url: kind.type_url().to_owned(), value }
}

fn timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
        // Less than 10^9.
        nanos: i32::try_from(since_epoch.subsec_nanos()).unwrap_or_default(),
    }
}
