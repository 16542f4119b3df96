//! The protobuf of ADS, both variants: requests out, frames in.
//!
//! Words become messages here and messages words. It does NOT decode resources, and it decides nothing.

use super::{
    codec::SotwMessage,
    decoder::Incoming,
    protocol::{Asks, Request},
};
use crate::{bootstrap::Node, name::canonical_string, resource::ReportedError};
use envoy_types::pb::{
    envoy::{
        config::core::v3 as core,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, ResourceError,
        },
    },
    google::{
        protobuf::{self, value::Kind as JsonKind},
        rpc,
    },
};
use std::sync::Arc;

/// A response of either variant, not decoded yet.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) type_url: String,
    pub(super) version: Arc<str>,
    pub(super) nonce: Arc<str>,
    pub(super) resources: Vec<Incoming>,
    /// Delta: what is not there, or not any more.
    pub(super) removed: Vec<String>,
    pub(super) errors: Vec<ReportedError>,
}

impl From<DiscoveryResponse> for Frame {
    fn from(response: DiscoveryResponse) -> Self {
        let resources = response.resources.into_iter();
        Self {
            type_url: response.type_url,
            version: response.version_info.into(),
            nonce: response.nonce.into(),
            resources: resources.map(|any| Incoming::Any(any.type_url, any.value.into())).collect(),
            removed: Vec::new(),
            errors: response.resource_errors.into_iter().filter_map(reported).collect(),
        }
    }
}

impl From<DeltaDiscoveryResponse> for Frame {
    fn from(response: DeltaDiscoveryResponse) -> Self {
        let variants = response.removed_resource_names.into_iter().map(|resource| resource.name);
        Self {
            type_url: response.type_url,
            version: response.system_version_info.into(),
            nonce: response.nonce.into(),
            resources: response.resources.into_iter().map(|wrapper| Incoming::Wrapped(wrapper.into())).collect(),
            removed: response.removed_resources.into_iter().chain(variants).map(canonical_string).collect(),
            errors: response.resource_errors.into_iter().filter_map(reported).collect(),
        }
    }
}

fn reported(error: ResourceError) -> Option<ReportedError> {
    let (name, detail) = (error.resource_name?.name, error.error_detail.unwrap_or_default());
    Some(ReportedError { name: canonical_string(name), code: detail.code, message: detail.message })
}

// === Requests ===

/// `None`: these are words of the other variant.
pub(super) fn sotw(request: Request, node: &Node) -> Option<SotwMessage> {
    let Asks::All { names, version } = request.asks else { return None };
    let head = DiscoveryRequest {
        version_info: version.to_string(),
        node: request.with_node.then(|| node_message(node)),
        type_url: request.kind.type_url().to_owned(),
        response_nonce: request.nonce.to_string(),
        error_detail: request.nack.map(refusal),
        ..DiscoveryRequest::default()
    };
    Some(SotwMessage { head, names })
}

/// `None`: these are words of the other variant.
pub(super) fn delta(request: Request, node: &Node) -> Option<DeltaDiscoveryRequest> {
    let Asks::Change { subscribe, unsubscribe, held } = request.asks else { return None };
    let texts = |names: Vec<Arc<str>>| names.iter().map(ToString::to_string).collect();
    Some(DeltaDiscoveryRequest {
        node: request.with_node.then(|| node_message(node)),
        type_url: request.kind.type_url().to_owned(),
        resource_names_subscribe: texts(subscribe),
        resource_names_unsubscribe: texts(unsubscribe),
        initial_resource_versions: held.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect(),
        response_nonce: request.nonce.to_string(),
        error_detail: request.nack.map(refusal),
        ..DeltaDiscoveryRequest::default()
    })
}

/// INVALID_ARGUMENT, as gRPC sends.
fn refusal(message: String) -> rpc::Status {
    rpc::Status { code: 3, message, details: Vec::new() }
}

/// "First request on each stream carries Node" - A27; istiod reads it from nowhere else.
pub(crate) fn node_message(node: &Node) -> core::Node {
    let locality =
        core::Locality { region: node.region.clone(), zone: node.zone.clone(), sub_zone: node.sub_zone.clone() };
    let (name, version) = Node::USER_AGENT;
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: (!node.metadata.is_empty()).then(|| structure(&node.metadata)),
        locality: (locality != core::Locality::default()).then_some(locality),
        user_agent_name: name.to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(version.to_owned())),
        client_features: Node::CLIENT_FEATURES.iter().map(|&feature| feature.to_owned()).collect(),
        ..core::Node::default()
    }
}

fn structure(map: &serde_json::Map<String, serde_json::Value>) -> protobuf::Struct {
    protobuf::Struct { fields: map.iter().map(|(key, value)| (key.clone(), json(value))).collect() }
}

fn json(value: &serde_json::Value) -> protobuf::Value {
    use serde_json::Value;
    let kind = match value {
        Value::Null => JsonKind::NullValue(0),
        Value::Bool(value) => JsonKind::BoolValue(*value),
        Value::Number(number) => JsonKind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => JsonKind::StringValue(text.clone()),
        Value::Array(values) => JsonKind::ListValue(protobuf::ListValue { values: values.iter().map(json).collect() }),
        Value::Object(map) => JsonKind::StructValue(structure(map)),
    };
    protobuf::Value { kind: Some(kind) }
}
