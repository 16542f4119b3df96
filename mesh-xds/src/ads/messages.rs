//! The protobuf of ADS, both variants: requests out, frames in.
//!
//! Words become messages here and messages words. It does NOT decode resources, and it decides nothing.

use super::{
    codec::Named,
    decoder::Incoming,
    protocol::{Asks, Request},
};
use crate::{bootstrap::Node, decode::parts, name::canonical_string, resource::ReportedError};
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::core::v3 as core,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource, ResourceError,
        },
    },
    google::{
        protobuf::{self, Any, value::Kind as JsonKind},
        rpc,
    },
};
use prost::{DecodeError, Message};
use std::{borrow::Cow, ops::Range, sync::Arc};

/// A response of either variant, of which the resources are not decoded yet.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) type_url: String,
    pub(super) version: Arc<str>,
    pub(super) nonce: Arc<str>,
    /// Delta: what is not there, or not any more.
    pub(super) removed: Vec<String>,
    pub(super) errors: Vec<ReportedError>,
    bytes: Bytes,
    /// Where in `bytes` the resources are.
    places: Vec<Range<usize>>,
    resource: fn(&[u8]) -> Result<Incoming, DecodeError>,
}

impl Frame {
    /// Takes a `DiscoveryResponse` apart.
    pub(super) fn sotw(bytes: Bytes) -> Result<Self, DecodeError> {
        let (places, rest) = split(&bytes);
        let response = DiscoveryResponse::decode(&*rest)?;
        Ok(Self {
            type_url: response.type_url,
            version: response.version_info.into(),
            nonce: response.nonce.into(),
            removed: Vec::new(),
            errors: response.resource_errors.into_iter().filter_map(reported).collect(),
            bytes,
            places,
            resource: |bytes| Any::decode(bytes).map(|any| Incoming::Any(any.type_url, any.value.into())),
        })
    }

    /// Takes a `DeltaDiscoveryResponse` apart.
    pub(super) fn delta(bytes: Bytes) -> Result<Self, DecodeError> {
        let (places, rest) = split(&bytes);
        let response = DeltaDiscoveryResponse::decode(&*rest)?;
        let variants = response.removed_resource_names.into_iter().map(|resource| resource.name);
        Ok(Self {
            type_url: response.type_url,
            version: response.system_version_info.into(),
            nonce: response.nonce.into(),
            removed: response.removed_resources.into_iter().chain(variants).map(canonical_string).collect(),
            errors: response.resource_errors.into_iter().filter_map(reported).collect(),
            bytes,
            places,
            resource: |bytes| Resource::decode(bytes).map(|wrapper| Incoming::Wrapped(wrapper.into())),
        })
    }

    /// The resources, made one by one. They keep nothing of the frame's bytes.
    pub(super) fn resources(&self) -> impl ExactSizeIterator<Item = Result<Incoming, DecodeError>> {
        self.places.iter().map(|place| (self.resource)(&self.bytes[place.clone()]))
    }
}

/// The places of `resources`, which is field 2 of both responses, and the message without them. What is malformed is left
/// to the decoder as it is.
fn split(bytes: &Bytes) -> (Vec<Range<usize>>, Cow<'_, [u8]>) {
    match parts(bytes, 2) {
        Some((places, rest)) => (places, rest.into()),
        None => (Vec::new(), Cow::Borrowed(bytes)),
    }
}

fn reported(error: ResourceError) -> Option<ReportedError> {
    let (name, detail) = (error.resource_name?.name, error.error_detail.unwrap_or_default());
    Some(ReportedError { name: canonical_string(name), code: detail.code, message: detail.message })
}

// === Requests ===

/// `None`: these are words of the other variant.
pub(super) fn sotw(request: Request, node: &Node) -> Option<Named<DiscoveryRequest>> {
    let Asks::All { version, .. } = &request.asks else { return None };
    let rest = DiscoveryRequest {
        version_info: version.to_string(),
        node: request.with_node.then(|| node_message(node)),
        type_url: request.kind.type_url().to_owned(),
        response_nonce: request.nonce.to_string(),
        error_detail: request.nack.map(refusal),
        ..DiscoveryRequest::default()
    };
    Some(Named { rest, kind: request.kind, asks: request.asks })
}

/// `None`: these are words of the other variant.
pub(super) fn delta(request: Request, node: &Node) -> Option<Named<DeltaDiscoveryRequest>> {
    let Asks::Change { .. } = &request.asks else { return None };
    let rest = DeltaDiscoveryRequest {
        node: request.with_node.then(|| node_message(node)),
        type_url: request.kind.type_url().to_owned(),
        response_nonce: request.nonce.to_string(),
        error_detail: request.nack.map(refusal),
        ..DeltaDiscoveryRequest::default()
    };
    Some(Named { rest, kind: request.kind, asks: request.asks })
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

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::service::discovery::v3::ResourceName;

    /// What delta can say besides resources, in one frame: names are made canonical wherever they stand.
    #[test]
    fn a_delta_frame_tells_of_removals_in_either_spelling_and_of_errors() {
        let named = |name: &str| ResourceName { name: name.to_owned(), ..ResourceName::default() };
        let error = |name, code| ResourceError {
            resource_name: name,
            error_detail: Some(rpc::Status { code, message: "why".to_owned(), details: Vec::new() }),
        };
        let frame = DeltaDiscoveryResponse {
            removed_resources: vec!["a".to_owned(), "xdstp://x/t/b?k=2&a=1".to_owned()],
            removed_resource_names: vec![named("xdstp://x/t/c?k=2&a=1")],
            // One that names nothing is about nothing.
            resource_errors: vec![error(Some(named("xdstp://x/t/d?k=2&a=1")), 7), error(None, 5)],
            resources: vec![Resource { name: "e".to_owned(), ..Resource::default() }],
            nonce: "n".to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        let frame = Frame::delta(frame.encode_to_vec().into()).expect("well-formed");
        assert_eq!(frame.removed, ["a", "xdstp://x/t/b?a=1&k=2", "xdstp://x/t/c?a=1&k=2"]);
        let expected = ReportedError { name: "xdstp://x/t/d?a=1&k=2".to_owned(), code: 7, message: "why".to_owned() };
        assert_eq!(frame.errors, [expected]);
        assert_eq!((frame.resources().len(), &*frame.nonce), (1, "n"));
    }
}
