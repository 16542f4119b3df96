//! A script's words in delta: what a client says is put into the words of state of the world, and what the script says out
//! of them.
//!
//! It does NOT tell which versions a client says that it has.

use super::Said;
use mesh_xds::control_plane::proto::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, Resource},
    google::protobuf::Any,
};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// The names that a client is subscribed to, by type URL.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(BTreeMap<String, BTreeSet<String>>);

impl Subscriptions {
    pub(super) fn in_words_of_sotw(&mut self, request: DeltaDiscoveryRequest) -> DiscoveryRequest {
        let names = self.0.entry(request.type_url.clone()).or_default();
        for left in &request.resource_names_unsubscribe {
            names.remove(left);
        }
        names.extend(request.resource_names_subscribe);
        DiscoveryRequest {
            node: request.node,
            resource_names: names.iter().cloned().collect(),
            type_url: request.type_url,
            response_nonce: request.response_nonce,
            error_detail: request.error_detail,
            ..DiscoveryRequest::default()
        }
    }
}

pub(super) fn response(said: Said) -> DeltaDiscoveryResponse {
    let Said { response, removed } = said;
    let version = response.version_info.clone();
    DeltaDiscoveryResponse {
        system_version_info: response.version_info,
        resources: response.resources.into_iter().map(|resource| wrapped(resource, &version)).collect(),
        type_url: response.type_url,
        removed_resources: removed,
        nonce: response.nonce,
        resource_errors: response.resource_errors,
        ..DeltaDiscoveryResponse::default()
    }
}

fn wrapped(resource: Any, version: &str) -> Resource {
    /// Of all four types, the name is field 1.
    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }

    let name = Named::decode(&*resource.value).unwrap_or_default().name;
    Resource { name, version: version.to_owned(), resource: Some(resource), ..Resource::default() }
}
